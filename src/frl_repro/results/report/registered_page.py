"""The registered study for readers: sentences first, then one figure of all differences, then every criterion."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from frl_repro.basics.radii import format_epsilon
from frl_repro.results import registration
from frl_repro.results.figures.forest import forest_figure
from frl_repro.results.report.page import Cell, Grid, Picture, alt_text, svg_of
from frl_repro.results.report.questions import RADII
from frl_repro.results.report.registered import RegisteredStudy
from frl_repro.results.report.verdicts import Answer, Evidence

VERDICT_COLUMNS = (
    "question", "text", "verdict", "decides", "criterion", "quantity", "outcome", "num_seeds",
    "estimate", "low", "high", "images_low", "images_high", "of_maximum", "threshold", "unit", "p", "adjusted_p",
    "values",
)  # fmt: skip
"""Columns of ``verdicts.csv``: one row a criterion; estimates in the unit's hundredths (points, %)."""


@dataclass(frozen=True)
class Summary:
    """What the page says first.

    Attributes
    ----------
    progress : str
        How much of the registered study stands.
    sentences : list of str
        What holds, how large it is, who pays; empty while nothing is measured.
    """

    progress: str
    sentences: list[str]


def quantity_of(evidence: Evidence) -> str:
    """Return ``natural``, ``8/255`` or ``16/255``."""
    radius = evidence.criterion.radius
    return "natural" if radius is None else format_epsilon(radius)


_MINUS = "\N{MINUS SIGN}"
_SHORTER = (
    (r"worst class's ERROR: ", "worst class: "),
    (r"^ERROR of all classes: ", "all classes: "),
    (r": worst class's ERROR more than 5 points above that of all classes", f": worst class {_MINUS} all classes"),
    (r"^gap of the worst class to all classes in ERROR: (\w+) above (\w+) training", rf"gap: \1 {_MINUS} \2 training"),
    (r" (less than 5 points above|below) ", f" {_MINUS} "),
)


def comparison_of(evidence: Evidence) -> str:
    """Return what a criterion subtracts from what, without the quantity that it does it in."""
    text = re.sub(r"(natural|robust) error( at \d+/255)?", "ERROR", evidence.criterion.text)
    for pattern, replacement in _SHORTER:
        text = re.sub(pattern, replacement, text)
    return text


