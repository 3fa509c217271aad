"""`hydra/sweeper=checked`: the jobs of a sweep as `frl_repro.commands.cli` has composed and checked them."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

_NODE = {"_target_": f"{__name__}.CheckedSweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=_NODE, provider="frl_repro")


class CheckedSweeper(BasicSweeper):
    """Hydra's own sweeper, but for what a job is: the task brings the list, as its attribute ``jobs``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the jobs out of the task: processes that do one of them need not be sent all."""
        jobs = vars(task_function).pop("jobs", None)
        if jobs is None:
            raise HydraException("hydra/sweeper=checked serves the programs of frl_repro alone")
        self._jobs: list[list[str]] = jobs
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the jobs in batches; ``overrides`` are settings that all share, which the jobs hold as well."""
        del overrides
        if max_batch_size is not None and max_batch_size < 1:
            raise HydraException(f"hydra.sweeper.max_batch_size={max_batch_size}: must be at least 1, or null")
        return [list(batch) for batch in self.split_overrides_to_chunks(self._jobs, max_batch_size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose no job once more to see that it can be: that takes longer than anything else around a job."""
