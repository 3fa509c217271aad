"""What the numbers say of the questions; docs/registration.md explains it.

Each criterion compares a number of every seed with a threshold. Four things can come of it: it holds, its opposite
does, there is no difference worth the name, or the data are too uncertain to say. A verdict sums up a question's
criteria.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

from frl_repro.basics.errors import UserError
from frl_repro.results.registration import NATURAL
from frl_repro.results.report.questions import Criterion, Errors, Numbers, Question, questions, robust_error
from frl_repro.results.tables import statistics

if TYPE_CHECKING:
    from frl_repro.results.report.comparison import Comparison

_UNKNOWN = statistics.Interval(math.nan, math.nan, math.nan)

SMALLEST_OF_INTEREST = 0.01
"""One point: differences whose whole interval is smaller are called none."""

CEILING = 0.98
"""Mean error of the natural model's worst class from which on its robust gap says nothing: it cannot grow."""

FAMILY_LEVEL = 0.05

_NO_SPREAD = 1e-9  # shares of counts that differ by less are equal up to rounding

Outcome = Literal["holds", "opposite", "no difference", "uncertain", "ceiling", "not run"]
Verdict = Literal["reproduced", "mixed", "contradicted", "too uncertain to say", "incomplete", "exploratory"]
"""``exploratory``: the runs belong to no registration, so that their effects are shown and nothing is decided."""


@dataclass(frozen=True)
class Evidence:
    """What the data say of one criterion.

    Attributes
    ----------
    criterion : Criterion
    seeds : tuple of int
    values : tuple of float
        One a seed.
    over_seeds : statistics.Interval
        Their mean with Student's 95 % interval; it covers initial weights, data order and split.
    over_images : statistics.Interval or None
        The same mean for these very models, other test images (paired bootstrap); None without outcomes.
    of_maximum : statistics.Interval
        As ``over_seeds``, with the largest test error in place of the class named beforehand.
    p : float
        Two-sided p-value of the t-test against the threshold; NaN for fewer than two seeds.
    adjusted_p : float
        After Holm's correction over all criteria that decide.
    outcome : str
    """

    criterion: Criterion
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    over_seeds: statistics.Interval = _UNKNOWN
    over_images: statistics.Interval | None = None
    of_maximum: statistics.Interval = _UNKNOWN
    p: float = math.nan
    adjusted_p: float = math.nan
    outcome: Outcome = "not run"


@dataclass(frozen=True)
class Answer:
    """A question with its evidence.

    Attributes
    ----------
    verdict : str
        Over both radii.
    by_radius : dict of float to str
        Natural error and robust error at one radius.
    """

    question: Question
    evidence: tuple[Evidence, ...]
    beside: tuple[Evidence, ...]
    verdict: Verdict
    by_radius: dict[float, Verdict]


def judge(models: Comparison, *, registered: Sequence[int] | None) -> list[Answer]:
    """Answer every question.

    Parameters
    ----------
    models : Comparison
    registered : sequence of int or None
        All seeds of the registered study that the models belong to: before every one is there, verdicts are
        ``incomplete``. None where nothing was registered: every verdict is ``exploratory``.

    Raises
    ------
    UserError
        A seed is not registered: registered and development seeds are never mixed.
    """
    asked = questions(models.radii)
    measured = [
        ([_measured(one, models, registered) for one in question.criteria],
         [_measured(one, models, registered) for one in question.beside])
        for question in asked
    ]  # fmt: skip
    deciding = [one for criteria, _ in measured for one in criteria]
    corrected = iter(holm([one.p for one in deciding]))
    at_ceiling = {radius for radius in models.radii if _is_at_ceiling(radius, models)}
    answers = []
    for question, (criteria, beside) in zip(asked, measured, strict=True):
        decided = tuple(_decided(one, next(corrected), at_ceiling) for one in criteria)
        answers.append(
            Answer(
                question,
                decided,
                tuple(_decided(one, one.p, set()) for one in beside),
                _verdict(decided, registered),
                {
                    radius: _verdict([one for one in decided if one.criterion.radius in (None, radius)], registered)
                    for radius in models.radii
                },
            )
        )
    return answers


