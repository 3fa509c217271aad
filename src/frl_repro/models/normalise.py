"""Normalisation as a layer: models take images in [0, 1], so that attacks and their radii live in pixel space."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frl_repro.basics.errors import UserError


class Normalise(nn.Module):
    """Subtract a mean from each channel and divide by a standard deviation.

    Both are buffers: a checkpoint keeps what its network was trained with, whatever settings it is loaded under.

    Parameters
    ----------
    mean, std : sequence of float, length C or 1
        In units of [0, 1]. One number serves all channels.
    num_channels : int
        C.

    Raises
    ------
    UserError
        Another number of values than 1 or C, or a standard deviation that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, num_channels: int) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, num_channels):
                raise UserError(
                    f"model.{name} has {len(values)} numbers, the images have {num_channels} channels: "
                    "give one number for each channel, or one for all"
                )
            numbers = list(values) * (num_channels if len(values) == 1 else 1)
            self.register_buffer(name, torch.tensor(numbers).view(-1, 1, 1))
        if min(std) <= 0:
            raise UserError(f"model.std={list(std)}: every number must be above 0")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(x - mean) / std``, shape of ``x``, (N, C, H, W)."""
        return (x - self.mean) / self.std
