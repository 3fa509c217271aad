"""A 16-job grid on a SLURM cluster of one node, disturbed on the way, beside the same grid undisturbed in one process.

    python benchmarks/slurm_grid.py                     # what docs/reliability.md quotes
    python benchmarks/slurm_grid.py out=slurm.json

Needs what `slurm_cluster.py` needs, and submitit. One after the other, a job's process is killed (kill -9), a job is
cancelled, the node is drained and set down while jobs run (SLURM puts them back into the queue) and resumed, and a
job's time limit is cut to a minute. A disturbed job stands still (SIGSTOP) until it is. The grid must end complete,
with one base and the bytes of the other.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import slurm_cluster

from frl_repro.basics.errors import UserError
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import run, usage_text
from frl_repro.results.tables import writing

GRID = (
    "-m", "frl=reweight", "sweep=alpha_grid", "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=120",
    "dataset.num_test=30", "dataset.validation_fraction=0.25", "trainer.num_epochs=1", "attack.num_steps=2",
    "evaluation.num_steps=2", "frl.num_validation=12", "frl.num_steps=2", "retrain.trainer.num_epochs=4",
    "retrain.trainer.batch_size=10", "retrain.attack.num_steps=2", "num_threads=1", "backend=torch",
)  # fmt: skip
_KEYS = {"out": "JSON file to write   [none]"}
_NUM_JOBS = 16
_NOT_COMPARED = ("run.json", "done.json")  # they hold seconds, machine and checksums
_SECONDS = 1800.0  # after which the grid counts as hanging


class Disturbances:
    """What happens to jobs on the way; each is done once, as soon as a job is in the middle of its training."""

    def __init__(self, cluster: Path, outputs: Path) -> None:
        self._cluster, self._outputs = cluster, outputs
        self._left: list[Callable[[str, int], None]] = [
            self.kill,
            self.cancel,
            self.set_node_down,
            self.reach_time_limit,
        ]
        self.done: list[str] = []
        self._kept_still: str | None = None
        self._was_disturbed: set[str] = set()

    def look(self) -> None:
        """Do the next one, if a job that has not been disturbed is in the middle of its training."""
        if self._kept_still is not None:  # SLURM wakes processes when it sends a signal
            process = self._process(self._kept_still)
            if process is not None:
                _stop(process)
        if not self._left:
            return
        running = [line.split() for line in self._ask("squeue", "-h", "-t", "R", "-o", "%i %A").splitlines()]
        for job, number in running:
            if job in self._was_disturbed or not self._trains(job):
                continue
            process = self._process(number)
            if process is None:
                continue
            # It stands still meanwhile: tiny runs would end before.
            _stop(process)
            act = self._left.pop(0)
            act(job, process)
            self._was_disturbed |= {each for each, _ in running}
            self.done.append(str(act.__doc__))
            return

    def kill(self, _: str, process: int) -> None:
        """kill -9"""
        os.kill(process, signal.SIGKILL)

    def cancel(self, job: str, _: int) -> None:
        """scancel"""
        self._ask("scancel", job)

    def set_node_down(self, _: str, process: int) -> None:
        """node drained, set down and resumed"""
        node = self._ask("sinfo", "-h", "-N", "-o", "%N")
        for state in ("drain", "down", "resume"):
            self._ask("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=bench")
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)

    def reach_time_limit(self, job: str, _: int) -> None:
        """time limit hit"""
        self._ask("scontrol", "update", f"JobId={job}", "TimeLimit=00:01:00")
        self._kept_still = self._ask("squeue", "-h", "-j", job, "-o", "%A")

    def _trains(self, job: str) -> bool:
        log = self._outputs / "slurm" / f"{job}_0_log.out"
        return log.exists() and "epoch 1/" in log.read_text(errors="replace")

    def _process(self, number: str) -> int | None:
        """Return the process of a job's program, not of what starts it."""
        listed = [line.split() for line in self._ask("scontrol", "listpids", number).splitlines()[1:]]
        found = [int(pid) for pid, _, step, *_ in listed if step == "0" and int(pid) > 0]
        return found[-1] if found else None

    def _ask(self, *command: str) -> str:
        return slurm_cluster.ask(self._cluster, *command)


def _stop(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)


def contents(outputs: Path) -> dict[str, dict[str, bytes]]:
    """Return what the finished runs under a folder hold, apart from notes of time and machine."""
    return {
        done.parent.relative_to(outputs).as_posix(): {
            path.name: path.read_bytes()
            for path in done.parent.iterdir()
            if path.is_file() and path.name not in _NOT_COMPARED
        }
        for done in outputs.rglob("done.json")
    }


def train(outputs: Path, environment: dict[str, str], log: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the grid."""
    command = [sys.executable, str(ROOT / "train.py"), *GRID, *more, f"output_dir={outputs}"]
    with log.open("wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=outputs.parent)


def disturbed_grid(folder: Path) -> dict[str, Any]:
    """Run both grids; return the figures, among them what is wrong.

    Raises
    ------
    UserError
        No cluster can be set up here.
    """
    cluster = folder / "cluster"
    try:
        environment = slurm_cluster.up(cluster) | {"OMP_NUM_THREADS": "1"}
    except slurm_cluster.ClusterError as problem:
        raise UserError(str(problem)) from None
    outputs, log = folder / "slurm", folder / "slurm.log"
    started = time.monotonic()
    try:
        happening = Disturbances(cluster, outputs)
        sweep = train(outputs, environment, log, "hydra/launcher=slurm", "hydra.launcher.memory_gb=1")
        try:
            while sweep.poll() is None and time.monotonic() - started < _SECONDS:
                happening.look()
                time.sleep(0.3)
        finally:
            sweep.kill()
            sweep.wait()
    finally:
        slurm_cluster.down(cluster)
    seconds = time.monotonic() - started
    serial = train(folder / "serial", environment, folder / "serial.log")
    serial.wait()
    found, wanted = contents(outputs), contents(folder / "serial")
    said = log.read_text(errors="replace")
    ends = re.findall(r"SLURM job \S+ ended as (\w+), .*: it is started again", said)
    figures = {
        "jobs": _NUM_JOBS,
        "disturbances": ", ".join(happening.done),
        "complete": len([run for run in found if not run.startswith("bases/")]),
        "bases": len([run for run in found if run.startswith("bases/")]),
        "started_again_after": ", ".join(ends),
        "exit_code": sweep.returncode,
        "seconds": round(seconds),
        "same_bytes": found == wanted and len(wanted) == _NUM_JOBS + 1,
    }
    is_right = figures["same_bytes"] and sweep.returncode == 0 and set(ends) == {"FAILED", "CANCELLED", "TIMEOUT"}
    if not is_right:
        sys.stderr.write(said[-10000:])
    return figures | {"is_right": is_right}


def _usage() -> str:
    return usage_text((__doc__ or "").strip(), program=program_name(), keys=_KEYS, sections={})


def _act(values: dict[str, str]) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        figures = disturbed_grid(Path(folder))
    if "out" in values:
        writing.write_json(Path(values["out"]), figures)
    table = "\n".join(["| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())])
    return table, 0 if figures["is_right"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; return 0 where the disturbed grid is the undisturbed one."""
    return run(argv, keys=_KEYS, usage=_usage, act=_act)


if __name__ == "__main__":
    sys.exit(main())
