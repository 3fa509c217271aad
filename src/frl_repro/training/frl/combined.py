"""Reweight and remargin together: the combination that the reproduction report left open."""

from torch import Tensor

from frl_repro.training.frl import parts
from frl_repro.training.frl.method import ErrorRates
from frl_repro.training.frl.reweight import Reweight


class Combined(Reweight):
    """Three multipliers a class. Source: Xu et al. 2021, section 3.3 (reweight + remargin)."""

    required = ("nat", "bndy", "margin")

    def update(self, errors: ErrorRates) -> None:
        """Move weights and radii by the same errors."""
        super().update(errors)
        self._raise_margin_multiplier(errors)

    def margin_factor(self) -> Tensor:
        """What each class's training radius is multiplied with."""
        return parts.margin_factors(self.state["margin"], bounds=self.rules.margin_bounds)
