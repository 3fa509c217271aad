"""``scripts/bench.py``: run every method under one protocol, and show table, figure and page of what has run."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frl_repro.basics.errors import UserError, reason
from frl_repro.basics.paths import in_home
from frl_repro.basics.run_folder import DONE_FILE
from frl_repro.commands import bench_autoattack, bench_published
from frl_repro.commands.bench_jobs import Budget, Job, jobs, of_start
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, switch, usage_text, whole_number
from frl_repro.results.protocol import (
    AUTOATTACK_SEEDS,
    BASE,
    CONTESTANTS,
    CONTROL,
    SCRATCH,
    SEEDS,
    STARTS,
    TRACKS,
    Track,
)

_PUBLISHED, _ALL, _FRONT = "published", "all", "front"

_SET_ELSEWHERE = {
    "experiment": "track", "frl": "methods", "output_dir": "runs", "recipe": "starts", "run_dir": "runs",
    "seed": "seeds",
}  # fmt: skip
"""Settings that ``set=`` may not have, and which key of the bench decides them."""

_KEYS = {
    "track": f"data and network: {', '.join(TRACKS)}   [{next(iter(TRACKS))}]",
    "methods": f"comma-separated contestants, or any frl= of yours; {_FRONT}: controls and what two tracks picked   "
    "[all of the track]",
    "starts": f"{BASE}, {SCRATCH}, or both   [{','.join(STARTS)}]",
    "settings": f"{_ALL} tries every method's settings, {_PUBLISHED} the first one alone   [{_ALL}]",
    "seeds": f"comma-separated   [{','.join(map(str, SEEDS))}; of some tracks the first three]",
    "set": "settings added to every run, separated by spaces (retrain.*: to those from a base)   [none]",
    "dry": "true prints the commands and what they cost, and runs nothing; track=all: of every track   [false]",
    "show": "true runs nothing: table, figure and page of what has run   [false]",
    "autoattack": f"true measures, after each of the seeds {','.join(map(str, AUTOATTACK_SEEDS))}, the chosen models "
    "with AutoAttack (extra `autoattack`)   [false]",
    "list": "true prints the registered runs as CSV, for registered_bench.csv, and runs nothing   [false]",
    "publish": f"true copies finished registered runs to {bench_published.SHOWN}, and runs nothing   [false]",
    "runs": "folder of the runs   [outputs/bench]",
    "out": "folder for leaderboard.html, leaderboard.csv and figures   [that of the runs]",
}


@dataclass(frozen=True)
class Request:
    """What a command line asks to be run.

    Attributes
    ----------
    track : Track
    methods, starts : sequence of str
    is_published_only : bool
    seeds : sequence of int
    more : sequence of str
        From ``set=``.
    runs : Path
    with_autoattack : bool
    """

    track: Track
    methods: Sequence[str]
    starts: Sequence[str]
    is_published_only: bool
    seeds: Sequence[int]
    more: Sequence[str]
    runs: Path
    with_autoattack: bool = False

    def jobs(self) -> list[Job]:
        """Return every setting; UserError where there is none."""
        only = None
        methods: Sequence[str] = self.methods
        if self.track.by_front or _FRONT in methods:
            only = bench_published.picked(self.runs)
            methods = [one for name in methods for one in (only if name == _FRONT else [name])]
        found = list(
            jobs(self.track, methods, self.starts, is_published_only=self.is_published_only, more=self.more, only=only)
        )
        if not found:
            raise UserError(f"methods={','.join(self.methods)} has nothing to run with starts={','.join(self.starts)}")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Do what ``argv`` (default: the command line) asks for; returns the exit code."""
    return run(argv, keys=_KEYS, usage=_usage, act=_bench)


def _bench(given: dict[str, str]) -> str | tuple[str, int]:
    runs = Path(in_home(given.get("runs", "outputs/bench")))
    if switch("list", given.get("list", "false")):
        return bench_published.registered_list()
    if switch("publish", given.get("publish", "false")):
        return f"{bench_published.publish(runs)} registered runs stand in {bench_published.PUBLISHED}\n"
    is_dry = switch("dry", given.get("dry", "false"))
    if given.get("track") == _ALL:
        if not is_dry:
            raise UserError(f"track={_ALL} is for dry=true: run one track after the other")
        return "".join(_costs(_request({**given, "track": name}, runs), shows_jobs=False) for name in TRACKS)
    request = _request(given, runs)
    if is_dry:
        return _costs(request, shows_jobs=True)
    failed: list[str] = []
    if not switch("show", given.get("show", "false")):
        command = f"{program_name()} {shlex.join(f'{key}={value}' for key, value in given.items())}"
        failed = _run(request, command)
    text = _show(runs, Path(in_home(given.get("out", str(runs)))))
    return (text + "".join(f"failed: {line}\n" for line in failed), 1) if failed else text


def _request(given: dict[str, str], runs: Path) -> Request:
    track = TRACKS[choice("track", given.get("track", next(iter(TRACKS))), TRACKS)]
    usual = (CONTROL, "ema", _FRONT) if track.by_front else track.methods or tuple(CONTESTANTS)
    methods = _once("methods", given.get("methods", ",".join(usual)))
    if "none" in methods:
        raise UserError(f"methods=none is no method: the control is {CONTROL}, and a base is trained for who needs it")
    starts = [choice("starts", name, STARTS) for name in _once("starts", given.get("starts", ",".join(STARTS)))]
    is_published_only = choice("settings", given.get("settings", _ALL), (_ALL, _PUBLISHED)) == _PUBLISHED
    seeds = _once("seeds", given.get("seeds", _listed(track.seeds)))
    try:
        more = shlex.split(given.get("set", ""))
    except ValueError as problem:
        raise UserError(f"set={given['set']} cannot be read ({problem}): close the quotes") from None
    for override in more:
        if (key := override.partition("=")[0].lstrip("+")) in _SET_ELSEWHERE:
            raise UserError(f"set={override}: the bench sets {key} itself; give {_SET_ELSEWHERE[key]}=")
    numbers = [whole_number("seeds", seed, least=0) for seed in seeds]
    with_autoattack = switch("autoattack", given.get("autoattack", "false"))
    return Request(track, methods, starts, is_published_only, numbers, more, runs, with_autoattack)


