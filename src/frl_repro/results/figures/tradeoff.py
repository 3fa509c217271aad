"""Average against worst-class robust accuracy, one point a run: what fairness costs."""

from __future__ import annotations

import itertools
import math
from copy import copy
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from frl_repro.basics.radii import format_epsilon
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
from frl_repro.results.tables.selection import setting_name, summary, with_bases
from frl_repro.results.tables.text_tables import display_width

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from pandas import DataFrame

_COLOURS = (GREY, BLUE, ORANGE, GREEN, RED, PURPLE)
_MARKERS = "osD^vPX*"  # one for each setting of a method that has a label of its own
_MAX_LABELLED = 5  # settings of a method and recipe with a label each; a grid of more is labelled as a whole
_LEGEND_COLUMNS, _LEGEND_ROW, _LEGEND_LENGTH = 2, 0.16, 32  # inches a row, characters a line
_LEGEND_WIDTH = 52  # characters of all columns together
_MARKER_SIZE, _RING_WIDTH = 4, 3  # points
_LEAST_SPAN = 1.0  # percent that an axis shows at least
_COLUMNS = ("method", "recipe", "alpha_nat", "alpha_bndy", "alpha_margin", "seed", "run_id")


def tradeoff_figure(df: DataFrame, *, epsilon: float, attack: str | None) -> Figure:
    """One point a run on the test split: right and up is better. Colours tell methods apart, markers their settings.

    Where runs of several settings have the same accuracies, those drawn first are larger: they are seen around the
    others.

    Raises
    ------
    UserError
        The tables lack this radius, this attack or the test split.
    """
    numbers = tradeoff_numbers(df, epsilon=epsilon, attack=attack)
    with paper_style():
        num_runs = numbers["label"].value_counts()
        labels = _legend_labels({str(label): f"{label}, n = {num_runs[label]}" for label in numbers["label"].unique()})
        legend_rows = math.ceil(len(labels) / _LEGEND_COLUMNS)
        height = 2.3 + _LEGEND_ROW * legend_rows
        height += TITLE_LINE_HEIGHT * sum(label.count("\n") for label in labels.values())
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        num_above_each = _num_above(numbers)
        handles: dict[str, Line2D] = {}
        looks = _looks(numbers)
        for label, part in numbers.groupby("label", sort=False):
            colour, marker = looks[str(label)]
            for num_above, points in part.groupby(num_above_each.loc[part.index], sort=True):
                (line,) = axes.plot(
                    100 * points["average_robust_accuracy"],
                    100 * points["worst_class_robust_accuracy"],
                    marker,
                    color=colour,
                    markersize=_MARKER_SIZE + _RING_WIDTH * int(str(num_above)),
                    markeredgecolor="black",
                    markeredgewidth=0.3,
                    label=labels[str(label)],
                )
                # In the legend all marks are of one size.
                handles.setdefault(str(label), copy(line)).set_markersize(_MARKER_SIZE)
        _keep_to_accuracies(axes)
        axes.set_xlabel("Average robust accuracy (%)")
        axes.set_ylabel("Worst-class robust accuracy (%)")
        axes.set_title(f"Test split, ε = {format_epsilon(epsilon)}; one point a run")
        add_legend(figure, list(handles.values()), num_columns=_LEGEND_COLUMNS)
    return figure


def _looks(numbers: DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label: methods differ in colour, settings of one method in marker."""
    colours = dict(zip(numbers["method"].unique(), itertools.cycle(_COLOURS), strict=False))
    looks: dict[str, tuple[str, str]] = {}
    for method, of_method in numbers.groupby("method", sort=False):
        for label, marker in zip(of_method["label"].unique(), itertools.cycle(_MARKERS), strict=False):
            looks[str(label)] = (colours[method], marker)
    return looks


def _legend_labels(shown: Mapping[str, str]) -> dict[str, str]:
    """The text of each label, its lines short enough for the columns, which are filled one after the other."""
    names = list(shown)
    labels = {name: wrapped(shown[name], _LEGEND_LENGTH) for name in names}
    num_rows = math.ceil(len(names) / _LEGEND_COLUMNS)
    widths = [
        max(display_width(line) for name in names[first : first + num_rows] for line in labels[name].splitlines())
        for first in range(0, len(names), num_rows)
    ]
    return (
        labels if sum(widths) <= _LEGEND_WIDTH else {name: wrapped(shown[name], _LEGEND_WIDTH // 2) for name in names}
    )


def _num_above(numbers: DataFrame) -> pd.Series[int]:
    """How many other settings are drawn later at the very point of each run."""
    order = {label: place for place, label in enumerate(numbers["label"].unique())}
    place = numbers["label"].map(order)
    points = [numbers[name].round(6) for name in ("average_robust_accuracy", "worst_class_robust_accuracy")]
    same = place.groupby(points)
    return same.transform(lambda places: [len({other for other in places if other > own}) for own in places])


def _keep_to_accuracies(axes: Axes) -> None:
    """Let no axis show less than 0 or more than 100 %, nor hardly anything; marks at its ends stay whole."""
    for limits, set_limits in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
        widened = max(0.0, _LEAST_SPAN - (limits[1] - limits[0])) / 2
        low, high = limits[0] - widened, limits[1] + widened
        set_limits(max(0.0, low), min(100.0, high))
        if low < 0 or high > 100:
            for line in axes.get_lines():
                line.set_clip_on(False)


def tradeoff_numbers(df: DataFrame, *, epsilon: float, attack: str | None) -> DataFrame:
    """One row a run, and one a model before retraining: its label, settings and both accuracies in [0, 1].

    The label is the setting, or the method with its recipe where these have many. Models that are not
    retrained are left out where others are: what retraining costs is read off against its starting points.
    """
    is_retrained = df["recipe"] != ""
    runs = with_bases(summary(df[is_retrained] if is_retrained.any() else df, epsilon=epsilon, attack=attack))
    runs = runs[runs["split"] == "test"]
    label = pd.Series([setting_name(row) for _, row in runs.iterrows()], index=runs.index)
    has_many = label.groupby([runs["method"], runs["recipe"]]).transform("nunique") > _MAX_LABELLED
    as_a_whole = [setting_name(row) for _, row in runs[["method", "recipe"]].iterrows()]
    return runs.assign(
        label=label.where(~has_many, as_a_whole),
        average_robust_accuracy=1 - runs["overall_robust_error"],
        worst_class_robust_accuracy=1 - runs["worst_class_robust_error"],
    )[["label", *_COLUMNS, "average_robust_accuracy", "worst_class_robust_accuracy"]].reset_index(drop=True)
