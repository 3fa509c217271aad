"""FRL remargin: classes with larger boundary error are trained with a larger radius."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from frl_repro.training.frl import parts
from frl_repro.training.frl.method import ErrorRates
from frl_repro.training.frl.policy import ClassPolicy


class Remargin(ClassPolicy):
    """One multiplier a class, and one for the natural loss where the recipe has it (the paper's released code does).

    Source: Xu et al. 2021, section 3.3; the reproduction report, section 3.4.
    """

    required = ("margin",)
    optional = ("nat",)
    weighed_by: ClassVar[Mapping[str, str]] = {"nat": "nat"}

    def update(self, errors: ErrorRates) -> None:
        """Widen the radius of classes whose boundary error is too large, narrow that of the others."""
        self._raise_margin_multiplier(errors)
        if "nat" in self.state:
            self._raise_weight_multiplier("nat", errors.class_natural_error, errors.overall_natural_error)

    def margin_factor(self) -> Tensor:
        """What each class's training radius is multiplied with."""
        return parts.margin_factors(self.state["margin"], bounds=self.rules.margin_bounds)
