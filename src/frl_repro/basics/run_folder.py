"""A run's folder: the names of its files, and whether its files are as they were written.

Needs neither torch nor pandas: what only looks at folders answers at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError
from frl_repro.basics.regular_files import check_regular

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

_LINE = readback.text()

# What is read of these notes, by whomever; the rest of them is for people.
_RUN_FIELDS: dict[str, readback.Check] = {
    "run_id": readback.file_name(),
    "config_hash": readback.text(r"[0-9a-f]+", max_length=64, what="a hash in hexadecimal digits"),
    "config": readback.SETTINGS,
    "data": readback.fields({}, {"digest": readback.SHA256}),
    "start": readback.maybe(readback.fields({"file": readback.ANY_TEXT, "sha256": readback.SHA256})),
    "command": readback.ANY_TEXT,
    "git_commit": readback.maybe(_LINE),
    "git_dirty": readback.maybe(readback.one_of(True, False)),
    "device": _LINE,
    "backend": _LINE,
    "versions": readback.entries(_LINE, readback.maybe(_LINE)),
    "wall_seconds": readback.number(0),
    "image_steps": readback.entries(_LINE, readback.maybe(readback.number(0))),
}
_DONE_FIELDS = {
    "run_id": _RUN_FIELDS["run_id"],
    "config_hash": _RUN_FIELDS["config_hash"],
    "sha256": readback.entries(readback.file_name(), readback.SHA256),
}
_FIELDS = {RUN_FILE: _RUN_FIELDS, DONE_FILE: _DONE_FIELDS}

_STATE_HEADER = readback.fields({"epoch": readback.whole(1), "sha256": readback.text(max_length=64)})
_HEADER_SIZE = 4096  # bytes in which a state's first line ends; it is a tenth of that


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
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run's folder, the fields that anyone reads of it checked.

    Raises
    ------
    UserError
        The file holds something else, half of one, or a field that is not what it must be.
    OSError
        It cannot be read.
    """
    check = readback.fields({}, _FIELDS.get(path.name, {}))
    content: dict[str, Any] = readback.read_json(path, check, remedy=_remedy(path.parent))
    return content


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} and repeat the run"


def recorded_sha256(folder: Path) -> dict[str, str]:
    """Return the sha256 of each result file as ``done.json`` has it; empty for a folder without.

    Raises
    ------
    UserError
        ``done.json`` is damaged, or cannot be read.
    """
    path = folder / DONE_FILE
    if not path.exists():
        return {}
    try:
        recorded: dict[str, str] = read_object(path).get("sha256", {})
    except OSError as problem:  # a pipe, for example: the message names it, not the file that is about to be read
        raise UserError(f"{path}: {problem.strerror}") from None
    return recorded


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


def check_notes(folder: Path) -> dict[str, Any]:
    """Return what ``done.json`` says of a finished run, when it is of the run that ``run.json`` is of.

    Raises
    ------
    UserError
        It is not.
    OSError
        One cannot be read.
    """
    done, run = read_object(folder / DONE_FILE), read_object(folder / RUN_FILE)
    if any(name not in run or done.get(name) != run[name] for name in ("run_id", "config_hash")):
        raise UserError(
            f"{folder / DONE_FILE} is damaged, or of another run than {RUN_FILE}; "
            f"delete the folder {folder} and repeat the run"
        )
    return done


def check_finished(folder: Path) -> None:
    """Refuse a finished run of which a result file is missing or no longer as it was written.

    Raises
    ------
    UserError
        Naming the file.
    """
    done = check_notes(folder)
    if not done.get("sha256"):
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
        check_regular(path)
        with path.open("rb") as file:
            return parse_state_header(file.read(_HEADER_SIZE).partition(b"\n")[0], path)
    except (OSError, UserError):
        return None


def parse_state_header(line: bytes, path: Path) -> dict[str, Any]:
    """Return what the first line of a state says, checked.

    Raises
    ------
    UserError
        It is no such line.
    """
    remedy = "delete it to train this run from the start"
    header = readback.parse_json(line, source=path, remedy=remedy)
    checked: dict[str, Any] = readback.checked(header, _STATE_HEADER, source=path, remedy=remedy)
    return checked
