"""Head norm: train as the control does, then give the last layer's rows length 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER
from frl_repro.settings.methods import FinishingSettings
from frl_repro.training.frl.last_layer import last_linear
from frl_repro.training.frl.method import Method


@dataclass
class Settings(FinishingSettings):
    """conf/frl/head_norm.yaml."""


class HeadNorm(Method):
    """The control's training, after which row k of the last layer's weights is ``W_k / ||W_k||``; its bias stays.

    Classes whose rows are longer have larger logits whatever the image: the network prefers them. The layer is the last
    fully connected one with an output for each class. ``retrain.trainer.num_epochs=0`` changes the starting model.

    Source: "HWNwB", ICLR 2026 submission df4mr7eQg7.
    """

    @classmethod
    def check_network(cls, network: Callable[[], nn.Module], num_classes: int) -> None:
        """Refuse a network without such a layer."""
        last_linear(network(), num_classes, method="head_norm")

    def finish(self, r: int, model: nn.Module, logits: Callable[[nn.Module], tuple[Tensor, Tensor]]) -> None:
        """Normalise the rows."""
        name, layer = last_linear(model, self.shape[1], method="head_norm")
        with torch.no_grad():
            lengths = layer.weight.norm(dim=1, keepdim=True)
            if not bool((lengths > 0).all()):
                raise UserError(f"frl=head_norm: a row of {name} is zero and has no direction")
            LOGGER.info(
                "frl=head_norm: rows of %s, of lengths %.3g to %.3g, now have length 1",
                name,
                lengths.min(),
                lengths.max(),
            )
            layer.weight.div_(lengths)
