"""WAT: a hedge over the classes and their average, moved by losses on validation images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.settings.keys import key
from frl_repro.settings.methods import ValidationSettings
from frl_repro.training.frl.class_losses import class_losses
from frl_repro.training.frl.method import ClassStats, Method, Weights, When


@dataclass
class Settings(ValidationSettings):
    """conf/frl/wat.yaml."""

    eta: float = key("step length of the hedge, per nat of loss", "[0, inf)", is_per_run=True)


class Wat(Method):
    """Hedge over K + 1 experts, the last one the average: an image of class y weighs ``w_y + w_(K+1)``.

    With L_i the sum of all validation losses of class i so far (of all images for the last expert), ``w_i = K exp(eta
    L_i) / sum over K + 1 of exp(eta L_j)``; all are 1 until the first loss counts. The look before the first step is
    left out. Losses are divided by the number of images: the total weight falls from 2 to 1 as weights concentrate.

    Source: Li & Liu, AAAI 2023 (WAT), whose loss is CE + beta KL, that of TRADES; with another loss of training the
    experts have that one.
    """

    sees_validation: ClassVar[Literal["errors", "losses"] | None] = "losses"
    scale: ClassVar[Literal["weights", "images"]] = "images"

    def start(self) -> dict[str, Tensor]:
        """No losses yet, shape (R, K + 1)."""
        R, K = self.shape
        return {"loss": torch.zeros(R, K + 1, dtype=torch.float64, device=self.device)}

    def see_validation(self, seen: ClassStats, when: When) -> None:
        """Add the losses of validation images."""
        loss, count = class_losses(seen, objective=self.objective, beta=self.beta)
        average = (loss * count).sum(-1, keepdim=True) / count.sum(-1, keepdim=True)
        is_untrained = (when.epoch == 0).to(self.device).unsqueeze(-1) & (when.step == 0)
        self.state["loss"] = self.state["loss"] + torch.where(is_untrained, 0.0, torch.cat([loss, average], -1))

    def experts(self) -> Tensor:
        """Return w, shape (R, K + 1)."""
        loss = self.state["loss"]
        hedge = self.shape[1] * torch.softmax(self.per_run("eta") * loss, -1)
        return torch.where((loss == 0).all(-1, keepdim=True), 1.0, hedge)

    def weigh(self, when: When) -> Weights:
        """Return the class's and the average expert's weight together, for both losses."""
        experts = self.experts()
        weight = experts[:, :-1] + experts[:, -1:]
        return Weights(weight, weight)

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return the weights of the classes' own experts for the table of the policy."""
        return {"wat_expert": self.experts()[:, :-1]}
