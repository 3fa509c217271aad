"""``scripts/status.py``: which runs are done, running, failed, stopped or still waiting. Reads folders only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from frl_repro.basics.errors import UserError, one_line
from frl_repro.basics.folder_lock import LOCK_FILE, is_held, told
from frl_repro.basics.paths import in_home
from frl_repro.basics.run_folder import (
    CLASSWISE_FILE,
    DONE_FILE,
    PREVIOUS_STATE_FILE,
    RUN_FILE,
    STATE_FILE,
    check_finished,
    check_notes,
    read_object,
    state_header,
    walk,
)
from frl_repro.basics.time_left import duration
from frl_repro.commands.following import Sight, follow
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, switch, usage_text
from frl_repro.runs.sweeps import FAILED_FILE, PLAN_PATTERN, is_under_way, read_list, read_plan

_KEYS = {
    "runs": "folder (searched recursively), or a comma-separated list of them   [outputs]",
    "show": "open: runs that are not done; all; none: the counts alone   [open]",
    "verify": "true: compare the files of finished runs with their checksums   [false]",
    "follow": "true: watch until nothing runs any more (Ctrl-C ends it)   [false]",
}
_PUBLISHED = "reference"  # folder in outputs/ that holds committed tables

_STATES = ("done", "running", "failed", "damaged", "stopped", "waiting")
_TROUBLE, _OPEN = ("failed", "damaged"), ("running", "stopped", "waiting")
_EXIT_OPEN, _EXIT_TROUBLE = 2, 3


@dataclass(frozen=True)
class _Run:
    """What a folder says of its run.

    Attributes
    ----------
    state : str
        One of ``_STATES``.
    progress : str
        ``"3/15"``: epochs trained and asked for.
    changed : float or None
        When the folder last changed, in seconds since 1970.
    note : str
        Why it failed, or what is damaged.
    left : float or None
        Seconds that it will still train, where its process says so.
    """

    folder: Path
    state: str
    progress: str = ""
    changed: float | None = None
    note: str = ""
    left: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Show what ``argv`` (default: the command line) asks for; returns the exit code."""
    return run(argv, keys=_KEYS, usage=_usage, act=_status)


def _status(given: dict[str, str]) -> tuple[str, int]:
    text = given.get("runs", "outputs")
    folders = [Path(in_home(part.strip())) for part in ([text] if Path(in_home(text)).exists() else text.split(","))]
    show = choice("show", given.get("show", "open"), ("open", "all", "none"))
    verify = switch("verify", given.get("verify", "false"))
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"runs={folder}: no such folder")
    if not switch("follow", given.get("follow", "false")):
        sight = _look(folders, text, show=show, verify=verify)
        return sight.text, sight.code
    if verify:
        raise UserError("verify=true and follow=true cannot go together: files of finished runs change no more")
    return follow(lambda: _look(folders, text, show=show, verify=False), text)


def _look(folders: Sequence[Path], text: str, *, show: str, verify: bool) -> Sight:
    """Return what there is below folders now; ``text``: how they were typed."""
    plans: list[Path] = []
    by_folder = {run.folder: run for folder in folders for run in _runs_below(folder, plans, verify=verify)}
    found = [run for _, run in sorted(by_folder.items())]
    counts = {state: sum(run.state == state for run in found) for state in _STATES}
    shown = [run for run in found if show == "all" or (show == "open" and run.state != "done")]
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [f"{len(found)} runs under {text}: {summary}" if found else f"no runs under {text}"]
    if shown:
        lines += ["", _table(shown)]
    if any(counts[state] for state in _TROUBLE):
        code = _EXIT_TROUBLE
    else:
        code = _EXIT_OPEN if any(counts[state] for state in _OPEN) else 0
    return Sight(
        text="\n".join(lines) + "\n",
        states={run.folder: run.state for run in found},
        progress={run.folder: run.progress for run in found},
        is_under_way=counts["running"] > 0 or any(map(is_under_way, plans)),
        code=code,
    )


