"""Figures drawn from tidy tables, and from kept images: no torch, no data set, no training.

`FIGURES` maps a figure's name on the command line to its entry; `IMAGE_FIGURES` does for those that show images. To add
one, write a module with its drawing function and an entry here. Drawing code is imported when a figure is drawn, so
that listing the figures stays fast.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from frl_repro.results import DEFAULT_TOP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Drawing:
    """A figure, the numbers it shows, and what the command says about its choice of rows."""

    figure: Figure
    numbers: DataFrame
    note: str = ""


class Draw(Protocol):
    """Draws one figure from the rows of a table."""

    def __call__(self, df: DataFrame, *, epsilon: float, attack: str | None, top: int = DEFAULT_TOP) -> Drawing:
        """Draw the rows evaluated at ``epsilon`` ([0,1] pixel units) by ``attack`` (None: the only one there is).

        Of many classes or settings ``top`` of the worst and of the best are drawn.
        """


@dataclass(frozen=True)
class FigureEntry:
    """What the command line knows about a figure.

    Attributes
    ----------
    summary : str
        What it shows.
    draw : Draw
    table : str
        File name of the tables that it is drawn from.
    methods : tuple of str
        Methods that it shows; any for none.
    is_of_retraining : bool
        Whether it shows retrained models alone.
    """

    summary: str
    draw: Draw
    table: str = "classwise.csv"
    methods: tuple[str, ...] = ()
    is_of_retraining: bool = False


@dataclass(frozen=True)
class ImageFigureEntry:
    """As `FigureEntry`, for a figure that is drawn from one file of images; ``keep`` is the command that leaves one."""

    summary: str
    draw: Callable[[Path], Drawing]
    file: str
    keep: str


@dataclass(frozen=True)
class StudyFigureEntry:
    """As `FigureEntry`, for a figure that finds what it needs in the folders of ``runs``."""

    summary: str
    draw: Callable[[str], Drawing]


def _import_matplotlib_with_any_backend() -> None:
    """Import matplotlib also where ``MPLBACKEND`` names no backend: figures are saved without one."""
    chosen = os.environ.pop("MPLBACKEND", None)
    if chosen is None:
        return
    try:
        import matplotlib as mpl

        with suppress(ValueError):
            mpl.rcParams["backend"] = chosen  # as the import does, which fails at a name that it does not know
    finally:
        os.environ["MPLBACKEND"] = chosen


if "matplotlib" not in sys.modules:
    _import_matplotlib_with_any_backend()


# matplotlib is slow to import: each function brings in its own figure.
# ruff: noqa: PLC0415


def draw(
    entry: FigureEntry, df: DataFrame, *, epsilon: float | None, attack: str | None, top: int = DEFAULT_TOP
) -> Drawing:
    """Draw a figure from rows of whatever runs there are: of one data set, one model, one evaluation.

    Parameters
    ----------
    entry
        One of ``FIGURES``.
    df
        Rows of its table, from `variants.read_runs`.
    epsilon, attack
        The evaluation; None for the one that most runs have.
    top
        Of many classes or settings, how many of the worst and of the best.

    Raises
    ------
    UserError
        The rows do not hold what the figure shows.
    """
    from frl_repro.results.tables.selection import main_data, main_evaluation, select_attack
    from frl_repro.results.tables.subsets import select_epsilon

    is_shown = df["method"].isin(entry.methods) if entry.methods else df["recipe"] != ""
    rows = df[is_shown] if (entry.methods or entry.is_of_retraining) and is_shown.any() else df
    rows, *notes = main_data(rows, entry.methods)
    if "attack" in rows.columns:
        epsilon, attack, note = main_evaluation(rows, epsilon=epsilon, attack=attack)
        notes.append(note)
        measured = select_attack(select_epsilon(rows, epsilon), attack)["run_id"]
        rows = rows[rows["run_id"].isin(measured)]
    drawing = entry.draw(rows, epsilon=epsilon or 0.0, attack=attack, top=top)
    return replace(drawing, note="\n".join(filter(None, [*notes, drawing.note])))


def _draw_figure1(df: DataFrame, *, epsilon: float, attack: str | None, top: int = DEFAULT_TOP) -> Drawing:
    from frl_repro.results.figures.figure1 import figure1, figure1_numbers, main_rows

    df, note = main_rows(df)
    return Drawing(
        figure=figure1(df, epsilon=epsilon, attack=attack, top=top),
        numbers=figure1_numbers(df, epsilon=epsilon, attack=attack),
        note=note,
    )


def _draw_before_after(method: str, experiment: str) -> Draw:
    def draw(df: DataFrame, *, epsilon: float, attack: str | None, top: int = DEFAULT_TOP) -> Drawing:
        from frl_repro.results.figures.before_after import (
            before_after_figure,
            before_after_numbers,
            main_rows,
            method_shown,
        )

        shown = method_shown(df, method)
        df, note = main_rows(df, method=shown, epsilon=epsilon, attack=attack)
        command = f"python train.py -m experiment={experiment}"
        whose = "" if shown == method else f"shown: {shown}, the only method here"
        return Drawing(
            figure=before_after_figure(df, method=shown, command=command, epsilon=epsilon, attack=attack, top=top),
            numbers=before_after_numbers(df, method=shown, command=command, epsilon=epsilon, attack=attack),
            note="\n".join(filter(None, [whose, note])),
        )

    return draw


def _draw_grid(df: DataFrame, *, epsilon: float, attack: str | None, top: int = DEFAULT_TOP) -> Drawing:  # noqa: ARG001
    from frl_repro.results.figures.grid import grid_figure, grid_numbers, main_rows

    df, note = main_rows(df)
    return Drawing(
        figure=grid_figure(df, epsilon=epsilon, attack=attack),
        numbers=grid_numbers(df, epsilon=epsilon, attack=attack),
        note=note,
    )


def _draw_trajectory(
    df: DataFrame,
    *,
    epsilon: float,  # noqa: ARG001
    attack: str | None,  # noqa: ARG001
    top: int = DEFAULT_TOP,  # noqa: ARG001
) -> Drawing:
    from frl_repro.results.figures.trajectory import main_rows, trajectory_figure, trajectory_numbers

    df, note = main_rows(df)
    return Drawing(figure=trajectory_figure(df), numbers=trajectory_numbers(df), note=note)


def _draw_tradeoff(df: DataFrame, *, epsilon: float, attack: str | None, top: int = DEFAULT_TOP) -> Drawing:  # noqa: ARG001
    from frl_repro.results.figures.tradeoff import tradeoff_figure, tradeoff_numbers

    return Drawing(
        figure=tradeoff_figure(df, epsilon=epsilon, attack=attack),
        numbers=tradeoff_numbers(df, epsilon=epsilon, attack=attack),
    )


def _draw_settings(df: DataFrame, *, epsilon: float, attack: str | None, top: int = DEFAULT_TOP) -> Drawing:
    from frl_repro.results.figures.settings import settings_figure, settings_numbers

    return Drawing(
        figure=settings_figure(df, epsilon=epsilon, attack=attack, top=top),
        numbers=settings_numbers(df, epsilon=epsilon, attack=attack),
    )


FIGURES: dict[str, FigureEntry] = {
    "1": FigureEntry(
        "natural and robust error by class, natural beside adversarial training",
        _draw_figure1,
        methods=("natural", "adversarial"),
    ),
    "2": FigureEntry(
        "errors by class before and after reweight, or another method",
        _draw_before_after("reweight", "exp2"),
        methods=("reweight",),
    ),
    "3": FigureEntry(
        "errors by class before and after remargin", _draw_before_after("remargin", "exp3"), methods=("remargin",)
    ),
    "4": FigureEntry(
        "errors by class before and after both together",
        _draw_before_after("combined", "exp4"),
        methods=("combined",),
    ),
    "grid": FigureEntry(
        "worst-class errors over a grid of two alphas, as heat maps", _draw_grid, is_of_retraining=True
    ),
    "trajectory": FigureEntry(
        "class errors, weights and margins over epochs", _draw_trajectory, table="policy.csv", is_of_retraining=True
    ),
    "settings": FigureEntry("average and worst-class errors of every setting side by side", _draw_settings),
    "tradeoff": FigureEntry("average against worst-class robust accuracy, one point a run", _draw_tradeoff),
}


def _draw_examples(path: Path) -> Drawing:
    from frl_repro.results.figures.examples import examples_figure, examples_numbers
    from frl_repro.results.tables.examples import read_examples

    examples = read_examples(path)
    return Drawing(figure=examples_figure(examples), numbers=examples_numbers(examples))


def _draw_theory(runs: str) -> Drawing:
    from frl_repro.basics.errors import UserError
    from frl_repro.results.figures.theory import theory_figure
    from frl_repro.results.tables.theory import COMMAND, DATASET, load_theory

    rows = load_theory(runs)
    if rows is None:
        raise UserError(f"{runs} has no runs of model=linear on dataset={DATASET}: run `{COMMAND}`")
    return Drawing(figure=theory_figure(rows), numbers=rows)


STUDY_FIGURES: dict[str, StudyFigureEntry] = {
    "theory": StudyFigureEntry("class errors on Gaussian mixtures, measured beside closed forms", _draw_theory),
}
"""Figures that no choice among rows changes: `FIGURES` without its keys."""

IMAGE_FIGURES: dict[str, ImageFigureEntry] = {
    "examples": ImageFigureEntry(
        "images of a model's worst and best class, clean and attacked",
        _draw_examples,
        file="examples.safetensors",
        keep="python scripts/evaluate.py checkpoint=FILE num_examples=2",
    ),
}
