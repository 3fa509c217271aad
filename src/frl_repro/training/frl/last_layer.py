"""The layer that makes the logits, for methods that change a finished model in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from frl_repro.basics.errors import UserError
from frl_repro.settings.methods import MethodSettings

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig


class FinishingSettings(MethodSettings):
    """Settings of a method that changes the last layer of the finished model."""

    may_train_nothing = True

    def check(self, config: RunConfig) -> None:
        """Refuse to keep another epoch's model: it would be measured as it was trained."""
        if config.evaluation.keep_best_by is not None:
            raise UserError(
                f"evaluation.keep_best_by does not go with frl={self.name}, which changes the last epoch's model alone"
            )


def last_linear(model: nn.Module, num_classes: int, *, method: str, needs_bias: bool = False) -> tuple[str, nn.Linear]:
    """Return name and module of the last fully connected layer with an output for each class.

    Parameters
    ----------
    model : nn.Module
    num_classes : int
    method : str
        Who asks, for the message.
    needs_bias : bool

    Raises
    ------
    UserError
        There is none: the network's logits come from a layer of another kind, or the layer has no bias.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not found:
        raise UserError(
            f"frl={method} changes the network's last linear layer: {type(model).__name__} has no nn.Linear with "
            f"{num_classes} outputs"
        )
    name, layer = found[-1]
    if needs_bias and layer.bias is None:
        raise UserError(f"frl={method} changes the bias of the network's last linear layer: {name or 'it'} has none")
    return name, layer
