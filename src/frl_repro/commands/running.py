"""Run the jobs of a command: one in this process, those of a sweep by the chosen launcher.

Hydra is imported inside functions: ``--help`` and completion must not wait for it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frl_repro.basics import paths, process, torchrun
from frl_repro.basics.errors import UserError, one_line, reason
from frl_repro.basics.folder_lock import is_held
from frl_repro.basics.paths import in_home
from frl_repro.basics.time_left import mean_of_worked
from frl_repro.commands.command_line import CommandLine
from frl_repro.commands.jobs import Job, plain, register_resolvers
from frl_repro.commands.messages import fail, in_one_line, speaks
from frl_repro.commands.overrides import is_hydras, parsed
from frl_repro.runs import sweeps
from frl_repro.settings.config import Config, RunConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

Act = Callable[[Sequence[Config]], Sequence[Path | Exception]]
"""What a program does with settings of jobs; returns for each its folder, or why it failed."""

_HYDRA_RAISES = "HYDRA_FULL_ERROR"


class Task:
    """What launchers are given to do: the jobs of a sweep, here or in other processes.

    Launchers of Hydra's call it with settings that they compose themselves. Ours take `jobs`, as they were checked:
    `do_here` does jobs here; `work` does jobs anywhere, also on another machine, and returns what became of them, and
    `note` takes that down here.

    Parameters
    ----------
    act : callable
        What the program does; it can be sent to another process.
    scratch : str
        Folder in which jobs leave what became of them, from whichever process.
    jobs : sequence of Job
        Those of the sweep.
    kind : type
        `RunConfig`, `EvaluateConfig` or `SanityConfig`.
    """

    def __init__(self, act: Act, scratch: str, jobs: Sequence[Job], kind: type[Config]) -> None:
        self.jobs = list(jobs)
        self._act, self._scratch, self._kind = act, scratch, kind
        self._num_jobs, self._commander = len(jobs), os.getpid()
        configs = [job.config for job in jobs]
        self._folders = [str(config.folder) for config in configs if isinstance(config, RunConfig)]

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: without jobs that it does not run."""
        return {**self.__dict__, "jobs": []}

    def __call__(self, settings: DictConfig) -> None:
        """Do a job that a launcher of Hydra's has composed."""
        from hydra.core.hydra_config import HydraConfig

        self.do_here([self.job(list(HydraConfig.get().overrides.task), settings)])

    def job(self, overrides: Sequence[str], settings: DictConfig) -> Job:
        """Return a job that was composed elsewhere."""
        register_resolvers()
        return Job(list(overrides), [], plain(settings), self._kind)

    def do_here(self, jobs: Sequence[Job]) -> None:
        """Run jobs in this process, fused where possible, and write their outcomes."""
        from frl_repro.basics.progress import in_sweep

        if os.getpid() == self._commander:
            seconds = sweeps.ended_jobs(Path(self._scratch))
            with in_sweep(num_after=self._num_jobs - len(seconds) - len(jobs), seconds=mean_of_worked(seconds)):
                outcomes = self.work(jobs)
        else:  # other workers have jobs under way as well: the sweep's own line counts them
            outcomes = self.work(jobs)
        self.note(outcomes, is_elsewhere=False)

    def work(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Run jobs, log why one fails, and return their outcomes."""
        if os.getpid() != self._commander:
            process.set_up()
            if os.getppid() == self._commander:  # of joblib; those of Ray and SLURM have keepers of their own
                process.end_with_parent()
        return do(self._act, jobs)

    def note(self, outcomes: Sequence[Mapping[str, Any]], *, is_elsewhere: bool = True) -> None:
        """Leave what became of jobs as files, and show how far the sweep is; of jobs ``elsewhere`` their tables too."""
        from frl_repro.basics.progress import LOGGER, set_up_logging

        set_up_logging()
        for outcome in outcomes:
            if is_elsewhere:
                LOGGER.info("%s", _what_became_of(outcome))
            sweeps.note_outcome(Path(self._scratch), outcome)
        if self._num_jobs > 1:
            is_serial = not is_elsewhere and os.getpid() == self._commander
            at_once = 1 if is_serial else 1 + sum(is_held(Path(folder)) for folder in self._folders)
            line = sweeps.progress_line(Path(self._scratch), num_jobs=self._num_jobs, at_once=at_once)
            LOGGER.info("%s", line)


def do(act: Act, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Do jobs in this process, say why one fails, and return what became of each: see `sweeps.read_outcome`."""
    from frl_repro.basics.progress import set_up_logging

    set_up_logging()
    started = time.monotonic()
    try:
        found = act([job.config for job in jobs])
    except Exception as problem:
        found = [problem] * len(jobs)
    reasons = [reason(outcome) if isinstance(outcome, Exception) else "" for outcome in found]
    for why in dict.fromkeys(filter(None, reasons)):
        if torchrun.num_processes() > 1:
            from frl_repro.models.compute.distributed import end_unless_all_failed

            end_unless_all_failed(why)
        fail(why)
    return [
        {
            "job": job.shown,
            "output_dir": in_home(str(job.composed["output_dir"])),
            "reason": why,
            "run": _run_of(job),
            "folder": "" if why else str(outcome),
            "seconds": (time.monotonic() - started) / len(jobs),
        }
        for job, outcome, why in zip(jobs, found, reasons, strict=True)
    ]


def _run_of(job: Job) -> str | None:
    """Return the folder of a training run, relative to its output folder; None for a measurement."""
    try:
        config = job.config
    except UserError:  # of a job that another sweeper has made
        return None
    return sweeps.relative(config.folder, config.keys.output_dir) if isinstance(config, RunConfig) else None


def _what_became_of(outcome: Mapping[str, Any]) -> str:
    """Return what a job of another process would have printed here at its end."""
    from frl_repro.results.tables.text_tables import table_of_run

    if outcome["reason"]:
        return f"failed: {outcome['job']}: {one_line(outcome['reason'])}"
    if outcome["run"] is None:  # of a measurement
        return f"done: {outcome['job']} -> {outcome['output_dir']}"
    folder = Path(outcome["output_dir"]) / outcome["run"]
    try:
        return f"done: {folder}\n{table_of_run(folder)}"
    except (UserError, OSError) as problem:  # a network file system may show new files late
        return f"done: {folder} (its table: {reason(problem)})"


def run_one(act: Act, job: Job, line: CommandLine) -> list[dict[str, Any]]:
    """Run the job of a command that is no sweep; return its outcome."""
    from hydra.core.utils import configure_log, env_override

    assert job.hydra is not None
    with _one_line_for_mistakes(line):
        configure_log(job.hydra.job_logging, job.hydra.verbose)
    with env_override({str(name): str(value) for name, value in job.hydra.job.env_set.items()}):
        return do(act, [job])


def run_sweep(
    act: Act, jobs: Sequence[Job], line: CommandLine, config_name: str, *, command: str
) -> list[dict[str, Any]]:
    """Run the jobs of a sweep by a launcher; return their outcomes.

    Hydra notes a sweep's settings in a folder; every run keeps its own record, so this one only carries what became of
    each job from wherever it ran, and is thrown away.
    """
    configs = [job.config for job in jobs]
    runs = [(config.keys.output_dir, config.folder) for config in configs if isinstance(config, RunConfig)]
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [*_outside_jobs(line, jobs), f"hydra.sweep.dir={scratch}", "hydra.sweep.subdir=."]
        if not speaks() and not any(override.startswith("hydra/hydra_logging=") for override in overrides):
            overrides = [*overrides, "hydra/hydra_logging=disabled"]
        task = Task(act, scratch, jobs, jobs[0].kind)
        with sweeps.planned(runs if speaks() else [], command=command):
            ask_hydra(config_name, [*overrides, *line.flags], line, task)
        return sweeps.read_outcomes(Path(scratch))


def _outside_jobs(line: CommandLine, jobs: Sequence[Job]) -> list[str]:
    """Return what Hydra must know of a sweep besides its jobs: its own settings, groups, and where outputs go.

    `hydra/sweeper=checked` takes the jobs as they were checked. Hydra would set keys in the defaults first, where they
    need not exist: ``-m frl=reweight,remargin`` with a key of ``retrain``, which the default ``frl=none`` lacks.
    """
    overrides = parsed(line.overrides)
    if any(override.key_or_group == "hydra/sweeper" for override in overrides):
        added = jobs[0].added  # another sweeper makes its own jobs
        if any(job.added != added for job in jobs):
            raise UserError("hydra/sweeper=... cannot take jobs whose checkpoints were trained with other settings")
        return [*line.overrides, *added]
    return [
        text
        for text, override in zip(line.overrides, overrides, strict=True)
        if is_hydras(override) or ("." not in override.key_or_group and not override.is_sweep_override())
    ]


def _nothing(_: DictConfig) -> None:
    """Stand for a task where Hydra answers by itself."""


def ask_hydra(
    config_name: str, arguments: Sequence[str], line: CommandLine, task: Callable[[DictConfig], None] = _nothing
) -> None:
    """Have Hydra do what arguments say: start a sweep, or print an answer of its own; ``line``: what was typed."""
    import hydra

    before, argv = os.environ.get(_HYDRA_RAISES), sys.argv
    os.environ[_HYDRA_RAISES] = "1"  # else Hydra prints a traceback and exits
    sys.argv = [argv[0], *line.search, *arguments]  # settings stand together, before flags
    try:
        with _one_line_for_mistakes(line):
            hydra.main(version_base="1.3", config_path=str(paths.CONFIG_DIR), config_name=config_name)(task)()
    finally:
        sys.argv = argv
        if before is None:
            del os.environ[_HYDRA_RAISES]
        else:
            os.environ[_HYDRA_RAISES] = before


@contextmanager
def _one_line_for_mistakes(line: CommandLine) -> Iterator[None]:
    """Turn what Hydra, a launcher or OmegaConf raises into a line that names the setting."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(in_one_line(problem)) from None
    except UserError:
        raise
    except Exception as problem:  # of the launcher: jobs report their own
        hydras = [text for text in line.overrides if text.lstrip("+").startswith("hydra.")]
        if hydras and isinstance(problem, TypeError | ValueError | LookupError | AttributeError | AssertionError):
            what = f"{type(problem).__name__}: {in_one_line(problem)}"
            raise UserError(f"Hydra cannot work with {' '.join(hydras)} ({what})") from None
        if not line.is_sweep:
            raise
        raise UserError(f"the launcher gave up: {reason(problem)}; the same command takes up what is left") from None
