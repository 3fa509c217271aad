"""The questions and their criteria, registered at both radii; docs/registration.md explains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from frl_repro.basics.radii import format_epsilon
from frl_repro.results.registration import ADVERSARIAL, BASE, EQUAL, EQUAL_MARGINS, NATURAL

Numbers = NDArray[np.float64]

TOLERATED_GAP = 0.05
"""tau of both sources: the gap to the overall error up to which they count a class as treated like the others."""

CHOSEN = {name: f"{name}, chosen" for name in ("reweight", "margins", "combined", "remargin")}
"""Methods with several registered settings: each seed's best on its selection images plays this role."""

REWEIGHT_51, REWEIGHT_55 = "reweight 5:1", "reweight 5:5"
COMBINED_51, COMBINED_55 = "combined 5:1", "combined 5:5"

Quantity = tuple[str, float | None]
"""``("natural", None)`` or ``("robust", radius)``."""


class Errors:
    """Test errors of every role on common seeds, and the class that held-back images name as each model's worst.

    Parameters
    ----------
    by_class : dict of (role, quantity) to array, shape (..., S, K)
        Errors in [0, 1]; leading axes are bootstrap samples, if any.
    worst_class : dict of (role, quantity) to array, shape (S,), integer
        Class ids; named on images that no result is computed from.
    shares : array, shape (K,)
        Share of each class among the test images.
    """

    def __init__(
        self,
        by_class: dict[tuple[str, Quantity], Numbers],
        worst_class: dict[tuple[str, Quantity], NDArray[np.int64]],
        shares: Numbers,
    ) -> None:
        self.by_class, self.worst_class, self.shares = by_class, worst_class, shares

    def worst(self, role: str, quantity: Quantity) -> Numbers:
        """Error of each seed's worst class, shape (..., S)."""
        errors, named = self.by_class[role, quantity], self.worst_class[role, quantity]
        return errors[..., np.arange(len(named)), named]

    def maximum(self, role: str, quantity: Quantity) -> Numbers:
        """Largest class error on the test images themselves, biased upwards, shape (..., S)."""
        largest: Numbers = self.by_class[role, quantity].max(-1)
        return largest

    def overall(self, role: str, quantity: Quantity) -> Numbers:
        """Error over all test images, shape (..., S)."""
        total: Numbers = self.by_class[role, quantity] @ self.shares
        return total


Worst = Callable[[Errors, str, Quantity], Numbers]
Value = Callable[[Errors, Worst], Numbers]
"""(errors, how the worst class's error is taken) -> one number a seed, shape (..., S)."""


@dataclass(frozen=True)
class Criterion:
    """A number that must lie on one side of a threshold.

    Attributes
    ----------
    text : str
        What must hold.
    roles : tuple of str
        Models it compares.
    radius : float or None
        Of the robust error it is about; None where only natural error enters.
    value : callable
    is_above : bool
        The side of the threshold on which the criterion holds.
    threshold : float
    unit : str
        ``points`` of error, or ``%`` for relative changes.
    needs_room : bool
        Whether it says nothing where the natural model is at its ceiling.
    """

    text: str
    roles: tuple[str, ...]
    radius: float | None
    value: Value
    is_above: bool = False
    threshold: float = 0.0
    unit: str = "points"
    needs_room: bool = False

    @property
    def scale(self) -> int:
        """What values are multiplied by to be shown in the unit."""
        return 100 if self.unit else 1


