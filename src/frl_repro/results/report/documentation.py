"""The marked tables of the documentation, by name: from the registered runs, and cards of the published models."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pandas import DataFrame

from frl_repro.basics.radii import format_epsilon
from frl_repro.results.registration import ADVERSARIAL, BASE, CELLS, NATURAL, of_first_study
from frl_repro.results.report import answers_page, exploratory
from frl_repro.results.report.comparison import at_radius
from frl_repro.results.report.markdown import NO_ALPHAS, card, mean_sd, table
from frl_repro.results.report.questions import CHOSEN, NATURAL_ERROR, RADII, REWEIGHT_51, Quantity, quantities
from frl_repro.results.report.registered import CANDIDATES, RegisteredStudy
from frl_repro.results.report.verdicts import Answer, Evidence
from frl_repro.results.tables.reading import find_tables
from frl_repro.results.tables.selection import select_attack
from frl_repro.results.tables.statistics import points
from frl_repro.results.tables.subsets import select_checkpoint
from frl_repro.results.tables.variants import read_runs

_NO_RUNS = "\nNo runs yet.\n\n"

_NUM_OF_REPORT = 3000
"""The report measures on the first test images."""

_OF_REPORT = {
    (NATURAL, NATURAL_ERROR): ".32", (NATURAL, ("robust", RADII[1])): "1.0",
    (ADVERSARIAL, NATURAL_ERROR): ".44", (ADVERSARIAL, ("robust", RADII[1])): ".89",
    (BASE, NATURAL_ERROR): ".44", (BASE, ("robust", RADII[1])): ".89",
    (REWEIGHT_51, NATURAL_ERROR): ".33", (REWEIGHT_51, ("robust", RADII[1])): ".755",
}  # fmt: skip
"""Errors of the report's worst class, "Shirt", read off its plots (within .01)."""

_HARD = "Shirt"

_MODELS: dict[str, tuple[str, dict[str, float], str]] = {
    "natural": ("natural", {}, "after"),
    "adversarial": ("adversarial", {}, "after"),
    "base": ("reweight", {"nat": 5.0, "bndy": 1.0}, "before"),
    "reweight": ("reweight", {"nat": 5.0, "bndy": 1.0}, "after"),
    "remargin": ("remargin", {"margin": 5.0}, "after"),
    "combined": ("combined", {"margin": 5.0}, "after"),
}
"""Published models: method, alphas, before or after retraining."""


def tables(
    runs: str | Path, registered: RegisteredStudy | None, answers: Sequence[Answer]
) -> dict[str, Callable[[], str]]:
    """Return every table by name, made when it is called; those of the registered study say so where it has no runs."""
    makers: dict[str, Callable[[RegisteredStudy, Sequence[Answer]], str]] = {
        "headline": headline,
        "verdicts": verdicts,
        "criteria": criteria,
        "beside": beside,
        "errors": errors,
        "report": beside_the_report,
        "chosen": chosen,
    }
    found: dict[str, Callable[[], str]] = {
        name: (lambda: _NO_RUNS) if registered is None else functools.partial(make, registered, answers)
        for name, make in makers.items()
    }

    found |= exploratory.tables(runs, registered)

    @functools.cache  # read once, and not before a page asks for a card
    def published() -> DataFrame:
        tables = [path for path in find_tables(runs) if path.parents[1].name not in exploratory.PLACES]
        return select_attack(select_checkpoint(read_runs(of_first_study(tables)), "last"), None)

    for name, (method, alphas, when) in _MODELS.items():
        found[f"model-{name}"] = functools.partial(_card, published, method, alphas or NO_ALPHAS, when)
    return found


def _card(published: Callable[[], DataFrame], method: str, alphas: Mapping[str, float], when: str) -> str:
    return card(published(), method, alphas, when=when)


def headline(study: RegisteredStudy, answers: Sequence[Answer]) -> str:
    """How far the study is, what holds, how large it is and who pays, as a list."""
    return "".join(f"\n- {one}" for one in answers_page.headline(study, answers)) + "\n\n"


def verdicts(_: RegisteredStudy, answers: Sequence[Answer]) -> str:
    """A row a question: over both radii, and at each alone."""
    rows = []
    for one in answers:
        by_radius = [one.by_radius[radius] for radius in RADII]
        rows.append([f"{one.question.name}. {one.question.text}", f"**{one.verdict}**", *by_radius])
    return table(["question", "both radii", *(f"at {format_epsilon(radius)}" for radius in RADII)], rows)


