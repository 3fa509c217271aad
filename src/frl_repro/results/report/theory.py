"""What theorems on Gaussian mixtures claim, as statements over what linear models measured; see docs/theory.md.

A criterion is a number of every seed, and holds where Student's 95 % interval of its mean lies
wholly on its side of the threshold. Beside it stands what theory says of the very training that was run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import ndtri

from frl_repro.results.figures.theory import theory_figure
from frl_repro.results.report.markdown import table as markdown_table
from frl_repro.results.report.page import Cell, Grid, Picture, alt_text, svg_of
from frl_repro.results.tables import statistics
from frl_repro.results.tables.theory import COMMAND, MIXTURE_COLUMNS, QUANTITIES, by_class, mixture_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pandas import DataFrame

    from frl_repro.results.tables.statistics import Interval

    Numbers = NDArray[np.float64]

MIN_SEEDS = 3
"""With fewer a claim is undecided."""

Verdict = Literal["reproduced", "partly reproduced", "not reproduced", "undecided"]

_TOLERATED = 0.01
"""How far a mean over seeds may lie from theory: one point of error, or of distance to the curve."""


@dataclass(frozen=True)
class Evidence:
    """A criterion with its numbers.

    Attributes
    ----------
    text : str
        What must hold.
    over_seeds : Interval
        Mean of the measured numbers.
    predicted : float
        The same number from theory, for cross-entropy.
    threshold : float
    is_above : bool
        The side of the threshold on which it holds.
    num_seeds : int
    """

    text: str
    over_seeds: Interval
    predicted: float
    num_seeds: int
    threshold: float = 0.0
    is_above: bool = True

    @property
    def holds(self) -> bool | None:
        """Whether it does; None where there are too few seeds."""
        if self.num_seeds < MIN_SEEDS:
            return None
        return self.over_seeds.low > self.threshold if self.is_above else self.over_seeds.high < self.threshold


@dataclass(frozen=True)
class Answer:
    """A claim of theory with its verdict; the first criterion is its core."""

    name: str
    text: str
    evidence: tuple[Evidence, ...]

    @property
    def verdict(self) -> Verdict:
        """``reproduced``: all criteria hold; ``partly``: the first one and not all; ``not``: not the first one."""
        holding = [one.holds for one in self.evidence]
        if not holding or None in holding:
            return "undecided"
        if all(holding):
            return "reproduced"
        return "partly reproduced" if holding[0] else "not reproduced"


class _Mixture:
    """Rows of one mixture, by method and radius."""

    def __init__(self, rows: DataFrame) -> None:
        self.rows, self.mixture = rows, mixture_of(rows)
        self.radii = sorted(rows.loc[rows["method"] == "adversarial", "epsilon"].unique())

    def of(self, method: str, epsilon: float) -> DataFrame:
        """Rows of a method at a radius; may be empty."""
        part: DataFrame = self.rows[(self.rows["method"] == method) & np.isclose(self.rows["epsilon"], epsilon)]
        return part

    def shown(self, epsilon: float) -> str:
        """A radius as people read it."""
        return f"{epsilon / self.mixture.eta:g} η"

    def gap(self, method: str, epsilon: float, quantity: str, column: str = "") -> Numbers:
        """Hard class's error less the easy one's, by seed."""
        errors = by_class(self.of(method, epsilon), f"{column}{quantity}_error")
        difference: Numbers = errors[:, 1] - errors[:, 0]
        return difference

    def change(self, epsilon: float, k: int, column: str = "") -> Numbers:
        """Standard error of a class, adversarial less natural training, by seed."""
        after, before = (
            by_class(self.of(method, epsilon), f"{column}natural_error") for method in ("adversarial", "natural")
        )
        difference: Numbers = after[:, k] - before[:, k]
        return difference


def judge_theory(rows: DataFrame) -> list[Answer]:
    """Return every claim of theory that the rows hold runs for, with its evidence.

    Parameters
    ----------
    rows : DataFrame
        From `tables.theory.load_theory`.
    """
    answers: list[Answer] = []
    mixtures = [_Mixture(part) for _, part in rows.groupby(list(MIXTURE_COLUMNS), sort=False)]
    for one in (one for one in mixtures if one.radii and one.mixture.deviation_ratio > 1):
        if one.mixture.prior_ratio == 1 and _has_both(one):
            answers += _of_variance(one)
    for one in (one for one in mixtures if one.radii and one.mixture.deviation_ratio == 1):
        if one.mixture.prior_ratio > 1 and _has_both(one):
            answers.append(_of_imbalance(one))
    answers.append(_of_agreement(rows))
    wide = [one for one in mixtures if one.radii and one.mixture.prior_ratio == 1]
    answers += [_of_curve(one) for one in wide[:1]]
    return [replace(answer, name=f"T{place}") for place, answer in enumerate(answers, 1)]


def _has_both(one: _Mixture) -> bool:
    return all(not one.of("natural", epsilon).empty for epsilon in one.radii)


def _evidence(text: str, number: Callable[[str], Numbers], **side: Any) -> Evidence:
    """Return the evidence of a number; ``number("predicted_")`` is theory's."""
    values = number("")
    return Evidence(
        text, statistics.over_seeds(values.tolist()), float(number("predicted_").mean()), len(values), **side
    )


