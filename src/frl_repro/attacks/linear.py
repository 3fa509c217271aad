"""The strongest attack of a linear classifier in the L-infinity ball, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from frl_repro.attacks.linf import check_images, per_sample, project


def attack_linear(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, *, epsilon: float | Tensor) -> Tensor:
    """Return images that a linear classifier errs on wherever any image of the ball and of [0, 1] makes it err.

    Against each wrong class every pixel goes epsilon along the sign of the difference of the two classes' weights, as
    far as [0, 1] lets it; the wrong class whose logit then leads most is taken. No gradient, no steps, no start.

    Parameters
    ----------
    weight, bias : Tensor, shape (K, C H W) and (K,)
        Logits are ``x.flatten(1) @ weight.T + bias``, x in [0, 1].
    x : Tensor, shape (N, C, H, W)
        Clean images in [0, 1].
    y : Tensor, shape (N,), int64
        True classes.
    epsilon : float or Tensor, shape (N,)
        Radius in pixel units.

    Returns
    -------
    Tensor, shape (N, C, H, W)

    Raises
    ------
    UserError
        Images or radii outside [0, 1].
    """
    check_images(x)
    radius = per_sample(epsilon, x, name="epsilon")
    best, best_lead = x, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    for other in range(len(bias)):
        along = (weight[other] - weight[y]).view(x.shape)
        moved = project(x + radius * along.sign(), x, radius)
        lead = (along * moved).flatten(1).sum(1) + bias[other] - bias[y]
        is_better = (lead > best_lead) & (y != other)
        best = torch.where(is_better.view(-1, *[1] * (x.ndim - 1)), moved, best)
        best_lead = torch.where(is_better, lead, best_lead)
    return best