def _runs_below(top: Path, plans: list[Path], *, verify: bool) -> Iterator[_Run]:
    """Yield what is known of every run below a folder, and of those that lists of sweeps name; collect these lists."""
    reasons: dict[Path, str] = {}
    planned: set[Path] = set()
    found: dict[Path, _Run] = {}
    lists: list[Path] = []
    for here, folders, files in walk(top):
        if RUN_FILE in files:
            folders.clear()  # a run's own subfolders hold no runs
            run = _run_in(here, files, verify=verify)
            if run is not None:
                found[here] = run
            continue
        folders[:] = sorted(name for name in folders if name != _PUBLISHED)
        lists += [here / name for name in files if name == FAILED_FILE or Path(name).match(PLAN_PATTERN)]
    for path in lists:
        try:
            if path.name == FAILED_FILE:
                for entry in read_list(path):
                    folder = entry.get("run") or entry.get("job", "unknown job")
                    reasons[_beside(path, str(folder))] = str(entry.get("reason"))
            else:
                planned |= {_beside(path, name) for name in read_plan(path)}
                plans.append(path)
        except (UserError, OSError) as problem:
            found[path] = _Run(path, "damaged", note=str(problem))
    for folder, why in reasons.items():
        known = found.get(folder, _Run(folder, "stopped"))
        if known.state == "stopped":  # else it has been repeated since, or is being repeated
            found[folder] = _Run(folder, "failed", known.progress, known.changed, why)
    for folder in planned - found.keys():
        if not (folder / RUN_FILE).exists():  # outside the folder that was searched
            found[folder] = _Run(folder, "waiting")
    yield from found.values()


def _beside(path: Path, name: str) -> Path:
    return Path(os.path.normpath(path.parent / name))


def _run_in(folder: Path, files: Sequence[str], *, verify: bool) -> _Run | None:
    """Return what a folder says of its run; None where it holds a measurement of a checkpoint."""
    try:
        recorded = read_object(folder / RUN_FILE)
        if "config_hash" not in recorded and "config" in recorded:
            return None
        changed = max(_changed(folder / name) for name in ["", *files] if name != LOCK_FILE)  # it is renewed anyway
        num_epochs = _num_epochs(recorded)
        if DONE_FILE in files:
            check_finished(folder) if verify else check_notes(folder)
            return _Run(folder, "done", f"{num_epochs}/{num_epochs}", changed)
        name = STATE_FILE if STATE_FILE in files else PREVIOUS_STATE_FILE
        epoch: object = 0
        if name in files:
            epoch = (state_header(folder / name) or {}).get("epoch", "?")
        if not is_held(folder):
            if _PUBLISHED in folder.parts and name not in files and CLASSWISE_FILE in files:  # weights stay elsewhere
                return _Run(folder, "done", f"{num_epochs}/{num_epochs}", changed)
            return _Run(folder, "stopped", f"{epoch}/{num_epochs}", changed)
        about = told(folder)
        if "epochs" in about:
            epoch = f"{about['epochs']:.1f}"
        left = max(0.0, about["left"] - about["age"]) if "left" in about else None
        return _Run(folder, "running", f"{epoch}/{num_epochs}", changed, left=left)
    except (UserError, OSError) as problem:
        return _Run(folder, "damaged", note=str(problem))


def _num_epochs(recorded: dict[str, object]) -> object:
    config = recorded.get("config")
    if isinstance(config, dict):
        part = config.get("retrain") or config
        trainer = part.get("trainer") if isinstance(part, dict) else None
        if isinstance(trainer, dict):
            num_epochs = trainer.get("num_epochs")
            return num_epochs if isinstance(num_epochs, int) else "?"
    return "?"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a temporary file that has taken its place meanwhile
        return 0.0


def _table(runs: Sequence[_Run]) -> str:
    """Return a line for each run: what is done about it, how far it is, the time left, how long ago it changed."""
    now = time.time()
    rows = [["state", "epoch", "left", "changed", "run"]]
    for item in sorted(runs, key=lambda item: (_STATES.index(item.state), item.folder)):
        ago = "" if item.changed is None else f"{duration(max(0.0, now - item.changed))} ago"
        left = "" if item.left is None else duration(item.left)
        rows.append([item.state, item.progress, left, ago, str(item.folder)])
        if item.note:
            rows.append(["", "", "", "", f"  {one_line(item.note)}"])
    if all(item.left is None for item in runs):
        rows = [[*row[:2], *row[3:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for state, *numbers, folder in rows:
        aligned = [f"{text:>{width}}" for text, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([f"{state:<{widths[0]}}", *aligned, folder]).rstrip())
    return "\n".join(lines)


def _usage() -> str:
    program = program_name()
    return usage_text(
        "Show which runs are done, running, failed, stopped half-way or still waiting. Reads folders only.",
        program=program,
        keys=_KEYS,
        sections={
            "states": (
                "  done      complete; in outputs/reference, its tables are committed\n"
                "  running   a process works on it now\n"
                "  failed    the last sweep gave a reason (failed.json)\n"
                "  damaged   a file is not what was written (verify=true looks into finished runs)\n"
                "  stopped   interrupted; the same command continues after the epoch shown\n"
                "  waiting   a sweep that was begun will come to it (sweep-*.json)"
            ),
            "exit code": "  0 all done, 1 mistake, 2 some running, stopped or waiting, 3 some failed or damaged",
            "examples": (f"  {program}\n  {program} runs=outputs/exp2 show=all verify=true\n  {program} follow=true"),
        },
    )
