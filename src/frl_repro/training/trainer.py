"""The training loop: one epoch of one run or of several side by side, the schedule and the non-finite guard.

Runs that train side by side take their steps together, in tensors with a leading run axis R. Each keeps its own model,
data order, random starts, class terms and optimiser; a run that diverges disturbs no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frl_repro.data import Split, batch_to_float
from frl_repro.training.objectives import ClassTerms, Objective

# Looking at a loss waits for the device; once in so many steps costs nothing and loses little.
NUM_STEPS_BETWEEN_CHECKS = 100


@dataclass(frozen=True)
class EpochSummary:
    """What one run's epoch measured on its own batches, before each step.

    Attributes
    ----------
    num_steps : int
        Optimiser steps.
    train_loss : float
        Mean of the steps' losses, each weighted by its images.
    clean_error, attacked_error : float or None
        Share misclassified of the images that were trained on clean (attacked); None when there were none.
    """

    num_steps: int
    train_loss: float
    clean_error: float | None
    attacked_error: float | None


@dataclass(frozen=True)
class Diverged:
    """In place of a summary: a loss or a weight became NaN or infinite.

    Attributes
    ----------
    reason : str
        Quantity and step.
    """

    reason: str


def learning_rate_at(epoch: int, *, initial: float, milestones: Sequence[int], decay_factor: float) -> float:
    """Return the learning rate of an epoch (counted from 0): decayed once for each milestone it has reached."""
    return initial * decay_factor ** sum(epoch >= milestone for milestone in milestones)


def one_cycle_learning_rate(step: int, *, num_steps: int, peak: float, warmup_share: float) -> float:
    """Return the learning rate of a step (counted from 0) of a training of ``num_steps`` steps.

    It rises in a line from 0 to the peak over the first ``warmup_share`` of the training and falls in a line to 0 at
    its end; neither end is itself a step. It depends on the step alone: a training that continues needs no state.

    Source: Smith and Topin 2019, with straight flanks as in the fast adversarial training of Wong et al. 2020.
    """
    position = (step + 1) / (num_steps + 1)
    return peak * min(position / warmup_share, (1 - position) / (1 - warmup_share))


def fewest_images(num_images: int, *, batch_size: int, num_accumulation: int = 1) -> int:
    """Return how many images the smallest part of an epoch has that `train_epoch` computes at once."""
    rest = num_images % batch_size
    batches = ([batch_size] if num_images >= batch_size else []) + ([rest] if rest else [])
    parts = [(size, math.ceil(size / num_accumulation)) for size in batches]
    return min(size % part or part for size, part in parts)


def train_epoch(
    model: nn.Module,
    train: Split,
    *,
    update: Callable[[], object],
    objective: Objective,
    attack: Callable[..., Tensor],
    forward: Callable[[nn.Module, Tensor], Tensor],
    batch_size: int,
    num_accumulation: int = 1,
    order_generators: Sequence[torch.Generator],
    attack_generators: Sequence[torch.Generator],
    class_terms: Callable[[int], ClassTerms | None] = lambda _: None,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
    advance: Callable[[int], object] = lambda _: None,
) -> list[EpochSummary | Diverged]:
    """Train one epoch of R runs and return what each measured.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Of one run, or the `frl_repro.models.ModelStack` of R runs.
    train : Split
        uint8 images, shape (N, C, H, W), and labels, shape (N,), on the model's device.
    update : callable
        One step of the optimisers, called when the gradients are there.
    objective : Objective
        The loss of a step; see `frl_repro.training.objectives`.
    attack : callable (model, x, y, *, factor, generator) -> Tensor
        The training attack, its radius built in, on R equal blocks of images; `generator` is one for each.
    forward : callable (model, x) -> logits
        The backend's forward pass on R equal blocks of images, differentiable with respect to the parameters.
    batch_size : int
        Images per step and run; the last batch may be smaller.
    num_accumulation : int
        Parts that a batch is computed in, one after the other; the step follows the mean over all its images. Means of
        class-weighted losses and batch statistics (batch norm) are those of the parts.
    order_generators, attack_generators : sequence of torch.Generator, length R
        Data order (on the CPU) and random starts (on the model's device) of each run.
    class_terms : callable step -> ClassTerms or None
        What the class policy varies, asked before every step (counted from 0 in this epoch); shapes (R, K).
    augment : callable
        uint8 images of a batch, shape (R, N, C, H, W), to the ones that are trained on.
    advance : callable
        Called with the number of images trained on by each run, for a progress bar.

    Returns
    -------
    list of length R
        `Diverged` for a run whose loss or weights became NaN or infinite. The epoch ends early when all of them did.
    """
    num_images, device = len(train.labels), train.labels.device
    orders = torch.stack([torch.randperm(num_images, generator=generator) for generator in order_generators])
    batches = orders.to(device).split(batch_size, 1)  # type: ignore[no-untyped-call]
    num_runs = len(orders)
    losses = torch.zeros(num_runs, len(batches), dtype=torch.float64, device=device)
    wrong_clean = torch.zeros(num_runs, dtype=torch.int64, device=device)
    wrong_attacked = wrong_clean.clone()
    num_clean = num_attacked = 0
    reasons: list[str | None] = [None] * num_runs

    def forward_runs(x: Tensor) -> Tensor:
        return forward(model, x.flatten(0, 1)).view(*x.shape[:2], -1)

    def attack_runs(x: Tensor, y: Tensor, *, factor: Tensor | None) -> Tensor:
        factor = None if factor is None else factor.flatten()
        return attack(model, x.flatten(0, 1), y.flatten(), factor=factor, generator=attack_generators).view(x.shape)

    for step, index in enumerate(batches):
        terms = class_terms(step)  # may measure the models
        model.train()
        model.zero_grad(set_to_none=True)
        num_in_batch = index.shape[1]
        for part in index.split(math.ceil(num_in_batch / num_accumulation), 1):
            x, y = batch_to_float(augment(train.images[part])), train.labels[part]
            loss = objective(x, y, forward=forward_runs, attack=attack_runs, terms=terms)
            (loss.value.sum() * (y.shape[1] / num_in_batch)).backward()

            wrong_clean += loss.is_wrong_clean.sum(1)
            wrong_attacked += loss.is_wrong_attacked.sum(1)
            num_clean += loss.is_wrong_clean.shape[1]
            num_attacked += loss.is_wrong_attacked.shape[1]
            losses[:, step] += loss.value.detach() * y.shape[1]
        update()
        if (step + 1) % NUM_STEPS_BETWEEN_CHECKS == 0 or step + 1 == len(batches):
            reasons = [old or new for old, new in zip(reasons, _not_finite(losses[:, : step + 1], model), strict=True)]
            if all(reasons):
                break
        advance(num_in_batch)

    return [
        EpochSummary(
            num_steps=len(batches),
            train_loss=total / num_images,
            clean_error=clean / num_clean if num_clean else None,
            attacked_error=attacked / num_attacked if num_attacked else None,
        )
        if reason is None
        else Diverged(reason)
        for reason, total, clean, attacked in zip(
            reasons, losses.sum(1).tolist(), wrong_clean.tolist(), wrong_attacked.tolist(), strict=True
        )
    ]


def _not_finite(losses: Tensor, model: nn.Module) -> list[str | None]:
    """Return for each run the first loss, or the weights, that are not finite; None where all are."""
    num_runs, num_steps = losses.shape
    reasons: list[str | None] = [None] * num_runs
    for name, parameter in model.named_parameters():
        is_finite = torch.isfinite(parameter.detach().reshape(num_runs, -1)).all(1)
        for r in (~is_finite).nonzero().flatten().tolist():
            reasons[r] = reasons[r] or f"weights {name} are not finite at step {num_steps}"
    for r, step in (~torch.isfinite(losses)).nonzero().flip(0).tolist():  # a run's first one last
        reasons[r] = f"the loss is {float(losses[r, step])} at step {step + 1}"
    return reasons
