"""Why adversarial training hurts the hard class, in three panels: closed forms with what our runs measured on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from frl_repro.basics.errors import UserError
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
)
from frl_repro.results.tables.theory import COMMAND, METHODS, MIXTURE_COLUMNS, by_class, mixture_of
from frl_repro.theory.cross_entropy import Term, cross_entropy_threshold
from frl_repro.theory.gaussian import Mixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from pandas import DataFrame

_CLASS_COLOURS = (BLUE, ORANGE)  # easy, hard
_METHOD_MARKS = dict(zip(METHODS, (("s", GREY), ("o", "black"), ("^", GREEN), ("D", RED), ("v", PURPLE)), strict=True))
_LARGEST = 0.8  # radius that curves are drawn up to, in eta
_NUM_POINTS = 41


def theory_figure(rows: DataFrame) -> Figure:
    """Errors by radius of two mixtures, and the one curve that all methods walk along.

    Left: classes of unequal width, standard errors against the radius trained for. Middle: a rare class, the same.
    Right: robust errors of both classes at one radius; every method is a point of one curve.

    Parameters
    ----------
    rows : DataFrame
        From `tables.theory.load_theory`.

    Raises
    ------
    UserError
        The rows lack classes of unequal width, or adversarially trained runs on them.
    """
    wide = rows[(rows["deviation_ratio"] > 1) & (rows["prior_ratio"] == 1)]
    rare = rows[(rows["deviation_ratio"] == 1) & (rows["prior_ratio"] > 1)]
    if wide[wide["method"] == "adversarial"].empty:
        raise UserError(f"the tables have no adversarial run on classes of unequal width: run `{COMMAND}`")
    wide, rare = (part.merge(part.head(1)[list(MIXTURE_COLUMNS)]) for part in (wide, rare))  # the first mixture of each
    num_panels = 2 if rare.empty else 3
    num_seeds = wide["seed"].nunique()
    measured = (
        f"trained: mean of {num_seeds} seeds, bar: ± 1 standard deviation" if num_seeds > 1 else "trained: 1 seed"
    )
    with paper_style():
        figure = Figure(figsize=(2.1 * COLUMN_WIDTH * num_panels / 3, 3.0), layout="constrained")
        panels = figure.subplots(1, num_panels)
        K = f"{mixture_of(wide).deviation_ratio:g}"
        _draw_by_radius(panels[0], wide, title=f"1. The hard class varies {K} times as much:\nattacks raise its error")
        if not rare.empty:
            R = f"{mixture_of(rare).prior_ratio:g}"
            _draw_by_radius(panels[1], rare, title=f"2. The hard class is {R} times rarer:\nattacks raise its error")
        _draw_curve(panels[-1], wide)
        handles = [
            Line2D([], [], color=_CLASS_COLOURS[0], label="easy class"),
            Line2D([], [], color=_CLASS_COLOURS[1], label="hard class"),
            Line2D([], [], color="black", linewidth=1.2, label="theory: smallest overall robust error"),
            Line2D([], [], color="black", linestyle=(0, (3, 2)), linewidth=0.9, label="theory: cross-entropy"),
            Line2D([], [], color="grey", marker="o", markersize=3.5, linestyle="", label=measured),
        ]
        add_legend(figure, handles, num_columns=3)
    return figure


def _draw_by_radius(axes: Axes, rows: DataFrame, *, title: str) -> None:
    mixture = mixture_of(rows)
    radii = np.linspace(0, _LARGEST, _NUM_POINTS) * mixture.eta
    best = np.array([mixture.errors(mixture.optimal_threshold(float(e))) for e in radii])
    trained = np.array([_trained(mixture, float(e)) for e in radii])
    for k, colour in enumerate(_CLASS_COLOURS):
        axes.plot(radii / mixture.eta, 100 * best[:, k], color=colour, linewidth=1.2)
        axes.plot(radii / mixture.eta, 100 * trained[:, k], color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
    for epsilon, part in rows[rows["method"] == "adversarial"].groupby("epsilon"):
        _mark(axes, float(str(epsilon)) / mixture.eta, part)
    natural = rows[rows["method"] == "natural"]
    if not natural.empty:
        _mark(axes, 0.0, natural[natural["epsilon"] == natural["epsilon"].min()])
    axes.set_title(title)
    axes.set_xlabel("radius trained for, ε / η  (0: natural training)")
    axes.set_ylabel("standard error by class (%)")
    axes.set_ylim(bottom=0)


def _trained(mixture: Mixture, epsilon: float) -> NDArray[np.float64]:
    return mixture.errors(cross_entropy_threshold(mixture, [Term(epsilons=(epsilon, epsilon))]))


def _mark(axes: Axes, at: float, rows: DataFrame) -> None:
    errors = 100 * by_class(rows, "natural_error")
    for k, colour in enumerate(_CLASS_COLOURS):
        mean, spread = errors[:, k].mean(), errors[:, k].std(ddof=1) if len(errors) > 1 else 0.0
        axes.errorbar(
            at, mean, yerr=spread, color=colour, marker="o", markersize=3.5, markeredgecolor="black",
            markeredgewidth=0.4, elinewidth=0.8,
        )  # fmt: skip


def _draw_curve(axes: Axes, rows: DataFrame) -> None:
    mixture = mixture_of(rows)
    radii = sorted(rows["epsilon"].unique())
    epsilon = float(radii[len(radii) // 2])
    here = rows[np.isclose(rows["epsilon"], epsilon)]
    a = float(mixture.distance(epsilon))
    errors = 100 * mixture.errors(np.linspace(-a - 1, a + 1.5, 400), epsilon)
    axes.plot(errors[:, 0], errors[:, 1], color="black", linewidth=1.2)
    best = 100 * mixture.errors(mixture.optimal_threshold(epsilon), epsilon)
    axes.plot(*best, "*", color="black", markersize=7)
    axes.annotate("smallest overall error", (best[0], best[1]), xytext=(5, 3), textcoords="offset points")
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.6)
    for method, (mark, colour) in _METHOD_MARKS.items():
        part = here[here["method"] == method]
        if part.empty:
            continue
        means = 100 * by_class(part, "robust_error").mean(0)
        axes.plot(
            *means, mark, color=colour, markersize=4.5, markeredgecolor="black", markeredgewidth=0.3, label=method
        )
    axes.legend(loc="lower right", title="trained:", alignment="left")
    limit = 1.15 * float(best.max())
    axes.set_xlim(0, limit)
    axes.set_ylim(0, limit)
    axes.annotate("equal errors", (0.2 * limit, 0.2 * limit), xytext=(4, -7), textcoords="offset points", color=GREY)
    axes.set_title(f"3. All methods lie on one curve\n(panel 1's classes, ε = {epsilon / mixture.eta:g} η)")
    axes.set_xlabel("robust error, easy class (%)")
    axes.set_ylabel("robust error, hard class (%)")
