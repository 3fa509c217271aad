"""Measure class-wise errors of a model on a split. Nothing of the model is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from frl_repro.attacks import check_length, evaluation_mode
from frl_repro.attacks.predictions import NO_CLASS, predicted_class
from frl_repro.basics import streams
from frl_repro.data import Split
from frl_repro.evaluation.class_errors import SampleErrors


class EvaluationAttack(Protocol):
    """An attack whose radius is given with each call."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return attacked images, shape of ``x``."""


def start_generator(seed: int, epsilon: float, device: torch.device) -> torch.Generator:
    """Return the source of an evaluation attack's random starts at a radius."""
    return streams.generator(seed, f"evaluation/{epsilon!r}", device=device)


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    attack: EvaluationAttack,
    epsilons: Sequence[float],
    batch_size: int,
    seed: int,
    device: torch.device,
    logits: Callable[[nn.Module, Tensor], Tensor],
    advance: Callable[[int], object] = lambda _: None,
) -> SampleErrors:
    """Return which images a model gets wrong at several radii, from one pass over a split.

    Clean predictions are made once and serve every radius. Images that are already misclassified need no attack:
    they count as natural errors whatever it does. Logits that are not finite are wrong
    (`frl_repro.attacks.predictions`). Random starts depend on ``seed`` and the radius alone, so that a radius gives
    the same numbers whichever others are measured with it.

    Parameters
    ----------
    model : nn.Module
        [0, 1] images in, logits out; measured in evaluation mode, its own mode is restored.
    split : Split
        Images, shape (N, C, H, W), and labels, shape (N,).
    attack : EvaluationAttack
    epsilons : sequence of float
        Radii in pixel units, in [0, 1].
    batch_size : int
        Images per batch.
    seed : int
        Drives the random starts.
    device : torch.device
        Where the model lives.
    logits : callable (model, x) -> Tensor
        The backend's forward pass.
    advance : callable
        Called with the number of images measured, for a progress bar.

    Returns
    -------
    SampleErrors
        Its rows are the radii in the given order.

    Raises
    ------
    UserError
        A radius lies outside [0, 1].
    """
    for epsilon in epsilons:
        check_length(epsilon, name="epsilon")
    is_natural_error = torch.zeros(len(split.labels), dtype=torch.bool)
    is_attacked_error = torch.zeros(len(epsilons), len(split.labels), dtype=torch.bool)
    is_not_finite = torch.zeros(len(split.labels), dtype=torch.bool)
    generators = [start_generator(seed, epsilon, device) for epsilon in epsilons]

    with evaluation_mode(model):
        for batch, x, y in split.batches(batch_size, device):
            predicted = predicted_class(logits(model, x))
            is_wrong = predicted != y
            is_natural_error[batch] = is_wrong.cpu()
            is_not_finite[batch] = (predicted == NO_CLASS).cpu()
            # A GPU takes batches of one size best, and the wrong ones along: the numbers are the same by definition.
            attacked = torch.arange(len(y), device=device) if device.type == "cuda" else (~is_wrong).nonzero().flatten()
            for row, (epsilon, generator) in enumerate(zip(epsilons, generators, strict=True)):
                x_adv = attack(model, x[attacked], y[attacked], epsilon=epsilon, generator=generator)
                predicted = predicted_class(logits(model, x_adv))
                places = batch.start + attacked.cpu()
                is_attacked_error[row, places] = (predicted != y[attacked]).cpu()
                is_not_finite[places] |= ((predicted == NO_CLASS) & ~is_wrong[attacked]).cpu()
            advance(len(y))

    return SampleErrors(
        labels=split.labels.cpu(),
        is_natural_error=is_natural_error,
        is_attacked_error=is_attacked_error,
        is_not_finite=is_not_finite,
    )
