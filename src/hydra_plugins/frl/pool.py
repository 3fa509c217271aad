"""`hydra/launcher=ray` and `hydra/launcher=slurm`: a job of a sweep in a process of its own, here or on many machines.

A process that dies (killed, out of memory, its machine gone) costs its job's last epoch: the job is started again,
finds its training state and goes on. All machines need this package and the same output folder; who needs a starting
model that another one trains waits for it.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, setup_globals
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from frl_repro.basics.paths import in_home
from hydra_plugins.frl.base import JobLauncher, ended

RAY: dict[str, Any] = {
    "_target_": f"{__name__}.RayLauncher",
    "address": None,  # of a running cluster, "auto" for the one of this machine; null: one for this sweep alone
    "num_workers": None,  # jobs at a time; null: as many as there are processors
    "cpus_per_job": 1,  # what the cluster sets aside for a job
    "gpus_per_job": 0,  # 1: each job has a GPU of its own, a fraction: jobs share one
    "retries": 3,  # how often a job is started again whose process died
}
SLURM: dict[str, Any] = {
    "_target_": f"{__name__}.SlurmLauncher",
    "executor": "slurm",  # local: processes of this machine instead, to try it out
    "folder": "${output_dir}/slurm",  # scripts, logs and results of jobs; every machine must see it
    "num_workers": None,  # jobs at a time; null: as many as there are (local: as many as processors)
    "cpus_per_job": 1,
    "gpus_per_job": 0,
    "memory_gb": 8,
    "minutes": 240,  # time limit of a job; one that reaches it is started again, as if its process had died
    "partition": None,
    "setup": [],  # shell lines before the job, such as: source .venv/bin/activate
    "more": {},  # further sbatch settings by their submitit names, such as {slurm_account: mine}
    "retries": 3,
}
for _name, _node in (("ray", RAY), ("slurm", SLURM)):
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="frl_repro")

_SECONDS_BETWEEN = 0.2  # two looks at whether a job has ended

# States in which SLURM is done with a job; in all others, and in those of later versions, it may still work on it.
_SLURM_ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", "FORGOTTEN",
})  # fmt: skip
_FORGOTTEN = "FORGOTTEN"  # our word: some minutes after its end SLURM does not know a job any more
_SECONDS_BETWEEN_QUESTIONS = 15.0  # to SLURM's controller, for all jobs together
_SECONDS_FOR_FILES = 15.0  # until what a job wrote is seen here, on a slow file system


class ProcessDiedError(Exception):
    """A job's process ended without a result; the message says what is known of it."""


class Work(NamedTuple):
    """A job, what does it, and where.

    Attributes
    ----------
    function : callable
        Takes a list of jobs, returns what became of them.
    jobs : list of `frl_repro.commands.jobs.Job`
    folder : str
        To do it in.
    code : dict
        What the process that hands it out would do it with (`sameness.code`).
    """

    function: Any
    jobs: list[Any]
    folder: str
    code: dict[str, str]


def do(work: Work) -> list[dict[str, Any]]:
    """Do a job in this process, which may be on another machine; return what became of it.

    Nothing is done by another program than the one that was checked: jobs may wait for hours while its files change,
    and machines may have installations of their own.
    """
    from frl_repro.basics import sameness  # noqa: PLC0415 (it reads the whole program)

    found = sameness.difference(work.code, sameness.code())
    if found is not None:
        return [_lost(work, f"{platform.node()} is not like the machine of the command: {found}; repeat the command")]
    os.chdir(work.folder)
    outcomes: list[dict[str, Any]] = work.function(work.jobs)
    return outcomes


