"""The answers for readers: sentences first, then one figure of all differences, then every criterion."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.basics.radii import format_epsilon
from frl_repro.results import registration
from frl_repro.results.figures.forest import forest_figure
from frl_repro.results.registration import BASE, CELLS, EQUAL
from frl_repro.results.report.page import Cell, Grid, Picture, alt_text, svg_of
from frl_repro.results.report.questions import CHOSEN, REWEIGHT_51, quantities
from frl_repro.results.report.registered import CANDIDATES, RegisteredStudy
from frl_repro.results.report.verdicts import Answer, Evidence
from frl_repro.results.tables import statistics
from frl_repro.results.tables.statistics import points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICT_COLUMNS = (
    "question", "text", "verdict", "decides", "criterion", "quantity", "outcome", "num_seeds",
    "estimate", "low", "high", "images_low", "images_high", "of_maximum", "threshold", "unit", "p", "adjusted_p",
    "values",
)  # fmt: skip
"""Columns of ``verdicts.csv``: one row a criterion; estimates in the unit's hundredths (points, %)."""

_MINUS = "\N{MINUS SIGN}"
_LEAST_SEEDS = 3  # for an interval in the figure


@dataclass(frozen=True)
class Section:
    """The answers on the page.

    Attributes
    ----------
    title : str
    sentences : list of str
        What holds, how large it is, who pays; empty while nothing is measured.
    progress : str
        How much of the registered study stands, or that nothing was registered.
    verdicts : Grid or None
        A row a question: over all radii, and at each alone; None while nothing is decided.
    picture : Picture or None
        All differences on one axis; None while nothing is measured.
    criteria : list of (str, Grid)
        Of each question its verdict, and every criterion with its numbers.
    origin : str
        When it was registered, and which commits made its runs.
    missing : dict of str to str
        Roles without runs, and what makes them.
    """

    title: str
    sentences: list[str]
    progress: str
    verdicts: Grid | None
    picture: Picture | None
    criteria: list[tuple[str, Grid]]
    origin: str
    missing: Mapping[str, str] = field(default_factory=dict)


def quantity_of(evidence: Evidence) -> str:
    """Return ``natural``, or the radius of a robust error, such as ``8/255``."""
    radius = evidence.criterion.radius
    return "natural" if radius is None else format_epsilon(radius)


_SHORTER = (
    (r"worst class's ERROR: ", "worst class: "),
    (r"^ERROR of all classes: ", "all classes: "),
    (r": worst class's ERROR more than 5 points above that of all classes", f": worst class {_MINUS} all classes"),
    (r"^gap of the worst class to all classes in ERROR: (\w+) above (\w+) training", rf"gap: \1 {_MINUS} \2 training"),
    (r" (less than 5 points above|below) ", f" {_MINUS} "),
)


def comparison_of(evidence: Evidence) -> str:
    """Return what a criterion subtracts from what, without the quantity that it does it in."""
    radius = r"( at \d+/255| at [0-9.e-]+)?"
    text = re.sub(rf"(natural|robust) error{radius}", "ERROR", evidence.criterion.text)
    for pattern, replacement in _SHORTER:
        text = re.sub(pattern, replacement, text)
    return text


