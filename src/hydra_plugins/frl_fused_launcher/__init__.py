"""`hydra/launcher=fused`: all jobs of a sweep in one process, those that can side by side.

Hydra accepts launchers from the namespace package ``hydra_plugins`` alone and imports it at every start: nothing slow
here.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, flag_override

_TARGET = "hydra_plugins.frl_fused_launcher.FusedLauncher"
ConfigStore.instance().store(group="hydra/launcher", name="fused", node={"_target_": _TARGET}, provider="frl_repro")


class FusedLauncher(Launcher):
    """Composes every job and hands all of them to the task's ``together``, which `frl_repro.cli` provides."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        """Run the jobs; what became of each, the task records itself."""
        if not hasattr(self._task, "together"):
            raise HydraException("hydra/launcher=fused serves frl_repro's train.py and evaluate.py alone")
        setup_globals()
        jobs = []
        for overrides in job_overrides:
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with flag_override(config, ["struct", "readonly"], [False, False]):
                config.pop("hydra")
            jobs.append((" ".join(filter_overrides(overrides)), config))
        self._task.together(jobs)
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]
