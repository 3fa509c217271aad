"""Closed forms for two Gaussian classes and linear classifiers under attacks in the L-infinity ball.

Class "easy" (y = -1) and class "hard" (y = +1), in this order in every array of length 2. An attack of radius epsilon
moves the score w'x + b by at most epsilon * sum|w|, so that robust errors are those of means which lie closer together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import lsq_linear
from scipy.special import ndtr

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """y = -1: N(-theta, sigma^2 I), y = +1: N(theta, K^2 sigma^2 I), theta = (eta, ..., eta), P(y = -1) = R P(y = +1).

    Source: Xu et al. 2021 (R = 1); Hu et al. 2023 (K = 1).

    Attributes
    ----------
    num_features : int
        d.
    eta, sigma : float
        Half the distance of the means in each feature, and the easy class's standard deviation; of one unit with the
        radii.
    deviation_ratio : float
        K, at least 1.
    prior_ratio : float
        R, at least 1: the hard class is then the rare one.

    Raises
    ------
    ValueError
        A number is out of range.
    """

    num_features: int
    eta: float
    sigma: float
    deviation_ratio: float = 1.0
    prior_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.num_features < 1 or min(self.eta, self.sigma) <= 0:
            raise ValueError(f"num_features, eta and sigma must be above 0: {self}")
        if min(self.deviation_ratio, self.prior_ratio) < 1:
            raise ValueError(
                f"deviation_ratio and prior_ratio must be at least 1, so that the hard class is y = +1: {self}"
            )

    @property
    def priors(self) -> Numbers:
        """Share of each class, shape (2,)."""
        return np.array([self.prior_ratio, 1.0]) / (1 + self.prior_ratio)

    @property
    def deviations(self) -> Numbers:
        """Standard deviation of each class's score along (1, ..., 1), in that of the easy class: (1, K)."""
        return np.array([1.0, self.deviation_ratio])

    def distance(self, epsilon: ArrayLike) -> Numbers:
        """Return sqrt(d) (eta - epsilon) / sigma: how far the attacked mean lies from the middle, any shape."""
        return math.sqrt(self.num_features) * (self.eta - np.asarray(epsilon, dtype=np.float64)) / self.sigma

    def errors(self, threshold: ArrayLike, epsilon: ArrayLike = 0.0) -> Numbers:
        """Class errors of sign(s + threshold), s the mean-free sum of x in the easy class's standard deviations.

        Parameters
        ----------
        threshold : float or array, shape (...)
            u: the larger, the more room the hard class has. Infinite for a classifier that always says one class.
        epsilon : float
            Radius; 0 for natural (standard) errors.

        Returns
        -------
        array, shape (..., 2)
            Phi(-a + u) and Phi((-a - u) / K), a = `distance`.
        """
        u, a = np.asarray(threshold, dtype=np.float64), self.distance(epsilon)
        return np.stack([ndtr(u - a), ndtr((-a - u) / self.deviation_ratio)], -1)

    def optimal_threshold(self, epsilon: float, log_weight: float = 0.0) -> float:
        """Threshold of the linear classifier with the smallest class-weighted robust error.

        ``log_weight`` is the logarithm of the easy class's weight over the hard class's one, the priors aside. Where
        the hard class weighs so much that it pays to give up the easy one, the threshold is infinite: the pairs of
        errors between are not to be had by weights.

        Raises
        ------
        ValueError
            The radius is not in [0, eta): no linear classifier beats chance.
        """
        if not 0 <= epsilon < self.eta:
            raise ValueError(f"epsilon={epsilon:g} must lie in [0, eta) = [0, {self.eta:g})")
        K, a, log_ratio = self.deviation_ratio, float(self.distance(epsilon)), math.log(self.prior_ratio) + log_weight
        if math.isclose(K, 1):
            return -log_ratio / (2 * a)
        # Where the weighted densities of the two scores agree: a quadratic equation, of which one root is the minimum.
        inside = 4 * a * a + 2 * (K * K - 1) * (log_ratio + math.log(K))
        if inside < 0:
            return math.inf
        u = (a * (K * K + 1) - K * math.sqrt(inside)) / (K * K - 1)
        easy, hard = self.errors(u, epsilon)
        # Always to say "hard" costs the easy class, whose weight is exp(log_ratio) of the hard one's.
        return u if math.exp(log_ratio) * easy + hard <= math.exp(log_ratio) else math.inf