def verdict_rows(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """Return every criterion as a row of ``verdicts.csv``."""
    rows: list[dict[str, object]] = []
    for answer in answers:
        for decides, found in ((True, answer.evidence), (False, answer.beside)):
            for one in found:
                images, over, scale = one.over_images, one.over_seeds, one.criterion.scale
                row = {
                    "question": answer.question.name, "text": answer.question.text, "verdict": answer.verdict,
                    "decides": decides, "criterion": one.criterion.text, "quantity": quantity_of(one),
                    "outcome": one.outcome, "num_seeds": len(one.seeds), "estimate": _number(scale * over.estimate, 2),
                    "low": _number(scale * over.low, 2), "high": _number(scale * over.high, 2),
                    "images_low": None if images is None else _number(scale * images.low, 2),
                    "images_high": None if images is None else _number(scale * images.high, 2),
                    "of_maximum": _number(scale * one.of_maximum.estimate, 2), "unit": one.criterion.unit,
                    "threshold": _number(scale * one.criterion.threshold, 2),
                    "p": _number(one.p, 6), "adjusted_p": _number(one.adjusted_p, 6),
                    "values": " ".join(f"{scale * value:.2f}" for value in one.values),
                }  # fmt: skip
                rows.append(row)
    return rows


def forest_numbers(answers: Sequence[Answer]) -> pd.DataFrame:
    """Return every difference in points, for `figures.forest`: of each question those that decide, then the others."""
    rows = []
    for answer in answers:
        heading = f"{answer.question.name}. {answer.question.text}"
        for one in (*answer.evidence, *answer.beside):
            if one.criterion.unit != "points" or not one.seeds:
                continue
            has_interval = len(one.seeds) >= _LEAST_SEEDS  # of two seeds it is wider than the axis
            rows.append({
                "question": heading, "comparison": comparison_of(one), "quantity": quantity_of(one),
                "estimate": 100 * one.over_seeds.estimate,
                "low": 100 * one.over_seeds.low if has_interval else math.nan,
                "high": 100 * one.over_seeds.high if has_interval else math.nan,
                "threshold": 100 * one.criterion.threshold, "num_seeds": len(one.seeds),
                "is_decided": one.outcome in ("holds", "opposite"),
            })  # fmt: skip
    return pd.DataFrame(rows)


def registered_section(study: RegisteredStudy, answers: Sequence[Answer], commits: Sequence[str]) -> Section:
    """Return what the page says of the registered study; ``commits`` made its runs."""
    progress, is_done = _progress(study)
    name, made = registration.REGISTERED_IN
    used = ", ".join(sorted({commit[:7] for commit in commits if commit})) or "unknown"
    return Section(
        "What the registered study found",
        _sentences(study, answers, is_done=is_done),
        progress,
        _verdicts(answers) if is_done else None,
        _picture(answers),
        _criteria(answers),
        f"Questions, criteria and words were fixed beforehand (docs/registration.md), in commit {name} ({made}); "
        f"the runs were made by commits {used}.",
    )


def headline(study: RegisteredStudy, answers: Sequence[Answer]) -> list[str]:
    """Return what a page says of the registered study in a few sentences, the last of which says how far it is."""
    progress, is_done = _progress(study)
    return [*_sentences(study, answers, is_done=is_done), progress]


def _progress(study: RegisteredStudy) -> tuple[str, bool]:
    """How much of the study stands, and whether it is whole."""
    num_registered = len(registration.CELLS) * len(registration.SEEDS)
    cells = study.rows[study.rows["role"].isin([cell.name for cell in registration.CELLS])]
    num_runs = len(cells[["role", "seed"]].drop_duplicates())
    is_done = num_runs == num_registered
    progress = f"{num_runs} of {num_registered} registered runs are finished."
    progress += "" if is_done else " Until the last one the numbers are provisional, and no verdict is given."
    return progress, is_done


def _sentences(study: RegisteredStudy, answers: Sequence[Answer], *, is_done: bool) -> list[str]:
    return [*([_said_of_verdicts(answers)] if is_done else []), *_effects(answers), *_classes_that_pay(study)]


def _classes_that_pay(study: RegisteredStudy) -> list[str]:
    """Name the class whose error reweight 5:1 raises most against equal weights; nothing where runs are missing."""
    roles = (REWEIGHT_51, EQUAL)
    if not set(roles) <= set(study.roles) or len(study.seeds(roles)) < _LEAST_SEEDS:
        return []
    errors = study.errors(roles)
    rises = []
    for quantity in quantities(study.radii):
        change = errors.by_class[REWEIGHT_51, quantity] - errors.by_class[EQUAL, quantity]
        payer = int(change.mean(0).argmax())
        rise = points(statistics.over_seeds(change[:, payer].tolist())).replace("-", _MINUS)
        rises.append(f'"{study.class_names[payer]}" {rise} points ({_where(quantity[1])})')
    return [f"The class that pays most, against equal weights: {', '.join(rises)}. {len(study.seeds(roles))} seeds."]


def exploratory_section(answers: Sequence[Answer], notes: Sequence[str]) -> Section:
    """Return what the page says of runs that belong to no registration."""
    missing = missing_runs(answers)
    return Section(
        "What these runs show",
        _effects(answers),
        "Nothing was registered before these runs: effects are shown, and no verdict is given. "
        + " ".join(f"{note[0].upper()}{note[1:]}." for note in notes),
        None,
        _picture(answers),
        _criteria(answers),
        "",
        missing,
    )


def missing_runs(answers: Sequence[Answer]) -> dict[str, str]:
    """Return the roles that criteria lack, each with a command that makes its runs."""
    lacking = [
        role
        for answer in answers
        for one in answer.evidence
        if one.outcome == "not run"
        for role in one.criterion.roles
    ]
    having = {role for answer in answers for one in answer.evidence if one.seeds for role in one.criterion.roles}
    commands = {cell.name: f"train.py -m {cell.overrides} seed=0,1,2" for cell in CELLS}
    commands |= {CHOSEN[method]: commands[cells[0]] for method, cells in CANDIDATES.items()}
    commands[BASE] = commands[EQUAL]
    return {role: commands[role] for role in dict.fromkeys(lacking) if role not in having}


def _said_of_verdicts(answers: Sequence[Answer]) -> str:
    words: dict[str, list[str]] = {}
    for answer in answers:
        words.setdefault(answer.verdict, []).append(answer.question.name)
    said = "; ".join(
        f"{'question' if len(names) == 1 else 'questions'} {', '.join(names)}: {verdict}"
        for verdict, names in words.items()
    )
    return f"{said[0].upper()}{said[1:]}."


def _effects(answers: Sequence[Answer]) -> list[str]:
    """How large the main effects are, and who pays, in two or three sentences; fewer where runs are missing."""
    by_name = {answer.question.name: answer for answer in answers}
    sentences = []
    for beginning, found in (
        (
            "Against the base, reweight 5:1 changes the worst class's error by",
            [one for one in by_name["3"].evidence if f"{REWEIGHT_51} below {BASE}" in one.criterion.text],
        ),
        (
            "Against the same retraining with equal weights, it changes the worst class's error by",
            [one for one in by_name["3"].evidence if f"{REWEIGHT_51} below {EQUAL}" in one.criterion.text],
        ),
        (
            "The price, against equal weights: the error of all classes together changes by",
            [one for one in by_name["3"].beside if f"of all classes: {REWEIGHT_51}" in one.criterion.text],
        ),
        (
            "Margins added to weights, each at its chosen setting, change the worst class's error, "
            "against weights alone, by",
            [one for one in by_name["5"].evidence if f"below {CHOSEN['reweight']}" in one.criterion.text],
        ),
    ):
        if found and all(one.seeds for one in found):
            seeds = len(found[0].seeds)
            sentences.append(f"{beginning} {_listed(found)}. {seeds} seed{'s' * (seeds > 1)}.")
    return sentences


def _listed(found: Sequence[Evidence]) -> str:
    said = []
    for one in found:
        said.append(f"{points(one.over_seeds)} points ({_where(one.criterion.radius)})")
    return ", ".join(said).replace("-", _MINUS)


def _where(radius: float | None) -> str:
    return "natural" if radius is None else f"robust at {format_epsilon(radius)}"


def _verdicts(answers: Sequence[Answer]) -> Grid:
    radii = list(answers[0].by_radius)
    header = ["question", "both radii", *(f"at {format_epsilon(radius)}" for radius in radii)]
    rows = [
        [Cell(f"{answer.question.name}. {answer.question.text}"), Cell(answer.verdict)]
        + [Cell(answer.by_radius[radius]) for radius in radii]
        for answer in answers
    ]
    return Grid("Verdicts of the registered questions", header, rows)


def forest(answers: Sequence[Answer]) -> Figure | None:
    """Return the figure of all differences; None while nothing is measured."""
    numbers = forest_numbers(answers)
    if numbers.empty:
        return None
    n = numbers["num_seeds"].unique()
    caption = (
        f"Mean over {n[0] if len(n) == 1 else 'n'} seeds with Student's 95 % interval. Filled: a difference after "
        "correction for the number of criteria. Hollow: none, uncertain, or at the ceiling"
    )
    if (numbers["threshold"] != 0).any():
        caption += ". Dashes: thresholds other than 0"
    return forest_figure(numbers, caption=caption)


def _picture(answers: Sequence[Answer]) -> Picture | None:
    figure = forest(answers)
    if figure is None:
        return None
    title = "Every difference: the first less the second, in points of error. Left of 0 the first has fewer errors"
    return Picture("forest", title, svg_of(figure), alt_text(title, forest_numbers(answers)))


def _criteria(answers: Sequence[Answer]) -> list[tuple[str, Grid]]:
    return [
        (
            f"{one.question.name}. {one.question.text}"
            + ("" if one.verdict == "exploratory" else f" {one.verdict.capitalize()}."),
            _criteria_of(one),
        )
        for one in answers
    ]


def _criteria_of(answer: Answer) -> Grid:
    rows = []
    for decides, found in (("", answer.evidence), (" (beside, decides nothing)", answer.beside)):
        for one in found:
            unit = one.criterion.scale
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
            rows.append([Cell(text.replace("-", _MINUS) if 3 <= n <= 5 else text) for n, text in enumerate(texts)])
    header = ["criterion", "outcome", "seeds", "mean", "95 % over seeds", "95 % over images", "p, Holm"]
    return Grid("Points of error, or % where the criterion is relative", header, rows)


def said(answers: Sequence[Answer]) -> str:
    """Return the answers as text for the terminal: effects with their outcome, question by question."""
    lines = []
    for answer in answers:
        lines.append(f"question {answer.question.name}: {answer.verdict.upper()}. {answer.question.text}")
        for one in answer.evidence:
            if not one.seeds:
                continue
            over = one.over_seeds
            bounds = "" if math.isnan(over.low) else f" [{100 * over.low:.1f}, {100 * over.high:.1f}]"
            lines.append(
                f"    {one.outcome}: {one.criterion.text}: {100 * over.estimate:+.1f} {one.criterion.unit}{bounds}, "
                f"seeds {', '.join(map(str, one.seeds))}"
            )
    lines += [f"no runs of {role}: python {command}" for role, command in missing_runs(answers).items()]
    return "".join(f"{line}\n" for line in lines)


def _number(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)
