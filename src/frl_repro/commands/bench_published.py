"""Results of the bench that are committed: which runs they are, and what later tracks take from them."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

from frl_repro.basics.errors import UserError
from frl_repro.basics.run_folder import CLASSWISE_FILE, DONE_FILE, POLICY_FILE, RUN_FILE
from frl_repro.commands.bench_jobs import Job, jobs, without_seed
from frl_repro.results.protocol import AUTOATTACK_FOLDER, CONTESTANTS, REGISTRATION, STARTS, TRACKS, Track
from frl_repro.results.registration import BENCH_COLUMNS, bench_runs
from frl_repro.results.tables.outcomes import OUTCOMES_FILE

SHOWN = "outputs/reference/bench"
PUBLISHED = Path(SHOWN)
"""Committed results: a folder for each track, in it one for each run, without weights and without outcomes by image."""

_FILES = (CLASSWISE_FILE, RUN_FILE, POLICY_FILE)


class NotPickedError(UserError):
    """The tracks that methods are picked from have not run."""


def registered_list() -> str:
    """Return the rows of ``registered_bench.csv``: each setting of each track with the names of its runs."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(BENCH_COLUMNS)
    for track in TRACKS.values():
        for job in _registered_jobs(track):
            names = {seed: without_seed(job.config(seed).run_id) for seed in track.seeds}
            ((pattern, _),) = {(pattern, "") for pattern, _ in names.values()}
            hashes = " ".join(f"{seed}:{digest}" for seed, (_, digest) in names.items())
            row = [REGISTRATION, track.name, job.start, job.method, job.setting, pattern, hashes]
            writer.writerow([*row, " ".join(job.overrides)])
    return content.getvalue()


def _registered_jobs(track: Track) -> list[Job]:
    """Return every setting that may run on a track: where methods are picked later, all of them."""
    return list(jobs(track, track.methods or tuple(CONTESTANTS), STARTS, is_published_only=False))


def is_published(run_id: str) -> bool:
    """Return whether a run's results are committed: it need not run again."""
    run = bench_runs().get(run_id)
    return run is not None and (PUBLISHED / run.track / run_id / CLASSWISE_FILE).exists()


def publish(runs: Path) -> int:
    """Copy tables of finished registered runs to where results are committed; return how many stand there."""
    registered = bench_runs()
    for done in sorted(runs.glob(f"*/{DONE_FILE}")):
        run = registered.get(done.parent.name)
        if run is None:
            continue
        _copy(done.parent, PUBLISHED / run.track / done.parent.name)
    for done in sorted((runs / AUTOATTACK_FOLDER).glob(f"*/{OUTCOMES_FILE}")):
        run = registered.get(done.parent.name.rpartition("-")[0])
        if run is not None:
            _copy(done.parent, PUBLISHED / run.track / AUTOATTACK_FOLDER / done.parent.name)
    return sum(is_published(run_id) for run_id in registered)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (source / name).exists():
            shutil.copy2(source / name, target / name)


def picked(runs: Path) -> dict[str, str]:
    """Return the methods that a track takes from two others, each with the setting that was chosen there most often."""
    from frl_repro.results.report.bench_front import front_methods
    from frl_repro.results.report.bench_models import read_bench

    try:
        return front_methods(read_bench(folders(runs) or [runs]))
    except UserError as problem:
        raise NotPickedError(f"methods=front: {problem}") from None


def folders(runs: Path) -> list[Path]:
    """Return where the bench's tables lie: the runs of this machine, and those that are committed."""
    return [folder for folder in (runs, PUBLISHED) if folder.exists()]
