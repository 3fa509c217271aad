"""Average against worst-class robust accuracy, one point a run: what fairness costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from frl_repro.figures.style import BLUE, COLUMN_WIDTH, GREEN, GREY, ORANGE, PURPLE, RED, paper_style
from frl_repro.records import format_epsilon
from frl_repro.selection import summary, with_bases
from frl_repro.variants import VARIANT_COLUMN

if TYPE_CHECKING:
    from pandas import DataFrame

_COLOURS = (GREY, BLUE, ORANGE, GREEN, RED, PURPLE)
_MARKERS = "osD^vP"
_COLUMNS = ("method", "recipe", "alpha_nat", "alpha_bndy", "alpha_margin", "seed", "run_id")


def tradeoff_figure(df: DataFrame, *, epsilon: float, attack: str | None) -> Figure:
    """One point a run on the test split: right and up is better; models before retraining are circles.

    Raises
    ------
    UserError
        The tables lack this radius, this attack or the test split.
    """
    numbers = tradeoff_numbers(df, epsilon=epsilon, attack=attack)
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        for (label, part), colour, marker in zip(
            numbers.groupby("label", sort=False), _COLOURS * 3, _MARKERS * 3, strict=False
        ):
            axes.plot(
                100 * part["average_robust_accuracy"],
                100 * part["worst_class_robust_accuracy"],
                marker,
                color=colour,
                markersize=4,
                markeredgecolor="black",
                markeredgewidth=0.3,
                label=label,
            )
        axes.set_xlabel("Average robust accuracy (%)")
        axes.set_ylabel("Worst-class robust accuracy (%)")
        axes.set_title(f"Test split, ε = {format_epsilon(epsilon)}")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def tradeoff_numbers(df: DataFrame, *, epsilon: float, attack: str | None) -> DataFrame:
    """One row a run, and one a model before retraining: its label, settings and both accuracies in [0, 1]."""
    runs = with_bases(summary(df, epsilon=epsilon, attack=attack))
    runs = runs[runs["split"] == "test"]
    variant = runs.get(VARIANT_COLUMN, pd.Series("", index=runs.index))
    return runs.assign(
        label=(runs["method"] + " " + variant).str.strip(),
        average_robust_accuracy=1 - runs["overall_robust_error"],
        worst_class_robust_accuracy=1 - runs["worst_class_robust_error"],
    )[["label", *_COLUMNS, "average_robust_accuracy", "worst_class_robust_accuracy"]].reset_index(drop=True)
