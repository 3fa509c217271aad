"""How certain class-wise errors are: over seeds, over test images, and two summaries of unequal classes. No torch.

Two sources of chance are kept apart. *Seeds*: training again gives another model; a mean over seeds gets Student's t
interval. *Test images*: other images of the same classes give other errors; one class's error gets Wilson's interval,
and whatever is computed from several classes or models (a difference before and after, the worst class) is bootstrapped
over images. Models measured on the same images are resampled together: what the images have in common cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
NUM_RESAMPLES = 2000
_CHUNK = 200  # resamples at a time: bounds memory to kinds of images x chunk integers


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; the bounds are NaN where nothing can be said."""

    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of ``value``."""
        return self.low > value or self.high < value


def points(interval: Interval) -> str:
    """``-2.4 [-3.8, -1.0]``, in points; without bounds where there are none."""
    # Adding 0 turns the -0.0 of a rounded small number into 0.0.
    estimate, low, high = (round(100 * value, 1) + 0 for value in (interval.estimate, interval.low, interval.high))
    return f"{estimate:+.1f}" + ("" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]")


def over_seeds(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Mean of independent repetitions with Student's t interval; NaN bounds for one repetition.

    Parameters
    ----------
    values : sequence of float, length S
        One number a seed: an error, or a difference of two models of the same seed.
    level : float
        Confidence in (0, 1).

    Raises
    ------
    ValueError
        There are no values.
    """
    if not len(values):
        raise ValueError("an interval over seeds needs at least one value")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def of_share(num_errors: int, count: int, *, level: float = LEVEL) -> Interval:
    """Share of errors among images of one class, with Wilson's score interval.

    Raises
    ------
    ValueError
        There are no images, or more errors than images.
    """
    if not 0 <= num_errors <= count or count == 0:
        raise ValueError(f"{num_errors} errors of {count} images is no share")
    low, high = stats.binomtest(num_errors, count).proportion_ci(level, method="wilson")
    return Interval(num_errors / count, float(low), float(high))


def resampled_class_errors(
    labels: ArrayLike, is_wrong: ArrayLike, *, num_classes: int, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> NDArray[np.float64]:
    """Class errors of M models on bootstrap samples of their common images.

    Each class is resampled by itself: how many test images a class has is no chance.

    Parameters
    ----------
    labels : array, shape (N,), integer
        Classes, 0 to K - 1.
    is_wrong : array, shape (M, N), bool
        What each model makes of each image.
    num_classes : int
        K.
    seed : int
        Drives the draws.
    num_resamples : int
        B.

    Returns
    -------
    array, shape (B, M, K), float64
        Entry (b, m, c): error of model m on the b-th sample of class c.

    Raises
    ------
    ValueError
        A class has no images.
    """
    labels, wrong = np.asarray(labels), np.atleast_2d(np.asarray(is_wrong, dtype=bool))
    generator = np.random.default_rng(seed)
    result = np.empty((num_resamples, len(wrong), num_classes))
    for class_id in range(num_classes):
        of_class = wrong[:, labels == class_id].T  # (n, M)
        n = len(of_class)
        if n == 0:
            raise ValueError(f"class {class_id} has no images to resample")
        # Images on which all models agree alike are interchangeable: few kinds of images, drawn many times.
        kinds, num_of_kind = np.unique(of_class, axis=0, return_counts=True)
        for first in range(0, num_resamples, _CHUNK):
            part = result[first : first + _CHUNK]
            times_drawn = generator.multinomial(n, num_of_kind / n, size=len(part))
            part[:, :, class_id] = times_drawn @ kinds.astype(np.float64) / n
    return result


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    observed: ArrayLike,
    resampled: NDArray[np.float64],
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of a statistic of class errors.

    Parameters
    ----------
    statistic : callable
        Takes class errors, shape (..., M, K), and returns one number for each leading index. The change of the worst
        class between two models, for example, is ``lambda e: e[..., 1, :].max(-1) - e[..., 0, :].max(-1)``.
    observed : array, shape (M, K)
        Class errors on all images.
    resampled : array, shape (B, M, K)
        From `resampled_class_errors`.
    level : float
        Confidence in (0, 1).

    Notes
    -----
    The maximum over classes is biased upwards where several classes are nearly worst: name the class on validation
    images and look at that class alone as well.
    """
    low, high = np.quantile(statistic(resampled), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(np.asarray(observed, dtype=np.float64))), float(low), float(high))


def expected_maximum(error: float, count: int, num_classes: int) -> float:
    """Expected largest of K measured errors of classes that are equally hard, ``count`` images each.

    What a "worst class" of so many images shows where there is none: its distance from ``error`` is the bias of a
    maximum. Exact: the sum of the probabilities that the largest of K binomial counts exceeds j, over count.

    Parameters
    ----------
    error : float
        The error that all classes have, in [0, 1].
    count : int
        Images of each class.
    num_classes : int
        K.

    Raises
    ------
    ValueError
        An error outside [0, 1], or no images or classes.
    """
    if not 0 <= error <= 1 or min(count, num_classes) < 1:
        raise ValueError(f"error={error:g} of {count} images in {num_classes} classes: there is no such maximum")
    at_most = stats.binom.cdf(np.arange(count), count, error)
    return float((1 - at_most**num_classes).sum() / count)


def rho(errors: ArrayLike, baseline: ArrayLike) -> float:
    """Gain of the worst class against a baseline less the loss on average, both relative, of accuracies.

    ``(worst_m - worst_b) / worst_b - (average_b - average_m) / average_b``: above 0 the worst class gains more than the
    average loses. Classes weigh alike.

    Parameters
    ----------
    errors, baseline : array, shape (K,)
        Class errors in [0, 1].

    Raises
    ------
    ValueError
        The baseline gets no image of its worst class right: nothing is relative to it.
    """
    accuracy, reference = 1 - np.asarray(errors, dtype=np.float64), 1 - np.asarray(baseline, dtype=np.float64)
    if reference.min() <= 0:
        raise ValueError("the baseline's worst class has accuracy 0: rho is not defined")
    gain = (accuracy.min() - reference.min()) / reference.min()
    loss = (reference.mean() - accuracy.mean()) / reference.mean()
    return float(gain - loss)


def normalised_deviation(errors: ArrayLike) -> float:
    """Standard deviation of class accuracies over their mean (NSD); 0 where all classes are alike.

    Parameters
    ----------
    errors : array, shape (K,)
        Class errors in [0, 1].
    """
    accuracy = 1 - np.asarray(errors, dtype=np.float64)
    return float(accuracy.std() / accuracy.mean())
