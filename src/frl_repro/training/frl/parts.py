"""The formulas that class policies share. Pure; they act on the last dimension (classes) and broadcast over others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLIER_SUM = 0.5  # the paper's authors rescale multipliers whose sum exceeds this (released code, 2022 state)


def violation(class_error: Tensor, overall_error: Tensor | float, tau: float | Tensor) -> Tensor:
    """Return by how much each class's gap to the overall error exceeds what is tolerated; signed.

    Parameters
    ----------
    class_error : Tensor, shape (..., K)
        Error of each class, in [0, 1].
    overall_error : Tensor of shape (...), or float
        Error over all samples.
    tau : float, or Tensor of shape (..., 1)
        Tolerated gap, in [0, 1].

    Notes
    -----
    Source: Xu et al. 2021, equation 6 and Algorithm 1, lines 4 and 5.
    """
    overall = torch.as_tensor(overall_error, dtype=class_error.dtype, device=class_error.device)
    return class_error - overall.unsqueeze(-1) - tau


def next_multiplier(multiplier: Tensor, violation: Tensor, alpha: float | Tensor, *, accumulate: bool) -> Tensor:
    """Return the multipliers after an update, shape (..., K).

    Accumulating is dual ascent, ``multiplier + alpha * violation`` (Algorithm 1). Restarting forgets what was before,
    ``alpha * violation``: the published code begins every update from the same value (docs/deviations.md, 3).
    """
    step = alpha * violation
    return multiplier + step if accumulate else step


def project_multiplier(multiplier: Tensor) -> Tensor:
    """Return non-negative multipliers whose sum is at most `MULTIPLIER_SUM`, shape (..., K).

    Source: the paper authors' released code, which clamps at 0 and rescales.
    """
    positive = multiplier.clamp(min=0)
    total = positive.sum(-1, keepdim=True)
    return torch.where(total > MULTIPLIER_SUM, positive * (MULTIPLIER_SUM / total), positive)


def softmax_weights(multiplier: Tensor) -> Tensor:
    """Return class weights ``K * softmax(multiplier)``, shape (..., K). Source: the reproduction report."""
    return multiplier.shape[-1] * torch.softmax(multiplier, -1)


def softmax_log_weights(multiplier: Tensor) -> Tensor:
    """Return the logarithms of `softmax_weights`, finite also where these are too small for numbers; shape (..., K)."""
    return math.log(multiplier.shape[-1]) + torch.log_softmax(multiplier, -1)


def simplex_weights(multiplier: Tensor) -> Tensor:
    """Return class weights ``K * (1/K + multiplier - mean(multiplier))``: mean 1, shape (..., K).

    With projected multipliers they stay above ``1 - MULTIPLIER_SUM``. Source: the paper authors' released code.
    """
    K = multiplier.shape[-1]
    return 1 + K * (multiplier - multiplier.mean(-1, keepdim=True))


def simplex_log_weights(multiplier: Tensor) -> Tensor:
    """Return the logarithms of `simplex_weights` of projected multipliers, shape (..., K)."""
    return simplex_weights(multiplier).log()


WEIGHT_RULES = {"softmax": softmax_weights, "simplex": simplex_weights}
LOG_WEIGHT_RULES = {"softmax": softmax_log_weights, "simplex": simplex_log_weights}


def margin_factors(multiplier: Tensor, *, bounds: tuple[float, float]) -> Tensor:
    """Return ``exp(multiplier)`` clamped to ``bounds``: what each class's radius is multiplied with, shape (..., K).

    Source: Xu et al. 2021, section 3.3 (remargin); the bounds are those of the authors' released code.
    """
    return multiplier.exp().clamp(*bounds)
