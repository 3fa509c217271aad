"""A run's folder: the names of its files, its lock, and whether its files are as they were written.

Needs neither torch nor pandas: what only looks at folders answers at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frl_repro.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUN_FILE = "run.json"
WEIGHTS_FILE = "model.safetensors"
CLASSWISE_FILE = "classwise.csv"
HISTORY_FILE = "history.csv"
POLICY_FILE = "policy.csv"
SPLIT_FILE = "split.safetensors"
RESULT_FILES = (WEIGHTS_FILE, CLASSWISE_FILE, HISTORY_FILE, POLICY_FILE, RUN_FILE, SPLIT_FILE)
DONE_FILE = "done.json"
"""Written last: the run is complete. Holds the sha256 of each result file."""

STATE_FILE = "state.pt"
"""Where an unfinished training stands: a line of JSON (epoch, sha256 of what follows), then PyTorch's format."""
PREVIOUS_STATE_FILE = "state.previous.pt"
"""The state before that: what a damaged one is replaced by."""

_HEADER_SIZE = 4096  # bytes in which a state's first line ends; it is a tenth of that
# A look at the lock (`is_held`) takes it for microseconds: who is refused asks again this often and this much later.
_NUM_TRIES, _SECONDS_BETWEEN = 5, 0.02


def walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield every folder below ``top`` with its folders and files as `os.walk` does, those behind links as well.

    Each is met once, by its own name where it has one below ``top``; folders taken off a list are not entered.
    """
    met: set[str] = set()
    waiting = [top]
    while waiting:
        for name, folders, files in os.walk(waiting.pop(0)):
            here, place = Path(name), os.path.realpath(name)
            if place in met:
                folders.clear()
                continue
            met.add(place)
            yield here, folders, files
            waiting += [here / folder for folder in sorted(folders) if (here / folder).is_symlink()]


def sha256(path: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    UserError
        The file holds something else, or half of one.
    OSError
        It cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # JSON and UTF-8 decoding errors alike
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, not a JSON object: delete the folder {path.parent} and repeat the run")
    return content


def recorded_sha256(folder: Path) -> dict[str, str]:
    """Return the sha256 of each result file as ``done.json`` has it; empty for a folder without.

    Raises
    ------
    UserError
        ``done.json`` is damaged.
    """
    path = folder / DONE_FILE
    if not path.is_file():
        return {}
    recorded = read_object(path).get("sha256", {})
    if not isinstance(recorded, dict):
        raise UserError(f"{path} is damaged: delete the folder {folder} and repeat the run")
    return {str(name): str(digest) for name, digest in recorded.items()}


def check_file(path: Path, content: bytes | None = None) -> None:
    """Refuse a result file of a finished run that is no longer as it was written; others pass.

    Parameters
    ----------
    path : Path
    content : bytes, optional
        What has been read from it, where it has.

    Raises
    ------
    UserError
        The sha256 is another one.
    """
    expected = recorded_sha256(path.parent).get(path.name)
    if expected is None:
        return
    found = sha256(path) if content is None else hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is damaged: its sha256 is not the one that {DONE_FILE} recorded when the run ended; "
            f"delete the folder {path.parent} and repeat the run"
        )


def check_finished(folder: Path) -> None:
    """Refuse a finished run of which a result file is missing or no longer as it was written.

    Raises
    ------
    UserError
        Naming the file.
    """
    done, run = read_object(folder / DONE_FILE), read_object(folder / RUN_FILE)
    if not done.get("sha256") or any(done.get(name) != run.get(name) for name in ("run_id", "config_hash")):
        raise UserError(
            f"{folder / DONE_FILE} is damaged, or of another run than {RUN_FILE}; "
            f"delete the folder {folder} and repeat the run"
        )
    for name in recorded_sha256(folder):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing, though {DONE_FILE} says that the run wrote it; "
                f"delete the folder {folder} and repeat the run"
            )
        check_file(folder / name)


def has_state(folder: Path) -> bool:
    """Return whether a training has left a state to continue from."""
    return (folder / STATE_FILE).exists() or (folder / PREVIOUS_STATE_FILE).exists()


def forget_state(folder: Path) -> None:
    """Remove what a training would continue from."""
    for name in (PREVIOUS_STATE_FILE, STATE_FILE):
        (folder / name).unlink(missing_ok=True)


def state_header(path: Path) -> dict[str, Any] | None:
    """Return the first line of a state: ``epoch`` and ``sha256``; None where there is none to be read."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER_SIZE).partition(b"\n")[0])
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


@contextmanager
def held(folder: Path, *, wait: bool, log: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

    Parameters
    ----------
    folder : Path
    wait : bool
        Wait for another process, instead of refusing.
    log : callable
        Takes a message for people.

    Raises
    ------
    UserError
        Another process works in the folder, and ``wait`` is false.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            if not _locked(descriptor):
                if not wait:
                    raise UserError(f"{folder}: another process is working on this run")
                log(f"waiting for another process that trains {folder}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some network file systems cannot lock a folder
            log(f"{folder} cannot be locked: do not start the same run twice at once")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    for attempt in range(_NUM_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < _NUM_TRIES - 1:
                time.sleep(_SECONDS_BETWEEN)
        else:
            return True
    return False


def is_held(folder: Path) -> bool:
    """Return whether a process holds the folder (`held`)."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