def do_under_slurm(work: Work) -> list[dict[str, Any]]:
    """Do a job; end when SLURM says so.

    submitit's handlers would raise an error in the middle of the run, which then counts as failed, or ask for the job
    to be queued again, which not every cluster allows. A process that ends is started again by the launcher.
    """
    for name in ("SIGUSR1", "SIGUSR2"):  # some time before the limit; the state of the last epoch is there anyhow
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    for name in ("SIGTERM", "SIGCONT"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    return do(work)


class PoolLauncher(JobLauncher):
    """Keeps jobs running until each has ended; what became of them, it hands to the task's ``note``."""

    def __init__(self, *, num_workers: int | None, retries: int) -> None:
        self._num_workers, self._retries = num_workers, retries

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs."""
        self._check()
        setup_globals()
        # Processes that start anew find the package where this one has it.
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
        from frl_repro.basics import sameness  # noqa: PLC0415

        code = sameness.code()
        work = [
            Work(self._task.work, [job], str(Path.cwd()), code) for job in self._jobs(job_overrides, initial_job_idx)
        ]
        self.start(len(work))
        try:
            self._run(work)
        finally:
            self.stop()
        return ended(job_overrides)

    def _check(self) -> None:
        for name, value, least in (("num_workers", self._num_workers, 1), ("retries", self._retries, 0)):
            if (value is None and least == 1) or (type(value) is int and value >= least):
                continue
            also = ", or null for all" if least == 1 else ""
            raise HydraException(f"hydra.launcher.{name}={value}: must be a whole number from {least}{also}")

    def _run(self, work: Sequence[Work]) -> None:
        waiting = deque(range(len(work)))
        num_starts = [0] * len(work)
        running: dict[int, Any] = {}
        most = self._num_workers or len(work)
        while waiting or running:
            chosen = [waiting.popleft() for _ in range(min(len(waiting), most - len(running)))]
            for index, handle in zip(chosen, self.submit([work[index] for index in chosen]), strict=True):
                running[index], num_starts[index] = handle, num_starts[index] + 1
            over = [index for index, handle in running.items() if self.has_ended(handle)]
            for index in over:
                try:
                    outcomes = self.outcome(running.pop(index))
                except Exception as problem:  # the process died: whatever a library makes of that
                    name = "" if isinstance(problem, ProcessDiedError) else f"{type(problem).__name__}: "
                    why = f"{name}{str(problem).strip().splitlines()[0]}"[:300]
                    if num_starts[index] <= self._retries:
                        _say(f"the process of {work[index].jobs[0].shown} died ({why}): it is started again")
                        waiting.append(index)
                        continue
                    outcomes = [_lost(work[index], f"its process died: {why}")]
                self._task.note(outcomes)
            if not over:
                time.sleep(_SECONDS_BETWEEN)

    @abstractmethod
    def start(self, num_jobs: int) -> None:
        """Get ready."""

    @abstractmethod
    def submit(self, work: Sequence[Work]) -> list[Any]:
        """Start jobs; return what the other methods know them by."""

    @abstractmethod
    def has_ended(self, handle: Any) -> bool:
        """Return whether a job has ended, well or not."""

    @abstractmethod
    def outcome(self, handle: Any) -> list[dict[str, Any]]:
        """Return what became of a job that has ended; raises where its process died."""

    def stop(self) -> None:
        """Tidy up."""


class RayLauncher(PoolLauncher):
    """Jobs as tasks of a Ray cluster."""

    def __init__(
        self, *, address: str | None, num_workers: int | None, cpus_per_job: float, gpus_per_job: float, retries: int
    ) -> None:
        super().__init__(num_workers=num_workers, retries=retries)
        self._address, self._cpus, self._gpus = address, cpus_per_job, gpus_per_job

    def start(self, num_jobs: int) -> None:  # noqa: ARG002
        """Join the cluster, or start one on this machine."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray  # noqa: PLC0415
        except ImportError as problem:
            raise HydraException(
                f"hydra/launcher=ray needs the package ray ({problem}): pip install 'ray>=2.40', or with this project: "
                "pip install -e '.[ray]'"
            ) from None
        self._ray: Any = ray
        if self._address is None:
            num = None if self._num_workers is None else max(1, round(self._num_workers * self._cpus))
            ray.init(num_cpus=num, include_dashboard=False)
        else:
            # What is imported from a checkout here must be there too; the output folder is shared anyhow.
            ray.init(self._address, runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}})
        # Its own retries would hide that a process died.
        self._do = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(do)

    def submit(self, work: Sequence[Work]) -> list[Any]:
        """Queue tasks: the cluster runs what it has room for."""
        return [self._do.remote(one) for one in work]

    def has_ended(self, handle: Any) -> bool:
        """Ask without waiting."""
        return bool(self._ray.wait([handle], timeout=0)[0])

    def outcome(self, handle: Any) -> list[dict[str, Any]]:
        """Fetch it."""
        outcomes: list[dict[str, Any]] = self._ray.get(handle)
        return outcomes

    def stop(self) -> None:
        """Leave the cluster; one of our own ends."""
        if hasattr(self, "_ray"):
            self._ray.shutdown()