def _verdict(decided: Sequence[Evidence], registered: Sequence[int] | None) -> Verdict:
    if registered is None:
        return "exploratory"
    if any(set(one.seeds) != set(registered) for one in decided):
        return "incomplete"
    return verdict_of([one.outcome for one in decided])


def _measured(criterion: Criterion, models: Comparison, registered: Sequence[int] | None) -> Evidence:
    if any(role not in models.roles for role in criterion.roles):
        return Evidence(criterion)
    seeds = models.seeds(criterion.roles)
    if registered is not None and (foreign := sorted(set(seeds) - set(registered))):
        raise UserError(
            f"seeds {', '.join(map(str, foreign))} are not registered: a verdict never mixes registered and "
            "development seeds; narrow runs= to one kind"
        )
    if not seeds:
        return Evidence(criterion)
    found, samples = models.errors(criterion.roles), models.resampled(criterion.roles)
    values = criterion.value(found, Errors.worst)
    over_images = None
    if samples is not None:
        low, high = np.quantile(criterion.value(samples, Errors.worst).mean(-1), [0.025, 0.975])
        over_images = statistics.Interval(float(values.mean()), float(low), float(high))
    return Evidence(
        criterion,
        seeds,
        tuple(values.tolist()),
        statistics.over_seeds(values.tolist()),
        over_images,
        statistics.over_seeds(criterion.value(found, Errors.maximum).tolist()),
        p_value(values, criterion.threshold),
    )


def p_value(values: Numbers, threshold: float) -> float:
    """Return the p-value of the two-sided t-test of a mean against a threshold; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    if np.ptp(values) < _NO_SPREAD:  # the test divides by 0
        return 1.0 if abs(values[0] - threshold) < _NO_SPREAD else 0.0
    return float(stats.ttest_1samp(values, threshold).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979); NaN stays and does not count.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65-70.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def _is_at_ceiling(radius: float, models: Comparison) -> bool:
    if NATURAL not in models.roles:
        return False
    natural = models.errors((NATURAL,)).worst(NATURAL, robust_error(radius))
    return bool(natural.mean() >= CEILING)


def _decided(evidence: Evidence, adjusted_p: float, at_ceiling: set[float]) -> Evidence:
    """Return the evidence with what comes of it."""
    criterion = evidence.criterion
    if not evidence.seeds:
        return evidence
    outcome: Outcome = "ceiling"
    if not (criterion.needs_room and criterion.radius in at_ceiling):
        outcome = outcome_of(evidence.over_seeds, criterion.threshold, adjusted_p, is_above=criterion.is_above)
    return replace(evidence, adjusted_p=adjusted_p, outcome=outcome)


def outcome_of(
    interval: statistics.Interval, threshold: float, adjusted_p: float, *, is_above: bool = False
) -> Outcome:
    """Return what comes of a criterion that holds above, or else below, a threshold."""
    if max(abs(interval.low - threshold), abs(interval.high - threshold)) < SMALLEST_OF_INTEREST:
        return "no difference"
    if adjusted_p < FAMILY_LEVEL:
        return "holds" if (interval.estimate > threshold) is is_above else "opposite"
    return "uncertain"


def verdict_of(outcomes: Sequence[Outcome]) -> Verdict:
    """Sum up what came of a question's criteria; those at the ceiling have no say.

    ``reproduced``: all hold. ``mixed``: some hold. ``contradicted``: none holds, and one shows the opposite or all
    show no difference. ``too uncertain to say``: none holds, and neither of these. ``incomplete``: one was not run.
    """
    telling = [outcome for outcome in outcomes if outcome != "ceiling"]
    if "not run" in telling:
        return "incomplete"
    if not telling:
        return "too uncertain to say"
    holding = telling.count("holds")
    if holding:
        return "reproduced" if holding == len(telling) else "mixed"
    if "opposite" in telling or set(telling) == {"no difference"}:
        return "contradicted"
    return "too uncertain to say"
