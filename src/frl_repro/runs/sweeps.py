"""Records of a sweep: which runs are still to come, which failed and why, and the time left.

``sweep-<hash>.json`` in the output folder lists the sweep's runs; it is there from the start of the sweep until every
job has come to its end, and stays when the sweep is killed: the same command takes it up again. ``failed.json`` lists
the jobs that failed. Paths in both are relative to their own folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from frl_repro.basics import readback
from frl_repro.basics.atomic import write_text
from frl_repro.basics.errors import UserError
from frl_repro.basics.folder_lock import held
from frl_repro.basics.regular_files import read_bytes
from frl_repro.basics.run_folder import DONE_FILE
from frl_repro.basics.time_left import duration, seconds_left

FAILED_FILE = "failed.json"
PLAN_PATTERN = "sweep-*.json"
# Begins the names of the files, in a sweep's scratch folder, in which jobs say what became of them. There follow when
# the job ended, in nanoseconds of a clock that nobody sets and all processes of a machine share, how many milliseconds
# it took, and something random.
_OUTCOME_PREFIX = "outcome-"

_REMEDY = "delete it, runs do not need it"
_FOLDER = readback.text(max_length=4096, what="a path in one line")
_FAILURE = {
    "job": readback.ANY_TEXT,
    "reason": readback.ANY_TEXT,
    "run": readback.maybe(_FOLDER),
}
_FAILURES = readback.items(readback.fields(_FAILURE))
_PLAN = readback.fields({"runs": readback.items(_FOLDER)}, {"process": readback.ANY_TEXT})
_OUTCOME = readback.fields(
    {**_FAILURE, "output_dir": readback.ANY_TEXT}, {"seconds": readback.number(0), "folder": readback.ANY_TEXT}
)

_WINDOW = 20  # jobs that the estimate of the time left uses: the last ones


@contextmanager
def planned(runs: Sequence[tuple[str, Path]], *, command: str) -> Iterator[None]:
    """Keep the list of a sweep's runs in its output folders until the block ends without an exception.

    Parameters
    ----------
    runs : sequence of (str, Path)
        Output folder and run folder of each job.
    command : str
        The command line.
    """
    plans: dict[Path, str] = {}
    made = [Path(output_dir) for output_dir in {of for of, _ in runs} if not Path(output_dir).exists()]
    for output_dir in sorted({output_dir for output_dir, _ in runs}):
        names = sorted({relative(folder, output_dir) for of, folder in runs if of == output_dir})
        digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:8]
        path = Path(output_dir) / PLAN_PATTERN.replace("*", digest)
        # The list is optional: a folder that cannot be written to fails in the jobs, with their message.
        with suppress(OSError):
            # The process id tells two sweeps of the same runs apart.
            plan = {"command": command, "process": f"{platform.node()} {os.getpid()}", "runs": names}
            plans[path] = json.dumps(plan, indent=2) + "\n"
            write_text(path, plans[path])
    try:
        yield
    except (Exception, SystemExit):
        if any(folder.exists() for _, folder in runs):
            raise
        # Nothing was begun that could be taken up again, but by another process that has written the list anew.
        _remove([path for path, text in plans.items() if _text_of(path) == text])
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
    _remove(plans)


def _text_of(path: Path) -> str | None:
    try:
        return read_bytes(path).decode()
    except (OSError, ValueError):
        return None


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def relative(folder: Path, output_dir: str | Path) -> str:
    """Return a run's folder as these files name it."""
    try:
        return Path(os.path.relpath(folder, output_dir)).as_posix()
    except ValueError:  # another drive
        return str(folder)


