"""What a training step minimises: predictions first, class weights second, one mean last.

An objective attacks the batch and takes it through the network (`Objective.predict`), and turns predictions and class
weights into one number a run (`Objective.loss`). Between the two a method may look at the predictions.

Everything broadcasts over leading dimensions: `...` is empty for one run, (R,) for R fused runs, each
with its own batch of N images, class weights and loss.

Losses of clean and attacked images take both through the network at once, or with ``is_joint=False`` one after the
other: networks whose layers normalise by the batch (batch norm) then see clean and attacked images apart, as in the
released code of TRADES and of Xu et al. 2021. Without such layers both give the same numbers up to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from frl_repro.training.frl.class_stats import Predictions
from frl_repro.training.frl.method import Plan, Weights


class Attack(Protocol):
    """A training attack; ``factor``, shape (..., N) or None for 1, scales each sample's radius."""

    def __call__(self, x: Tensor, y: Tensor, *, factor: Tensor | None, is_step_scaled: bool = True) -> Tensor:
        """Return attacked images, shape of ``x``; ``is_step_scaled``: the step grows and shrinks with the radius."""


@dataclass(frozen=True)
class Objective(ABC):
    """A step's loss."""

    num_passes: ClassVar[int]
    """How often each image goes forward and backward through the network in a step, the attack left out."""

    def num_attack_passes(self, of_each: float) -> float:
        """Return the attack's passes for each image of the batch, given those for each image that is attacked."""
        return of_each

    @abstractmethod
    def predict(
        self, x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, plan: Plan
    ) -> Predictions:
        """Attack a batch and take it through the network.

        Parameters
        ----------
        x : Tensor, shape (..., N, C, H, W)
            Clean images in [0, 1]; may be overwritten.
        y : Tensor, shape (..., N), int64
            True classes.
        forward : callable x -> logits (..., N, K)
            Differentiable with respect to the model's parameters.
        attack : Attack
        plan : Plan
        """

    @abstractmethod
    def loss(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return the loss to differentiate, shape (...): every class alike without weights.

        ``scale`` says what weighted sums are divided by; see `weighted_mean`.
        """


def _attacked(x: Tensor, y: Tensor, attack: Attack, plan: Plan) -> Tensor:
    factor = None if plan.radius is None else plan.radius.gather(-1, y)
    return attack(x, y, factor=factor) if plan.is_step_scaled else attack(x, y, factor=factor, is_step_scaled=False)


@dataclass(frozen=True)
class Mixed(Objective):
    """Mean cross-entropy of a batch of which a share is attacked; clean ones weigh as natural loss, others as boundary.

    The order of the batch is random, so its first images are a random share. Weights are divided by the number of
    images. Without a share it is natural training. Source: the reproduction report, section 3.2.

    Attributes
    ----------
    fraction : float
        Share that is attacked, in [0, 1].
    """

    fraction: float
    num_passes: ClassVar[int] = 1

    def num_attack_passes(self, of_each: float) -> float:
        """Return the passes of the share that is attacked."""
        return self.fraction * of_each

    def predict(
        self, x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, plan: Plan
    ) -> Predictions:
        """Attack the first images and take the batch through the network once."""
        samples = y.ndim - 1  # the dimension that counts them
        num_attacked = round(self.fraction * y.shape[-1])
        if num_attacked > 0:
            chosen = x.narrow(samples, 0, num_attacked)
            chosen.copy_(_attacked(chosen, y[..., :num_attacked], attack, plan))
        logits = forward(x)
        return Predictions(
            clean=logits.narrow(samples, num_attacked, y.shape[-1] - num_attacked),
            y_clean=y[..., num_attacked:],
            attacked=logits.narrow(samples, 0, num_attacked),
            y_attacked=y[..., :num_attacked],
            is_paired=False,
        )

    def loss(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:  # noqa: ARG002
        """Return the mean over all images."""
        logits = torch.cat([seen.attacked, seen.clean], -2)
        losses = cross_entropies(logits, torch.cat([seen.y_attacked, seen.y_clean], -1))
        if weights is None:
            return losses.mean(-1)
        each = torch.cat([weights.bndy.gather(-1, seen.y_attacked), weights.nat.gather(-1, seen.y_clean)], -1)
        value = (losses * each).mean(-1)
        return value if weights.pair is None else value + _pair_term(seen, weights.pair)


@dataclass(frozen=True)
class _Pairs(Objective):
    """Losses of clean and attacked images of the same batch."""

    is_joint: bool = True
    num_passes: ClassVar[int] = 2

    def predict(
        self, x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, plan: Plan
    ) -> Predictions:
        """Attack every image and take both through the network."""
        x_adv = _attacked(x, y, attack, plan)
        if not self.is_joint:
            return Predictions(forward(x), y, forward(x_adv), y, is_paired=True)
        clean, attacked = forward(torch.cat([x, x_adv], y.ndim - 1)).chunk(2, -2)
        return Predictions(clean, y, attacked, y, is_paired=True)

    def loss(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return the weighted natural loss plus the weighted boundary loss."""
        natural = cross_entropies(seen.clean, seen.y_clean)
        value = weighted_mean(natural, weights, "nat", seen.y_clean, scale=scale)
        value = value + self.boundary(seen, weights, scale=scale)
        return value if weights is None or weights.pair is None else value + _pair_term(seen, weights.pair)

    @abstractmethod
    def boundary(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return the weighted boundary loss, shape (...)."""


@dataclass(frozen=True)
class SplitLoss(_Pairs):
    """Natural loss CE(f(x), y) plus boundary loss CE(f(x_adv), argmax f(x)), each weighted by true class.

    Source: the reproduction report, section 3.3 (loss of Experiment 2). No gradient flows through argmax f(x).
    """

    def boundary(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return the cross-entropy of attacked images with what the network says of the clean ones."""
        losses = cross_entropies(seen.attacked, seen.clean.detach().argmax(-1))
        return weighted_mean(losses, weights, "bndy", seen.y_attacked, scale=scale)


@dataclass(frozen=True)
class Paired(_Pairs):
    """Natural loss CE(f(x), y) plus adversarial loss CE(f(x_adv), y), each weighted by true class.

    Source: the published code of Experiment 3, with its labels put right (docs/deviations.md, 1).
    """

    def boundary(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return the cross-entropy of attacked images."""
        losses = cross_entropies(seen.attacked, seen.y_attacked)
        return weighted_mean(losses, weights, "bndy", seen.y_attacked, scale=scale)


@dataclass(frozen=True)
class Trades(_Pairs):
    """sum(CE * w_nat) / sum(w_nat) + beta * sum(KL(f(x) || f(x_adv)) * w_bndy) / sum(w_bndy) over the batch.

    Source: Zhang et al. 2019, equation 5; class weights as in the released code of Xu et al. 2021. The gradient flows
    through both predictions.

    Attributes
    ----------
    beta : float
        Weight of the divergence.
    """

    beta: float = 1.0

    def boundary(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return beta times the divergence."""
        losses = divergences(seen.clean, seen.attacked)
        return self.beta * weighted_mean(losses, weights, "bndy", seen.y_attacked, scale=scale)


@dataclass(frozen=True)
class Friendly(Objective):
    """CE(f(x_right), y) + beta KL(f(x) || f(x_past)), and KL(f(.) || uniform) of both: the loss of BAT.

    ``x_right`` and ``x_past`` are the two images of `frl_repro.attacks.friendly`. Weights of the natural loss are for
    the terms of ``x_right``, those of the boundary loss for the terms of ``x_past``, which is the attacked image.

    Source: Sun et al. 2022 (BAT), arXiv 2209.07534. The gradient flows through all predictions.

    Attributes
    ----------
    beta : float
        Weight of the divergence.
    """

    beta: float
    is_joint: bool = True
    num_passes: ClassVar[int] = 3

    def num_attack_passes(self, of_each: float) -> float:
        """Return the passes of `attacks.friendly`, which looks at each iterate and at the clean image, and steps on."""
        return of_each + 1 + 0.5 * (of_each + 2)

    def predict(
        self, x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, plan: Plan
    ) -> Predictions:
        """Attack every image and take all three through the network."""
        images = [x, *_attacked(x, y, attack, plan)]
        if self.is_joint:
            clean, right, past = forward(torch.cat(images, y.ndim - 1)).chunk(3, -2)
        else:
            clean, right, past = map(forward, images)
        return Predictions(clean, y, past, y, is_paired=True, friendly=right)

    def loss(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return the weighted sum of the terms."""
        assert seen.friendly is not None
        of_right = cross_entropies(seen.friendly, seen.y_clean) + from_uniform(seen.friendly)
        of_past = self.beta * divergences(seen.clean, seen.attacked) + from_uniform(seen.attacked)
        value = weighted_mean(of_right, weights, "nat", seen.y_clean, scale=scale)
        return value + weighted_mean(of_past, weights, "bndy", seen.y_attacked, scale=scale)


def weighted_mean(
    losses: Tensor,
    weights: Weights | None,
    loss: Literal["nat", "bndy"],
    y: Tensor,
    *,
    scale: Literal["weights", "images"] = "weights",
) -> Tensor:
    """Return sum(weights * losses) / sum(weights), the mean of both sources; all alike for None.

    Where the largest weight of a batch is too small for its products to keep their digits, down to 0 / 0, the ratios of
    the weights come from their logarithms.

    Parameters
    ----------
    losses : Tensor, shape (..., N)
    weights : Weights, optional
        By class, shape (..., K).
    loss : {"nat", "bndy"}
        Whose weights to take.
    y : Tensor, shape (..., N), int64
        The class by which each sample is weighed.
    scale : {"weights", "images"}
        Divide by the sum of the weights, or by the number of images: a method's weights then count as they are.

    Returns
    -------
    Tensor, shape (...)
    """
    if weights is None:
        return losses.mean(-1)
    by_class, log_by_class = (weights.nat, weights.log_nat) if loss == "nat" else (weights.bndy, weights.log_bndy)
    each = by_class.gather(-1, y)
    if scale == "images":
        return (losses * each).mean(-1)
    logarithms = (each.log() if log_by_class is None else log_by_class.gather(-1, y)).double()
    limits = torch.finfo(each.dtype)
    is_too_small = each.amax(-1, keepdim=True) < limits.tiny / limits.eps
    ratios = (logarithms - logarithms.amax(-1, keepdim=True)).exp().to(each)
    each = torch.where(is_too_small, ratios, each)
    return (losses * each).sum(-1) / each.sum(-1)


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sample, shape (..., N)."""
    return cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


def divergences(logits: Tensor, other: Tensor) -> Tensor:
    """Return KL(softmax(logits) || softmax(other)) of each sample, shape (..., N), in nats."""
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(other, -1)
    return kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def from_uniform(logits: Tensor) -> Tensor:
    """Return KL(softmax(logits) || uniform) of each sample, shape (..., N), in nats."""
    return divergences(logits, torch.zeros_like(logits))


def _pair_term(seen: Predictions, pair: Tensor) -> Tensor:
    """Return the mean of the attacked images' cross-entropies, each weighted by its true and its predicted class."""
    K = pair.shape[-1]
    place = seen.y_attacked * K + seen.attacked.detach().argmax(-1)
    return (cross_entropies(seen.attacked, seen.y_attacked) * pair.flatten(-2).gather(-1, place)).mean(-1)
