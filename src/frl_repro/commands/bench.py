"""``scripts/bench.py``: run every method under one protocol, and show table, figure and page of what has run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from frl_repro.basics.errors import UserError, reason
from frl_repro.basics.paths import in_home
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, switch, usage_text, whole_number
from frl_repro.results.protocol import BASE, CONTESTANTS, CONTROL, SCRATCH, SEEDS, STARTS, TRACKS, Contestant, Track

_PUBLISHED, _ALL = "published", "all"

_SET_ELSEWHERE = {
    "experiment": "track", "frl": "methods", "output_dir": "runs", "recipe": "starts", "run_dir": "runs",
    "seed": "seeds",
}  # fmt: skip
"""Settings that ``set=`` may not have, and which key of the bench decides them."""

_KEYS = {
    "track": f"data and network: {', '.join(TRACKS)}   [{next(iter(TRACKS))}]",
    "methods": "comma-separated contestants, or any frl= of yours   [all]",
    "starts": f"{BASE}, {SCRATCH}, or both   [{','.join(STARTS)}]",
    "settings": f"{_ALL} tries every method's settings, {_PUBLISHED} the first one alone   [{_ALL}]",
    "seeds": f"comma-separated   [{','.join(map(str, SEEDS))}]",
    "set": "settings added to every run, separated by spaces (retrain.*: to those from a base)   [none]",
    "dry": "true prints the commands and runs nothing   [false]",
    "show": "true runs nothing: table, figure and page of what has run   [false]",
    "runs": "folder of the runs   [outputs/bench]",
    "out": "folder for leaderboard.html, leaderboard.csv and figures   [that of the runs]",
}


@dataclass(frozen=True)
class Job:
    """One setting of a method on the bench, of all seeds.

    Attributes
    ----------
    method, start : str
    overrides : tuple of str
        Settings of ``train.py``; the seed is not among them.
    """

    method: str
    start: str
    overrides: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what ``argv`` (default: the command line) asks for; returns the exit code."""
    return run(argv, keys=_KEYS, usage=_usage, act=_bench)


def jobs(
    track: Track, methods: Sequence[str], starts: Sequence[str], *, is_published_only: bool, more: Sequence[str] = ()
) -> Iterator[Job]:
    """Yield every setting with the number of epochs that the budget pays for.

    The budget is what the control costs that retrains from its base for the recipe's epochs, the base included.
    """
    budget = Budget(track, _of_start(BASE, more))
    for method in methods:
        contestant = CONTESTANTS.get(method, Contestant(method))
        for start in starts:
            if start not in contestant.starts or (contestant.needs_imbalance and "imbalance" not in track.overrides):
                continue
            for setting in contestant.settings[: 1 if is_published_only else None]:
                overrides = (*_overrides(track, contestant, start, setting), *_of_start(start, more))
                key = "retrain.trainer.num_epochs" if start == BASE else "trainer.num_epochs"
                yield Job(method, start, (*overrides, f"{key}={budget.num_epochs(overrides)}"))


class Budget:
    """How many epochs a setting may train, so that no run costs more image-steps than the control."""

    def __init__(self, track: Track, more: Sequence[str]) -> None:
        from frl_repro.commands.jobs import configure
        from frl_repro.data import load_dataset
        from frl_repro.training.budget import image_steps

        shared = [one for one in more if not one.lstrip("+").startswith(("frl.", "alpha.", "tau."))]
        control = configure(*_overrides(track, CONTESTANTS[CONTROL], BASE, ""), *shared)
        dataset = load_dataset(control.dataset)
        self.sizes = {
            "num_train": len(dataset.train),
            "num_validation": 0 if dataset.validation is None else len(dataset.validation),
        }
        self.image_steps = image_steps(control, **self.sizes).total

    def num_epochs(self, overrides: Sequence[str]) -> int:
        """Return the epochs that the budget pays for.

        Raises
        ------
        UserError
            It does not pay for one.
        """
        from frl_repro.commands.jobs import configure
        from frl_repro.training.budget import epochs_within

        number = epochs_within(self.image_steps, configure(*overrides), **self.sizes)
        if number < 1:
            raise UserError(f"{shlex.join(overrides)}: one epoch costs more than the control's whole training")
        return number


def _overrides(track: Track, contestant: Contestant, start: str, setting: str) -> tuple[str, ...]:
    of_start = track.base if start == BASE else f"recipe={SCRATCH} {track.scratch}"
    looks = track.looks if contestant.looks else ""
    text = f"experiment=bench {track.overrides} frl={contestant.frl} {of_start} {looks} {setting}"
    return tuple(text.split())


