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

from frl_repro.figures.style import COLUMN_WIDTH, paper_style
from frl_repro.records import format_epsilon, overall

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
_CAPTION_LINE_HEIGHT = 0.11  # inches
_MAX_LABEL_LENGTH = 18  # characters; longer names would leave no room for the bars


@dataclass(frozen=True)
class Series:
    """One bar a class.

    Attributes
    ----------
    label, colour, hatch, line_style
        How it is called and drawn; the line marks the error over all samples.
    rows : DataFrame
        Rows of ``classwise.csv`` of one evaluation, any number of seeds.
    quantity : str
        ``"natural"`` or ``"robust"``.
    """

    label: str
    colour: str
    hatch: str
    line_style: Any
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


def draw_class_panels(panels: Mapping[str, tuple[Series, Series]], *, caption: str) -> Figure:
    """Panels side by side at the width of a paper's column, each with two series; the same classes in all.

    Bars are means over seeds. With several seeds, whiskers span one standard deviation either way and dots show the
    single seeds. Lines show the error over all samples; a star marks the worst class of each series.

    Parameters
    ----------
    panels
        Title to series.
    caption
        What all panels share; see `describe`.
    """
    every = [one for pair in panels.values() for one in pair]
    num_classes = every[0].rows["class_id"].nunique()
    height = _FRAME_HEIGHT + _CAPTION_LINE_HEIGHT * caption.count("\n") + _CLASS_HEIGHT * num_classes
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        drawn: Sequence[Axes] = figure.subplots(1, len(panels), sharex=True, sharey=True)
        for axes, (title, pair) in zip(drawn, panels.items(), strict=True):
            _draw_panel(axes, pair)
            axes.set_title(title)
        names = every[0].rows.drop_duplicates("class_id").sort_values("class_id")
        labels = [_shortened(str(name)) for name in names["class_name"]]
        drawn[0].set_yticks(names["class_id"].to_numpy(dtype=float), labels)
        figure.suptitle(caption, fontsize=6.5)
        legend = _legend_handles(next(iter(panels.values())))
        figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    return figure


def describe(parts: Sequence[DataFrame], *, epsilon: float, first_line: str = "") -> str:
    """The caption of a figure: split, attack, radius, number of seeds of its parts."""
    num_seeds = [part["seed"].nunique() for part in parts]
    smallest, largest = min(num_seeds), max(num_seeds)
    seeds = f"{largest} seed{'s' if largest > 1 else ''}" if smallest == largest else f"{smallest} and {largest} seeds"
    split, attack = str(parts[0]["split"].iloc[0]), str(parts[0]["attack"].iloc[0])
    caption = f"{split.capitalize()} split, {attack.upper()}, ε = {format_epsilon(epsilon)}, {seeds}"
    lines = [first_line, caption] if first_line else [caption]
    return "\n".join([*lines, "bars: mean, whiskers: ± 1 sd, dots: single seeds"] if largest > 1 else lines)


def _draw_panel(axes: Axes, pair: Sequence[Series]) -> None:
    for side, series in zip((-1, 1), pair, strict=True):
        numbers = series.numbers()
        classes, of_all = numbers[numbers["class_id"].notna()], numbers[numbers["class_id"].isna()]
        mean = classes["mean"].to_numpy(dtype=float)
        position = classes["class_id"].to_numpy(dtype=float) + side * _BAR_THICKNESS / 2
        axes.barh(
            position,
            mean,
            height=_BAR_THICKNESS,
            color=series.colour,
            hatch=series.hatch,
            edgecolor="black",
            linewidth=0.3,
            label=series.label,
        )
        if int(classes["num_seeds"].max()) > 1:
            axes.errorbar(
                mean,
                position - _DOT_OFFSET * _BAR_THICKNESS,
                xerr=classes["sd"].to_numpy(dtype=float),
                fmt="none",
                ecolor="black",
                elinewidth=0.6,
                capsize=1.2,
                capthick=0.6,
            )
            # Below the whisker, which they would hide; whole even at an error of 0 or 1.
            height = series.rows["class_id"].to_numpy(dtype=float) + (side / 2 + _DOT_OFFSET) * _BAR_THICKNESS
            axes.plot(
                series.rows[f"{series.quantity}_error"].to_numpy(dtype=float),
                height,
                "o",
                markersize=1.5,
                color="white",
                markeredgecolor="black",
                markeredgewidth=0.3,
                clip_on=False,
            )
        axes.axvline(float(of_all["mean"].iloc[0]), color="black", linewidth=0.7, linestyle=series.line_style)
        # At the foot of the bar, where a star has room even beside an error of 1.
        worst = position[mean == mean.max()]
        axes.add_line(_stars(np.full(len(worst), 0.05), worst))
    axes.set_xlim(0, 1)
    # "0" and "1", not "0.0" and "1.0": the ends of neighbouring panels stay apart.
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.xaxis.set_minor_locator(FixedLocator([0.25, 0.75]))
    axes.set_xlabel("Error")
    # First class on top, as in a table.
    axes.set_ylim(pair[0].rows["class_id"].nunique() - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _legend_handles(pair: Sequence[Series]) -> list[Artist]:
    bars = [
        Patch(facecolor=one.colour, hatch=one.hatch, edgecolor="black", linewidth=0.3, label=one.label) for one in pair
    ]
    lines = [
        Line2D([], [], color="black", linewidth=0.7, linestyle=one.line_style, label=f"{one.label.split()[0]}, overall")
        for one in pair
    ]
    return [*bars, *lines, _stars([], [])]


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


def _shortened(name: str) -> str:
    if len(name) <= _MAX_LABEL_LENGTH:
        return name
    # Cut in the middle: long names of one data set tend to differ at either end ("class 1", "class 2").
    head = _MAX_LABEL_LENGTH // 2
    return f"{name[:head]}…{name[len(name) - (_MAX_LABEL_LENGTH - head - 1) :]}"
