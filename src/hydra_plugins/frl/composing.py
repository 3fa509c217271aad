"""What this project's launchers have in common: they keep what Hydra gives, and compose jobs one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, flag_override

Job = tuple[str, DictConfig]
"""A job's overrides as they are shown, and its settings."""


class ComposingLauncher(Launcher):
    """Hands out the jobs of a sweep; what does them is the task that `frl_repro.commands.cli` makes, or its attributes.

    ``together`` takes all jobs at once; ``work`` does jobs anywhere, also on another machine, and returns what became
    of them, and ``note`` takes that down here.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        if not hasattr(task_function, "work"):
            raise HydraException("this launcher serves the programs of frl_repro alone")
        self._context, self._config = hydra_context, config
        self._task: Any = task_function  # of `frl_repro.commands.cli`, with its attributes

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return all settings of a job, Hydra's own among them."""
        return self._context.config_loader.load_sweep_config(self._config, list(overrides))

    def _jobs(self, job_overrides: Sequence[Sequence[str]]) -> Iterator[Job]:
        for overrides in job_overrides:
            config = self._compose(overrides)
            with flag_override(config, ["struct", "readonly"], [False, False]):
                config.pop("hydra")
            yield shown(overrides), config


def shown(overrides: Sequence[str]) -> str:
    """Return a job's overrides as people typed them."""
    return " ".join(filter_overrides(overrides))


def ended(job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Return to Hydra that jobs have ended; what became of each, the task has taken down."""
    return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]
