"""Average against worst-class robust error of every method on the bench, with intervals over seeds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from frl_repro.results.figures.style import (
    BLUE,
    COLUMN_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    add_legend,
    paper_style,
    wrapped,
)
from frl_repro.results.tables.selection import seeds_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from pandas import DataFrame

_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE)
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h")
_REFERENCES = {"base": "*", "finetune": "*"}
_LEGEND_COLUMNS = 4
_MAX_STRETCH = 1.35  # of a panel's height, where the figure is wider than usual
_LEAST_SEEDS = 3  # of two, Student's interval is thirteen times as wide as their distance
_BOUNDS = ("robust_average_low", "robust_average_high", "robust_worst_low", "robust_worst_high")


def pareto_figure(board: DataFrame, *, width: float | None = None) -> Figure:
    """One panel for each start and radius; the front is the line of methods that no other beats in both errors.

    Parameters
    ----------
    board : DataFrame
        Rows of one track of the bench's leaderboard; settings chosen by the worst class are drawn.
    width : float, optional
        In inches; None: 1.15 columns of a paper, 1.6 for two radii.
    """
    rows = board[board["criterion"] == board["criterion"].iloc[0]]
    panels = [(start, epsilon) for start in rows["start"].unique() for epsilon in rows["epsilon"].unique()]
    look = _looks([str(name) for name in rows["method"].unique()])
    num_columns = rows["epsilon"].nunique()
    if width is not None and num_columns == 1:
        num_columns = len(panels)
    num_rows = -(-len(panels) // num_columns)
    with paper_style():
        usual = COLUMN_WIDTH * (1.6 if num_columns > 1 else 1.15)
        scale = 1.0 if width is None else width / usual
        num_legend_columns = round(_LEGEND_COLUMNS * scale)
        legend_height = 0.13 * -(-len(look) // num_legend_columns)
        size = (usual * scale, 0.5 + 1.9 * min(scale, _MAX_STRETCH) * num_rows + legend_height)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        handles: dict[str, Artist] = {}
        for axes, (start, epsilon) in zip(grid, panels, strict=True):
            part = rows[(rows["start"] == start) & (rows["epsilon"] == epsilon)]
            handles |= _draw(axes, part, look)
            axes.set_title(f"{'from the base' if start == 'base' else 'from scratch'}, ε = {epsilon}")
            axes.set_xlabel("Robust error of all images (%)")
            axes.set_ylabel("Worst class (%)")
        add_legend(figure, [handles[name] for name in look if name in handles], num_columns=num_legend_columns)
        caption = f"{rows['track'].iloc[0]}: lower left is better. {seeds_text(rows['num_seeds'])}"
        caption += "" if rows["num_seeds"].max() < _LEAST_SEEDS else "; lines: 95 % intervals over seeds"
        figure.suptitle(wrapped(caption, round(90 * scale)), fontsize=6.5)
    return figure


def front(averages: np.ndarray, worsts: np.ndarray) -> list[int]:
    """Return the places of points that no other point beats in both errors, by falling worst error."""
    order = sorted(range(len(averages)), key=lambda place: (averages[place], worsts[place]))
    best, places = np.inf, []
    for place in order:
        if worsts[place] < best:
            best = worsts[place]
            places.append(place)
    return places


def _looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in every panel; references are grey stars."""
    methods = sorted(name for name in names if name not in _REFERENCES)
    drawn = dict(zip(methods, zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False), strict=False))
    shades = {"base": "black", "finetune": GREY}
    return {name: (shades[name], _REFERENCES[name]) for name in _REFERENCES if name in names} | drawn


def _draw(axes: Axes, rows: DataFrame, look: dict[str, tuple[str, str]]) -> dict[str, Artist]:
    x, y = (100 * rows[name].to_numpy(dtype=float) for name in ("robust_average", "robust_worst"))
    places = front(x, y)
    axes.step(x[places], y[places], where="post", color=GREY, linewidth=0.6, zorder=0)
    handles: dict[str, Artist] = {}
    for place, (_, row) in enumerate(rows.iterrows()):
        name = str(row["method"])
        colour, marker = look[name]
        bounds = 100 * row[list(_BOUNDS)].astype(float)
        if row["num_seeds"] >= _LEAST_SEEDS and bounds.notna().all():
            low_x, high_x, low_y, high_y = map(float, bounds)
            axes.plot([low_x, high_x], [y[place]] * 2, color=colour, linewidth=0.5)
            axes.plot([x[place]] * 2, [low_y, high_y], color=colour, linewidth=0.5)
        size = 6 if marker == "*" else 4
        (line,) = axes.plot(
            x[place], y[place], marker, color=colour, markersize=size, markeredgecolor="black", markeredgewidth=0.3,
            clip_on=False,
        )  # fmt: skip
        line.set_label(name)
        handles[name] = line
    _name_the_front(axes, [str(name) for name in rows["method"]], x, y, places)
    # By the points: intervals of few seeds may be wider than all errors there are.
    for numbers, set_limits in ((x, axes.set_xlim), (y, axes.set_ylim)):
        room = max(2.0, 0.25 * float(np.ptp(numbers)))
        set_limits(max(0.0, float(numbers.min()) - room), min(100.0, float(numbers.max()) + room))
    return handles


def _name_the_front(axes: Axes, names: list[str], x: np.ndarray, y: np.ndarray, places: list[int]) -> None:
    """Write the methods' names beside the points of the front, where there is room."""
    near_x, near_y = 0.14 * (np.ptp(x) or 1), 0.07 * (np.ptp(y) or 1)
    written: list[int] = []
    for place in places:
        if all(abs(x[place] - x[one]) > near_x or abs(y[place] - y[one]) > near_y for one in written):
            axes.annotate(names[place], (x[place], y[place]), xytext=(4, 4), textcoords="offset points", fontsize=5.5)
            written.append(place)
