"""Variance: the loss gains the variance over classes of their mean losses (FAT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.settings.keys import COUNT, key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.class_losses import class_losses, weights_of_means
from frl_repro.training.frl.method import ClassStats, Method, Weights, When


@dataclass
class Settings(MethodSettings):
    """conf/frl/variance.yaml."""

    strength: float = key("weight of the variance beside the loss, per nat", "[0, inf)", is_per_run=True)
    slots: int | None = key(
        "numbers that the variance is taken over, zeros beside the class means: 100 in the published code; null: the "
        "classes that the batch has", COUNT,
    )  # fmt: skip

    def check_classes(self, num_classes: int) -> None:
        """Ask for a slot for each class."""
        if self.slots is not None and self.slots < num_classes:
            raise UserError(
                f"frl.slots={self.slots}: there are {num_classes} classes; give at least as many slots, or null"
            )


class Variance(Method):
    """Adds to a step's loss ``strength * Var`` over the classes' mean losses m_c in the batch.

    The variance of S numbers is divided by S. Its gradient is that of a weighted sum of losses: ``d Var / d m_c = 2
    (m_c - mean m) / S``, and an image moves m_c by 1 / n_c. So the losses of class c weigh ``1 + strength * 2 (m_c -
    mean m) / S * N / n_c``. The gradient is exact; the loss that a run records holds the variance twice, for it is
    ``sum of 2 (m_c - mean m) / S * m_c``.

    Source: Ma et al., NeurIPS 2022 (FAT). Its code takes 100 slots (docs/deviations.md).
    """

    sees_batches: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"
    settings: Settings

    def start(self) -> dict[str, Tensor]:
        """Every class alike."""
        return {"weight": self.ones()}

    def see_batch(self, stats: ClassStats, when: When) -> None:
        """Take the derivatives at this batch's losses."""
        mean, count = class_losses(stats, objective=self.objective, beta=self.beta)
        is_present = count > 0
        num = is_present.sum(-1, keepdim=True).clamp(min=1).double()
        if self.settings.slots is not None:
            num = torch.full_like(num, self.settings.slots)
        slope = 2 * (mean - mean.sum(-1, keepdim=True) / num) / num
        self.state["weight"] = 1 + self.per_run("strength") * weights_of_means(slope, count)

    def weigh(self, when: When) -> Weights:
        """Return the weights of both losses."""
        return Weights(self.state["weight"], self.state["weight"])