def _of_variance(one: _Mixture) -> Iterator[Answer]:
    first, *_ = one.radii
    K = f"{one.mixture.deviation_ratio:g}"
    gaps = [
        _evidence(
            "natural training: standard error, hard less easy",
            functools.partial(one.gap, "natural", first, "natural"),
        )
    ]
    for epsilon in one.radii:
        gaps += [
            _evidence(
                f"trained for {one.shown(epsilon)}: {quantity} error, hard less easy",
                functools.partial(one.gap, "adversarial", epsilon, name),
            )
            for quantity, name in (("standard", "natural"), ("robust", "robust"))
        ]
    yield Answer("", f"The class that varies {K} times as much has the larger standard and robust error.", tuple(gaps))
    yield Answer(
        "",
        "Its gap in standard and in robust error grows with the radius trained for.",
        (*_growth(one, "standard", "natural"), *_growth(one, "robust", "robust")),
    )
    pays = []
    for epsilon in one.radii:
        pays += [
            _evidence(
                f"trained for {one.shown(epsilon)}, against natural training: standard error of the {name} class",
                functools.partial(one.change, epsilon, k),
                is_above=k == 1,
            )
            for k, name in ((1, "hard"), (0, "easy"))
        ]
    yield Answer("", "The hard class pays: its standard error rises, that of the easy class falls.", tuple(pays))


def _growth(one: _Mixture, quantity: str, name: str) -> Iterator[Evidence]:
    """Each step of the gap from one radius to the next, beginning with natural training, which is radius 0."""
    first, *_ = one.radii

    def step(before: float | None, after: float) -> Callable[[str], Numbers]:
        def of(column: str) -> Numbers:
            start = (
                one.gap("natural", first, "natural", column)
                if before is None
                else one.gap("adversarial", before, name, column)
            )
            return one.gap("adversarial", after, name, column) - start

        return of

    for before, after in zip([None, *one.radii], one.radii, strict=False):
        start = "natural training" if before is None else one.shown(before)
        yield _evidence(f"gap in {quantity} error, {one.shown(after)} less {start}", step(before, after))


def _of_imbalance(one: _Mixture) -> Answer:
    R = f"{one.mixture.prior_ratio:g}"
    return Answer(
        "",
        f"Of two equally wide classes the {R} times rarer one pays: its gap grows with the radius.",
        (*_growth(one, "standard", "natural"), *_growth(one, "robust", "robust")),
    )


def _of_agreement(rows: DataFrame) -> Answer:
    """Largest distance of a mean over seeds from theory, over all methods, radii, classes and both errors."""
    worst: tuple[float, Evidence] | None = None
    names = [*MIXTURE_COLUMNS, "method", "epsilon", "class_name"]
    groups = rows.groupby(names, sort=False)
    for key, part in groups:
        for name in QUANTITIES:
            distances = (part[f"{name}_error"] - part[f"predicted_{name}_error"]).tolist()
            off = abs(float(np.mean(distances)))
            if worst is None or off > worst[0]:
                *_, method, _, of_class = key if isinstance(key, tuple) else (key,)
                text = (
                    f"of {len(QUANTITIES) * len(groups)} means the one farthest from theory ({method}, {of_class} "
                    f"class, {'standard' if name == 'natural' else name}): distance less than 2 points"
                )
                interval = statistics.Interval(off, off, off)
                worst = off, Evidence(text, interval, 0.0, len(part), threshold=2 * _TOLERATED, is_above=False)
    assert worst is not None
    return Answer("", "Cross-entropy ends where theory says, FRL's fixed points among them.", (worst[1],))


