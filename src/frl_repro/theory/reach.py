"""Which pairs of class errors class weights, class margins and both can reach; docs/theory.md has the proofs.

Two Gaussian classes with any covariances, robust errors of linear classifiers. What the functions rest on: a margin for
each class acts as the mean of the two margins, and a shift of the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri

from frl_repro.theory.gaussian import robust_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

_NUM_SHARES = 101  # classifiers of the frontier that are looked at, and again between the best one's neighbours
_NUM_LOOKS = 4


@dataclass(frozen=True, eq=False)
class Classes:
    """y = -1: N(-mean, easy), y = +1: N(mean, hard).

    Attributes
    ----------
    mean : array, shape (d,)
    easy, hard : array, shape (d, d)
        Covariances.
    """

    mean: Numbers
    easy: Numbers
    hard: Numbers

    def line(self, direction: Numbers, epsilon: float) -> tuple[Numbers, float]:
        """Return (s_easy, s_hard) and r: all thresholds of a direction give s_easy y_easy + s_hard y_hard = 2 r.

        y = -Phi^-1(robust error) of a class: each direction is a straight line in these coordinates.
        """
        deviations = np.sqrt([direction @ self.easy @ direction, direction @ self.hard @ direction])
        return deviations, float(self.mean @ direction - epsilon * np.abs(direction).sum())

    def hard_error(self, direction: Numbers, epsilon: float, easy_error: float | Numbers) -> Numbers:
        """Robust error of the hard class where the threshold gives the easy class the one named."""
        (easy, hard), r = self.line(direction, epsilon)
        error: Numbers = ndtr(-(2 * r + easy * ndtri(easy_error)) / hard)
        return error

    def equal_error(self, direction: Numbers, epsilon: float) -> float:
        """Robust error of both classes where the threshold makes them equal: the least worst class of a direction."""
        deviations, r = self.line(direction, epsilon)
        return float(ndtr(-2 * r / deviations.sum()))


def undominated(classes: Classes, epsilon: float, share: float) -> tuple[Numbers, Numbers]:
    """Return a linear classifier that no other beats in both robust errors (below 1/2): its direction and its errors.

    ``share`` in (0, 1) runs through all of them, from the best for the easy class on.

    Notes
    -----
    w = S_t^-1 mu_e with S_t = (1 - t) S_easy + t S_hard and mu_e the `robust_mean` under S_t: the admissible procedures
    of Anderson and Bahadur 1962, with the attack in the mean.
    """
    mixed = (1 - share) * classes.easy + share * classes.hard
    direction: Numbers = np.linalg.solve(mixed, robust_mean(classes.mean, mixed, epsilon)).astype(np.float64)
    deviations, r = classes.line(direction, epsilon)
    parts = np.array([1 - share, share]) * deviations
    return direction, ndtr(-2 * r * parts / float(parts @ deviations))


def by_weights(classes: Classes, epsilon: float, log_weight: float = 0.0) -> tuple[Numbers, Numbers]:
    """Direction and robust errors of the least weighted sum of robust errors, by a search through `undominated`.

    ``log_weight``: logarithm of the easy class's weight over the hard one's.
    """
    weights = 1 / (1 + np.exp([-log_weight, log_weight]))
    low, high = 0.0, 1.0
    for _ in range(_NUM_LOOKS):
        shares = np.linspace(low, high, _NUM_SHARES + 2)[1:-1]
        found = [undominated(classes, epsilon, float(share)) for share in shares]
        best = int((np.array([errors for _, errors in found]) @ weights).argmin())
        width = (high - low) / (_NUM_SHARES + 1)
        low, high = max(0.0, shares[best] - width), min(1.0, shares[best] + width)
    return found[best]


def by_margins(
    classes: Classes, epsilons: tuple[float, float], epsilon: float, log_weight: float = 0.0
) -> tuple[Numbers, Numbers]:
    """Direction and robust errors at ``epsilon`` of what margins (easy, hard), and weights with them, train to.

    The direction is that of the mean margin; the threshold then moves by half the difference of the margins.
    """
    direction, trained = by_weights(classes, sum(epsilons) / 2, log_weight)
    deviations, _ = classes.line(direction, sum(epsilons) / 2)
    length = float(np.abs(direction).sum())
    shift = (epsilons[1] - epsilons[0]) / 2 * length
    # What was attacked with the mean margin in training is attacked with another radius now.
    closer = (epsilon - sum(epsilons) / 2) * length
    moved = ndtri(trained) + (np.array([shift, -shift]) + closer) / deviations
    return direction, ndtr(moved)
