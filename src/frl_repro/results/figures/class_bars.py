"""Horizontal bars by class: mean over seeds, whiskers, single seeds, overall errors and the worst class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from frl_repro.basics.radii import format_epsilon
from frl_repro.results import DEFAULT_TOP
from frl_repro.results.figures.style import COLUMN_WIDTH, TITLE_LINE_HEIGHT, add_legend, paper_style, shortened, wrapped
from frl_repro.results.tables.subsets import overall
from frl_repro.results.tables.text_tables import is_worst, worst_and_best

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike
    from pandas import DataFrame

OVERALL = "overall"

_BAR_THICKNESS = 0.38  # in units of the distance between two classes
_DOT_OFFSET = 0.22  # of a bar's thickness: whiskers above its middle, dots below
_CLASS_HEIGHT = 0.19  # inches a class: two bars, and room around a label of 6.5 pt
_FRAME_HEIGHT = 1.15  # inches for titles, axis, legend and caption


@dataclass(frozen=True)
class Look:
    """How a series is drawn: colour and hatch of its bars, style of the line that marks the error over all samples."""

    colour: str
    hatch: str
    line_style: Any


def looks(first: str, second: str) -> tuple[Look, Look]:
    """Return the looks of two series by their colours; grey print and colour-blind readers tell them apart as well."""
    return Look(first, "", (0, (4, 2))), Look(second, "////", (0, (1, 1)))


@dataclass(frozen=True)
class Series:
    """One bar a class.

    Attributes
    ----------
    label : str
    look : Look
    rows : DataFrame
        Rows of ``classwise.csv`` of one evaluation, any number of seeds.
    quantity : str
        ``"natural"`` or ``"robust"``.
    """

    label: str
    look: Look
    rows: DataFrame
    quantity: str

    def numbers(self) -> DataFrame:
        """Mean, sample standard deviation and number of seeds by class; the last row is over all samples."""
        by_class = self.rows.groupby(["class_id", "class_name"], sort=True)
        part = by_class[f"{self.quantity}_error"].agg(mean="mean", sd="std", num_seeds="size").reset_index()
        of_all = overall(self.rows)[f"overall_{self.quantity}_error"]
        last = {"class_name": OVERALL, "mean": of_all.mean(), "sd": of_all.std(), "num_seeds": len(of_all)}
        part = pd.concat([part, pd.DataFrame([last])], ignore_index=True)
        # The overall row has no class id: a nullable integer keeps the others from turning into 0.0, 1.0, ...
        return part.astype({"class_id": "Int64"})


def draw_class_panels(
    panels: Mapping[str, tuple[Series, Series]], *, caption: str, by: Series, by_text: str, top: int = DEFAULT_TOP
) -> Figure:
    """Panels side by side at the width of a paper's column, each with two series; the same classes in all.

    Bars are means over seeds. With several seeds, whiskers span one standard deviation either way and dots show the
    single seeds. Lines show the error over all samples; a star marks the worst class of each series. Of many classes
    the worst and the best are drawn, and between them one bar for the mean of the others.

    Parameters
    ----------
    panels
        Title to series.
    caption
        What all panels share; see `describe`.
    by, by_text
        The series whose errors say which classes are worst and best, and what it is called.
    top
        How many of the worst and of the best.
    """
    classes = _Classes.of(by, top)
    if classes.is_shortened:
        caption += f"\n{top} worst and {top} best of {sum(map(len, classes.rows))} classes, by {by_text}"
    caption = wrapped(caption)
    height = _FRAME_HEIGHT + TITLE_LINE_HEIGHT * caption.count("\n") + _CLASS_HEIGHT * len(classes.labels)
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        drawn: Sequence[Axes] = figure.subplots(1, len(panels), sharex=True, sharey=True)
        num_stars = 0
        for axes, (title, pair) in zip(drawn, panels.items(), strict=True):
            num_stars += _draw_panel(axes, pair, classes)
            axes.set_title(title)
        drawn[0].set_yticks(range(len(classes.labels)), classes.labels)
        figure.suptitle(caption, fontsize=6.5)
        handles = _legend_handles(next(iter(panels.values())))
        add_legend(figure, [*handles, _stars([], [])] if num_stars else handles, num_columns=3)
    return figure


@dataclass(frozen=True)
class _Classes:
    """Which classes are drawn, from top to bottom.

    Attributes
    ----------
    rows : list of list of int
        Class ids of each row; more than one where a row is the mean of several.
    labels : list of str
    is_shortened : bool
        Whether they are the worst and the best with the others between them, else all in their order.
    """

    rows: list[list[int]]
    labels: list[str]
    is_shortened: bool = False

    @classmethod
    def of(cls, by: Series, top: int) -> _Classes:
        numbers = by.numbers().dropna(subset="class_id")
        class_ids = [int(class_id) for class_id in numbers["class_id"]]
        labels = dict(zip(class_ids, shortened([str(name) for name in numbers["class_name"]]), strict=True))
        ends = worst_and_best(numbers["mean"].tolist(), top)
        if ends is None:
            return cls([[class_id] for class_id in class_ids], list(labels.values()))
        worst, best = ([class_ids[place] for place in places] for places in ends)
        between = [class_id for class_id in class_ids if class_id not in {*worst, *best}]
        rows = [[class_id] for class_id in worst] + [between] + [[class_id] for class_id in best]
        names = [*(labels[k] for k in worst), f"({len(between)} between, mean)", *(labels[k] for k in best)]
        return cls(rows, names, is_shortened=True)

    def over_seeds(self, series: Series) -> DataFrame:
        """One row a seed and row: ``place`` from the top, ``value`` the error, the mean of classes that share a row."""
        place_of = {class_id: place for place, ids in enumerate(self.rows) for class_id in ids}
        errors = series.rows.assign(
            place=series.rows["class_id"].map(place_of), value=series.rows[f"{series.quantity}_error"]
        )
        return errors.groupby(["place", "run_id"], sort=False)["value"].mean().reset_index()

    def are_worst(self, series: Series) -> list[bool]:
        """Which rows are the worst class of a series, of all its classes: a row that stands for several is none."""
        by_class = series.rows.groupby("class_id")[f"{series.quantity}_error"].mean()
        worst = {
            int(class_id)
            for class_id, is_one in zip(by_class.index, is_worst(by_class.tolist()), strict=True)
            if is_one
        }
        return [len(ids) == 1 and ids[0] in worst for ids in self.rows]


def describe(parts: Sequence[DataFrame], *, epsilon: float, first_line: str = "") -> str:
    """The caption of a figure: split, attack, radius, number of seeds of its parts."""
    num_seeds = [part["seed"].nunique() for part in parts]
    smallest, largest = min(num_seeds), max(num_seeds)
    seeds = f"{largest} seed{'s' if largest > 1 else ''}" if smallest == largest else f"{smallest} and {largest} seeds"
    split, attack = str(parts[0]["split"].iloc[0]), str(parts[0]["attack"].iloc[0])
    caption = f"{split.capitalize()} split, {attack.upper()}, ε = {format_epsilon(epsilon)}, {seeds}"
    lines = [first_line, caption] if first_line else [caption]
    return "\n".join([*lines, "bars: mean, whiskers: ± 1 sd, dots: single seeds"] if largest > 1 else lines)


def _draw_panel(axes: Axes, pair: Sequence[Series], classes: _Classes) -> int:
    """Draw two series and return how many worst classes were marked."""
    num_stars = 0
    for side, series in zip((-1, 1), pair, strict=True):
        single = classes.over_seeds(series)
        by_row = single.groupby("place", sort=True)["value"].agg(["mean", "std", "size"])
        mean = by_row["mean"].to_numpy(dtype=float)
        position = by_row.index.to_numpy(dtype=float) + side * _BAR_THICKNESS / 2
        axes.barh(
            position,
            mean,
            height=_BAR_THICKNESS,
            color=series.look.colour,
            hatch=series.look.hatch,
            edgecolor="black",
            linewidth=0.3,
            label=series.label,
        )
        if int(by_row["size"].max()) > 1:
            axes.errorbar(
                mean,
                position - _DOT_OFFSET * _BAR_THICKNESS,
                xerr=by_row["std"].to_numpy(dtype=float),
                fmt="none",
                ecolor="black",
                elinewidth=0.6,
                capsize=1.2,
                capthick=0.6,
            )
            # Below the whisker, which they would hide; whole even at an error of 0 or 1.
            height = single["place"].to_numpy(dtype=float) + (side / 2 + _DOT_OFFSET) * _BAR_THICKNESS
            axes.plot(
                single["value"].to_numpy(dtype=float),
                height,
                "o",
                markersize=1.5,
                color="white",
                markeredgecolor="black",
                markeredgewidth=0.3,
                clip_on=False,
            )
        axes.axvline(
            float(series.numbers()["mean"].iloc[-1]), color="black", linewidth=0.7, linestyle=series.look.line_style
        )
        # At the foot of the bar, where a star has room even beside an error of 1.
        worst = position[classes.are_worst(series)]
        axes.add_line(_stars(np.full(len(worst), 0.05), worst))
        num_stars += len(worst)
    axes.set_xlim(0, 1)
    # "0" and "1", not "0.0" and "1.0": the ends of neighbouring panels stay apart.
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.xaxis.set_minor_locator(FixedLocator([0.25, 0.75]))
    axes.set_xlabel("Error")
    # First class on top, as in a table.
    axes.set_ylim(len(classes.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    return num_stars


def _legend_handles(pair: Sequence[Series]) -> list[Artist]:
    bars = [
        Patch(facecolor=one.look.colour, hatch=one.look.hatch, edgecolor="black", linewidth=0.3, label=one.label)
        for one in pair
    ]
    lines = [
        Line2D(
            [],
            [],
            color="black",
            linewidth=0.7,
            linestyle=one.look.line_style,
            label=f"{one.label.split()[0]}, overall",
        )
        for one in pair
    ]
    return [*bars, *lines]


def _stars(x: ArrayLike, y: ArrayLike) -> Line2D:
    return Line2D(
        x,
        y,
        linestyle="none",
        marker="*",
        markersize=5,
        markerfacecolor="white",
        markeredgecolor="black",
        markeredgewidth=0.4,
        label="worst class",
    )
