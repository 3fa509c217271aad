"""The paper's baseline: classes with larger robust error weigh more, natural and boundary error not told apart."""

from collections.abc import Mapping
from typing import ClassVar

from frl_repro.training.frl.method import ErrorRates
from frl_repro.training.frl.policy import ClassPolicy


class BaselineReweight(ClassPolicy):
    """One multiplier a class, raised by its robust error; both of its losses weigh alike.

    ``phi(c) += alpha (R_rob(c) - R_rob - tau)`` with R_rob = R_nat + R_bndy: the dual ascent of `Reweight` on one
    constraint a class, so that what tells the two methods apart is the split into natural and boundary error alone. The
    class with the largest robust error is raised most.

    Source: Xu et al. 2021, section 3.2 (the constraint before it is split) and section 4 ("Baseline Reweight", after
    Agarwal et al. 2018); docs/deviations.md, "Where we depart".
    """

    required: ClassVar[tuple[str, ...]] = ("rob",)
    weighed_by: ClassVar[Mapping[str, str]] = {"nat": "rob", "bndy": "rob"}

    def update(self, errors: ErrorRates) -> None:
        """Raise the multipliers of classes whose robust error exceeds the overall one by more than tau."""
        class_robust_error = errors.class_natural_error + errors.class_boundary_error
        overall_robust_error = errors.overall_natural_error + errors.overall_boundary_error
        self._raise_weight_multiplier("rob", class_robust_error, overall_robust_error)
