"""Every setting in one picture: average and worst-class errors, mean and single seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from frl_repro.basics.radii import format_epsilon
from frl_repro.results import DEFAULT_TOP
from frl_repro.results.figures.style import BLUE, COLUMN_WIDTH, RED, TITLE_LINE_HEIGHT, paper_style, wrapped
from frl_repro.results.tables.selection import (
    BEFORE,
    by_setting,
    one_value,
    seeds_text,
    setting_name,
    summary,
    with_bases,
)
from frl_repro.results.tables.text_tables import worst_and_best

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from pandas import DataFrame

_TITLES = {"natural": "Natural error", "robust": "Robust error"}
_WHICH = {"overall": ("all classes", BLUE, "o"), "worst_class": ("worst class", RED, "D")}
_ROW_HEIGHT = 0.3  # inches a setting: a name of up to two lines
_LABEL_LENGTH = 26  # characters of a line of a setting's name


def settings_figure(df: DataFrame, *, epsilon: float, attack: str | None, top: int = DEFAULT_TOP) -> Figure:
    """One row a setting on the test split, the model before retraining first; dots are single seeds.

    Dashed lines continue the mean before retraining through all rows. Of many other settings ``top`` of the worst and
    of the best are drawn, by worst-class robust error.

    Raises
    ------
    UserError
        As `settings_numbers`.
    """
    points = _points(df, epsilon, attack)
    numbers = _numbers(points)
    seeds = seeds_text(numbers["num_seeds"])
    seeds += "; dots: single seeds" if numbers["num_seeds"].max() > 1 else ""
    caption = f"Test split, ε = {format_epsilon(epsilon)}, {seeds}"
    is_before = numbers["setting"].str.startswith(BEFORE)
    after = numbers[~is_before]
    shown = worst_and_best(after["worst_class_robust_error"].tolist(), top)
    if shown is not None:
        caption += f"\n{top} worst and {top} best of {len(after)} settings, by worst-class robust error"
        numbers = pd.concat([numbers[is_before], after.iloc[[*shown[0], *shown[1]]]], ignore_index=True)
        points = points[points["setting"].isin(numbers["setting"])]
    single = points[points.groupby("setting")["seed"].transform("nunique") > 1]
    labels = [wrapped(name, _LABEL_LENGTH) for name in numbers["setting"]]
    row_height = max(_ROW_HEIGHT, TITLE_LINE_HEIGHT * (1 + max(label.count("\n") for label in labels)))
    with paper_style():
        height = 0.95 + row_height * len(numbers) + TITLE_LINE_HEIGHT * caption.count("\n")
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
        for axes, (quantity, title) in zip(panels, _TITLES.items(), strict=True):
            for which, (label, colour, marker) in _WHICH.items():
                name = f"{which}_{quantity}_error"
                if numbers["setting"].str.startswith(BEFORE).sum() == 1:
                    axes.axvline(numbers[name].iloc[0], color=colour, linewidth=0.6, linestyle=(0, (4, 2)))
                if which == "worst_class":  # all classes alike: the mark of their mean is seen around that of the worst
                    same = numbers[numbers[name] == numbers[f"overall_{quantity}_error"]]
                    if not same.empty:
                        axes.plot(same[name], list(same.index), "o", color=_WHICH["overall"][1], markersize=7)
                axes.plot(numbers[name], range(len(numbers)), marker, color=colour, markersize=4, label=label)
                axes.plot(
                    single[name],
                    [list(numbers["setting"]).index(setting) + 0.25 for setting in single["setting"]],
                    "o",
                    markersize=1.5,
                    color="white",
                    markeredgecolor=colour,
                    markeredgewidth=0.4,
                )
            axes.set_title(title)
            axes.set_xlabel("Error")
            axes.margins(x=0.1)
            least, most = axes.get_xlim()
            if least < 0 or most > 1:  # around errors of 0 or 1: no axis shows others, and marks at its ends stay whole
                axes.set_xlim(max(0.0, least), min(1.0, most))
                axes.tick_params(axis="y", pad=6)  # names stay clear of marks at 0
                for line in axes.get_lines():
                    line.set_clip_on(np.size(line.get_xdata()) == 0)  # without points it has no extent to lay out
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(numbers)), labels)
        panels[0].set_ylim(len(numbers) - 0.5, -0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(caption, fontsize=6.5)
    return figure


def settings_numbers(df: DataFrame, *, epsilon: float, attack: str | None) -> DataFrame:
    """One row a setting: its name, overall and worst-class natural and robust error (mean, sd), number of seeds.

    Raises
    ------
    UserError
        The tables lack this radius, this attack or the test split, or hold several data sets.
    """
    return _numbers(_points(df, epsilon, attack))


def _numbers(points: DataFrame) -> DataFrame:
    numbers = by_setting(points)
    numbers.insert(0, "setting", [setting_name(row) for _, row in numbers.iterrows()])
    is_after = ~numbers["setting"].str.startswith(BEFORE).to_numpy()
    numbers = numbers.iloc[is_after.argsort(kind="stable")]
    quantities = [f"{which}_{quantity}_error" for which in _WHICH for quantity in _TITLES]
    columns = ["setting", "num_seeds", *(name for q in quantities for name in (q, f"{q}_sd"))]
    return numbers[columns].reset_index(drop=True)


def _points(df: DataFrame, epsilon: float, attack: str | None) -> DataFrame:
    one_value(df, "dataset", "model")
    runs = with_bases(summary(df, epsilon=epsilon, attack=attack))
    points = runs[runs["split"] == "test"]
    return points.assign(setting=[setting_name(row) for _, row in points.iterrows()])
