"""A sweep of a thousand tiny jobs: the launcher's memory, seconds a job, `collect` and `status` afterwards.

    python benchmarks/sweep.py                            # the default launcher: what docs/reliability.md quotes
    python benchmarks/sweep.py jobs=100 launcher=joblib   # or another one
    python benchmarks/sweep.py out=docs/sweep.json

The sweep is the command that a user would type, in a process of its own whose memory is read after every job, from a
tenth of the jobs on: before, libraries are still loaded. Launchers that do jobs in other processes, or all at once, say
little by it. What launching costs is a job's share of the whole command
less what such a run takes in a process that does nothing else (median). Linux only: memory is read from /proc.
"""

from __future__ import annotations

import contextlib
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import bar
from frl_repro.commands import collect, jobs, status
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import run, usage_text, whole_number
from frl_repro.results.tables import writing
from frl_repro.runs import experiment

TINY = (
    "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=80", "dataset.num_test=30",
    "trainer.num_epochs=1", "trainer.batch_size=20", "attack.num_steps=1", "evaluation.num_steps=1", "num_threads=1",
    "backend=torch",
)  # fmt: skip
_KEYS = {
    "jobs": "how many, at least 2; with few, starting the program is most of what they cost   [1000]",
    "launcher": "hydra/launcher of the sweep   [that of conf/]",
    "out": "JSON file to write   [none]",
}
_NUM_ALONE = 20  # runs that tell what a job takes by itself


def swept(num_jobs: int, launcher: str | None, folder: Path) -> tuple[float, list[float]]:
    """Run the sweep; return its seconds and its memory in MiB after each job, from a tenth of the jobs on."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", f"seed=range(0,{num_jobs})", *TINY, f"output_dir={folder}"]
    if launcher is not None:
        command.append(f"hydra/launcher={launcher}")
    memory = []
    started = time.monotonic()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        bar("jobs", num_jobs) as advance,
    ):
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last = line.strip() or last
            if match := re.match(r"sweep: (\d+) of \d+ jobs have ended", line):
                advance(1)
                if int(match[1]) >= num_jobs / 10:
                    with contextlib.suppress(OSError):  # the last line may come from a process that has ended
                        memory.append(_resident_mebibytes(process.pid))
    if process.returncode:
        raise UserError(f"the sweep ended with exit code {process.returncode}: {last}")
    return time.monotonic() - started, memory


def alone(folder: Path) -> float:
    """Return the median seconds of a run in this process."""
    seconds = []
    for seed in range(_NUM_ALONE):
        config = jobs.configure(*TINY, f"seed={seed}", f"output_dir={folder}")
        started = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            experiment.run(config)
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


def timed(main: Callable[[Sequence[str]], int], *arguments: str) -> float:
    """Return the seconds of a program; UserError where it fails."""
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    if code:
        raise UserError(f"{' '.join(arguments)}: exit code {code}")
    return time.monotonic() - started


def measured(num_jobs: int, launcher: str | None) -> dict[str, Any]:
    """Return every figure of one sweep."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, memory = swept(num_jobs, launcher, folder / "sweep")
        each = seconds / num_jobs
        of_run = alone(folder / "alone")
        return {
            "launcher": launcher or "default",
            "jobs": num_jobs,
            "seconds": round(seconds),
            "seconds_a_job": round(each, 3),
            "seconds_of_a_run_alone": round(of_run, 3),
            "seconds_to_launch_a_job": round(each - of_run, 3),
            **_growth(memory),
            "collect_seconds": round(timed(collect.main, f"runs={folder / 'sweep'}"), 2),
            "status_seconds": round(timed(status.main, f"runs={folder / 'sweep'}"), 2),
        }


def _growth(memory: Sequence[float]) -> dict[str, float]:
    """Return the smallest and the largest of the samples and by what share they differ; nothing for fewer than two."""
    if len(memory) < 2:
        return {}
    smallest, largest = min(memory), max(memory)
    growth = round(largest / smallest - 1, 3)
    return {"memory_mib_smallest": round(smallest), "memory_mib_largest": round(largest), "memory_growth": growth}


def _resident_mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    if match is None:
        raise OSError("the process has ended")
    return int(match[1]) / 1024


def _act(given: dict[str, str]) -> str:
    figures = measured(whole_number("jobs", given.get("jobs", "1000"), least=2), given.get("launcher"))
    if "out" in given:
        writing.write_json(Path(given["out"]), figures)
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {k} | {v} |" for k, v in figures.items())]) + "\n"


def _usage() -> str:
    summary = "Run a sweep of tiny jobs and measure what surrounds them."
    return usage_text(summary, program=program_name(), keys=_KEYS, sections={})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sweep that ``argv`` asks for."""
    return run(argv, keys=_KEYS, usage=_usage, act=_act)


if __name__ == "__main__":
    sys.exit(main())
