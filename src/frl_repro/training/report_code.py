"""What the report's public code computes where it departs from its text; `docs/deviations.md` numbers each.

Losses and measurements that depart are here; departures that are settings (fixed attack steps, `tau.bndy` for
`tau.nat`, a base that saw the validation images) are read in `build` and `config`. `recipe=report_code` and the audit
switch them on one by one, to show which of the report's conclusions depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frl_repro.attacks import evaluation_mode
from frl_repro.attacks.predictions import is_wrong, predicted_class
from frl_repro.data import Split, batch_to_float
from frl_repro.evaluation.evaluate import EvaluationAttack
from frl_repro.training.objectives import Attack, ClassTerms, Loss, cross_entropies, weighted_mean

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
        x, y = batch_to_float(split.images.to(device)), split.labels.to(device)
        predicted = predicted_class(logits(model, x))
        attacked = predicted_class(logits(model, attack(model, x, y, epsilon=epsilon, generator=generator)))
    is_natural_error = predicted != y
    is_boundary_error = attacked != predicted if flipped_boundary else (attacked != y) & ~is_natural_error

    def by_class(outcome: Tensor) -> Tensor:
        count = torch.bincount(y, minlength=num_classes)
        return (torch.bincount(y[outcome], minlength=num_classes).double() / count).cpu()

    factor = NUM_BATCHES / DIVISOR if overall_over_22 else 1.0
    return PublishedErrors(
        class_natural_error=by_class(is_natural_error),
        class_boundary_error=by_class(is_boundary_error),
        overall_natural_error=factor * is_natural_error.double().mean().item(),
        overall_boundary_error=factor * is_boundary_error.double().mean().item(),
    )


def paired_scrambled(
    x: Tensor,
    y: Tensor,
    *,
    forward: Callable[[Tensor], Tensor],
    attack: Attack,
    terms: ClassTerms | None,
    generators: Sequence[torch.Generator],
) -> Loss:
    """`frl_repro.training.objectives.paired` with the attacked images shuffled and their labels not (departure 1).

    ``x`` has shape (R, N, C, H, W); ``generators`` holds one for each of the R runs.
    """
    each = None if terms is None else terms.of(y)
    x_adv = attack(x, y, factor=None if each is None else each.margin_factor)
    orders = [torch.randperm(y.shape[1], generator=g, device=g.device) for g in generators]
    order = torch.stack(orders).to(y.device)
    x_adv = x_adv.take_along_dim(order.view(*order.shape, *[1] * (x.ndim - 2)), 1)
    clean, shuffled = forward(torch.cat([x, x_adv], 1)).chunk(2, 1)
    value = weighted_mean(cross_entropies(clean, y), each, "nat")
    value = value + cross_entropies(shuffled, y).mean(-1)
    return Loss(
        value,
        is_wrong_clean=is_wrong(clean.detach(), y),
        is_wrong_attacked=is_wrong(shuffled.detach(), y.gather(1, order)),
    )


def split_by_prediction(
    x: Tensor, y: Tensor, *, forward: Callable[[Tensor], Tensor], attack: Attack, terms: ClassTerms | None
) -> Loss:
    """`objectives.split` with boundary weights taken by predicted instead of true class (departure 8)."""
    each = None if terms is None else terms.of(y)
    x_adv = attack(x, y, factor=None if each is None else each.margin_factor)
    clean, attacked = forward(torch.cat([x, x_adv], y.ndim - 1)).chunk(2, -2)
    predicted = clean.detach().argmax(-1)
    value = weighted_mean(cross_entropies(clean, y), each, "nat")
    by_prediction = None if terms is None else terms.of(predicted)
    value = value + weighted_mean(cross_entropies(attacked, predicted), by_prediction, "bndy")
    return Loss(value, is_wrong_clean=is_wrong(clean.detach(), y), is_wrong_attacked=is_wrong(attacked.detach(), y))