class SlurmLauncher(PoolLauncher):
    """Jobs through submitit: of a SLURM cluster, as one array, or processes of this machine."""

    def __init__(
        self,
        *,
        executor: str,
        folder: str,
        num_workers: int | None,
        cpus_per_job: int,
        gpus_per_job: int,
        memory_gb: float,
        minutes: int,
        partition: str | None,
        setup: Sequence[str],
        more: DictConfig,
        retries: int,
    ) -> None:
        self._cluster = executor
        self._is_local = executor == "local"
        if self._is_local and num_workers is None:
            num_workers = os.cpu_count()
        # An array is handed in whole; SLURM itself keeps to the number at a time.
        super().__init__(num_workers=num_workers if self._is_local else None, retries=retries)
        self._folder = folder
        self._states: dict[str, str] = {}  # of jobs, as SLURM's controller said last
        self._answered = self._next_question = float("-inf")  # when it last did, and when it is asked again
        self._submitted: dict[str, float] = {}
        self._ended: dict[str, float] = {}  # when jobs without a result were first seen to have ended
        resources: dict[str, Any] = {"timeout_min": minutes, "gpus_per_node": gpus_per_job}
        if not self._is_local:
            resources |= {"cpus_per_task": cpus_per_job, "mem_gb": memory_gb, "slurm_setup": list(setup)}
            resources |= {"slurm_partition": partition, "slurm_array_parallelism": num_workers}
            container = OmegaConf.to_container(OmegaConf.create(more), resolve=True)
            assert isinstance(container, dict)
            resources |= {str(name): value for name, value in container.items()}
        self._resources = {name: value for name, value in resources.items() if value not in (None, [])}

    def start(self, num_jobs: int) -> None:  # noqa: ARG002
        """Look for the package and for SLURM."""
        if self._cluster not in ("slurm", "local"):  # said here: Hydra wraps what is said while this is made
            raise HydraException(f"hydra.launcher.executor={self._cluster}: unknown choice; known: slurm, local")
        try:
            import submitit  # noqa: PLC0415
        except ImportError as problem:
            raise HydraException(
                f"hydra/launcher=slurm needs the package submitit ({problem}): pip install 'submitit>=1.5', or with "
                "this project: pip install -e '.[slurm]'"
            ) from None
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=self._cluster)
            self._executor.update_parameters(name="frl_repro", **self._resources)
        except (RuntimeError, NameError, ValueError) as problem:
            raise HydraException(f"hydra/launcher=slurm: {str(problem).splitlines()[0]}") from None

    def submit(self, work: Sequence[Work]) -> list[Any]:
        """Hand in an array of jobs, or start processes."""
        if not work:
            return []
        with self._executor.batch():
            handles = [self._executor.submit(do if self._is_local else do_under_slurm, one) for one in work]
        self._submitted |= {handle.job_id: time.monotonic() for handle in handles}
        return handles

    def has_ended(self, handle: Any) -> bool:
        """Look for the result; where there is none, ask the system, or SLURM from time to time."""
        if self._is_local:
            return bool(handle.done())
        if handle.paths.result_pickle.exists():
            return True
        self._ask()
        state, now = self._states.get(handle.job_id, _FORGOTTEN), time.monotonic()
        if self._submitted[handle.job_id] > self._answered or state not in _SLURM_ENDED:
            self._ended.pop(handle.job_id, None)  # it may have been put back into the queue
            return False
        return now - self._ended.setdefault(handle.job_id, now) > _SECONDS_FOR_FILES

    def _ask(self) -> None:
        """Learn the states of the user's jobs, if it is time to.

        From the controller: submitit asks ``sacct``, which answers only where a data base keeps accounts, and without
        an answer takes every job for one that still runs.
        """
        now = time.monotonic()
        if now < self._next_question:
            return
        self._next_question = now + _SECONDS_BETWEEN_QUESTIONS
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i %T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):  # a controller that starts again: jobs go on meanwhile
            return
        self._states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)
        self._answered = now

    def outcome(self, handle: Any) -> list[dict[str, Any]]:
        """Fetch it."""
        if not self._is_local and not handle.paths.result_pickle.exists():
            state = self._states.get(handle.job_id, _FORGOTTEN)
            more = "; raise hydra.launcher.minutes" if state == "TIMEOUT" else ""
            raise ProcessDiedError(f"SLURM job {handle.job_id} ended as {state}, see {handle.paths.stderr}{more}")
        outcomes: list[dict[str, Any]] = handle.result()
        return outcomes


def _lost(work: Work, why: str) -> dict[str, Any]:
    """Return what is noted of a job that was not done."""
    (job,) = work.jobs
    return {"job": job.shown, "output_dir": in_home(str(job.composed["output_dir"])), "reason": why, "run": None}


def _say(message: str) -> None:
    sys.stdout.write(message + "\n")
    sys.stdout.flush()
