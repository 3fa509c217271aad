"""Average against worst-class robust accuracy, one point a run: what fairness costs."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from frl_repro.results.figures.style import (
    BLUE,
    COLUMN_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    TITLE_LINE_HEIGHT,
    add_legend,
    paper_style,
    wrapped,
)
from frl_repro.results.tables.records import format_epsilon
from frl_repro.results.tables.selection import setting_name, summary, with_bases

if TYPE_CHECKING:
    from pandas import DataFrame

_COLOURS = (GREY, BLUE, ORANGE, GREEN, RED, PURPLE)
_MARKERS = "osD^vPX"  # one more than colours: their pairs repeat late
_MAX_LABELLED = 4  # settings of a method with a label each; a grid of more is labelled as a whole
_LEGEND_COLUMNS, _LEGEND_ROW, _LEGEND_LENGTH = 2, 0.16, 32  # inches a row, characters a line
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
        labels = {label: wrapped(label, _LEGEND_LENGTH) for label in numbers["label"].unique()}
        legend_rows = math.ceil(len(labels) / _LEGEND_COLUMNS)
        height = 2.3 + _LEGEND_ROW * legend_rows
        height += TITLE_LINE_HEIGHT * sum(label.count("\n") for label in labels.values())
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for (label, part), colour, marker in zip(
            numbers.groupby("label", sort=False), itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False
        ):
            axes.plot(
                100 * part["average_robust_accuracy"],
                100 * part["worst_class_robust_accuracy"],
                marker,
                color=colour,
                markersize=4,
                markeredgecolor="black",
                markeredgewidth=0.3,
                label=labels[str(label)],
            )
        axes.set_xlabel("Average robust accuracy (%)")
        axes.set_ylabel("Worst-class robust accuracy (%)")
        axes.set_title(f"Test split, ε = {format_epsilon(epsilon)}")
        add_legend(figure, axes.get_lines(), num_columns=_LEGEND_COLUMNS)
    return figure


def tradeoff_numbers(df: DataFrame, *, epsilon: float, attack: str | None) -> DataFrame:
    """One row a run, and one a model before retraining: its label, settings and both accuracies in [0, 1].

    The label is the setting, or the method alone where it has many. Models that are not retrained are left out where
    others are: what retraining costs is read off against its starting points.
    """
    is_retrained = df["recipe"] != ""
    runs = with_bases(summary(df[is_retrained] if is_retrained.any() else df, epsilon=epsilon, attack=attack))
    runs = runs[runs["split"] == "test"]
    label = pd.Series([setting_name(row) for _, row in runs.iterrows()], index=runs.index)
    has_many = label.groupby(runs["method"]).transform("nunique") > _MAX_LABELLED
    return runs.assign(
        label=label.where(~has_many, runs["method"]),
        average_robust_accuracy=1 - runs["overall_robust_error"],
        worst_class_robust_accuracy=1 - runs["worst_class_robust_error"],
    )[["label", *_COLUMNS, "average_robust_accuracy", "worst_class_robust_accuracy"]].reset_index(drop=True)
