"""What training with cross-entropy comes to on the mixture, and where FRL stops there: by quadrature, not by training.

Cross-entropy is convex in weights and intercept, the mixture looks alike from every feature: the minimum has direction
(1, ..., 1), whatever class weights and margins are, and two numbers are left. docs/theory.md compares its threshold
with the optimum of the theorems, which it meets for classes of equal variance alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from frl_repro.theory.gaussian import Mixture

    Numbers = NDArray[np.float64]

_NODES, _NODE_WEIGHTS = hermegauss(80)
_SHARES = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
_MOST_STEPS, _LONGEST_STEP, _CLOSE = 500, 1.0, 1e-11
_NUM_UPDATES, _STRIDE = 1000, 0.5  # of the way to where the policy points; shorter where it overshoots
_AT_REST, _SHRINKS = 1e-9, 0.9
_SIDES = np.array([-1.0, 1.0])


@dataclass(frozen=True)
class Term:
    """One mean of a loss: sum of weights times cross-entropies over sum of weights.

    Attributes
    ----------
    weights : (easy, hard)
    epsilons : (easy, hard)
        Radii; 0 for clean samples.
    """

    weights: tuple[float, float] = (1.0, 1.0)
    epsilons: tuple[float, float] = (0.0, 0.0)


def cross_entropy_threshold(mixture: Mixture, terms: Sequence[Term]) -> float:
    """Return the threshold (see `Mixture.errors`) that minimises the expected loss over all linear classifiers.

    Raises
    ------
    ValueError
        Newton's method does not settle: radii so large that no direction is worth following.
    """
    rows, shares = [], []
    for term in terms:
        weights = mixture.priors * term.weights
        for k, side in enumerate(_SIDES):
            # Margin of a sample: scale * (distance + deviation * noise) + side * intercept.
            noisy = mixture.distance(term.epsilons[k]) + mixture.deviations[k] * _NODES
            rows.append(np.stack([noisy, np.full_like(noisy, side)]))
            shares.append(weights[k] / weights.sum() * _SHARES)
    features, share = np.concatenate(rows, 1), np.concatenate(shares)
    scale_and_intercept = np.array([1.0, 0.0])
    for _ in range(_MOST_STEPS):
        wrong = 1 / (1 + np.exp(scale_and_intercept @ features))
        gradient = -features @ (share * wrong)
        curvature = (features * (share * wrong * (1 - wrong))) @ features.T
        step = np.linalg.solve(curvature, gradient)
        longest = np.abs(step).max()
        scale_and_intercept = scale_and_intercept - step * min(1.0, _LONGEST_STEP / longest)
        if longest < _CLOSE:
            break
    scale, intercept = scale_and_intercept
    if longest >= _CLOSE or scale <= 0:
        raise ValueError(f"cross-entropy has no useful minimum on {mixture} with {list(terms)}")
    return float(intercept / scale)


@dataclass(frozen=True)
class FixedPoint:
    """Where a class policy stops.

    Attributes
    ----------
    threshold : float
    weights_nat, weights_bndy, margins : array, shape (2,)
        Its answer there, by class (easy, hard).
    """

    threshold: float
    weights_nat: Numbers
    weights_bndy: Numbers
    margins: Numbers


@dataclass(frozen=True)
class Policy:
    """FRL under recipe=report: weights 2 softmax(alpha gap), margins clamp(exp(alpha_margin (gap - tau))).

    Attributes
    ----------
    alpha : mapping of str to float
        ``nat``, ``bndy``, ``margin``; what is missing stays alike for both classes.
    tau : float
        Tolerated gap of boundary errors, for margins; of weights it cancels.
    bounds : (float, float)
        Smallest and largest margin, in radii.
    """

    alpha: Mapping[str, float] = field(default_factory=dict)
    tau: float = 0.05
    bounds: tuple[float, float] = (0.5, 2.0)


def frl_fixed_point(mixture: Mixture, epsilon: float, policy: Policy) -> FixedPoint:
    """Return where training with class weights and margins that follow class errors stops: a point that maps to itself.

    Trained with CE(clean) + CE(attacked) (``retrain.objective=paired``) to its minimum between updates; half-way steps
    take what would swing to and fro to rest. Some gap always stays: the weights stand for it.

    Raises
    ------
    ValueError
        The steps do not come to rest.
    """
    ones = np.ones(2)
    multipliers = {name: np.zeros(2) for name in ("nat", "bndy", "margin")}

    def answer() -> FixedPoint:
        nat, bndy = (2 * _softmax(multipliers[name]) for name in ("nat", "bndy"))
        margins = np.clip(np.exp(multipliers["margin"]), *policy.bounds) if "margin" in policy.alpha else ones
        terms = [Term(tuple(nat)), Term(tuple(bndy), tuple(epsilon * margins))]
        return FixedPoint(cross_entropy_threshold(mixture, terms), nat, bndy, margins)

    stride, before = _STRIDE, math.inf
    for _ in range(_NUM_UPDATES):
        now = answer()
        natural, robust = mixture.errors(now.threshold), mixture.errors(now.threshold, epsilon)
        gaps = {"nat": natural, "bndy": robust - natural, "margin": robust - natural}
        changes = {
            name: alpha * (gaps[name] - mixture.priors @ gaps[name] - (policy.tau if name == "margin" else 0.0))
            - multipliers[name]
            for name, alpha in policy.alpha.items()
        }
        change = max((float(np.abs(one).max()) for one in changes.values()), default=0.0)
        if change < _AT_REST:
            return now
        if change > _SHRINKS * before:
            stride /= 2
        before = change
        multipliers |= {name: multipliers[name] + stride * one for name, one in changes.items()}
    raise ValueError(f"no fixed point of {policy} found at epsilon={epsilon:g} on {mixture}")


def _softmax(values: Numbers) -> Numbers:
    powers: Numbers = np.exp(values - values.max())
    shares: Numbers = powers / powers.sum()
    return shares
