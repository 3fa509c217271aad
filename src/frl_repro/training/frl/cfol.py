"""CFOL: classes whose attacked images are wrong are drawn more often, or weigh more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.method import ClassStats, Method, Plan, Weights, When


@dataclass
class Settings(MethodSettings):
    """conf/frl/cfol.yaml."""

    eta: float = key("step length: gain of a class for each of its wrong attacked images", "[0, inf)", is_per_run=True)
    gamma: float = key("share of the images that is drawn from all classes alike", "[0, 1]", is_per_run=True)
    acts_by: str = key("how classes count: draw (how often they are drawn) or weigh", one_of=("draw", "weigh"))


class Cfol(Method):
    """A distribution q over classes, raised by the attacked training images that are wrong (bandit feedback).

    ``q = gamma / K + (1 - gamma) softmax(w)``; each wrong attacked image of class c adds ``eta / q_c`` to w_c after its
    step. Drawing takes a class by q and then an image of it; weighing multiplies losses with K q instead, which is
    equal in expectation, and divides by the number of images.

    Source: Pethick et al., TMLR 2023 (CFOL), algorithm 1.
    """

    sees_batches: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"
    settings: Settings

    def start(self) -> dict[str, Tensor]:
        """No class has gained."""
        return {"gain": torch.zeros_like(self.ones())}

    def shares(self) -> Tensor:
        """Return q, shape (R, K)."""
        gamma = self.per_run("gamma")
        return gamma / self.shape[1] + (1 - gamma) * torch.softmax(self.state["gain"], -1)

    def plan(self, when: When) -> Plan:
        """Return how often classes are drawn; keeps q for the losses of this step."""
        self._shares = self.shares()
        return Plan(draw=self._shares if self.settings.acts_by == "draw" else None)

    def see_batch(self, stats: ClassStats, when: When) -> None:
        """Raise the classes of wrong images, for the steps after this one."""
        self.state["gain"] = self.state["gain"] + self.per_run("eta") * stats.wrong_attacked / self._shares

    def weigh(self, when: When) -> Weights:
        """Return K q for both losses where classes are weighed; else 1."""
        weight = self.shape[1] * self._shares if self.settings.acts_by == "weigh" else self.ones()
        return Weights(weight, weight)

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return q for the table of the policy."""
        return {"cfol_share": self.shares()}
