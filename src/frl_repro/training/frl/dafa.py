"""DAFA: classes that the network takes for one another share radius and weight anew, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.basics.progress import LOGGER
from frl_repro.settings.keys import COUNT, key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.method import ClassStats, Method, Plan, Weights, When


@dataclass
class Settings(MethodSettings):
    """conf/frl/dafa.yaml."""

    strength: float = key("how far radius and weight move (the paper's lambda)", "[0, inf)", is_per_run=True)
    start_epoch: int = key("epochs that are trained with every class alike before", COUNT)
    smallest: float = key("least that a class's radius and weight are multiplied with", "(0, 1]")

    def remark(self, num_epochs: int, *, averages: bool) -> str | None:
        """Say when it never acts."""
        if self.start_epoch < num_epochs:
            return None
        return f"frl=dafa: classes differ after epoch {self.start_epoch}, but training has {num_epochs}"


class Dafa(Method):
    """Radius and weight of a class grow by what less certain classes take from it, and shrink by what it takes.

    With P_i(j) the mean probability of class j for attacked training images of class i, ``W_i = 1 + strength * sum over
    j != i of (P_i(j) P_j(j) where P_i(i) < P_j(j), else -P_j(i) P_i(i))``. The sum over classes is K. Radius and step
    are multiplied with W, and so is the cross-entropy, which is divided by the number of images; a divergence (TRADES)
    or boundary loss is not weighed.

    Source: Lee et al., ICLR 2024 (DAFA), equations 5 and 6. P is summed over an epoch's steps as training runs.
    With many classes W can turn negative: it is clipped at ``smallest``, which a line says.
    """

    sees_epochs: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"
    settings: Settings

    def start(self) -> dict[str, Tensor]:
        """Every class alike."""
        return {"factor": self.ones()}

    def see_epoch(self, stats: ClassStats, when: When) -> None:
        """Set the factors after the epoch that was asked for, and leave them alone after others."""
        factor = 1 + self.per_run("strength") * similarity(stats.probability / stats.num_attacked.unsqueeze(-1))
        is_due = (when.epoch + 1 == self.settings.start_epoch).to(factor.device).unsqueeze(-1)
        if bool((is_due & (factor < self.settings.smallest)).any()):
            LOGGER.info("frl=dafa: factors below %g were set to it", self.settings.smallest)
        self.state["factor"] = torch.where(is_due, factor.clamp(min=self.settings.smallest), self.state["factor"])

    def plan(self, when: When) -> Plan:
        """Return the radii."""
        return Plan(radius=self.state["factor"])

    def weigh(self, when: When) -> Weights:
        """Return the weights of cross-entropies of true classes: in a mixed batch the attacked images' as well."""
        factor = self.state["factor"]
        return Weights(factor, factor if self.objective == "mixed" else self.ones())

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return the factors for the table of the policy."""
        return {"dafa_factor": self.state["factor"]}


def similarity(P: Tensor) -> Tensor:  # noqa: N803 (the paper's name)
    """Return what each class gives to and takes from the others, shape (..., K); the sum over classes is 0.

    Parameters
    ----------
    P : Tensor, shape (..., K, K)
        Mean probabilities [true class, class].
    """
    own = P.diagonal(dim1=-2, dim2=-1)
    given = P * own.unsqueeze(-2)  # P_i(j) P_j(j)
    taken = P.transpose(-1, -2) * own.unsqueeze(-1)  # P_j(i) P_i(i)
    pairs = torch.where(own.unsqueeze(-1) < own.unsqueeze(-2), given, -taken)
    return pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)
