"""What a training step minimises: per-sample losses first, class weights second, one mean last.

An objective attacks the batch, takes the losses of clean and attacked images, weighs each by its class and returns one
scalar to differentiate. With weights of 1 and margin factors of 1 `mixed` is plain adversarial training.

Everything broadcasts over leading dimensions: `...` is empty for one run, (R,) for R runs that train side by side, each
with its own batch of N images, class terms and loss.

Losses of clean and attacked images take both through the network at once, or with ``is_joint=False`` one after the
other: networks whose layers normalise by the batch (batch norm) then see clean and attacked images apart, as in the
released code of TRADES and of Xu et al. 2021. Without such layers both give the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from frl_repro.attacks.predictions import is_wrong


@dataclass(frozen=True)
class ClassTerms:
    """What a class policy varies, on the model's device; all of shape (..., K).

    Attributes
    ----------
    weight_nat, weight_bndy : Tensor
        Weights of the natural and of the boundary (or adversarial) loss, mean 1.
    margin_factor : Tensor
        What the training radius is multiplied with.
    log_weight_nat, log_weight_bndy : Tensor
        Logarithms of the weights, which also tell apart weights that are too small for numbers; by default those of the
        weights as they are.
    """

    weight_nat: Tensor
    weight_bndy: Tensor
    margin_factor: Tensor
    log_weight_nat: Tensor = field(default=None)  # type: ignore[assignment]
    log_weight_bndy: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for loss in ("nat", "bndy"):
            if getattr(self, f"log_weight_{loss}") is None:
                object.__setattr__(self, f"log_weight_{loss}", getattr(self, f"weight_{loss}").log())

    def of(self, y: Tensor) -> ClassTerms:
        """Return the terms of each sample by its class, shape (..., N)."""
        return ClassTerms(*(by_class.gather(-1, y) for by_class in vars(self).values()))


@dataclass(frozen=True)
class Loss:
    """One step's loss and what it counted on the way, before the step.

    Attributes
    ----------
    value : Tensor, shape (...)
        To differentiate, summed over runs.
    is_wrong_clean, is_wrong_attacked : Tensor, shape (..., M), bool
        Outcomes on the images that were trained on clean (attacked).
    """

    value: Tensor
    is_wrong_clean: Tensor
    is_wrong_attacked: Tensor


class Attack(Protocol):
    """A training attack; ``factor``, shape (..., N) or None for 1, scales each sample's radius and step."""

    def __call__(self, x: Tensor, y: Tensor, *, factor: Tensor | None) -> Tensor:
        """Return attacked images, shape of ``x``."""


class Objective(Protocol):
    """A step's loss."""

    def __call__(
        self, x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, terms: ClassTerms | None
    ) -> Loss:
        """Return the loss of a batch.

        Parameters
        ----------
        x : Tensor, shape (..., N, C, H, W)
            Clean images in [0, 1]; may be overwritten.
        y : Tensor, shape (..., N), int64
            True classes.
        forward : callable x -> logits (..., N, K)
            Differentiable with respect to the model's parameters.
        attack : Attack
        terms : ClassTerms, optional
            None treats every class alike.
        """


def natural(
    x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, terms: ClassTerms | None
) -> Loss:
    """Mean cross-entropy of clean images."""
    return mixed(x, y, forward=forward, attack=attack, terms=terms, fraction=0)


def mixed(
    x: Tensor,
    y: Tensor,
    *,
    forward: Callable[[Tensor], Tensor],
    attack: Attack,
    terms: ClassTerms | None,
    fraction: float,
) -> Loss:
    """Mean cross-entropy of a batch of which a share is attacked; clean ones weigh as natural loss, others as boundary.

    The order of the batch is random, so its first images are a random share. Source: the report, section 3.2.
    """
    samples = y.ndim - 1  # the dimension that counts them
    num_attacked = round(fraction * y.shape[-1])
    each = None if terms is None else terms.of(y)
    if num_attacked > 0:
        chosen = x.narrow(samples, 0, num_attacked)
        factor = None if each is None else each.margin_factor[..., :num_attacked]
        chosen.copy_(attack(chosen, y[..., :num_attacked], factor=factor))
    logits = forward(x)
    losses = cross_entropies(logits, y)
    if each is not None:
        weights = [each.weight_bndy[..., :num_attacked], each.weight_nat[..., num_attacked:]]
        losses = losses * torch.cat(weights, -1)
    wrong = is_wrong(logits.detach(), y)
    return Loss(losses.mean(-1), is_wrong_clean=wrong[..., num_attacked:], is_wrong_attacked=wrong[..., :num_attacked])


