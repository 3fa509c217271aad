"""The training loop: one epoch, its batches, the learning-rate schedule and the non-finite guard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from frl_repro.data import Split, batch_to_float
from frl_repro.errors import UserError
from frl_repro.objectives import ClassTerms, Objective

# Looking at a loss waits for the device; once in so many steps costs nothing and loses little.
NUM_STEPS_BETWEEN_CHECKS = 100


@dataclass(frozen=True)
class EpochSummary:
    """What an epoch measured on its own batches, before each step.

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


def learning_rate_at(epoch: int, *, initial: float, milestones: Sequence[int], decay_factor: float) -> float:
    """Return the learning rate of an epoch (counted from 0): decayed once for each milestone it has reached."""
    return initial * decay_factor ** sum(epoch >= milestone for milestone in milestones)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Split,
    *,
    objective: Objective,
    attack: Callable[..., Tensor],
    forward: Callable[[nn.Module, Tensor], Tensor],
    batch_size: int,
    order_generator: torch.Generator,
    attack_generator: torch.Generator,
    class_terms: Callable[[int], ClassTerms | None] = lambda _: None,
    average: AveragedModel | None = None,
    where: str = "",
    advance: Callable[[int], object] = lambda _: None,
) -> EpochSummary:
    """Train one epoch and return what it measured.

    Parameters
    ----------
    model, optimizer
        Changed in place.
    train : Split
        uint8 images, shape (N, C, H, W), and labels, shape (N,), on the model's device.
    objective : Objective
        The loss of a step; see `frl_repro.objectives`.
    attack : callable (model, x, y, *, factor, generator) -> Tensor
        The training attack, its radius built in.
    forward : callable (model, x) -> logits
        The backend's forward pass, differentiable with respect to the parameters.
    batch_size : int
        Images per step; the last batch may be smaller.
    order_generator, attack_generator : torch.Generator
        Data order (on the CPU) and random starts (on the model's device).
    class_terms : callable step -> ClassTerms or None
        What the class policy varies, asked before every step (counted from 0 in this epoch).
    average : AveragedModel, optional
        Running average of the weights, updated after every step.
    where : str
        Named in the message when training diverges: the epoch and the last good checkpoint.
    advance : callable
        Called with the number of images trained on, for a progress bar.

    Raises
    ------
    UserError
        A loss or a weight became NaN or infinite.
    """
    num_images, device = len(train.labels), train.labels.device
    batches = torch.randperm(num_images, generator=order_generator).to(device).split(batch_size)  # type: ignore[no-untyped-call]
    losses = torch.zeros(len(batches), dtype=torch.float64, device=device)
    counts = torch.zeros(4, dtype=torch.int64, device=device)  # wrong and seen clean, wrong and seen attacked
    attack_batch = functools.partial(attack, model, generator=attack_generator)
    forward_batch = functools.partial(forward, model)

    for step, index in enumerate(batches):
        terms = class_terms(step)  # may measure the model
        model.train()
        x, y = batch_to_float(train.images[index]), train.labels[index]
        loss = objective(x, y, forward=forward_batch, attack=attack_batch, terms=terms)
        optimizer.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

        clean, attacked = loss.is_wrong_clean, loss.is_wrong_attacked
        counts += torch.stack([clean.sum(), clean.new_tensor(len(clean), dtype=torch.int64),
                               attacked.sum(), clean.new_tensor(len(attacked), dtype=torch.int64)])  # fmt: skip
        losses[step] = loss.value.detach() * len(y)
        if (step + 1) % NUM_STEPS_BETWEEN_CHECKS == 0 or step + 1 == len(batches):
            _check_finite(losses[: step + 1], model, where)
        advance(len(y))

    wrong_clean, num_clean, wrong_attacked, num_attacked = counts.tolist()
    return EpochSummary(
        num_steps=len(batches),
        train_loss=float(losses.sum()) / num_images,
        clean_error=wrong_clean / num_clean if num_clean else None,
        attacked_error=wrong_attacked / num_attacked if num_attacked else None,
    )


def _check_finite(losses: Tensor, model: nn.Module, where: str) -> None:
    is_bad = ~torch.isfinite(losses)
    if is_bad.any():
        step = int(is_bad.nonzero()[0])
        raise UserError(f"training diverged: the loss is {float(losses[step])} at {where.format(step=step + 1)}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"training diverged: weights {name} are not finite at {where.format(step=len(losses))}")