def _of_curve(one: _Mixture) -> Answer:
    """How far each method's robust errors lie from the one curve: error of the hard class less what the curve gives."""
    found = []
    for epsilon in one.radii:
        for method in one.rows["method"].unique():
            part = one.of(str(method), epsilon)
            if part.empty:
                continue
            errors = by_class(part, "robust_error")
            a = float(one.mixture.distance(epsilon))
            off = errors[:, 1] - one.mixture.errors(a + ndtri(errors[:, 0]), epsilon)[:, 1]
            found.append((abs(float(off.mean())), str(method), epsilon, off))
    size, method, epsilon, off = max(found, key=lambda each: each[0])
    text = (
        f"of {len(found)} methods and radii the one farthest from the curve ({method}, {one.shown(epsilon)}): "
        "less than 1 point"
    )
    interval = statistics.Interval(size, size, size)
    evidence = Evidence(text, interval, 0.0, len(off), threshold=_TOLERATED, is_above=False)
    return Answer("", "Weights, margins and both walk along one curve of class errors.", (evidence,))


THEORY_CLAIM_COLUMNS = (
    "claim", "text", "verdict", "criterion", "holds", "num_seeds", "estimate", "low", "high", "predicted", "threshold",
)  # fmt: skip
"""Columns of ``theory_claims.csv``: one row a criterion; numbers are shares."""


def theory_claim_rows(answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """Rows of ``theory_claims.csv``."""
    for answer in answers:
        for one in answer.evidence:
            yield {
                "claim": answer.name, "text": answer.text, "verdict": answer.verdict, "criterion": one.text,
                "holds": None if one.holds is None else str(one.holds).lower(), "num_seeds": one.num_seeds,
                "estimate": round(one.over_seeds.estimate, 6), "low": _number(one.over_seeds.low),
                "high": _number(one.over_seeds.high), "predicted": round(one.predicted, 6), "threshold": one.threshold,
            }  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)


_HEADER = ("claim", "verdict", "criterion", "measured, mean over seeds [95 %]", "theory")


def theory_cells(answers: Sequence[Answer]) -> list[list[str]]:
    """Return the claims as rows of texts, one a criterion, for the page and the documentation."""
    rows = []
    for answer in answers:
        for place, one in enumerate(answer.evidence):
            interval, sign = one.over_seeds, "" if one.threshold else "+"
            text = f"{100 * interval.estimate:{sign}.1f}"
            if interval.low != interval.high:
                text += f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
            mark = {True: "✓", False: "✗", None: "?"}[one.holds]
            first = [f"{answer.name}. {answer.text}", answer.verdict] if place == 0 else ["", ""]
            rows.append([*first, f"{mark} {one.text}", f"{text} points", f"{100 * one.predicted:{sign}.1f}"])
    return rows


@dataclass(frozen=True)
class TheorySection:
    """The part of the page on theory: the figure, a row a claim, and of each claim its criteria with their numbers."""

    picture: Picture
    verdicts: Grid
    criteria: list[tuple[str, Grid]]
    command: str = COMMAND


def theory_section(rows: DataFrame, answers: Sequence[Answer]) -> TheorySection:
    """Return what the page says of theory.

    Raises
    ------
    UserError
        As `theory_figure`.
    """
    names = ["deviation_ratio", "prior_ratio", "method", "epsilon", "class_name"]
    means = rows.groupby(names, sort=False)[["natural_error", "robust_error"]].mean().reset_index()
    title = "Why adversarial training hurts the hard class: two Gaussian classes and a linear model"
    picture = Picture("theory", title, svg_of(theory_figure(rows)), alt_text(title, means))
    claims = [[Cell(f"{answer.name}. {answer.text}"), Cell(answer.verdict)] for answer in answers]
    caption = (
        "Measured is the mean over seeds with Student's 95 % interval; theory: the same, computed for cross-entropy"
    )
    criteria = [
        (
            f"{answer.name}. {answer.text} {answer.verdict.capitalize()}.",
            Grid(caption, _HEADER[2:], [[Cell(text) for text in row[2:]] for row in theory_cells([answer])]),
        )
        for answer in answers
    ]
    return TheorySection(
        picture, Grid("What theory claims, by what linear models measured", _HEADER[:2], claims), criteria
    )


def theory_table(answers: Sequence[Answer]) -> str:
    """Return the claims in Markdown, for the documentation."""
    return markdown_table(_HEADER, theory_cells(answers))