def _of_start(start: str, settings: Sequence[str]) -> list[str]:
    """Return those of the settings that runs with this start have: from scratch there is no retraining."""
    return [one for one in settings if start == BASE or not one.startswith("retrain.")]


def _bench(given: dict[str, str]) -> str | tuple[str, int]:
    track = TRACKS[choice("track", given.get("track", next(iter(TRACKS))), TRACKS)]
    methods = _once("methods", given.get("methods", ",".join(CONTESTANTS)))
    if "none" in methods:
        raise UserError(f"methods=none is no method: the control is {CONTROL}, and a base is trained for who needs it")
    starts = [choice("starts", name, STARTS) for name in _once("starts", given.get("starts", ",".join(STARTS)))]
    is_published_only = choice("settings", given.get("settings", _ALL), (_ALL, _PUBLISHED)) == _PUBLISHED
    seeds = [whole_number("seeds", seed, least=0) for seed in _once("seeds", given.get("seeds", _listed(SEEDS)))]
    is_dry = switch("dry", given.get("dry", "false"))
    shows_only = switch("show", given.get("show", "false"))
    try:
        more = shlex.split(given.get("set", ""))
    except ValueError as problem:
        raise UserError(f"set={given['set']} cannot be read ({problem}): close the quotes") from None
    for override in more:
        if (key := override.partition("=")[0].lstrip("+")) in _SET_ELSEWHERE:
            raise UserError(f"set={override}: the bench sets {key} itself; give {_SET_ELSEWHERE[key]}=")
    runs = Path(in_home(given.get("runs", "outputs/bench")))
    failed: list[str] = []
    if not shows_only:
        found = list(jobs(track, methods, starts, is_published_only=is_published_only, more=more))
        if not found:
            raise UserError(f"methods={','.join(methods)} has nothing to run with starts={','.join(starts)}")
        if is_dry:
            return "".join(f"train.py -m {shlex.join(job.overrides)} seed={_listed(seeds)}\n" for job in found)
        command = f"{program_name()} {shlex.join(f'{key}={value}' for key, value in given.items())}"
        failed = _run(found, seeds, runs, command)
    text = _show(runs, Path(in_home(given.get("out", str(runs)))))
    return (text + "".join(f"failed: {line}\n" for line in failed), 1) if failed else text


def _run(jobs: Sequence[Job], seeds: Sequence[int], runs: Path, command: str) -> list[str]:
    """Train every job with every seed, fused where settings allow; returns a line for each that failed."""
    from frl_repro.basics.progress import set_up_logging
    from frl_repro.commands.jobs import configure
    from frl_repro.runs.experiment import run_all

    set_up_logging()
    lines = [(*job.overrides, f"seed={seed}", f"output_dir={runs}") for job in jobs for seed in seeds]
    outcomes = run_all([configure(*line) for line in lines], command=command)
    return [
        f"train.py {shlex.join(line)}: {reason(outcome)}"
        for line, outcome in zip(lines, outcomes, strict=True)
        if isinstance(outcome, Exception)
    ]


def _show(runs: Path, out: Path) -> str:
    """Write table, figures and page of the runs; returns what to say."""
    from frl_repro.basics.atomic import write_text
    from frl_repro.results.figures.pareto import pareto_figure
    from frl_repro.results.figures.style import save
    from frl_repro.results.report.bench import COLUMNS, leaderboard, read_bench, said
    from frl_repro.results.report.bench_page import render
    from frl_repro.results.tables.writing import write_frame

    bench = read_bench(runs)
    board = leaderboard(bench)
    out.mkdir(parents=True, exist_ok=True)
    write_frame(out / "leaderboard.csv", board[list(COLUMNS)])
    written = [out / "leaderboard.csv"]
    for name, rows in board.groupby("track", sort=False):
        written += save(pareto_figure(rows), out, f"pareto-{name}")
    write_text(out / "leaderboard.html", render(bench, board))
    written.append(out / "leaderboard.html")
    return said(board) + "".join(f"wrote {path}\n" for path in written)


def _once(key: str, text: str) -> list[str]:
    """Return the parts of a list with commas, each of which may be there once."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if parts.count(part) > 1:
            raise UserError(f"{key}={text}: {part} is there twice")
    return parts


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _usage() -> str:
    program = program_name()
    examples = (
        f"  {program} seeds=20 settings=published\n"
        f"  {program} methods=mine seeds=20,21,22,23,24        add a method to a finished bench\n"
        f"  {program} show=true"
    )
    return usage_text(
        "Run every class-wise method under one protocol (docs/bench.md), and show table, figure and page. Repeat the "
        "command to continue.",
        program=program,
        keys=_KEYS,
        sections={"examples": examples},
    )
