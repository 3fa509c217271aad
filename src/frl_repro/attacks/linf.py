"""The L-infinity ball around an image, inside the image range [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError


def check_images(x: Tensor) -> None:
    """Raise a `UserError` unless all pixels are floats in [0, 1]. A GPU waits for the answer.

    Parameters
    ----------
    x : Tensor, shape (N, C, H, W)
    """
    if not x.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {x.dtype}: use data.batch_to_float on uint8 pixels")
    if x.numel() == 0:
        return
    low, high = torch.stack(x.aminmax()).tolist()
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"images must lie in [0, 1], got pixels from {low:g} to {high:g}: divide those of 0..255 by 255, and let "
            "the model do what normalisation it needs"
        )


def check_length(value: float, *, name: str) -> None:
    """Raise a `UserError` unless a radius or step lies in [0, 1]; ``name`` is what the message calls it."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value:g} must lie in [0, 1], as pixels do: write 8/255 for eight grey levels of 255")


def per_sample(value: float | Tensor, x: Tensor, *, name: str, is_checked: bool = False) -> float | Tensor:
    """Return ``value`` in a shape that broadcasts against ``x``, one number per sample or one for all.

    Parameters
    ----------
    value : float or Tensor, shape () or (N,)
        Pixel units, in [0, 1].
    x : Tensor, shape (N, C, H, W)
        Images; gives N, dtype and device.
    name : str
        What the value is, for the message.
    is_checked : bool
        The values are known to be in range; looking at them would make a GPU wait.

    Raises
    ------
    UserError
        When a value lies outside [0, 1], or the shape is another.
    """
    if isinstance(value, Tensor) and value.ndim > 0:
        if value.shape != (len(x),):
            raise UserError(f"{name} has shape {tuple(value.shape)}; give one number or one per sample ({len(x)},)")
        if not is_checked:
            for extreme in torch.stack(value.aminmax()).tolist():
                check_length(extreme, name=name)
        return value.to(x).view(-1, *[1] * (x.ndim - 1))
    value = float(value)
    check_length(value, name=name)
    return value


def project(x_adv: Tensor, x: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return the point of the ball around ``x`` and of [0, 1] that is nearest to ``x_adv``.

    Shapes: ``x_adv`` and ``x`` (N, C, H, W); ``epsilon`` a float or broadcastable to ``x`` (see `per_sample`).
    The order of operations is foolbox's, so that both give the same bits.
    """
    # In place after the first operation: at this size memory costs more than arithmetic.
    return (x_adv - x).clamp_(-epsilon, epsilon).add_(x).clamp_(0, 1)  # type: ignore[arg-type]


def random_start(
    x: Tensor,
    epsilon: float | Tensor,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    sd: float | None = None,
) -> Tensor:
    """Return a random point of the ball around each image, clipped to [0, 1].

    Uniform in the ball, or Gaussian around the image with standard deviation ``sd`` (pixel units), projected onto the
    ball. Uniform noise is drawn on the unit ball and scaled: one generator gives the same direction for every radius.
    Several generators draw for one of as many equal blocks of ``x`` each.
    """
    drawing = torch.rand if sd is None else torch.randn
    generators = [generator] if isinstance(generator, torch.Generator) else generator
    shape = (len(x) // len(generators), *x.shape[1:])
    blocks = [drawing(shape, generator=g, dtype=x.dtype, device=g.device).to(x.device) for g in generators]
    noise = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    shift = noise.mul_(2).sub_(1).mul_(epsilon) if sd is None else noise.mul_(sd)
    return project(shift.add_(x), x, epsilon)
