"""Networks: images in [0, 1] in, logits out; normalisation, where a network needs it, is a layer inside."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from frl_repro.basics.errors import UserError
from frl_repro.models.fused import FusedModel, fuse
from frl_repro.models.lenet5 import IMAGE_SIZE as LENET5_IMAGE_SIZE
from frl_repro.models.lenet5 import LeNet5
from frl_repro.models.linear import LinearModel
from frl_repro.models.normalise import Normalise
from frl_repro.models.residual import MIN_IMAGE_SIDE, ResidualNetwork, preact_resnet18, wrn28
from frl_repro.models.small import ResNet8, SmallCNN

__all__ = [
    "COMPUTATIONS",
    "MODELS",
    "FusedModel",
    "LeNet5",
    "LinearModel",
    "Normalise",
    "ResidualNetwork",
    "build_model",
    "fuse",
    "random_state_kept",
]


# oneDNN (PyTorch's convolutions on a processor) writes past its buffer in the gradient of a strided 1x1 convolution
# that has fewer channels than an AVX2 register and lies channels last (uxlfoundation/oneDNN issue 6035).
_CHANNELS_LAST_FROM = 8


def _lenet5(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = image_shape
    if (height, width) != (LENET5_IMAGE_SIZE, LENET5_IMAGE_SIZE):
        raise UserError(
            f"model=lenet5 takes 32x32 images, the data set has {height}x{width}: for images of your own give "
            f"dataset.image_size={LENET5_IMAGE_SIZE} (they are resized), or a network for any size: "
            "model=resnet8 on a processor, model=preact_resnet18 on a GPU"
        )
    return LeNet5(num_classes=num_classes, in_channels=channels)


def _residual(
    network: Callable[..., ResidualNetwork],
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    _check_size(image_shape)
    channels = image_shape[0]
    normalise = Normalise(mean, std, num_channels=channels)
    model = network(num_classes=num_classes, in_channels=channels, normalise=normalise, width=width)
    if width < _CHANNELS_LAST_FROM:
        return model
    # Convolutions read all channels of a pixel together: this order in memory is theirs.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _small(
    network: Callable[..., nn.Module],
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    **settings: Any,
) -> nn.Module:
    _check_size(image_shape)
    normalise = Normalise(mean, std, num_channels=image_shape[0])
    return network(num_classes=num_classes, image_shape=image_shape, normalise=normalise, **settings)


def _check_size(image_shape: tuple[int, int, int]) -> None:
    _, height, width = image_shape
    if min(height, width) < MIN_IMAGE_SIDE:
        raise UserError(
            f"images of {height}x{width} are too small for this model: it takes {MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE} "
            "and larger ones"
        )


def _linear(
    num_classes: int, image_shape: tuple[int, int, int], *, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    return LinearModel(num_classes=num_classes, image_shape=image_shape, mean=mean, std=std)


_RANDOM_STATE = threading.Lock()  # the global one, which layers draw their first weights from


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the global random state of the processor as it was; one thread at a time."""
    with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
        yield


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": _lenet5,
    "linear": _linear,
    "cnn_small": functools.partial(_small, SmallCNN),
    "resnet8": functools.partial(_small, ResNet8),
    "preact_resnet18": functools.partial(_residual, preact_resnet18),
    "wrn28_10": functools.partial(_residual, wrn28),
}
"""Name to (K, (C, H, W), *, the model's own settings) -> network."""

COMPUTATIONS = {
    "lenet5": "tanh, average pooling",
    "linear": "pixels less a mean, divided by a deviation",
    "cnn_small": "ReLU, no pooling",
    "resnet8": "residual blocks with ReLU after the sum, average pooling at the end",
    "preact_resnet18": "pre-activation blocks with ReLU, average pooling at the end",
    "wrn28_10": "pre-activation blocks with ReLU, average pooling at the end",
}
"""Name to what a network computes besides its tensors, for people: no checkpoint shows it."""


def build_model(
    name: str, *, num_classes: int, image_shape: tuple[int, int, int], seed: int, **settings: Any
) -> nn.Module:
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
    settings
        What the model's file in conf/model has besides its name.

    Raises
    ------
    UserError
        Unknown name, images of a size that the network cannot take, or settings that do not fit the images.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    with random_state_kept():
        torch.manual_seed(seed)
        return MODELS[name](num_classes, image_shape, **settings)
