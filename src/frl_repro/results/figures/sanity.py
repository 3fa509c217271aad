"""Two looks at an attack: robust error by radius, class by class, and the loss on the way away from clean images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from frl_repro.results.figures.style import (
    BLUE,
    COLUMN_WIDTH,
    GREY,
    ORANGE,
    RED,
    add_legend,
    paper_style,
    shortened,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from pandas import DataFrame

_HEIGHT = 2.5  # inches
_DIRECTIONS = {
    "attack": ("loss towards the attacked image", RED, "-"),
    "gradient": ("loss along the gradient's sign", BLUE, "--"),
    "random": ("loss along random signs", GREY, ":"),
}


def sanity_figure(table: DataFrame, name: str | None = None) -> Figure:
    """Robust error over the radius by class, the worst class in colour; mean loss over the distance by direction.

    Parameters
    ----------
    table
        From `sanity_rules.read_sanity`.
    name
        What the title calls the model; its method where None.
    """
    first, epsilon = table.iloc[0], checked_epsilon(table)
    sweep = sweep_numbers(table)
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, _HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2)
        handles = [*_draw_sweep(left, sweep, epsilon), *_draw_losses(right, table)]
        add_legend(figure, handles, num_columns=2)
        title = f"{name or first['method']}, seed {first['seed']:.0f}, {first['num_images']:.0f} test images, "
        figure.suptitle(wrapped(title + sweep["attack"].iloc[-1].upper()), fontsize=6.5)
    return figure


def checked_epsilon(table: DataFrame) -> float:
    """Return the radius that was checked."""
    return float(table.loc[(table["check"] == "more_steps") & (table["rule"] != ""), "epsilon"].iloc[0])


def sweep_numbers(table: DataFrame) -> DataFrame:
    """Robust error by radius and class; radius 0 is the clean image, class name empty for all images."""
    is_error = table["quantity"].isin(["natural_error", "robust_error"])
    columns = ["attack", "epsilon", "class_id", "class_name", "value"]
    return table.loc[(table["check"] == "epsilon_sweep") & is_error, columns].sort_values(
        ["epsilon", "class_id"], na_position="first", kind="stable"
    )


def _draw_sweep(axes: Axes, sweep: DataFrame, epsilon: float) -> list[Line2D]:
    """Draw a panel and return what its legend shows."""
    radii = sorted(sweep["epsilon"].unique())
    checked = int(np.argmin(np.abs(np.asarray(radii) - epsilon)))
    places = np.arange(len(radii))
    here = sweep[(sweep["epsilon"] == radii[checked]) & (sweep["class_name"] != "")]
    worst = str(here.loc[here["value"].idxmax(), "class_name"])
    by_class = {str(name): part["value"].to_numpy() for name, part in sweep.groupby("class_name", sort=False)}
    of_all = by_class.pop("")
    lines: list[Line2D] = []
    for name, values in by_class.items():
        if name != worst:
            (line,) = axes.plot(places, values, color=GREY, linewidth=0.6, label="other classes")
            lines = lines or [line]
    labels = dict(zip(by_class, shortened(list(by_class)), strict=True))  # told apart from all classes
    label = wrapped(f"worst class: {labels[worst]}", 22)
    lines += axes.plot(places, by_class[worst], color=ORANGE, linewidth=1.2, label=label)
    lines += axes.plot(places, of_all, color="black", linestyle="--", linewidth=1.0, label="all images")
    axes.axvline(checked, color=GREY, linewidth=0.5, linestyle=":")
    axes.set_xticks(places, [f"{255 * radius:.3g}" for radius in radii], fontsize=5)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("ε (1/255)")
    axes.set_title("Robust error by radius")
    return lines


def _draw_losses(axes: Axes, table: DataFrame) -> list[Line2D]:
    lines: list[Line2D] = []
    for direction, (label, colour, style) in _DIRECTIONS.items():
        part = table[table["quantity"] == f"mean_loss_along_{direction}"].sort_values("epsilon")
        lines += axes.plot(
            255 * part["epsilon"], part["value"], color=colour, linestyle=style, linewidth=1.2, label=label
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("Distance (1/255)")
    axes.set_title("Mean loss on the way")
    return lines
