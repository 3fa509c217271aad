"""CSR: pairs of true and predicted class weigh by how the network confuses classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.method import ClassStats, Method, Weights, When

_RANGE, _SMALLEST = 2.0, 0.01  # of the weights of pairs, as published
_NO_SPREAD = 1e-9  # of the entries of a matrix of norm 1: less is rounding


@dataclass
class Settings(MethodSettings):
    """conf/frl/csr.yaml."""

    mix: float = key("share of the cross-entropy that pairs weigh", "[0, 1]", is_per_run=True)
    true_logit: float = key("what a true class's logit is multiplied with before errors are counted", "(0, 1]")


class Csr(Method):
    """The loss is ``(1 - mix) CE(x) + boundary loss + mix * G[argmax f(x_adv), y] CE(x_adv)``, means over images.

    G follows from the errors of the last epoch's attacked training images, [predicted, true], counted after the true
    class's logit was multiplied with ``true_logit``: with u and v the first singular vectors, ``G = 2 minmax(u v^T) +
    0.01``. In the first epoch, and where no pair stands out, G is 1. In a batch that mixes clean and attacked images
    ``1 - mix`` weighs all of their cross-entropies.

    Source: arXiv 2501.13273 (ICLR 2025). Errors are counted as training runs, not in a pass of their own
    (docs/deviations.md).
    """

    sees_epochs: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"
    settings: Settings

    def start(self) -> dict[str, Tensor]:
        """Every pair alike: G as [true, predicted], shape (R, K, K)."""
        R, K = self.shape
        return {"pair": torch.ones(R, K, K, dtype=torch.float64, device=self.device)}

    def see_epoch(self, stats: ClassStats, when: When) -> None:
        """Choose the weights of the next epoch."""
        self.state["pair"] = pair_weights(stats.confusion_at(self.settings.true_logit))

    def weigh(self, when: When) -> Weights:
        """Return the shares of the losses."""
        mix, ones = self.per_run("mix"), self.ones()
        rest = (1 - mix) * ones
        return Weights(rest, rest if self.objective == "mixed" else ones, pair=mix.unsqueeze(-1) * self.state["pair"])

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return the mean weight of a true class's wrong pairs for the table of the policy."""
        pair, K = self.state["pair"], self.shape[1]
        return {"csr_pair": (pair.sum(-1) - pair.diagonal(dim1=-2, dim2=-1)) / (K - 1)}


def pair_weights(confusion: Tensor) -> Tensor:
    """Return G as [true, predicted], shape (..., K, K); 1 everywhere where the counts tell no pairs apart.

    Parameters
    ----------
    confusion : Tensor, shape (..., K, K)
        Counts [true class, predicted class]; right predictions are left aside.
    """
    counts = confusion.cpu()  # one small matrix an epoch, decomposed in the same way on every machine
    errors = counts - torch.diag_embed(counts.diagonal(dim1=-2, dim2=-1))
    left, _, right = torch.linalg.svd(errors)
    outer = left[..., :, :1] * right[..., :1, :]  # the product is the same whichever sign both vectors have
    low, high = outer.amin((-2, -1), keepdim=True), outer.amax((-2, -1), keepdim=True)
    spread = high - low
    tells = (spread > _NO_SPREAD) & (errors.sum((-2, -1), keepdim=True) > 0)
    pairs = torch.where(tells, _RANGE * (outer - low) / spread.clamp(min=_NO_SPREAD) + _SMALLEST, 1.0)
    return pairs.to(confusion.device)
