"""What the published code computes where it departs from the reproduction report; `docs/deviations.md` numbers each.

Losses and measurements that depart are here; departures that are settings (fixed attack steps, `tau.bndy` for
`tau.nat`, a base that saw the validation images) are read in `build` and `config`. `recipe=report_code` and the audit
switch them on one by one, to show which of the reproduction report's conclusions depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from frl_repro.attacks import evaluation_mode
from frl_repro.attacks.predictions import predicted_class
from frl_repro.data import Split, in_unit_range
from frl_repro.evaluation.class_errors import count_by_class
from frl_repro.evaluation.evaluate import EvaluationAttack
from frl_repro.training.frl.class_stats import Predictions
from frl_repro.training.frl.method import Plan, Weights
from frl_repro.training.objectives import Attack, Paired, SplitLoss, cross_entropies, weighted_mean

NUM_BATCHES, DIVISOR = 21, 22  # validation batches measured before a step, and what their sum is divided by


@dataclass(frozen=True)
class PublishedErrors:
    """Error rates as the published code computes them; see `frl_repro.training.frl.ErrorRates`."""

    class_natural_error: Tensor
    class_boundary_error: Tensor
    overall_natural_error: float
    overall_boundary_error: float


def measure_published(
    model: nn.Module,
    split: Split,
    *,
    attack: EvaluationAttack,
    epsilon: float,
    logits: Callable[[nn.Module, Tensor], Tensor],
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    flipped_boundary: bool,
    overall_over_22: bool,
) -> PublishedErrors:
    """Measure a validation sample in one batch with the published departures 4 (overall) and 5 (flipped).

    Parameters
    ----------
    flipped_boundary : bool
        Count every prediction that the attack changes as a boundary error, also of samples that were wrong before.
    overall_over_22 : bool
        Multiply the overall errors by 21/22.
    """
    with evaluation_mode(model):
        x, y = in_unit_range(split.images.to(device)), split.labels.to(device)
        predicted = predicted_class(logits(model, x))
        attacked = predicted_class(logits(model, attack(model, x, y, epsilon=epsilon, generator=generator)))
    is_natural_error = predicted != y
    is_boundary_error = attacked != predicted if flipped_boundary else (attacked != y) & ~is_natural_error

    def by_class(outcome: Tensor) -> Tensor:
        count = count_by_class(y, torch.ones_like(outcome), num_classes)
        return (count_by_class(y, outcome, num_classes).double() / count).cpu()

    factor = NUM_BATCHES / DIVISOR if overall_over_22 else 1.0
    return PublishedErrors(
        class_natural_error=by_class(is_natural_error),
        class_boundary_error=by_class(is_boundary_error),
        overall_natural_error=factor * is_natural_error.double().mean().item(),
        overall_boundary_error=factor * is_boundary_error.double().mean().item(),
    )


@dataclass(frozen=True)
class ScrambledPaired(Paired):
    """`objectives.Paired` with the attacked images shuffled and their labels not (departure 1).

    Attributes
    ----------
    generators : sequence of torch.Generator
        One for each of the R runs; images have shape (R, N, C, H, W).
    """

    generators: Sequence[torch.Generator] = ()

    def predict(
        self, x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, plan: Plan
    ) -> Predictions:
        """Attack every image, shuffle the attacked ones, and take both through the network at once."""
        x_adv = attack(x, y, factor=None if plan.radius is None else plan.radius.gather(-1, y))
        orders = [torch.randperm(y.shape[1], generator=g, device=g.device) for g in self.generators]
        order = torch.stack(orders).to(y.device)
        x_adv = x_adv.take_along_dim(order.view(*order.shape, *[1] * (x.ndim - 2)), 1)
        clean, shuffled = forward(torch.cat([x, x_adv], 1)).chunk(2, 1)
        return Predictions(clean, y, shuffled, y.gather(1, order), is_paired=False)

    def boundary(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy with the labels as they stood before."""
        return cross_entropies(seen.attacked, seen.y_clean).mean(-1)


@dataclass(frozen=True)
class SplitByPrediction(SplitLoss):
    """`objectives.SplitLoss` with boundary weights taken by predicted instead of true class (departure 8)."""

    def boundary(self, seen: Predictions, weights: Weights | None, *, scale: Literal["weights", "images"]) -> Tensor:
        """Return the weighted boundary loss."""
        predicted = seen.clean.detach().argmax(-1)
        return weighted_mean(cross_entropies(seen.attacked, predicted), weights, "bndy", predicted, scale=scale)
