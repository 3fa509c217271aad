"""FRL reweight: classes with larger natural (boundary) error weigh more in the natural (boundary) loss."""

from typing import ClassVar

from torch import Tensor

from frl_repro.frl.policy import ClassPolicy, ErrorRates


class Reweight(ClassPolicy):
    """Two multipliers a class. Source: Xu et al. 2021, Algorithm 1; the report, section 3.3."""

    required: ClassVar[tuple[str, ...]] = ("nat", "bndy")

    def update(self, errors: ErrorRates) -> None:
        """Raise the multipliers of classes whose errors exceed the overall ones by more than tau."""
        self._raise_weight_multiplier("nat", errors.class_natural_error, errors.overall_natural_error)
        self._raise_weight_multiplier("bndy", errors.class_boundary_error, errors.overall_boundary_error)

    def weight_nat(self) -> Tensor:
        """Weight of each class's natural loss, mean 1."""
        return self._weights("nat")

    def weight_bndy(self) -> Tensor:
        """Weight of each class's boundary loss, mean 1."""
        return self._weights("bndy")
