"""Augmentation of training images as tensor operations, on the device where the images are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

MAX_SHIFT = 4  # pixels; source: He et al. 2016 and all common training on CIFAR-10: zero padding of 4, random crop
FLIP_PROBABILITY = 0.5

Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]
"""(images (R, N, C, H, W), one generator for each of R runs) -> images of the same shape and dtype."""


def shift_and_flip(
    images: Tensor, generators: Sequence[torch.Generator], *, max_shift: int, flip_probability: float
) -> Tensor:
    """Return each image shifted at random, zeros coming in, and mirrored left to right at random.

    The shift is a random crop of the zero-padded image: each of the ``(2 max_shift + 1) ** 2`` positions is equally
    likely. An image's class does not depend on either, so labels stay what they are.

    Parameters
    ----------
    images : Tensor, shape (R, N, C, H, W), any dtype
        Left as they are.
    generators : sequence of torch.Generator, length R
        The only source of randomness: run r draws what it would draw alone, from generator r.
    max_shift : int
        In pixels, up and down, left and right. 0 shifts nothing.
    flip_probability : float
        In [0, 1].

    Returns
    -------
    Tensor, shape (R, N, C, H, W)
        Of the same dtype, on the same device.
    """
    num_runs, num_images, num_channels, height, width = images.shape
    tops, lefts, is_mirrored = (
        torch.stack(drawn).to(images.device).flatten()
        for drawn in zip(*(_draw(num_images, g, max_shift, flip_probability) for g in generators), strict=True)
    )
    rows = tops.unsqueeze(1) + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(num_runs * num_images, -1)
    columns = lefts.unsqueeze(1) + torch.where(is_mirrored.unsqueeze(1), columns.flip(1), columns)
    padded = pad(images.flatten(0, 1), (max_shift,) * 4)
    samples = torch.arange(num_runs * num_images, device=images.device).view(-1, 1, 1, 1)
    channels = torch.arange(num_channels, device=images.device).view(1, -1, 1, 1)
    return padded[samples, channels, rows[:, None, :, None], columns[:, None, None, :]].view(images.shape)


def _draw(
    num: int, generator: torch.Generator, max_shift: int, flip_probability: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return top and left edge of each crop in the padded image, and whether it is mirrored; shape (N,) each."""
    edges = torch.randint(2 * max_shift + 1, (2, num), generator=generator, device=generator.device)
    is_mirrored = torch.rand(num, generator=generator, device=generator.device) < flip_probability
    return edges[0], edges[1], is_mirrored


def _nothing(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    del generators
    return images


def _crop(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    return shift_and_flip(images, generators, max_shift=MAX_SHIFT, flip_probability=0.0)


def _crop_flip(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    return shift_and_flip(images, generators, max_shift=MAX_SHIFT, flip_probability=FLIP_PROBABILITY)


AUGMENTATIONS: Mapping[str, Augment] = {"none": _nothing, "crop": _crop, "crop_flip": _crop_flip}
"""What ``dataset.augmentation`` names."""
