"""Networks: images in [0, 1] in, logits out; normalisation, where a network needs it, is a layer inside."""

import threading
from collections.abc import Callable

import torch
from torch import nn

from frl_repro.errors import UserError
from frl_repro.models.lenet5 import IMAGE_SIZE as LENET5_IMAGE_SIZE
from frl_repro.models.lenet5 import LeNet5
from frl_repro.models.stack import ModelStack, stack

__all__ = ["MODELS", "LeNet5", "ModelStack", "build_model", "stack"]


def _lenet5(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = image_shape
    if (height, width) != (LENET5_IMAGE_SIZE, LENET5_IMAGE_SIZE):
        raise UserError(f"model=lenet5 takes 32x32 images, the data set has {height}x{width}")
    return LeNet5(num_classes=num_classes, in_channels=channels)


_RANDOM_STATE = threading.Lock()  # the global one, which layers draw their first weights from

MODELS: dict[str, Callable[[int, tuple[int, int, int]], nn.Module]] = {"lenet5": _lenet5}


def build_model(name: str, *, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """Return a freshly initialised network; the global random state is left as it was.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    num_classes : int
        K.
    image_shape : tuple of int
        (C, H, W) of the images.
    seed : int
        Seed of the initial weights.

    Raises
    ------
    UserError
        Unknown name, or images of a size that the network cannot take.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](num_classes, image_shape)
