"""`hydra/sweeper=checked`: the jobs of a sweep as they were composed and checked before Hydra was started."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

_NODE = {"_target_": f"{__name__}.CheckedSweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=_NODE, provider="frl_repro")


class CheckedSweeper(Sweeper):
    """Hands the jobs of the task, a `frl_repro.commands.running.Task`, to the launcher, in batches where asked for."""

    def __init__(self, *, max_batch_size: int | None, params: DictConfig | None) -> None:
        del params  # the jobs hold them
        self._max_batch_size = max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        if not hasattr(task_function, "jobs"):
            raise HydraException("hydra/sweeper=checked serves the programs of frl_repro alone")
        self._task: Any = task_function
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Launch the jobs; ``arguments`` are settings that all share, which the jobs hold as well."""
        del arguments
        jobs = [job.overrides for job in self._task.jobs]
        size = len(jobs) if self._max_batch_size is None else self._max_batch_size
        if size < 1:
            raise HydraException(f"hydra.sweeper.max_batch_size={size}: must be at least 1, or null")
        for first in range(0, len(jobs), size):
            for job in self._launcher.launch(jobs[first : first + size], initial_job_idx=first):
                _ = job.return_value  # raises what a launcher of Hydra's caught