def criteria(_: RegisteredStudy, answers: Sequence[Answer]) -> str:
    """Every criterion that decides, with its mean over seeds."""
    return _evidence(answers, lambda answer: answer.evidence)


def beside(_: RegisteredStudy, answers: Sequence[Answer]) -> str:
    """What is shown beside the criteria and decides nothing."""
    return _evidence(answers, lambda answer: answer.beside)


def _evidence(answers: Sequence[Answer], which: Callable[[Answer], Sequence[Evidence]]) -> str:
    rows = []
    for answer in answers:
        for one in which(answer):
            unit, over, mean, images = one.criterion.unit, one.over_seeds, "not run", "-"
            if one.seeds:
                plain = f"{over.estimate:+.2f} [{over.low:.2f}, {over.high:.2f}]"
                mean = f"{points(over)} {unit}" if unit else plain
            if unit and one.over_images is not None:
                images = points(one.over_images).split(" ", 1)[1]
            rows.append([answer.question.name, one.criterion.text, str(len(one.seeds)), mean, images, one.outcome])
    header = ["", "criterion", "seeds", "mean [95 % over seeds]", "[95 % over images]", "outcome"]
    return table(header, rows)


def errors(study: RegisteredStudy, _: Sequence[Answer]) -> str:
    """Errors of every setting: the worst class, named on held-back images, and all classes; mean and deviation."""
    names = [BASE, *(cell.name for cell in CELLS), *CHOSEN.values()]
    rows = []
    for name in (one for one in names if one in study.roles):
        found = study.errors((name,))
        cells = [
            mean_sd(take(name, quantity))
            for take in (found.worst, found.overall)
            for quantity in quantities(study.radii)
        ]
        rows.append([name, str(len(study.seeds((name,)))), *cells])
    shown = ["natural", *(f"robust at {format_epsilon(radius)}" for radius in study.radii)]
    header = ["errors in percent", "seeds", *(f"worst: {one}" for one in shown), *(f"all: {one}" for one in shown)]
    return table(header, rows)


def beside_the_report(study: RegisteredStudy, _: Sequence[Answer]) -> str:
    """Error of "Shirt", the report's worst class: the report, our models on its images, and on all test images."""
    class_id = study.class_names.index(_HARD)
    rows = []
    for role in (NATURAL, ADVERSARIAL, BASE, REWEIGHT_51):
        if role not in study.roles:
            continue
        seeds, found = study.seeds((role,)), study.errors((role,))
        for quantity in quantities(study.radii):
            whole = found.by_class[role, quantity][:, class_id]
            on_first = (_on_first_images(study, role, seed, quantity, class_id) for seed in seeds)
            first = [value for value in on_first if value is not None]
            name, radius = quantity
            label = f"{role}: {name}" + ("" if radius is None else f" at {format_epsilon(radius)}")
            cells = [mean_sd(np.array(first)) if len(first) == len(seeds) else "-", mean_sd(whole)]
            rows.append([label, _OF_REPORT.get((role, quantity), "-"), *cells, str(len(seeds))])
    header = [f'error of "{_HARD}", in percent', "report (a share)", "ours, its 3,000 images", "ours, all 10,000"]
    return table([*header, "seeds"], rows)


def _on_first_images(study: RegisteredStudy, role: str, seed: int, quantity: Quantity, class_id: int) -> float | None:
    """Error of a class among the test images that the report used; None without outcomes."""
    one = study.outcomes.get((role, seed))
    if one is None:
        return None
    wrong = one.is_natural_error if quantity[1] is None else at_radius(one, quantity[1])
    assert wrong is not None  # it counted the tables' errors
    return float(wrong[:_NUM_OF_REPORT][one.labels[:_NUM_OF_REPORT] == class_id].mean())


def chosen(study: RegisteredStudy, _: Sequence[Answer]) -> str:
    """How often the seeds chose each candidate."""
    rows = []
    for method, cells in CANDIDATES.items():
        number = Counter(cell for (of, _), cell in study.chosen.items() if of == method)
        rows.append([method, ", ".join(f"{cell} ({number[cell]})" for cell in cells)])
    return table(["method", "candidates (seeds that chose them)"], rows)