def _costs(request: Request, *, shows_jobs: bool) -> str:
    """Return the commands of a track, and how many runs and image-steps they come to."""
    budget = Budget(request.track, of_start(BASE, request.more))
    try:
        found = request.jobs()
    except bench_published.NotPickedError as problem:
        if shows_jobs:
            raise
        return f"{request.track.name}: {problem}\n"
    lines = [f"python train.py -m {shlex.join(job.overrides)} seed={_listed(request.seeds)}\n" for job in found]
    num_seeds, needs_base = len(request.seeds), any(job.start == BASE for job in found)
    own = sum(job.image_steps for job in found)
    total = num_seeds * (own + (budget.base if needs_base else 0))
    bases = f" and {_counted(num_seeds, 'base')}" if needs_base else ""
    summary = (
        f"{request.track.name}: {len(found)} settings of {len({job.method for job in found})} methods, "
        f"{_counted(num_seeds, 'seed')}: {_counted(len(found) * num_seeds, 'run')}"
        f"{bases}, "
        f"{total / 1e9:.2f} G image-steps; budget of a run {budget.image_steps / 1e6:.2f} M, "
        f"of it the base {budget.base / 1e6:.2f} M\n"
    )
    return ("".join(lines) if shows_jobs else "") + summary


def _run(request: Request, command: str) -> list[str]:
    """Train every job, all of one seed before the next, fused where settings allow; returns a line for each failure.

    Runs that are finished, or whose results are committed, are skipped.
    """
    from frl_repro.basics.progress import set_up_logging
    from frl_repro.runs.experiment import run_all

    set_up_logging()
    found, failed = request.jobs(), []
    for job in found:
        job.config(request.seeds[0], f"output_dir={request.runs}")  # a mistake in the last one stops the first
    if request.with_autoattack:
        from frl_repro.evaluation.autoattack import check

        check()
    clock = _Clock(num_runs=len(found) * len(request.seeds))
    for seed in request.seeds:
        for part in _together(found):
            configs = [job.config(seed, f"output_dir={request.runs}") for job in part]
            waiting = [
                (job, config)
                for job, config in zip(part, configs, strict=True)
                if not bench_published.is_published(config.run_id)
            ]
            is_new = [not (config.folder / DONE_FILE).exists() for _, config in waiting]
            outcomes = run_all([config for _, config in waiting], command=command)
            for (job, config), outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    failed.append(f"train.py {shlex.join(job.overrides)} seed={config.seed}: {reason(outcome)}")
            cost = sum(job.image_steps for (job, _), new in zip(waiting, is_new, strict=True) if new)
            left = _left(found, part, seed, request.seeds)
            clock.tell(f"seed {seed}, {part[0].method} from {part[0].start}", len(part), cost, left)
        if request.with_autoattack and seed in AUTOATTACK_SEEDS:
            names = {job.config(seed).run_id for job in found}
            machine = [one for one in request.more if one.startswith(("num_threads=", "device=", "backend="))]
            failed += bench_autoattack.measure_chosen(names, seed, request.runs, more=machine, command=command)
    return failed


def _together(found: Sequence[Job]) -> list[list[Job]]:
    """Return jobs by method and start: they share most settings, so that they are fused."""
    parts: dict[tuple[str, str], list[Job]] = {}
    for job in found:
        parts.setdefault((job.method, job.start), []).append(job)
    return list(parts.values())


def _left(found: Sequence[Job], part: Sequence[Job], seed: int, seeds: Sequence[int]) -> float:
    """Return the image-steps of the jobs that come after these."""
    after = found[list(found).index(part[-1]) + 1 :]
    later = len(seeds) - 1 - list(seeds).index(seed)
    return sum(job.image_steps for job in after) + later * sum(job.image_steps for job in found)


class _Clock:
    """Says how many runs stand, and from the image-steps so far how long the rest takes."""

    def __init__(self, num_runs: int) -> None:
        self.num_runs, self.done, self.image_steps, self.started = num_runs, 0, 0.0, time.monotonic()

    def tell(self, what: str, number: int, image_steps: float, left: float) -> None:
        self.done += number
        self.image_steps += image_steps
        seconds = time.monotonic() - self.started
        rest = ""
        if self.image_steps and left:
            rest = f", about {left / self.image_steps * seconds / 3600:.1f} h left"
        sys.stderr.write(f"[bench] {self.done} of {self.num_runs} runs ({what}){rest}\n")
        sys.stderr.flush()


def _show(runs: Path, out: Path) -> str:
    """Write table, figures and page of the runs; returns what to say."""
    from frl_repro.results.report.bench import said
    from frl_repro.results.report.bench_files import write_bench

    folders = bench_published.folders(runs)
    if not folders and not runs.exists():
        raise UserError(f"nothing has run yet under {runs}: python scripts/bench.py seeds=20 runs the first seed")
    files = write_bench(folders or [runs], out)
    return said(files.board) + "".join(f"wrote {path}\n" for path in files.written)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


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