def note_failures(outcomes: Iterable[Mapping[str, Any]]) -> None:
    """Bring ``failed.json`` of each output folder up to date, and remove it where nothing is left in it.

    What other sweeps have noted there stays, but for runs of this one, those that are done since, and those of which
    there is no folder.

    Parameters
    ----------
    outcomes : iterable of mapping
        ``job``, ``output_dir``, ``reason`` (empty: it succeeded) and ``run`` of each job.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    outcomes = list(outcomes)
    for folder in sorted({outcome["output_dir"] for outcome in outcomes}):
        path = Path(folder) / FAILED_FILE
        of_folder = [outcome for outcome in outcomes if outcome["output_dir"] == folder]
        entries = [
            {name: outcome[name] for name in ("job", "reason", "run")} for outcome in of_folder if outcome["reason"]
        ]
        if not entries and not path.parent.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with held(path.parent, wait=True):  # two sweeps may end at the same time
            others = _failures_of_others(path, {outcome["run"] for outcome in of_folder})
            if others or entries:
                write_text(path, json.dumps([*others, *entries], indent=2) + "\n")
            else:
                path.unlink(missing_ok=True)


def _failures_of_others(path: Path, runs: Collection[str | None]) -> list[dict[str, Any]]:
    """Return the failures of a list that are still current, without those of ``runs``."""
    try:
        noted = read_list(path)
    except (UserError, OSError):  # missing or damaged
        return []
    folders = [(entry, path.parent / entry["run"]) for entry in noted if entry.get("run") not in (None, *runs)]
    return [entry for entry, folder in folders if folder.is_dir() and not (folder / DONE_FILE).exists()]


def read_list(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a ``failed.json``: ``job``, ``reason`` and ``run``.

    Raises
    ------
    UserError
        It is damaged.
    """
    entries: list[dict[str, Any]] = readback.read_json(path, _FAILURES, remedy=_REMEDY)
    return entries


def read_plan(path: Path) -> list[str]:
    """Return the runs of a list of `planned`, relative to its folder.

    Raises
    ------
    UserError
        It is damaged.
    """
    runs: list[str] = readback.read_json(path, _PLAN, remedy=_REMEDY)["runs"]
    return runs


def is_under_way(path: Path) -> bool:
    """Return whether the process still runs, on this machine, that wrote a list of `planned`."""
    try:
        plan: dict[str, Any] = readback.read_json(path, _PLAN, remedy=_REMEDY)
        machine, _, number = plan.get("process", "").rpartition(" ")
        if machine != platform.node() or not number.isdecimal() or int(number) <= 0:
            return False
        os.kill(int(number), 0)
    except PermissionError:
        return True
    except (UserError, OSError, OverflowError):
        return False
    return True


def read_outcome(path: Path) -> dict[str, Any]:
    """Return what a job left of itself: ``job``, ``output_dir``, ``reason`` and ``run``.

    Raises
    ------
    UserError
        It is damaged.
    """
    outcome: dict[str, Any] = readback.read_json(path, _OUTCOME, remedy="repeat the command")
    return outcome


def note_outcome(scratch: Path, outcome: Mapping[str, Any]) -> None:
    """Write the outcome of a finished job to the sweep's scratch folder; ``seconds``: what it took, where known."""
    seconds = outcome.get("seconds", 0.0)
    name = f"{_OUTCOME_PREFIX}{time.monotonic_ns()}-{round(1000 * seconds)}-{uuid.uuid4().hex}"
    write_text(scratch / name, json.dumps(outcome))


def read_outcomes(scratch: Path) -> list[dict[str, Any]]:
    """Return the outcomes of a sweep's jobs, in the order in which they ended."""
    names = [path.name for path in scratch.glob(f"{_OUTCOME_PREFIX}*")]
    return [read_outcome(scratch / name) for name in sorted(names, key=_ended)]


def _ended(name: str) -> int:
    return int(name.removeprefix(_OUTCOME_PREFIX).partition("-")[0])


def progress_line(scratch: Path, *, num_jobs: int, at_once: int = 1) -> str:
    """Return the progress of a sweep from the files of its jobs, whichever process they ran in.

    Parameters
    ----------
    scratch : Path
        The sweep's scratch folder.
    num_jobs : int
    at_once : int
        Jobs under way at the same time.
    """
    seconds = ended_jobs(scratch)
    num_left = num_jobs - len(seconds)
    line = f"sweep: {len(seconds)} of {num_jobs} jobs have ended"
    left = seconds_left(seconds[-_WINDOW:], num_left, at_once=at_once)
    return line if num_left <= 0 or left is None else f"{line}, about {duration(left)} left"


def ended_jobs(scratch: Path) -> list[float]:
    """Return how many seconds each job of a sweep took that has ended, in the order in which they ended."""
    with os.scandir(scratch) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(_OUTCOME_PREFIX)]
    return [int(name.split("-")[2]) / 1000 for name in sorted(names, key=_ended)]
