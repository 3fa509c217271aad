"""FAAL: in each batch, the worst weights of classes within a ball around equal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.method import ClassStats, Method, Weights, When

_NUM_HALVINGS = 50  # of an interval of 60 e-foldings: the constraint is met to rounding
_LOG_RANGE = 30.0


@dataclass
class Settings(MethodSettings):
    """conf/frl/faal.yaml."""

    ball: float = key("largest divergence KL(equal || q) of the class weights, in nats", "(0, inf)", is_per_run=True)


class Faal(Method):
    """Class weights q that make the batch's summed margins largest, ``KL(U || q) <= ball``; all losses weigh K q.

    The margin of an attacked image is its largest wrong probability less that of its true class. With s_c its sum over
    the images of class c (0 for absent classes), ``q_c = 1 / (mu - s_c)``, normalised, with mu above the largest s so
    that the constraint is met. Losses are divided by the number of images.

    Source: Zhang et al., CVPR 2024 (FAAL), section 3.2; the closed form follows from the Lagrangian.
    """

    sees_batches: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"

    def start(self) -> dict[str, Tensor]:
        """Every class alike."""
        return {"share": self.ones() / self.shape[1]}

    def see_batch(self, stats: ClassStats, when: When) -> None:
        """Choose the weights of this batch."""
        self.state["share"] = worst_shares(stats.margin, self.per_run("ball"))

    def weigh(self, when: When) -> Weights:
        """Return K q for both losses."""
        weight = self.shape[1] * self.state["share"]
        return Weights(weight, weight)


def worst_shares(score: Tensor, ball: Tensor) -> Tensor:
    """Return the shares q, shape (..., K), that make ``sum(q * score)`` largest with ``KL(U || q) <= ball``.

    Parameters
    ----------
    score : Tensor, shape (..., K)
        Equal scores give equal shares.
    ball : Tensor, shape (..., 1)
        In nats, above 0.
    """
    K = score.shape[-1]
    top = score.amax(-1, keepdim=True)
    spread = (top - score.amin(-1, keepdim=True)).clamp(min=torch.finfo(score.dtype).tiny)
    below = (top - score) / spread  # in [0, 1]; mu is the largest score plus spread * exp(t)

    def shares(t: Tensor) -> Tensor:
        inverse = 1 / (below + t.exp())
        return inverse / inverse.sum(-1, keepdim=True)

    low, high = torch.full_like(top, -_LOG_RANGE), torch.full_like(top, _LOG_RANGE)
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        divergence = -(K * shares(middle)).log().mean(-1, keepdim=True)
        is_outside = divergence > ball  # too close to the largest score: go up
        low, high = torch.where(is_outside, middle, low), torch.where(is_outside, high, middle)
    return shares(high)
