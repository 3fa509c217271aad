"""`hydra/sweeper=checked`: Hydra's own sweeper for jobs that `frl_repro.cli` has composed and checked before."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

_NODE = {"_target_": f"{__name__}.CheckedSweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=_NODE, provider="frl_repro")


class CheckedSweeper(BasicSweeper):
    """The product of all swept values. Composing every job once more, to see that it can be, is left out."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Trust what was checked: composing takes longer than anything else that surrounds a job."""
