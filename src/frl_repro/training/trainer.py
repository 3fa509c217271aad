"""The training loop: one epoch of one run or of several fused ones, the schedule and the non-finite guard.

Fused runs take their steps together, in tensors with a leading run axis R. Each keeps its own model,
data order, random starts, method and optimiser; a run that diverges disturbs no other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frl_repro.data import Split, in_unit_range
from frl_repro.training.frl.class_stats import Predictions
from frl_repro.training.objectives import Objective
from frl_repro.training.steering import Steering

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
    steering: Steering | None = None,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
    advance: Callable[[int], object] = lambda _: None,
) -> list[EpochSummary | Diverged]:
    """Train one epoch of R runs and return what each measured.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Of one run, or the `frl_repro.models.FusedModel` of R runs.
    train : Split
        Images, shape (N, C, H, W), and labels, shape (N,), on the model's device.
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
    steering : Steering, optional
        The runs' method; None treats every class alike.
    augment : callable
        Images of a batch, shape (R, N, C, H, W), to the ones that are trained on.
    advance : callable
        Called with the number of images trained on by each run, for a progress bar.

    Returns
    -------
    list of length R
        `Diverged` for a run whose loss or weights became NaN or infinite. The epoch ends early when all of them did.
    """
    steering = steering or Steering()
    batches = _Batches(train.labels, batch_size, order_generators)
    counts = _Counts(len(order_generators), len(batches), train.labels.device)

    def forward_runs(x: Tensor) -> Tensor:
        return forward(model, x.flatten(0, 1)).view(*x.shape[:2], -1)

    def attack_runs(x: Tensor, y: Tensor, *, factor: Tensor | None, **settings: bool) -> Tensor:
        factor = None if factor is None else factor.flatten()
        x_adv = attack(model, x.flatten(0, 1), y.flatten(), factor=factor, generator=attack_generators, **settings)
        return x_adv.view(*x_adv.shape[: 1 - x.ndim], *x.shape)  # some attacks return several images of each

    for step in range(len(batches)):
        when = steering.when(step, len(batches))
        steering.see_validation(when)
        plan = steering.plan(when)
        index = batches.draw(step, plan.draw)
        model.train()
        model.zero_grad(set_to_none=True)
        for part in torch.split(index, math.ceil(index.shape[1] / num_accumulation), 1):
            x, y = in_unit_range(augment(train.images[part])), train.labels[part]
            seen = objective.predict(x, y, forward=forward_runs, attack=attack_runs, plan=plan)
            steering.see_batch(seen, when)
            loss = objective.loss(seen, steering.weigh(when), scale=steering.scale)
            (loss.sum() * (y.shape[1] / index.shape[1])).backward()  # type: ignore[no-untyped-call]
            counts.add(step, seen, loss.detach() * y.shape[1])
        update()
        if counts.all_diverged(step, model):
            break
        advance(index.shape[1])
    steering.end_epoch(when)
    return counts.summaries(len(train.labels))


class _Batches:
    """The batches of an epoch of each run: every image once in random order, or drawn class by class."""

    def __init__(self, labels: Tensor, batch_size: int, generators: Sequence[torch.Generator]) -> None:
        self._labels, self._generators = labels, generators
        orders = torch.stack([torch.randperm(len(labels), generator=generator) for generator in generators])
        self._batches = orders.to(labels.device).split(batch_size, 1)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._batches)

    @functools.cached_property
    def _labels_on_cpu(self) -> Tensor:
        """The labels where images are drawn from them: copied once an epoch, not at each step."""
        return self._labels.cpu()

    def draw(self, step: int, shares: Tensor | None) -> Tensor:
        """Return the images of a step, shape (R, N); ``shares``, shape (R, K), is how often each class is drawn."""
        batch: Tensor = self._batches[step]
        if shares is None:
            return batch
        labels = self._labels_on_cpu
        of_image = shares.cpu().double() / torch.bincount(labels, minlength=shares.shape[1])
        drawn = [
            torch.multinomial(of_one[labels], batch.shape[1], replacement=True, generator=generator)
            for of_one, generator in zip(of_image, self._generators, strict=True)
        ]
        return torch.stack(drawn).to(batch.device)


class _Counts:
    """What an epoch counts of R runs, on the device: losses of steps, and outcomes of what was trained on."""

    def __init__(self, num_runs: int, num_steps: int, device: torch.device) -> None:
        self.losses = torch.zeros(num_runs, num_steps, dtype=torch.float64, device=device)
        self.wrong_clean = torch.zeros(num_runs, dtype=torch.int64, device=device)
        self.wrong_attacked = self.wrong_clean.clone()
        self.num_clean = self.num_attacked = 0
        self.reasons: list[str | None] = [None] * num_runs

    def add(self, step: int, seen: Predictions, losses: Tensor) -> None:
        """Count a part of a batch; ``losses``, shape (R,), are summed over its images."""
        self.wrong_clean += seen.is_wrong_clean.sum(1)
        self.wrong_attacked += seen.is_wrong_attacked.sum(1)
        self.num_clean += seen.y_clean.shape[1]
        self.num_attacked += seen.y_attacked.shape[1]
        self.losses[:, step] += losses

    def all_diverged(self, step: int, model: nn.Module) -> bool:
        """Return whether every run has diverged; looks now and then, and after the last step."""
        num_done = step + 1
        if num_done % NUM_STEPS_BETWEEN_CHECKS == 0 or num_done == self.losses.shape[1]:
            found = _not_finite(self.losses[:, :num_done], model)
            self.reasons = [old or new for old, new in zip(self.reasons, found, strict=True)]
        return all(self.reasons)

    def summaries(self, num_images: int) -> list[EpochSummary | Diverged]:
        """Return what each run's epoch came to."""
        return [
            EpochSummary(
                num_steps=self.losses.shape[1],
                train_loss=total / num_images,
                clean_error=clean / self.num_clean if self.num_clean else None,
                attacked_error=attacked / self.num_attacked if self.num_attacked else None,
            )
            if reason is None
            else Diverged(reason)
            for reason, total, clean, attacked in zip(
                self.reasons,
                self.losses.sum(1).tolist(),
                self.wrong_clean.tolist(),
                self.wrong_attacked.tolist(),
                strict=True,
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