@dataclass(frozen=True)
class Question:
    """A question with the criteria that answer it.

    Attributes
    ----------
    name : str
        ``"1"`` to ``"5"`` for the reproduction report's claims, with a letter for what the study adds.
    text : str
    criteria : tuple of Criterion
        They decide.
    beside : tuple of Criterion
        They are shown and decide nothing: prices, other comparators.
    """

    name: str
    text: str
    criteria: tuple[Criterion, ...]
    beside: tuple[Criterion, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Models that the question is about."""
        return tuple(dict.fromkeys(role for criterion in self.criteria for role in criterion.roles))


NATURAL_ERROR: Quantity = ("natural", None)
RADII = (8 / 255, 16 / 255)
"""Those of the registered study."""


def robust_error(radius: float) -> Quantity:
    """Return the robust error at a radius."""
    return "robust", radius


def quantities(radii: Sequence[float]) -> tuple[Quantity, ...]:
    """Return natural error and the robust error at each radius."""
    return (NATURAL_ERROR, *(robust_error(radius) for radius in radii))


def _change(after: str, before: str, quantity: Quantity) -> Value:
    return lambda errors, worst: worst(errors, after, quantity) - worst(errors, before, quantity)


def _overall_change(after: str, before: str, quantity: Quantity) -> Value:
    return lambda errors, _: errors.overall(after, quantity) - errors.overall(before, quantity)


def _gap(role: str, quantity: Quantity) -> Value:
    return lambda errors, worst: worst(errors, role, quantity) - errors.overall(role, quantity)


def _gap_difference(quantity: Quantity) -> Value:
    wide, narrow = _gap(ADVERSARIAL, quantity), _gap(NATURAL, quantity)
    return lambda errors, worst: wide(errors, worst) - narrow(errors, worst)


def _relative(after: str, before: str, quantity: Quantity) -> Value:
    return lambda errors, worst: worst(errors, after, quantity) / worst(errors, before, quantity) - 1


def _relative_difference(after: str, before: str, radius: float) -> Value:
    natural, robust = _relative(after, before, NATURAL_ERROR), _relative(after, before, robust_error(radius))
    return lambda errors, worst: natural(errors, worst) - robust(errors, worst)


def _spread_difference(quantity: Quantity) -> Value:
    """Normalised deviation of class accuracies (NSD), adversarial less natural model."""

    def value(errors: Errors, _: Worst) -> Numbers:
        def spread(role: str) -> Numbers:
            accuracy = 1 - errors.by_class[role, quantity]
            nsd: Numbers = accuracy.std(-1) / accuracy.mean(-1)
            return nsd

        return spread(ADVERSARIAL) - spread(NATURAL)

    return value


def _rank_correlation(quantity: Quantity) -> Value:
    """Spearman's correlation over classes between the two models' errors."""

    def value(errors: Errors, _: Worst) -> Numbers:
        ranks = [stats.rankdata(errors.by_class[role, quantity], axis=-1) for role in (NATURAL, ADVERSARIAL)]
        centred = [rank - rank.mean(-1, keepdims=True) for rank in ranks]
        correlation: Numbers = (centred[0] * centred[1]).sum(-1) / np.sqrt(
            (centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1)
        )
        return correlation

    return value


def _shown(quantity: Quantity) -> str:
    name, radius = quantity
    return f"{name} error" if radius is None else f"{name} error at {format_epsilon(radius)}"


def _falls(after: str, before: str, quantity: Quantity) -> Criterion:
    text = f"worst class's {_shown(quantity)}: {after} below {before}"
    return Criterion(text, (after, before), quantity[1], _change(after, before, quantity))


def _all_fall(after: str, before: str, radii: Sequence[float]) -> tuple[Criterion, ...]:
    return tuple(_falls(after, before, quantity) for quantity in quantities(radii))


def _robust_falls(after: str, before: str, radii: Sequence[float]) -> tuple[Criterion, ...]:
    return tuple(_falls(after, before, robust_error(radius)) for radius in radii)


def _price(after: str, before: str, radii: Sequence[float]) -> tuple[Criterion, ...]:
    """What a method costs: natural error of the worst class, and errors of all classes together."""
    everyone = tuple(
        Criterion(
            f"{_shown(quantity)} of all classes: {after} below {before}",
            (after, before),
            quantity[1],
            _overall_change(after, before, quantity),
        )
        for quantity in quantities(radii)
    )
    return (_falls(after, before, NATURAL_ERROR), *everyone)


def _gaps(role: str, radii: Sequence[float]) -> tuple[Criterion, ...]:
    return tuple(
        Criterion(
            f"{role} training: worst class's {_shown(quantity)} more than 5 points above that of all classes",
            (role,),
            quantity[1],
            _gap(role, quantity),
            is_above=True,
            threshold=TOLERATED_GAP,
        )
        for quantity in quantities(radii)
    )


_BEST = CHOSEN


def questions(radii: Sequence[float] = RADII) -> tuple[Question, ...]:
    """Return every question with its criteria at these radii; at ``RADII`` they are the registered ones."""
    return (
        Question(
            "1",
            "Adversarial training leaves classes unequal in natural and in robust error.",
            _gaps(ADVERSARIAL, radii),
            _gaps(NATURAL, radii),
        ),
        Question(
            "2",
            "It widens what natural training already shows: hard classes get harder.",
            tuple(
                Criterion(
                    f"gap of the worst class to all classes in {_shown(quantity)}: adversarial above natural training",
                    (ADVERSARIAL, NATURAL),
                    quantity[1],
                    _gap_difference(quantity),
                    is_above=True,
                    needs_room=quantity[1] is not None,
                )
                for quantity in quantities(radii)
            ),
            (
                *(
                    Criterion(
                        f"spread over classes (NSD of accuracy) in {_shown(quantity)}: "
                        "adversarial above natural training",
                        (ADVERSARIAL, NATURAL),
                        quantity[1],
                        _spread_difference(quantity),
                        is_above=True,
                        unit="",
                    )
                    for quantity in quantities(radii)
                ),
                *(
                    Criterion(
                        f"rank correlation over classes of {_shown(quantity)}, "
                        "natural and adversarial training, above 0",
                        (ADVERSARIAL, NATURAL),
                        quantity[1],
                        _rank_correlation(quantity),
                        is_above=True,
                        unit="",
                    )
                    for quantity in quantities(radii)
                ),
            ),
        ),
        Question(
            "3",
            "Reweight (5:1) lowers the worst class's natural error and, to a lesser degree, its robust error.",
            (
                *_all_fall(REWEIGHT_51, BASE, radii),
                *_all_fall(REWEIGHT_51, EQUAL, radii),
                *(
                    Criterion(
                        "relative change against the base: natural error below robust error at "
                        f"{format_epsilon(radius)}",
                        (REWEIGHT_51, BASE),
                        radius,
                        _relative_difference(REWEIGHT_51, BASE, radius),
                        unit="%",
                    )
                    for radius in radii
                ),
            ),
            (
                *_price(REWEIGHT_51, EQUAL, radii)[1:],
                *_all_fall(_BEST["reweight"], EQUAL, radii),
                *_price(_BEST["reweight"], EQUAL, radii)[1:],
            ),
        ),
        Question(
            "4",
            "Remargin lowers the worst class's robust error.",
            (*_robust_falls(_BEST["remargin"], EQUAL_MARGINS, radii), *_robust_falls(_BEST["remargin"], BASE, radii)),
            _price(_BEST["remargin"], EQUAL_MARGINS, radii),
        ),
        Question(
            "4b",
            "Margins lower the worst class's robust error more than weights do, at equal radius, loss and steps.",
            _robust_falls(_BEST["margins"], _BEST["reweight"], radii),
            (*_price(_BEST["margins"], _BEST["reweight"], radii), *_robust_falls(_BEST["margins"], EQUAL, radii)),
        ),
        Question(
            "5",
            "Weights and margins combined do better for the worst class than either, each at its best setting.",
            (
                *_robust_falls(_BEST["combined"], _BEST["reweight"], radii),
                *_robust_falls(_BEST["combined"], _BEST["margins"], radii),
                replace(
                    _falls(_BEST["combined"], _BEST["reweight"], NATURAL_ERROR),
                    text="worst class's natural error: combined, chosen less than 5 points above reweight, chosen",
                    threshold=TOLERATED_GAP,
                ),
            ),
            _price(_BEST["combined"], _BEST["reweight"], radii),
        ),
        Question(
            "5m",
            "At matched alphas (5:1, 5:5), margins on top of weights lower the worst class's robust error.",
            (*_robust_falls(COMBINED_51, REWEIGHT_51, radii), *_robust_falls(COMBINED_55, REWEIGHT_55, radii)),
            (
                *_price(COMBINED_51, REWEIGHT_51, radii),
                *_price(COMBINED_55, REWEIGHT_55, radii),
                *_robust_falls(COMBINED_51, REWEIGHT_55, radii),
            ),
        ),
    )