def split(
    x: Tensor,
    y: Tensor,
    *,
    forward: Callable[[Tensor], Tensor],
    attack: Attack,
    terms: ClassTerms | None,
    is_joint: bool = True,
) -> Loss:
    """Natural loss CE(f(x), y) plus boundary loss CE(f(x_adv), argmax f(x)), each weighted by true class.

    Source: the report, section 3.3 (loss of Experiment 2). No gradient flows through argmax f(x).
    """
    each = None if terms is None else terms.of(y)
    clean, attacked = _clean_and_attacked(x, y, forward, attack, each, is_joint=is_joint)
    return _pair(clean, attacked, y, boundary_target=clean.detach().argmax(-1), each=each)


def paired(
    x: Tensor,
    y: Tensor,
    *,
    forward: Callable[[Tensor], Tensor],
    attack: Attack,
    terms: ClassTerms | None,
    is_joint: bool = True,
) -> Loss:
    """Natural loss CE(f(x), y) plus adversarial loss CE(f(x_adv), y), each weighted by true class.

    Source: the report's code of Experiment 3, with its labels put right (docs/deviations.md, 1).
    """
    each = None if terms is None else terms.of(y)
    clean, attacked = _clean_and_attacked(x, y, forward, attack, each, is_joint=is_joint)
    return _pair(clean, attacked, y, boundary_target=y, each=each)


def trades(
    x: Tensor,
    y: Tensor,
    *,
    forward: Callable[[Tensor], Tensor],
    attack: Attack,
    terms: ClassTerms | None,
    beta: float,
    is_joint: bool = True,
) -> Loss:
    """sum(CE * w_nat) / sum(w_nat) + beta * sum(KL(f(x) || f(x_adv)) * w_bndy) / sum(w_bndy) over the batch.

    Source: Zhang et al. 2019, equation 5; class weights as in the released code of Xu et al. 2021. The gradient flows
    through both predictions.
    """
    each = None if terms is None else terms.of(y)
    clean, attacked = _clean_and_attacked(x, y, forward, attack, each, is_joint=is_joint)
    divergences = kl_div(
        torch.log_softmax(attacked, -1), torch.log_softmax(clean, -1), log_target=True, reduction="none"
    ).sum(-1)
    value = weighted_mean(cross_entropies(clean, y), each, "nat") + beta * weighted_mean(divergences, each, "bndy")
    return _loss(value, clean, attacked, y)


def weighted_mean(losses: Tensor, each: ClassTerms | None, loss: Literal["nat", "bndy"]) -> Tensor:
    """Return sum(weights * losses) / sum(weights), the mean of both sources; all alike for None.

    Where the largest weight of a batch is too small for its products to keep their digits, down to 0 / 0, the ratios of
    the weights come from their logarithms.

    Parameters
    ----------
    losses : Tensor, shape (..., N)
    each : ClassTerms, optional
        Of each sample.
    loss : {"nat", "bndy"}
        Whose weights to take.

    Returns
    -------
    Tensor, shape (...)
    """
    if each is None:
        return losses.mean(-1)
    weights, logarithms = (
        (each.weight_nat, each.log_weight_nat) if loss == "nat" else (each.weight_bndy, each.log_weight_bndy)
    )
    limits = torch.finfo(weights.dtype)
    is_too_small = weights.amax(-1, keepdim=True) < limits.tiny / limits.eps
    ratios = (logarithms - logarithms.amax(-1, keepdim=True)).exp().to(weights)
    weights = torch.where(is_too_small, ratios, weights)
    return (losses * weights).sum(-1) / weights.sum(-1)


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sample, shape (..., N)."""
    return cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


def _clean_and_attacked(
    x: Tensor,
    y: Tensor,
    forward: Callable[[Tensor], Tensor],
    attack: Attack,
    each: ClassTerms | None,
    *,
    is_joint: bool,
) -> tuple[Tensor, Tensor]:
    x_adv = attack(x, y, factor=None if each is None else each.margin_factor)
    if not is_joint:
        return forward(x), forward(x_adv)
    clean, attacked = forward(torch.cat([x, x_adv], y.ndim - 1)).chunk(2, -2)
    return clean, attacked


def _pair(clean: Tensor, attacked: Tensor, y: Tensor, *, boundary_target: Tensor, each: ClassTerms | None) -> Loss:
    value = weighted_mean(cross_entropies(clean, y), each, "nat")
    value = value + weighted_mean(cross_entropies(attacked, boundary_target), each, "bndy")
    return _loss(value, clean, attacked, y)


def _loss(value: Tensor, clean: Tensor, attacked: Tensor, y: Tensor) -> Loss:
    return Loss(
        value,
        is_wrong_clean=is_wrong(clean.detach(), y),
        is_wrong_attacked=is_wrong(attacked.detach(), y),
    )
