"""Group-DRO: a distribution over classes that their losses raise, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.class_losses import class_losses, weights_of_means
from frl_repro.training.frl.method import ClassStats, Method, Weights, When


@dataclass
class Settings(MethodSettings):
    """conf/frl/group_dro.yaml."""

    eta: float = key("step length of the exponentiated gradient, per nat of loss", "[0, inf)", is_per_run=True)


class GroupDro(Method):
    """A step's loss is the sum of q_c l_c over the class means l_c of the batch, after ``q_c <- q_c exp(eta l_c)``.

    q is normalised after each step; of a class that the batch lacks l is 0, and q changes by the normalisation alone.

    Source: Sagawa et al., ICLR 2020, algorithm 1, with classes as groups.
    """

    sees_batches: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"

    def start(self) -> dict[str, Tensor]:
        """Every class alike: the logarithm of q, which tells apart shares that are too small for numbers."""
        return {"log_share": torch.log_softmax(torch.zeros_like(self.ones()), -1)}

    def see_batch(self, stats: ClassStats, when: When) -> None:
        """Raise q by the batch's losses, before its step."""
        loss, self._count = class_losses(stats, objective=self.objective, beta=self.beta)
        self.state["log_share"] = torch.log_softmax(self.state["log_share"] + self.per_run("eta") * loss, -1)

    def weigh(self, when: When) -> Weights:
        """Return for both losses what makes their mean over images the sum of q times the class means."""
        weight = weights_of_means(self.state["log_share"].exp(), self._count)
        return Weights(weight, weight)

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return q for the table of the policy."""
        return {"group_dro_share": self.state["log_share"].exp()}
