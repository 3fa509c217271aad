"""What this project's launchers have in common: they hand out jobs that were composed and checked before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, flag_override


class JobLauncher(Launcher):
    """Has jobs done by the task, a `frl_repro.commands.running.Task`, which takes down what became of them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        if not hasattr(task_function, "work"):
            raise HydraException("this launcher serves the programs of frl_repro alone")
        self._context, self._config = hydra_context, config
        self._task: Any = task_function

    def _jobs(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Return the jobs of a batch as they were checked; those that another sweeper has made are composed here."""
        checked: list[Any] = self._task.jobs[initial_job_idx : initial_job_idx + len(job_overrides)]
        if [job.overrides for job in checked] == [list(overrides) for overrides in job_overrides]:
            return checked
        return [self._task.job(overrides, self._composed(overrides)) for overrides in job_overrides]

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with flag_override(config, ["struct", "readonly"], [False, False]):
            config.pop("hydra")
        return config


def ended(job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Return to Hydra that jobs have ended; what became of each, the task has taken down."""
    return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]
