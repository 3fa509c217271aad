"""FRL's family of methods: named multipliers, moved by class errors on validation images, become weights and radii."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.settings.methods import FRLConfig
from frl_repro.training.frl import parts
from frl_repro.training.frl.method import ErrorRates, Method, Plan, Weights, When

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig
    from frl_repro.settings.methods import AlphaConfig, TauConfig


@dataclass(frozen=True)
class Rules:
    """How multipliers move and what they turn into.

    Attributes
    ----------
    alpha : mapping of str to float or Tensor
        Step length of each multiplier the policy keeps: ``nat``, ``bndy``, ``margin``, ``rob``. A number, or one for
        each run, shape (R, 1).
    tau : mapping of str to float or Tensor
        Tolerated gaps: ``nat``, ``bndy``, ``rob``. As alpha.
    accumulate : bool
        Whether updates add up (dual ascent) or start anew each time.
    weight_rule : {"softmax", "simplex"}
        How multipliers become class weights. The simplex rule projects the multipliers after each update.
    margin_centred : bool
        Whether margins follow a class's gap to the overall boundary error, or its boundary error itself.
    margin_bounds : (float, float)
        Smallest and largest margin factor.
    """

    alpha: Mapping[str, float | Tensor] = field(default_factory=dict)
    tau: Mapping[str, float | Tensor] = field(default_factory=dict)
    accumulate: bool = False
    weight_rule: str = "softmax"
    margin_centred: bool = True
    margin_bounds: tuple[float, float] = (0.0, float("inf"))

    @classmethod
    def of_runs(cls, configs: Sequence[RunConfig], *, device: torch.device) -> Rules:
        """Return the rules of runs that differ in alphas and taus alone."""
        config, frl = configs[0], configs[0].frl
        assert isinstance(frl, FRLConfig)
        tau = _by_run([config.tau for config in configs], device)
        if config.departures.ignored_tau_nat and "bndy" in tau:
            tau["nat"] = tau["bndy"]
        low, high = frl.margin_bounds or (0.0, math.inf)
        return cls(
            alpha=_by_run([config.alpha for config in configs], device),
            tau=tau,
            accumulate=bool(frl.accumulate),
            weight_rule=frl.weight_rule or "softmax",
            margin_centred=frl.margin_centred is not False,
            margin_bounds=(low, high),
        )


def _by_run(sections: Sequence[AlphaConfig] | Sequence[TauConfig], device: torch.device) -> dict[str, float | Tensor]:
    """Return the numbers of each key that the method has, shape (R, 1)."""
    return {
        name: torch.tensor([[vars(section)[name]] for section in sections], dtype=torch.float64, device=device)
        for name, value in vars(sections[0]).items()
        if value is not None
    }


class ClassPolicy(Method):
    """A method of FRL's family: its state are multipliers by class, float64.

    Parameters
    ----------
    rules : Rules
    shape : tuple of int
        Of state and answers: (R, K) for R fused runs; (K,) for one.
    device : torch.device

    Raises
    ------
    UserError
        The rules lack an alpha that the policy reads, or hold one that it ignores.
    """

    sees_validation: ClassVar[Literal["errors", "losses"] | None] = "errors"
    required: ClassVar[tuple[str, ...]] = ()
    """Multipliers that the policy keeps."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Multipliers that it keeps when the rules have an alpha for them."""
    weighed_by: ClassVar[Mapping[str, str]] = {}
    """Which multiplier weighs the classes in the natural (``"nat"``) and in the boundary loss (``"bndy"``); a loss that
    is not named, or whose multiplier is not kept, weighs all alike."""

    def __init__(self, rules: Rules, *, shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        super().__init__(num_runs=shape[0], num_classes=shape[-1], device=device)
        self.shape = shape
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        for missing in [key for key in self.required if key not in rules.alpha]:
            raise UserError(f"{name} needs alpha.{missing}")
        for ignored in [key for key in rules.alpha if key not in (*self.required, *self.optional)]:
            raise UserError(f"alpha.{ignored} has no effect with {name}")
        self.rules = rules
        self.state = {key: torch.zeros(shape, dtype=torch.float64, device=self.device) for key in rules.alpha}

    @classmethod
    def of_runs(cls, configs: Sequence[RunConfig], *, class_counts: Tensor, device: torch.device) -> ClassPolicy:
        """Return the policy of runs that share all settings but seed, alphas and taus."""
        return cls(Rules.of_runs(configs, device=device), shape=(len(configs), len(class_counts)), device=device)

    def see_validation(self, seen: ErrorRates, when: When) -> None:
        """Move the multipliers by the errors of validation images (Algorithm 1, lines 4 to 7)."""
        self.update(seen)

    def plan(self, when: When) -> Plan:
        """Return each class's radius (Algorithm 1 of remargin)."""
        return Plan(radius=self.margin_factor())

    def weigh(self, when: When) -> Weights:
        """Return the weights that the multipliers stand for (Algorithm 1, line 8)."""
        return Weights(self.weight_nat(), self.weight_bndy(), self.log_weight_nat(), self.log_weight_bndy())

    def weight_nat(self) -> Tensor:
        """Weight of each class's natural loss, mean 1."""
        return self._weights("nat")

    def weight_bndy(self) -> Tensor:
        """Weight of each class's boundary (or adversarial) loss, mean 1."""
        return self._weights("bndy")

    def log_weight_nat(self) -> Tensor:
        """Logarithm of `weight_nat`, finite also where that is too small for a number."""
        return self._log_weights("nat")

    def log_weight_bndy(self) -> Tensor:
        """Logarithm of `weight_bndy`, finite also where that is too small for a number."""
        return self._log_weights("bndy")

    def margin_factor(self) -> Tensor:
        """What each class's training radius is multiplied with."""
        return self.ones()

    @abstractmethod
    def update(self, errors: ErrorRates) -> None:
        """Move the multipliers by class errors, which never come from the test split."""

    def _raise_weight_multiplier(self, key: str, class_error: Tensor, overall_error: Tensor | float) -> None:
        rules = self.rules
        violation = parts.violation(class_error, overall_error, rules.tau[key])
        moved = parts.next_multiplier(self.state[key], violation, rules.alpha[key], accumulate=rules.accumulate)
        self.state[key] = parts.project_multiplier(moved) if rules.weight_rule == "simplex" else moved

    def _raise_margin_multiplier(self, errors: ErrorRates) -> None:
        rules = self.rules
        centre = errors.overall_boundary_error if rules.margin_centred else 0.0
        violation = parts.violation(errors.class_boundary_error, centre, rules.tau["bndy"])
        self.state["margin"] = parts.next_multiplier(
            self.state["margin"], violation, rules.alpha["margin"], accumulate=rules.accumulate
        )

    def _weights(self, loss: str) -> Tensor:
        multiplier = self.state.get(self.weighed_by.get(loss, ""))
        if multiplier is None:
            return self.ones()
        return parts.WEIGHT_RULES[self.rules.weight_rule](multiplier)

    def _log_weights(self, loss: str) -> Tensor:
        multiplier = self.state.get(self.weighed_by.get(loss, ""))
        if multiplier is None:
            return torch.zeros_like(self.ones())
        return parts.LOG_WEIGHT_RULES[self.rules.weight_rule](multiplier)