def verdict_rows(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """Return every criterion as a row of ``verdicts.csv``."""
    rows: list[dict[str, object]] = []
    for answer in answers:
        for decides, found in ((True, answer.evidence), (False, answer.beside)):
            for one in found:
                images = one.over_images
                over = one.over_seeds
                row = {
                    "question": answer.question.name, "text": answer.question.text, "verdict": answer.verdict,
                    "decides": decides, "criterion": one.criterion.text, "quantity": quantity_of(one),
                    "outcome": one.outcome, "num_seeds": len(one.seeds), "estimate": _hundredths(over.estimate),
                    "low": _hundredths(over.low), "high": _hundredths(over.high),
                    "images_low": None if images is None else _hundredths(images.low),
                    "images_high": None if images is None else _hundredths(images.high),
                    "of_maximum": _hundredths(one.of_maximum.estimate), "unit": one.criterion.unit,
                    "threshold": _hundredths(one.criterion.threshold),
                    "p": _number(one.p, 6), "adjusted_p": _number(one.adjusted_p, 6),
                    "values": " ".join(f"{100 * value:.2f}" for value in one.values),
                }  # fmt: skip
                rows.append(row)
    return rows


def forest_numbers(answers: Sequence[Answer]) -> pd.DataFrame:
    """Return the differences in points that decide, for `figures.forest`; what it costs all classes stands beside."""
    rows = []
    for answer in answers:
        heading = f"{answer.question.name}. {answer.question.text}"
        for one in (*answer.evidence, *answer.beside):
            if one.criterion.unit != "points" or not one.seeds:
                continue
            is_price = one in answer.beside
            if is_price and "of all classes" not in one.criterion.text:
                continue
            rows.append({
                "question": heading, "comparison": comparison_of(one), "quantity": quantity_of(one),
                "estimate": 100 * one.over_seeds.estimate, "low": 100 * one.over_seeds.low,
                "high": 100 * one.over_seeds.high, "threshold": 100 * one.criterion.threshold,
                "num_seeds": len(one.seeds),
            })  # fmt: skip
    return pd.DataFrame(rows)


def summary(study: RegisteredStudy, answers: Sequence[Answer]) -> Summary:
    """Return how far the study is, and what holds, how large it is and who pays, in three sentences."""
    num_cells, num_seeds = len(registration.CELLS), len(registration.SEEDS)
    cells = study.rows[study.rows["role"].isin([cell.name for cell in registration.CELLS])]
    num_runs = len(cells[["role", "seed"]].drop_duplicates())
    done = num_runs == num_cells * num_seeds
    progress = f"{num_runs} of {num_cells * num_seeds} registered runs stand"
    progress += "." if done else ": no verdict is given before the last one. Effects so far are shown with their seeds."
    by_name = {answer.question.name: answer for answer in answers}
    sentences = []
    if done:
        words: dict[str, list[str]] = {}
        for answer in answers:
            words.setdefault(answer.verdict, []).append(answer.question.name)
        sentences.append("; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in words.items()) + ".")
    price = "of all classes: reweight 5:1"
    for beginning, found in (
        (
            "reweight 5:1 changes the worst class's error against its base by",
            [one for one in by_name["3"].evidence if "below base" in one.criterion.text],
        ),
        (
            "weights and margins together, at their best, differ from weights alone, at their best, by",
            [one for one in by_name["5"].evidence if "below reweight" in one.criterion.text],
        ),
        (
            "reweight 5:1 changes the error of all classes together, against equal weights, by",
            [one for one in by_name["3"].beside if price in one.criterion.text],
        ),
    ):
        if all(one.seeds for one in found):
            sentences.append(f"Over {len(found[0].seeds)} seeds, {beginning} {_listed(found)}.")
    return Summary(progress, sentences)


def _listed(found: Sequence[Evidence]) -> str:
    said = []
    for one in found:
        interval = one.over_seeds
        bounds = "" if math.isnan(interval.low) else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        where = "natural" if one.criterion.radius is None else f"robust at {quantity_of(one)}"
        said.append(f"{100 * interval.estimate:+.1f}{bounds} points ({where})")
    return ", ".join(said).replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Section:
    """The registered study on the page.

    Attributes
    ----------
    summary : Summary
    verdicts : Grid
        A row a question: over both radii, and at each alone.
    picture : Picture or None
        All differences on one axis; None while nothing is measured.
    criteria : list of (str, Grid)
        Of each question its verdict, and every criterion with its numbers.
    origin : str
        When it was registered, and which commits made its runs.
    """

    summary: Summary
    verdicts: Grid
    picture: Picture | None
    criteria: list[tuple[str, Grid]]
    origin: str


def section(study: RegisteredStudy, answers: Sequence[Answer], commits: Sequence[str]) -> Section:
    """Return what the page says of the registered study; ``commits`` made its runs."""
    numbers = forest_numbers(answers)
    picture = None
    if not numbers.empty:
        title = "Every registered difference in points, with what it costs all classes"
        seeds = sorted({int(value) for value in numbers["num_seeds"]})
        said = " to ".join(str(value) for value in dict.fromkeys((seeds[0], seeds[-1])))
        caption = f"Mean over {said} seeds with Student's 95 % interval. Grey dashes: thresholds other than 0"
        figure = forest_figure(numbers, caption=caption)
        picture = Picture("forest", title, svg_of(figure), alt_text(title, numbers))
    header = ["question", "both radii", *(f"at {format_epsilon(radius)}" for radius in RADII)]
    rows = [
        [Cell(f"{answer.question.name}. {answer.question.text}"), Cell(answer.verdict)]
        + [Cell(answer.by_radius[radius]) for radius in RADII]
        for answer in answers
    ]
    name, made = registration.REGISTERED_IN
    used = ", ".join(sorted({commit[:7] for commit in commits if commit})) or "unknown"
    return Section(
        summary(study, answers),
        Grid("Verdicts of the registered questions", header, rows),
        picture,
        [(f"{one.question.name}. {one.question.text} {one.verdict.capitalize()}.", _criteria(one)) for one in answers],
        f"Registered in commit {name} ({made}); its runs were made by commits {used}.",
    )


def _criteria(answer: Answer) -> Grid:
    rows = []
    for decides, found in (("", answer.evidence), (" (beside, decides nothing)", answer.beside)):
        for one in found:
            unit = {"points": 100, "%": 100}.get(one.criterion.unit, 1)
            over, images = one.over_seeds, one.over_images
            bounds = "-" if math.isnan(over.low) else f"[{unit * over.low:.1f}, {unit * over.high:.1f}]"
            of_images = "-" if images is None else f"[{unit * images.low:.1f}, {unit * images.high:.1f}]"
            texts = [
                one.criterion.text + decides,
                one.outcome,
                str(len(one.seeds)),
                "-" if math.isnan(over.estimate) else f"{unit * over.estimate:+.1f}",
                bounds,
                of_images,
                "-" if math.isnan(one.adjusted_p) else f"{one.adjusted_p:.3g}",
            ]
            rows.append(
                [Cell(text.replace("-", "\N{MINUS SIGN}") if 3 <= n <= 5 else text) for n, text in enumerate(texts)]
            )
    header = ["criterion", "outcome", "seeds", "mean", "95 % over seeds", "95 % over images", "p, Holm"]
    return Grid("Points of error, or % where the criterion is relative; outcomes as registered", header, rows)


def _hundredths(value: float) -> float | None:
    return _number(100 * value, 2)


def _number(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)
