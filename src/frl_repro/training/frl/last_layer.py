"""The layer that makes the logits, for methods that change a finished model in it."""

from __future__ import annotations

from torch import nn

from frl_repro.basics.errors import UserError


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
