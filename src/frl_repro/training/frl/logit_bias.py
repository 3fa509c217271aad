"""Logit bias: train as the control does, then shift the classes' logits so that the worst class errs least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from frl_repro.attacks.predictions import is_wrong
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER
from frl_repro.settings.config import RunConfig
from frl_repro.settings.keys import COUNT, key
from frl_repro.settings.methods import FinishingSettings
from frl_repro.training.frl.last_layer import last_linear
from frl_repro.training.frl.method import Method

_LAST_STEP = 1e-3  # of the first: far below the distance of two images' logits


@dataclass
class Settings(FinishingSettings):
    """conf/frl/logit_bias.yaml."""

    num_rounds: int = key("steps of the fit: multiplications of the classes' odds", COUNT)

    def check(self, config: RunConfig) -> None:
        """Ask for validation images."""
        super().check(config)
        if config.dataset.validation_fraction == 0:
            raise UserError("frl=logit_bias is fitted on validation images: dataset.validation_fraction must not be 0")


class LogitBias(Method):
    """The control's training, after which a bias b of the last layer is fitted on attacked validation images.

    It makes the largest class error as small as it can: ``min over b of max over c of err_c(b)``, with err_c the share
    of class c's images whose largest ``logit + b`` is another class's. The images are attacked once, as a measurement
    at the first radius of ``evaluation.epsilons`` does, with b = 0. See `fitted_bias` for the scheme.

    A control: what needs no training at all. ``retrain.trainer.num_epochs=0`` changes the starting model.
    """

    finish_sees: ClassVar[Literal["clean", "attacked"] | None] = "attacked"
    settings: Settings

    @classmethod
    def check_network(cls, network: Callable[[], nn.Module], num_classes: int) -> None:
        """Refuse a network without a last linear layer that has a bias."""
        last_linear(network(), num_classes, method="logit_bias", needs_bias=True)

    def finish(self, r: int, model: nn.Module, logits: Callable[[nn.Module], tuple[Tensor, Tensor]]) -> None:
        """Add the fitted bias."""
        name, layer = last_linear(model, self.shape[1], method="logit_bias", needs_bias=True)
        seen, y = (part.cpu() for part in logits(model))
        bias = fitted_bias(seen, y, num_rounds=self.settings.num_rounds)
        before, after = (float(class_errors(seen.double() + b, y).max()) for b in (torch.zeros_like(bias), bias))
        LOGGER.info(
            "frl=logit_bias: bias of %s shifted by %.3g to %.3g; largest class error of attacked validation images "
            "%.3f -> %.3f", name, bias.min(), bias.max(), before, after,
        )  # fmt: skip
        with torch.no_grad():
            layer.bias.add_(bias.to(layer.bias))


def fitted_bias(logits: Tensor, y: Tensor, *, num_rounds: int) -> Tensor:
    """Return the bias, shape (K,), float64, mean 0, with the smallest largest class error among those tried.

    Multiplicative weights: each round multiplies a class's odds with ``exp(step * (err_c - mean err))``, that is, adds
    the exponent to its logit. The step falls geometrically from the spread of the logits to a thousandth of it, so that
    the class errors first meet and then settle. The first of equally good biases counts, 0 before all: on the images of
    the fit the worst class never gets worse. No random numbers.

    Parameters
    ----------
    logits : Tensor, shape (N, K)
    y : Tensor, shape (N,), int64
        True classes; one without images has no error.
    num_rounds : int
    """
    logits = logits.double()
    spread = float((logits - logits.mean(-1, keepdim=True)).std(correction=0))
    bias = best = torch.zeros(logits.shape[1], dtype=torch.float64)
    smallest = 2.0
    for i in range(num_rounds + 1):
        errors = class_errors(logits + bias, y)
        if float(errors.max()) < smallest:
            smallest, best = float(errors.max()), bias
        step = spread * _LAST_STEP ** (i / num_rounds)
        bias = bias + step * (errors - errors.mean())
    return best


def class_errors(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share of each class's images that is misclassified, shape (K,), float64; 0 without images."""
    K = logits.shape[1]
    count = torch.bincount(y, minlength=K)
    wrong = torch.bincount(y[is_wrong(logits, y)], minlength=K)
    return wrong.double() / count.clamp(min=1)
