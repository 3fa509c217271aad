"""CODAT: class weights by their losses, the worst case in a chi-square ball around equal weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.class_losses import class_losses, weights_of_means
from frl_repro.training.frl.method import ClassStats, Method, Weights, When

_NO_SPREAD = 1e-9  # nats: losses whose standard deviation is smaller are equal up to rounding


@dataclass
class Settings(MethodSettings):
    """conf/frl/codat.yaml."""

    rho: float = key("radius of the chi-square ball of the class weights", "[0, inf)", is_per_run=True)
    update_every: str = key("whose losses weigh classes: those of the batch, or of the last epoch",
                            one_of=("batch", "epoch"))  # fmt: skip


class Codat(Method):
    """A step's loss is the sum of q_c l_c over the batch's class means l_c, with the worst q in a chi-square ball.

    ``q_c = (1 + sqrt(rho) (l_c - mean l) / sd l) / K``, clipped at 0, over the K classes that there are. Where nothing
    is clipped, q solves ``max sum q_c l_c`` over ``sum q = 1`` and ``mean (K q - 1)^2 <= rho``, and the maximum is
    ``mean l + sqrt(rho) sd l``. Clipped weights are not normalised again: their sum exceeds 1.

    Source: arXiv 2501.04527 (CODAT).
    """

    sees_batches: ClassVar[bool] = True
    sees_epochs: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"
    settings: Settings

    def start(self) -> dict[str, Tensor]:
        """Every class alike."""
        return {"share": self.ones() / self.shape[1]}

    def see_batch(self, stats: ClassStats, when: When) -> None:
        """Choose the weights of this batch, where batches do."""
        if self.settings.update_every == "batch":
            self._choose(stats)
        _, self._count = class_losses(stats, objective=self.objective, beta=self.beta)

    def see_epoch(self, stats: ClassStats, when: When) -> None:
        """Choose the weights of the next epoch, where epochs do."""
        if self.settings.update_every == "epoch":
            self._choose(stats)

    def _choose(self, stats: ClassStats) -> None:
        loss, count = class_losses(stats, objective=self.objective, beta=self.beta)
        self.state["share"] = worst_shares(loss, count > 0, self.per_run("rho"))

    def weigh(self, when: When) -> Weights:
        """Return for both losses what makes their mean over images the sum of q times the class means."""
        weight = weights_of_means(self.state["share"], self._count)
        return Weights(weight, weight)

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return q for the table of the policy."""
        return {"codat_share": self.state["share"]}


def worst_shares(loss: Tensor, is_present: Tensor, rho: Tensor) -> Tensor:
    """Return q, shape (..., K), 0 for absent classes; equal losses give equal shares.

    Parameters
    ----------
    loss : Tensor, shape (..., K)
        Mean loss of each class, in nats.
    is_present : Tensor, shape (..., K), bool
        Classes that there are.
    rho : Tensor, shape (..., 1)
    """
    num = is_present.sum(-1, keepdim=True).clamp(min=1)
    centred = (loss - (loss * is_present).sum(-1, keepdim=True) / num) * is_present
    spread = (centred.square().sum(-1, keepdim=True) / num).sqrt()
    scaled = centred / spread.clamp(min=_NO_SPREAD) * (spread > _NO_SPREAD)
    return (1 + rho.sqrt() * scaled).clamp(min=0) / num * is_present
