"""FRL reweight: classes with larger natural (boundary) error weigh more in the natural (boundary) loss."""

from collections.abc import Mapping
from typing import ClassVar

from frl_repro.training.frl.method import ErrorRates
from frl_repro.training.frl.policy import ClassPolicy


class Reweight(ClassPolicy):
    """Two multipliers a class. Source: Xu et al. 2021, Algorithm 1; the reproduction report, section 3.3."""

    required: ClassVar[tuple[str, ...]] = ("nat", "bndy")
    weighed_by: ClassVar[Mapping[str, str]] = {"nat": "nat", "bndy": "bndy"}

    def update(self, errors: ErrorRates) -> None:
        """Raise the multipliers of classes whose errors exceed the overall ones by more than tau."""
        self._raise_weight_multiplier("nat", errors.class_natural_error, errors.overall_natural_error)
        self._raise_weight_multiplier("bndy", errors.class_boundary_error, errors.overall_boundary_error)