def variance_errors(mixture: Mixture, epsilon: float) -> tuple[Numbers, Numbers]:
    """Robust and standard class errors of the linear classifier of smallest robust error, classes equally frequent.

    With B = 2 sqrt(d) (eta - epsilon) / ((K^2 - 1) sigma) and q = 2 ln K / (K^2 - 1) the robust errors are
    Phi(B - K sqrt(B^2 + q)) and Phi(-K B + sqrt(B^2 + q)); of the standard ones the arguments are smaller by
    sqrt(d) epsilon / sigma and sqrt(d) epsilon / (K sigma). epsilon = 0 gives the natural optimum.

    Source: Xu et al. 2021 (arXiv 2010.06121), its theorems on classes of unequal variance.

    Raises
    ------
    ValueError
        K = 1, R other than 1, or a radius outside [0, eta).
    """
    K, R = mixture.deviation_ratio, mixture.prior_ratio
    if K <= 1 or R != 1:
        raise ValueError(f"the closed form is for deviation_ratio above 1 and prior_ratio 1: {mixture}")
    if not 0 <= epsilon < mixture.eta:
        raise ValueError(f"epsilon={epsilon:g} must lie in [0, eta) = [0, {mixture.eta:g})")
    B = 2 * float(mixture.distance(epsilon)) / (K * K - 1)
    root = math.sqrt(B * B + 2 * math.log(K) / (K * K - 1))
    arguments = np.array([B - K * root, root - K * B])
    shift = math.sqrt(mixture.num_features) * epsilon / mixture.sigma
    return ndtr(arguments), ndtr(arguments - shift / mixture.deviations)


def robust_mean(mean: ArrayLike, covariance: ArrayLike, epsilon: float) -> Numbers:
    """Return mu - epsilon z*, z* = argmin over |z|_inf <= 1 of the S^-1 length of mu - epsilon z; shape (d,).

    The attacked class's mean at the worst it can be. With a diagonal covariance it is a soft threshold: the robust
    classifier ignores features whose mean is below epsilon.

    Source: Dan et al. 2020; Hu et al. 2023 (arXiv 2211.15762).
    """
    mu, root = np.asarray(mean, dtype=np.float64), np.linalg.cholesky(np.asarray(covariance, dtype=np.float64))
    if epsilon == 0:
        return mu
    inverse = np.linalg.inv(root)
    found = lsq_linear(epsilon * inverse, inverse @ mu, bounds=(-1, 1), method="bvls", tol=1e-14)
    moved: Numbers = mu - epsilon * found.x
    return moved


def imbalance_errors(
    mean: ArrayLike, covariance: ArrayLike, epsilon: float, prior_ratio: float
) -> tuple[Numbers, Numbers]:
    """Robust and standard class errors of the robust optimum of y N(mu, S), the easy class R times as frequent.

    With mu_e = `robust_mean`, m^2 = mu_e' S^-1 mu_e, c = mu_e' S^-1 mu and L = ln R the robust errors are
    Phi(-m - L / 2m) (frequent) and Phi(-m + L / 2m) (rare), the standard ones Phi((-c - L/2) / m) and
    Phi((-c + L/2) / m). R = 1: no gap at any radius.

    Source: Hu et al. 2023 (arXiv 2211.15762).

    Raises
    ------
    ValueError
        The radius leaves nothing of the mean: no linear classifier beats chance.
    """
    moved = robust_mean(mean, covariance, epsilon)
    weight = np.linalg.solve(np.asarray(covariance, dtype=np.float64), moved)
    m, c = math.sqrt(float(moved @ weight)), float(np.asarray(mean, dtype=np.float64) @ weight)
    if m < 1e-9:
        raise ValueError(f"epsilon={epsilon:g} is so large that every linear classifier errs by chance")
    half = np.array([-1, 1]) * math.log(prior_ratio) / 2
    return ndtr(-m + half / m), ndtr((-c + half) / m)
