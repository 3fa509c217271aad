"""What every class policy is: named multipliers, three answers for training, and an update from class errors."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.training.frl import parts


class ErrorRates(Protocol):
    """What a policy learns from: error rates by class, shape (..., K), and over all samples, shape (...), in [0, 1]."""

    @property
    def class_natural_error(self) -> Tensor:
        """Share of each class that is wrong when clean."""

    @property
    def class_boundary_error(self) -> Tensor:
        """Share of each class that is right when clean and wrong when attacked."""

    @property
    def overall_natural_error(self) -> Tensor | float:
        """Share of all samples."""

    @property
    def overall_boundary_error(self) -> Tensor | float:
        """Share of all samples."""


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


class ClassPolicy(ABC):
    """What varies by class during training, float64; the state is all there is to save.

    Parameters
    ----------
    rules : Rules
    shape : tuple of int
        Of state and answers: (K,) for one run, (R, K) for R runs side by side.

    Raises
    ------
    UserError
        The rules lack an alpha that the policy reads, or hold one that it ignores.
    """

    required: ClassVar[tuple[str, ...]] = ()
    """Multipliers that the policy keeps."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Multipliers that it keeps when the rules have an alpha for them."""
    weighed_by: ClassVar[Mapping[str, str]] = {}
    """Which multiplier weighs the classes in the natural (``"nat"``) and in the boundary loss (``"bndy"``); a loss that
    is not named, or whose multiplier is not kept, weighs all alike."""

    def __init__(self, rules: Rules, *, shape: tuple[int, ...]) -> None:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        for missing in [key for key in self.required if key not in rules.alpha]:
            raise UserError(f"{name} needs alpha.{missing}")
        for ignored in [key for key in rules.alpha if key not in (*self.required, *self.optional)]:
            raise UserError(f"alpha.{ignored} has no effect with {name}")
        self.rules = rules
        self.shape = shape
        self.state = {key: torch.zeros(shape, dtype=torch.float64) for key in rules.alpha}

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
        return torch.ones(self.shape, dtype=torch.float64)

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
            return torch.ones(self.shape, dtype=torch.float64)
        return parts.WEIGHT_RULES[self.rules.weight_rule](multiplier)

    def _log_weights(self, loss: str) -> Tensor:
        multiplier = self.state.get(self.weighed_by.get(loss, ""))
        if multiplier is None:
            return torch.zeros(self.shape, dtype=torch.float64)
        return parts.LOG_WEIGHT_RULES[self.rules.weight_rule](multiplier)


class Finetune(ClassPolicy):
    """Control: every class alike, whatever its errors."""

    def update(self, errors: ErrorRates) -> None:
        """Do nothing."""
