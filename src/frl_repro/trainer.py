"""The training loop: one epoch, its batches, the learning-rate schedule and the non-finite guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from frl_repro.data import Split, batch_to_float
from frl_repro.errors import UserError

# Looking at a loss waits for the device; once in so many steps costs nothing and loses little.
NUM_STEPS_BETWEEN_CHECKS = 100


class TrainingAttack(Protocol):
    """An attack with its radius built in."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return attacked images, shape of ``x``."""


@dataclass(frozen=True)
class EpochSummary:
    """What an epoch measured on its own batches, before each step.

    Attributes
    ----------
    num_steps : int
        Optimiser steps.
    train_loss : float
        Mean cross-entropy over all training images, attacked or not.
    clean_error, attacked_error : float or None
        Share misclassified of the images that were trained on clean (attacked); None when there were none.
    """

    num_steps: int
    train_loss: float
    clean_error: float | None
    attacked_error: float | None


def learning_rate_at(epoch: int, *, initial: float, decay_every: int, decay_factor: float) -> float:
    """Return the learning rate of an epoch (counted from 0): multiplied by a factor after every so many epochs.

    Source: the report, section 3.4: lr / 3 after every 4 epochs.
    """
    return initial * decay_factor ** (epoch // decay_every)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Split,
    *,
    attack: TrainingAttack | None,
    attacked_fraction: float,
    batch_size: int,
    order_generator: torch.Generator,
    attack_generator: torch.Generator,
    backward: Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    average: AveragedModel | None = None,
    where: str = "",
    advance: Callable[[int], object] = lambda _: None,
) -> EpochSummary:
    """Train one epoch and return what it measured.

    With an attack, a random share of each batch is replaced by attacked images; the loss is the mean cross-entropy of
    the mixed batch (the report, section 3.2). Without one this is natural training.

    Parameters
    ----------
    model, optimizer
        Changed in place.
    train : Split
        uint8 images, shape (N, C, H, W), and labels, shape (N,), on the model's device.
    attack : TrainingAttack, optional
        None trains naturally.
    attacked_fraction : float
        Share of each batch that is attacked, [0, 1].
    batch_size : int
        Images per step; the last batch may be smaller.
    order_generator, attack_generator : torch.Generator
        Data order (on the CPU) and random starts (on the model's device).
    backward : callable (model, x, y, weights) -> (losses, logits)
        The backend's training step; see `Backend`.
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
    model.train()
    num_images, device = len(train.labels), train.labels.device
    batches = torch.randperm(num_images, generator=order_generator).to(device).split(batch_size)  # type: ignore[no-untyped-call]
    losses = torch.zeros(len(batches), dtype=torch.float64, device=device)
    num_wrong = torch.zeros(2, dtype=torch.int64, device=device)
    num_seen_attacked = 0

    for step, index in enumerate(batches):
        x, y = batch_to_float(train.images[index]), train.labels[index]
        # The order is random, so the first images of a batch are a random share of it.
        num_attacked = round(attacked_fraction * len(y)) if attack is not None else 0
        if attack is not None and num_attacked > 0:
            x[:num_attacked] = attack(model, x[:num_attacked], y[:num_attacked], generator=attack_generator)

        sample_losses, logits = backward(model, x, y, x.new_full((len(y),), 1 / len(y)))
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

        is_wrong = logits.argmax(1) != y
        num_wrong += torch.stack([is_wrong[num_attacked:].sum(), is_wrong[:num_attacked].sum()])
        num_seen_attacked += num_attacked
        losses[step] = sample_losses.sum()
        if (step + 1) % NUM_STEPS_BETWEEN_CHECKS == 0 or step + 1 == len(batches):
            _check_finite(losses[: step + 1], model, where)
        advance(len(y))

    wrong_clean, wrong_attacked = num_wrong.tolist()
    num_seen_clean = num_images - num_seen_attacked
    return EpochSummary(
        num_steps=len(batches),
        train_loss=float(losses.sum()) / num_images,
        clean_error=wrong_clean / num_seen_clean if num_seen_clean else None,
        attacked_error=wrong_attacked / num_seen_attacked if num_seen_attacked else None,
    )


def _check_finite(losses: Tensor, model: nn.Module, where: str) -> None:
    is_bad = ~torch.isfinite(losses)
    if is_bad.any():
        step = int(is_bad.nonzero()[0])
        raise UserError(f"training diverged: the loss is {float(losses[step])} at {where.format(step=step + 1)}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"training diverged: weights {name} are not finite at {where.format(step=len(losses))}")
