"""The reproduction report's claims 1 to 4 and its open fifth, as statements over tables: docs/claims.md.

A claim rests on criteria. Each compares a number of every seed with a threshold, and holds where the interval of the
mean over seeds lies wholly on its side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from frl_repro.results.report.study import (
    ADVERSARIAL,
    BASE,
    COMBINED,
    CONTROL,
    NATURAL,
    REMARGIN,
    REWEIGHT,
    Errors,
    Study,
)
from frl_repro.results.tables import statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from frl_repro.results.tables.statistics import Interval

    Numbers = NDArray[np.float64]

MIN_SEEDS = 3
TOLERATED_GAP = 0.05
"""tau of both sources: a gap to the overall error, or a price, up to which classes count as treated alike."""

Verdict = Literal["reproduced", "partly reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True)
class Criterion:
    """A number that must lie on one side of a threshold.

    Attributes
    ----------
    text : str
        What must hold.
    roles : tuple of str
        Models it compares.
    quantity : str
        ``natural`` or ``robust``: whose worst class is looked at.
    value : callable (errors, pick) -> array, shape (..., S)
        The number of each seed; ``pick`` takes class errors (..., S, K) to those of the worst class (..., S).
    is_above : bool
        The side of the threshold on which the criterion holds.
    threshold : float
    unit : str
        ``points`` (of error) or ``%`` (relative).
    """

    text: str
    roles: tuple[str, ...]
    quantity: str
    value: Callable[[Errors, Callable[[Numbers], Numbers]], Numbers]
    is_above: bool = False
    threshold: float = 0.0
    unit: str = "points"


@dataclass(frozen=True)
class Claim:
    """A statement of the reproduction report, and what has to hold for it; the first criterion is its core."""

    number: int
    text: str
    criteria: tuple[Criterion, ...]
    command: str

    @property
    def roles(self) -> tuple[str, ...]:
        """Models that the claim is about."""
        return tuple(dict.fromkeys(role for criterion in self.criteria for role in criterion.roles))


@dataclass(frozen=True)
class Evidence:
    """What the tables say of one criterion.

    Attributes
    ----------
    criterion : Criterion
    class_name : str
        The class that validation images name as worst (the test split, where there are none).
    seeds : list of int
    values : list of float
        One a seed, for that class.
    over_seeds : Interval
        Their mean; decides.
    over_images : Interval or None
        Mean over these seeds' models with a paired bootstrap over test images; None without outcomes.
    of_maximum : Interval
        As ``over_seeds``, for the maximum over classes on test images, biased upwards, in place of that class.
    """

    criterion: Criterion
    class_name: str
    seeds: list[int]
    values: list[float]
    over_seeds: Interval
    over_images: Interval | None
    of_maximum: Interval

    @property
    def holds(self) -> bool | None:
        """Whether the criterion holds; None where there are too few seeds."""
        if len(self.seeds) < MIN_SEEDS:
            return None
        one, threshold = self.over_seeds, self.criterion.threshold
        return one.low > threshold if self.criterion.is_above else one.high < threshold


@dataclass(frozen=True)
class Finding:
    """A claim with its verdict.

    Attributes
    ----------
    missing : tuple of str
        Models that the tables lack.
    remarks : tuple of str
        What a reader should know besides: settings that validation prefers but that have too few seeds.
    """

    claim: Claim
    evidence: tuple[Evidence, ...]
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """``reproduced``: all criteria hold; ``partly``: the first one and not all; ``not``: not the first one."""
        return "undecided" if self.missing else verdict_of([one.holds for one in self.evidence])


def verdict_of(holding: Sequence[bool | None]) -> Verdict:
    """Return what a claim's criteria come to: the first is its core; None stands for too few seeds."""
    if not holding or None in holding:
        return "undecided"
    if all(holding):
        return "reproduced"
    return "partly reproduced" if holding[0] else "not reproduced"


def _gap(role: str, quantity: str) -> Callable[[Errors, Callable[[Numbers], Numbers]], Numbers]:
    return lambda errors, pick: pick(errors.of(role, quantity)) - errors.overall(role, quantity)


def _change(before: str, after: str, quantity: str) -> Callable[[Errors, Callable[[Numbers], Numbers]], Numbers]:
    return lambda errors, pick: pick(errors.of(after, quantity)) - pick(errors.of(before, quantity))


def _relative(before: str, after: str, quantity: str) -> Callable[[Errors, Callable[[Numbers], Numbers]], Numbers]:
    return lambda errors, pick: pick(errors.of(after, quantity)) / pick(errors.of(before, quantity)) - 1


def _widened(quantity: str) -> Callable[[Errors, Callable[[Numbers], Numbers]], Numbers]:
    return lambda errors, pick: _gap(ADVERSARIAL, quantity)(errors, pick) - _gap(NATURAL, quantity)(errors, pick)


def _falls(after: str, before: str, quantity: str, text: str) -> Criterion:
    return Criterion(text, (before, after), quantity, _change(before, after, quantity))


