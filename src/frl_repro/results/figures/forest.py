"""Differences with their intervals on one axis: what a registered study found, at both radii."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from frl_repro.results.figures.style import BLUE, COLUMN_WIDTH, GREEN, GREY, ORANGE, paper_style, wrapped
from frl_repro.results.tables.statistics import Interval, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame, Series

_COLOURS = {"natural": GREEN, "8/255": BLUE, "16/255": ORANGE}
_MARKERS = {"natural": "s", "8/255": "o", "16/255": "D"}
_ROW_HEIGHT = 0.3  # inches a comparison
_LABEL_LENGTH = 42
_HEADING = "heading"
_SMALL = 5.0  # points; three lines fit a row


def forest_figure(numbers: DataFrame, *, caption: str) -> Figure:
    """One row a comparison with up to three marks and their numbers: natural error, robust error at either radius.

    Parameters
    ----------
    numbers : DataFrame
        One row a difference: ``question`` (its heading), ``comparison``, ``quantity`` (natural, 8/255 or 16/255),
        ``estimate``, ``low``, ``high`` (points of error; bounds may be missing), ``threshold`` (points),
        ``num_seeds``, and ``is_decided``: whether the mark is filled.
    caption : str
        Over the figure.
    """
    rows: list[tuple[str, str]] = []  # (kind, text)
    for question, part in numbers.groupby("question", sort=False):
        rows.append((_HEADING, str(question)))
        rows += [(str(question), str(name)) for name in part["comparison"].unique()]
    has_one_n = numbers["num_seeds"].nunique() == 1
    place = {row: y for y, row in enumerate(rows)}
    with paper_style():
        figure = Figure(figsize=(1.8 * COLUMN_WIDTH, 0.9 + _ROW_HEIGHT * len(rows)), layout="constrained")
        axes: Axes = figure.subplots()
        axes.axvline(0, color=GREY, linewidth=0.6)
        for named, part in numbers.groupby(["question", "comparison"], sort=False):
            question, comparison = map(str, named)
            y = place[question, comparison]
            thresholds = part["threshold"].unique()
            if len(thresholds) == 1 and thresholds[0] != 0:
                axes.plot([thresholds[0]] * 2, [y - 0.45, y + 0.45], color=GREY, linewidth=0.8, linestyle=(0, (2, 1)))
            for quantity, colour in _COLOURS.items():
                # A difference that two criteria hold to different thresholds is one mark.
                chosen = part[part["quantity"] == quantity].drop_duplicates("estimate")
                shift = 0.25 * (list(_COLOURS).index(quantity) - 1)
                axes.hlines([y + shift] * len(chosen), chosen["low"], chosen["high"], color=colour, linewidth=1)
                for _, one in chosen.iterrows():
                    filling = colour if one["is_decided"] else "white"
                    axes.plot(
                        one["estimate"],
                        y + shift,
                        _MARKERS[quantity],
                        color=colour,
                        markerfacecolor=filling,
                        markersize=3.5,
                    )
                    number = _said(one) + ("" if has_one_n else f", n = {one['num_seeds']}")
                    axes.annotate(
                        number, (1, y + shift), (4, 0), xycoords=("axes fraction", "data"),
                        textcoords="offset points", va="center", fontsize=_SMALL, color=colour,
                    )  # fmt: skip
        axes.set_yticks(range(len(rows)), [wrapped(text, _LABEL_LENGTH) for _, text in rows])
        for (kind, _), label in zip(rows, axes.get_yticklabels(), strict=True):
            if kind == _HEADING:
                label.set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("Difference in points of error")
        for name, colour in _COLOURS.items():
            shown = "natural error" if name == "natural" else f"robust error, ε = {name}"
            axes.plot([], [], _MARKERS[name], color=colour, markersize=3.5, label=shown)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(wrapped(caption, 100), fontsize=6.5)
    return figure


def _said(one: Series) -> str:
    """``-13.3 [-14.5, -12.1]``; the mean alone where there is no interval."""
    interval = Interval(*(one[name] / 100 for name in ("estimate", "low", "high")))
    return points(interval).replace("-", "\N{MINUS SIGN}")
