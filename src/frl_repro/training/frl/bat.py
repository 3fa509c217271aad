"""BAT: train on friendly attacks, just before and just past the decision boundary, every class alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from frl_repro.basics.errors import UserError
from frl_repro.settings.config import RunConfig
from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.settings.schema import FGSMConfig, PGDConfig
from frl_repro.training.frl.method import Method


@dataclass
class Settings(MethodSettings):
    """conf/frl/bat.yaml."""

    objective: ClassVar[str | None] = "friendly"

    beta: float = key("weight of KL(p(x) || p(x_past))", "[0, inf)")

    def check(self, config: RunConfig) -> None:
        """Ask for an attack of every image whose steps can be looked at, and for no other loss beside its own."""
        attack, _ = config.training
        place = "attack" if config.retrain is None else "retrain.attack"
        if isinstance(attack, FGSMConfig) or (isinstance(attack, PGDConfig) and attack.num_restarts > 1):
            what = f"{place}=fgsm" if isinstance(attack, FGSMConfig) else f"{place}.num_restarts > 1"
            raise UserError(f"frl=bat looks at an attack's steps: {what} does not go with it")
        if config.trades_beta is not None:
            raise UserError(f"{place.removesuffix('.attack')}.beta has no effect with frl=bat: its own is frl.beta")
        if getattr(attack, "fraction", 1) != 1:
            raise UserError(f"frl=bat attacks every image: {place}.fraction must be 1")


class Bat(Method):
    """Every class alike; its loss is `frl_repro.training.objectives.Friendly`.

    Of each training image an attack gives the last image that is still right and the one a step past the first wrong
    one: ``CE(x_right) + beta KL(p(x) || p(x_past)) + KL(p(x_right) || U) + KL(p(x_past) || U)``, with U uniform. It
    sees no class: both images lie near the boundary between classes, so that no class is pushed further than another.

    Source: Sun et al. 2022 (BAT), arXiv 2209.07534.
    """