CLAIMS = (
    Claim(
        1,
        "Adversarial training leaves classes unequal in natural and in robust error.",
        tuple(
            Criterion(
                f"the worst class's {quantity} error lies more than 5 points above the overall {quantity} error",
                (ADVERSARIAL,),
                quantity,
                _gap(ADVERSARIAL, quantity),
                is_above=True,
                threshold=TOLERATED_GAP,
            )
            for quantity in ("robust", "natural")
        ),
        "python train.py -m experiment=exp1 seed=0,1,2",
    ),
    Claim(
        2,
        "It widens what the naturally trained model already shows: hard classes get harder.",
        tuple(
            Criterion(
                f"the worst class's gap to the overall {quantity} error is wider than with natural training",
                (NATURAL, ADVERSARIAL),
                quantity,
                _widened(quantity),
                is_above=True,
            )
            for quantity in ("natural", "robust")
        ),
        "python train.py -m experiment=exp1 seed=0,1,2",
    ),
    Claim(
        3,
        "Reweight lowers the worst class's natural error and, to a lesser degree, its robust error.",
        (
            _falls(REWEIGHT, BASE, "natural", "the worst class's natural error falls against the base model"),
            _falls(REWEIGHT, BASE, "robust", "the worst class's robust error falls against the base model"),
            Criterion(
                "natural error falls by a larger share than robust error",
                (BASE, REWEIGHT),
                "natural",
                lambda errors, pick: (
                    _relative(BASE, REWEIGHT, "natural")(errors, pick)
                    - _relative(BASE, REWEIGHT, "robust")(errors, pick)
                ),
                unit="%",
            ),
        ),
        "python train.py -m experiment=exp2 alpha.nat=5 alpha.bndy=1 seed=0,1,2",
    ),
    Claim(
        4,
        "Remargin lowers the worst class's robust error.",
        (
            _falls(REMARGIN, BASE, "robust", "the worst class's robust error falls against the base model"),
            _falls(REMARGIN, CONTROL, "robust", "it falls against the same steps with equal margins as well"),
        ),
        "python train.py -m experiment=exp3 alpha.margin=0,5 seed=0,1,2",
    ),
    Claim(
        5,
        "Reweight and remargin combined do better for the worst class than either.",
        (
            _falls(COMBINED, REWEIGHT, "robust", "the worst class's robust error is lower than with reweight"),
            _falls(COMBINED, REMARGIN, "robust", "the worst class's robust error is lower than with remargin"),
            Criterion(
                "the worst class's natural error is less than 5 points above reweight's",
                (REWEIGHT, COMBINED),
                "natural",
                _change(REWEIGHT, COMBINED, "natural"),
                threshold=TOLERATED_GAP,
            ),
        ),
        "python train.py -m experiment=exp4 alpha.margin=5 seed=0,1,2",
    ),
)


def judge(study: Study) -> list[Finding]:
    """Return every claim with its evidence and verdict."""
    findings = []
    for claim in CLAIMS:
        missing = tuple(role for role in claim.roles if role not in study.settings)
        evidence = () if missing else tuple(_evidence(study, claim, criterion) for criterion in claim.criteria)
        findings.append(Finding(claim, evidence, missing, () if missing else tuple(_remarks(study, claim))))
    return findings


def _remarks(study: Study, claim: Claim) -> Iterator[str]:
    for role, preferred in study.preferred.items():
        if role in claim.roles:
            seeds = f"seed{'s' * (len(preferred.seeds) > 1)} {', '.join(map(str, preferred.seeds))}"
            others = "; ".join(
                f"{study.settings[other]} {_worst(study.worst_on(other, preferred.seeds))}" for other in claim.roles
            )
            yield (
                f"Of {role}, {preferred.split} prefers {preferred.setting} on {seeds}: worst-class error on test "
                f"images {_worst(preferred.worst)}; on the same seeds {others}."
            )


def _worst(errors: dict[str, float]) -> str:
    return f"{100 * errors['natural']:.1f} natural, {100 * errors['robust']:.1f} robust"


def _evidence(study: Study, claim: Claim, criterion: Criterion) -> Evidence:
    named = study.worst(criterion.quantity)

    def of_named(errors: Numbers) -> Numbers:
        return errors[..., named.class_id]

    def of_maximum(errors: Numbers) -> Numbers:
        worst: Numbers = errors.max(-1)
        return worst

    seeds = study.seeds(claim.roles)
    errors = study.errors(claim.roles)
    values = criterion.value(errors, of_named).tolist()
    resampled = study.resampled(claim.roles)
    over_images = None
    if resampled is not None:
        low, high = np.quantile(criterion.value(resampled, of_named).mean(-1), [0.025, 0.975])
        over_images = statistics.Interval(float(np.mean(values)), float(low), float(high))
    return Evidence(
        criterion,
        named.name,
        seeds,
        values,
        statistics.over_seeds(values),
        over_images,
        statistics.over_seeds(criterion.value(errors, of_maximum).tolist()),
    )


CLAIM_COLUMNS = (
    "claim", "verdict", "criterion", "holds", "class_name", "num_seeds", "estimate", "low", "high", "threshold", "unit",
    "low_over_images", "high_over_images", "test_maximum", "test_maximum_low", "test_maximum_high",
)  # fmt: skip
"""Columns of ``claims.csv``: one row a criterion; numbers are shares, intervals of 95 %."""


def claim_rows(findings: list[Finding]) -> Iterator[dict[str, Any]]:
    """Rows of ``claims.csv``; a claim whose models are missing has one row without numbers."""
    for finding in findings:
        first = {"claim": finding.claim.number, "verdict": finding.verdict}
        if not finding.evidence:
            yield {**dict.fromkeys(CLAIM_COLUMNS), **first, "criterion": f"no runs of {', '.join(finding.missing)}"}
        for one in finding.evidence:
            images = one.over_images
            yield {
                **first,
                "criterion": one.criterion.text,
                "holds": None if one.holds is None else str(one.holds).lower(),
                "class_name": one.class_name,
                "num_seeds": len(one.seeds),
                "estimate": one.over_seeds.estimate,
                "low": _number(one.over_seeds.low),
                "high": _number(one.over_seeds.high),
                "threshold": one.criterion.threshold,
                "unit": one.criterion.unit,
                "low_over_images": None if images is None else images.low,
                "high_over_images": None if images is None else images.high,
                "test_maximum": one.of_maximum.estimate,
                "test_maximum_low": _number(one.of_maximum.low),
                "test_maximum_high": _number(one.of_maximum.high),
            }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
