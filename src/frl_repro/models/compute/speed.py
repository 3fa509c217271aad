"""How a network is computed in training: in bfloat16, compiled. It is the same network: same weights, same mode.

Measuring takes the network as it is, in float32: these settings change how fast a model is trained (bfloat16: also
which model comes of it), never how a trained model is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class InBfloat16(nn.Module):
    """A network whose forward pass, and so its backward pass, runs under bfloat16 autocast; logits are float32.

    Weights stay float32 and so do their gradients: no loss scaling is needed, bfloat16 has float32's range.

    Parameters
    ----------
    network : nn.Module
        [0, 1] images in, logits out.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, K), float32, of images ``x``, shape (N, C, H, W)."""
        # No cache of cast weights: a recorded CUDA graph would go on reading the weights of its first step.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            logits: Tensor = self.network(x)
        return logits.float()


def for_training(model: nn.Module, *, precision: str, is_compiled: bool) -> nn.Module:
    """Return what computes the model in the attacks and losses of training; itself where nothing is asked for.

    Parameters
    ----------
    model : nn.Module
        Of one run, or of fused ones.
    precision : {"float32", "bfloat16"}
    is_compiled : bool
        Compile it with ``torch.compile``, for each shape of batch anew.
    """
    computing = model if precision == "float32" else InBfloat16(model)
    if not is_compiled:
        return computing
    compiled: nn.Module = torch.compile(computing, dynamic=False)  # type: ignore[assignment]
    return compiled


@contextmanager
def without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """Keep a compiled network from computing gradients of its weights where only those of images are asked for.

    PyTorch's own backward pass leaves out what nobody asks for; a compiled one computes all that it was compiled for.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def attack_on(computing: nn.Module, attack: Callable[..., Tensor], *, is_compiled: bool) -> Callable[..., Tensor]:
    """Return a training attack that computes with ``computing`` instead of the model that it is called with."""

    def run(model: nn.Module, *arguments: Tensor, **settings: object) -> Tensor:
        if not is_compiled:
            return attack(computing, *arguments, **settings)
        with without_weight_gradients(model):
            return attack(computing, *arguments, **settings)

    return run
