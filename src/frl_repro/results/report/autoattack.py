"""AutoAttack beside the tables' own attack, on the same images: is the measured robustness real?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon
from frl_repro.results.report.comparison import outcomes_in
from frl_repro.results.report.page import Cell, Grid
from frl_repro.results.tables.components import COMPONENTS_FILE
from frl_repro.results.tables.outcomes import NATURAL_ERROR, OUTCOMES_FILE, Outcomes, are_of_same_images, read_outcomes
from frl_repro.results.tables.reading import find_tables
from frl_repro.results.tables.selection import setting_name
from frl_repro.results.tables.text_tables import is_worst

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from frl_repro.results.report.study import Study

    Mask = NDArray[np.bool_]


def autoattack_grids(runs: str | Path, study: Study) -> list[Grid]:
    """Return a table for each model and radius that AutoAttack measured among ``runs``; none where it measured none.

    Models of other data than the study's are left out.

    Raises
    ------
    UserError
        Outcomes beside a table of AutoAttack are missing or damaged.
    """
    try:
        tables = find_tables(runs, COMPONENTS_FILE)
    except UserError:
        return []
    others = [one for one in outcomes_in(runs) if not one.components]
    measured = [read_outcomes(table.with_name(OUTCOMES_FILE)) for table in tables]
    measured = [one for one in measured if study.is_about(one.about) and one.labels.max() < len(study.class_names)]
    return [
        _grid(one, epsilon, _of_the_same_model(one, epsilon, others), study.class_names)
        for one in measured
        for epsilon in sorted(one.broken_by)
    ]


def _of_the_same_model(one: Outcomes, epsilon: float, others: Sequence[Outcomes]) -> tuple[str, Mask] | None:
    """Return the other attack's name and its robust errors on the images of ``one``; None where there are none."""
    for other in others:
        is_same = all(other.about.get(name) == one.about.get(name) for name in ("run_id", "split"))
        if (
            not is_same
            or not are_of_same_images(one, other)
            or epsilon not in other.is_robust_error
            or other.images is not None
        ):
            continue
        places = np.arange(len(one.labels)) if one.images is None else one.images
        if places.max() < len(other.labels) and np.array_equal(other.labels[places], one.labels):
            return str(other.about.get("attack", "")).upper(), other.is_robust_error[epsilon][places]
    return None


def _grid(one: Outcomes, epsilon: float, other: tuple[str, Mask] | None, class_names: Sequence[str]) -> Grid:
    count = one.count_by_class(np.ones_like(one.is_natural_error), len(class_names))
    errors: dict[str, Mask] = {"natural": one.is_natural_error}
    if other is not None:
        errors[f"robust, {other[0]}"] = other[1]
    errors["robust, AutoAttack"] = one.is_robust_error[epsilon]
    shares = {name: one.count_by_class(mask, len(class_names)) / count for name, mask in errors.items()}
    codes = one.broken_by[epsilon]
    broken = {
        name: one.count_by_class(codes == code, len(class_names))
        for code, name in enumerate(one.components, start=NATURAL_ERROR + 1)
    }
    marks = {name: is_worst(of.tolist()) for name, of in shares.items()}
    rows = []
    for place, name in enumerate(class_names):
        cells = [Cell(name, name), Cell(str(count[place]))]
        cells += [Cell(f"{100 * of[place]:.1f}", is_worst=marks[name_of][place]) for name_of, of in shares.items()]
        rows.append([*cells, *(Cell(str(of[place])) for of in broken.values())])
    footer = [Cell("all classes"), Cell(str(count.sum()))]
    footer += [Cell(f"{100 * mask.mean():.1f}") for mask in errors.values()]
    footer += [Cell(str(of.sum())) for of in broken.values()]
    header = ["class", "images", *errors, *(f"broken by {name}" for name in broken)]
    return Grid(_caption(one, epsilon, other), header, rows, footer)


def _caption(one: Outcomes, epsilon: float, other: tuple[str, Mask] | None) -> str:
    about: dict[str, Any] = {**one.about, "recipe": one.about.get("recipe") or ""}
    model = f"{setting_name(pd.Series(about))}, seed {about['seed']}"
    which = "all" if one.images is None else f"{len(one.labels)} of the"
    text = (
        f"AutoAttack (standard version) on {which} {about['split']} images: {model}, ε = {format_epsilon(epsilon)}. "
        "Errors in percent, and how many images each of its attacks broke that had withstood those before"
    )
    if other is not None:
        name, is_error = other
        ours = one.is_robust_error[epsilon]
        text += (
            f". It breaks {int((ours & ~is_error).sum())} images that {name} does not break, and leaves standing "
            f"{int((is_error & ~ours).sum())} that {name} breaks"
        )
    return text
