"""The one place where attacks meet a model's gradient: a step's gradient, and the steps themselves, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frl_repro.attacks.linf import project
from frl_repro.attacks.predictions import is_wrong


@dataclass(frozen=True, eq=False)
class Ascent:
    """The steps of an attack on N images: from where, against what, within which ball, and how many.

    Attributes
    ----------
    x, start : Tensor, shape (N, C, H, W)
        Clean images and first iterates, which lie inside the ball.
    y : Tensor, shape (N,), int64
        True classes, for ``early_stop``.
    target : Tensor, shape (N,) int64 or (N, K) float
        What the loss is measured against; see `input_gradient`.
    epsilon, step_size : float, or Tensor of shape () or (N, 1, 1, 1)
        Radius and length of a step, in pixel units.
    num_steps : int
    early_stop : bool
        Leave a sample alone as soon as it is misclassified.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    start: Tensor
    epsilon: float | Tensor
    step_size: float | Tensor
    num_steps: int
    early_stop: bool = False

    def __len__(self) -> int:
        return len(self.x)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is a tensor, by its name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def of(self, places: Tensor | slice) -> Ascent:
        """Return the same steps for some of the images."""
        # A radius may be one number for all, as a number or as a tensor.
        return self.changed(lambda value: value[places] if value.ndim and len(value) == len(self) else value)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Ascent:
        """Return the same steps with every tensor changed."""
        changed: dict[str, Any] = {name: change(value) for name, value in self.tensors.items()}
        return replace(self, **changed)


Ascend = Callable[[nn.Module, Ascent], Tensor]
"""Takes the steps of an attack on a model; returns the attacked images, shape of ``x``. See `ascend`."""

Logits = Callable[[nn.Module, Tensor], Tensor]
"""A model's logits of images, without gradients."""


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of ``x`` without gradients, in the model's own mode."""
    with torch.no_grad():
        answer: Tensor = model(x)
    return answer


def input_gradient(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of ``x`` and the gradient of the summed cross-entropy with respect to ``x``.

    Cross-entropy against a distribution q and KL(q || p) differ by the entropy of q, which does not depend on ``x``:
    this one function serves both objectives.

    Parameters
    ----------
    model : nn.Module
        [0, 1] images in, logits out.
    x : Tensor, shape (N, C, H, W)
        Images.
    target : Tensor, shape (N,) int64 or (N, K) float
        Labels, or a distribution over the classes for each sample.

    Returns
    -------
    logits : Tensor, shape (N, K)
    gradient : Tensor, shape (N, C, H, W)
        Parameter gradients are not touched.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, target, reduction="none").sum()
        (gradient,) = torch.autograd.grad(loss, x)
    return logits.detach(), gradient


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation mode and restore each module's own mode, also after an exception.

    Attacks and measurements run in evaluation mode, so that batch-norm statistics stay as they are and dropout draws
    no random numbers.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def ascend(model: nn.Module, ascent: Ascent) -> Tensor:
    """Return the last iterate of signed gradient ascent, or with ``early_stop`` each sample's first misclassified one.

    A faster backend takes the place of this function. The model takes [0, 1] images to logits, and is in evaluation
    mode.
    """
    x, target = ascent.x, ascent.target
    if not ascent.early_stop:
        x_adv = ascent.start
        for _ in range(ascent.num_steps):
            _, gradient = input_gradient(model, x_adv, target)
            x_adv = project(x_adv + ascent.step_size * gradient.sign(), x, ascent.epsilon)
        return x_adv

    result = ascent.start.clone()
    active = torch.arange(len(x), device=x.device)
    for _ in range(ascent.num_steps):
        logits, gradient = input_gradient(model, result[active], target[active])
        is_standing = ~is_wrong(logits, ascent.y[active])
        active, gradient = active[is_standing], gradient[is_standing]
        if len(active) == 0:
            break
        left = ascent.of(active)
        result[active] = project(result[active] + left.step_size * gradient.sign(), left.x, left.epsilon)
    return result
