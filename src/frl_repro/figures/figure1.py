"""Figure 1 of the report: error by class of the naturally and of the adversarially trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

from frl_repro.errors import UserError
from frl_repro.figures.style import BLUE, COLUMN_WIDTH, ORANGE, paper_style
from frl_repro.records import format_epsilon, overall, select_epsilon, select_last_epoch, select_split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike
    from pandas import DataFrame

_PANEL_TITLES = {"natural": "Natural training", "adversarial": "Adversarial training"}
_COMMAND = "python train.py -m experiment=exp1"
_OVERALL = "overall"

_QUANTITIES = ("natural", "robust")
_BAR_COLOURS = {"natural": BLUE, "robust": ORANGE}
_HATCHES = {"natural": "", "robust": "////"}
_LINE_STYLES = {"natural": (0, (4, 2)), "robust": (0, (1, 1))}

_BAR_THICKNESS = 0.38  # in units of the distance between two classes
_DOT_OFFSET = 0.22  # of a bar's thickness: whiskers above its middle, dots below
_CLASS_HEIGHT = 0.19  # inches a class: two bars, and room around a label of 6.5 pt
_FRAME_HEIGHT = 1.15  # inches for titles, axis, legend and caption
_CAPTION_LINE_HEIGHT = 0.11  # inches
_MAX_LABEL_LENGTH = 18  # characters; longer names would leave no room for the bars


def figure1(df: DataFrame, *, epsilon: float, attack: str | None = None) -> Figure:
    """Natural and robust error by class, natural beside adversarial training, at the width of a paper's column.

    Bars are means over seeds on the test split after the last epoch. With several seeds, whiskers span one standard
    deviation either way and dots show the single seeds. Lines show the error over all samples; a star marks the worst
    class of each quantity.

    Parameters
    ----------
    df
        Rows of ``classwise.csv`` with the methods "natural" and "adversarial"; other methods are left out.
    epsilon
        Radius of the evaluation attack, [0,1] pixel units.
    attack
        Name of the evaluation attack; may be omitted where the tables hold only one.

    Raises
    ------
    UserError
        As `figure1_numbers`.
    """
    rows = _select_rows(df, epsilon=epsilon, attack=attack)
    numbers = _summarise(rows)
    num_classes = rows["class_id"].nunique()
    caption = _caption(rows, epsilon)
    height = _FRAME_HEIGHT + _CAPTION_LINE_HEIGHT * caption.count("\n") + _CLASS_HEIGHT * num_classes
    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, len(_PANEL_TITLES), sharex=True, sharey=True)
        for axes, (method, title) in zip(panels, _PANEL_TITLES.items(), strict=True):
            _draw_panel(axes, numbers[numbers["method"] == method], rows[rows["method"] == method])
            axes.set_title(title)
        _label_classes(panels[0], numbers)
        figure.suptitle(caption, fontsize=6.5)
        figure.legend(handles=_legend_handles(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def figure1_numbers(df: DataFrame, *, epsilon: float, attack: str | None = None) -> DataFrame:
    """The numbers that `figure1` draws, one row per method, quantity and class, and one for all samples ("overall").

    Returns
    -------
    DataFrame
        ``method``, ``quantity`` ("natural" or "robust"), ``class_id`` (missing in the overall rows), ``class_name``,
        ``mean`` and ``sd`` of the error over seeds (sample standard deviation, missing for a single seed), and
        ``num_seeds``.

    Raises
    ------
    UserError
        The tables lack one of the two methods, this epsilon, this attack or the test split; or hold several attacks,
        data sets or models, runs of different length, or two runs of one method and seed.
    """
    return _summarise(_select_rows(df, epsilon=epsilon, attack=attack))


def _select_rows(df: DataFrame, *, epsilon: float, attack: str | None) -> DataFrame:
    for method in _PANEL_TITLES:
        if not (df["method"] == method).any():
            raise UserError(f"the tables have no model with method={method!r}, Figure 1 needs both: run `{_COMMAND}`")
    rows = select_split(df[df["method"].isin(_PANEL_TITLES)], "test")
    # Before choosing epsilon and attack: a run's last epoch is the one it ended at, not the last one attacked so.
    rows = select_epsilon(select_last_epoch(rows), epsilon)
    rows = _select_attack(rows, attack)
    for name in ("dataset", "model"):
        if rows[name].nunique() > 1:
            raise UserError(f"Figure 1 shows one {name}, the tables have {_listed(rows[name])}: narrow runs=")
    for method in _PANEL_TITLES:
        _check_seeds(rows[rows["method"] == method], method, epsilon)
    if rows.groupby("class_id")["class_name"].nunique().max() > 1 or rows.groupby("run_id").size().nunique() > 1:
        raise UserError("the runs do not share the same classes: narrow runs=")
    return rows


def _select_attack(rows: DataFrame, attack: str | None) -> DataFrame:
    if attack is None:
        if rows["attack"].nunique() > 1:
            raise UserError(f"the tables have several attacks, {_listed(rows['attack'])}: choose one with attack=")
        return rows
    selected = rows[rows["attack"] == attack]
    if selected.empty:
        raise UserError(f"no rows with attack={attack!r}; the tables have {_listed(rows['attack'])}")
    return selected


def _check_seeds(rows: DataFrame, method: str, epsilon: float) -> None:
    if rows.empty:
        raise UserError(f"method {method!r} was not evaluated at epsilon={format_epsilon(epsilon)}: run `{_COMMAND}`")
    runs = rows.drop_duplicates("run_id")
    is_repeated = runs["seed"].duplicated(keep=False)
    if is_repeated.any():
        seed = runs["seed"][is_repeated].iloc[0]
        run_ids = _listed(runs["run_id"][runs["seed"] == seed])
        raise UserError(f"method {method!r} has several runs with seed {seed} ({run_ids}): narrow runs= to one of them")
    if runs["epoch"].nunique() > 1:
        ends = ", ".join(f"{run_id} at {epoch}" for run_id, epoch in zip(runs["run_id"], runs["epoch"], strict=True))
        raise UserError(f"runs of method {method!r} end at different epochs ({ends}): finish them or narrow runs=")


def _summarise(rows: DataFrame) -> DataFrame:
    totals = overall(rows)
    parts = []
    for method in _PANEL_TITLES:
        for quantity in _QUANTITIES:
            by_class = rows[rows["method"] == method].groupby(["class_id", "class_name"], sort=True)
            part = by_class[f"{quantity}_error"].agg(mean="mean", sd="std", num_seeds="size").reset_index()
            of_all = totals.loc[totals["method"] == method, f"overall_{quantity}_error"]
            last = {"class_name": _OVERALL, "mean": of_all.mean(), "sd": of_all.std(), "num_seeds": len(of_all)}
            part = pd.concat([part, pd.DataFrame([last])], ignore_index=True)
            part.insert(0, "method", method)
            part.insert(1, "quantity", quantity)
            parts.append(part)
    numbers = pd.concat(parts, ignore_index=True)
    # The overall rows have no class id: a nullable integer keeps the others from turning into 0.0, 1.0, ...
    return numbers.astype({"class_id": "Int64"})


def _draw_panel(axes: Axes, numbers: DataFrame, rows: DataFrame) -> None:
    for side, quantity in zip((-1, 1), _QUANTITIES, strict=True):
        shown = numbers[numbers["quantity"] == quantity]
        classes, of_all = shown[shown["class_id"].notna()], shown[shown["class_id"].isna()]
        mean = classes["mean"].to_numpy(dtype=float)
        position = classes["class_id"].to_numpy(dtype=float) + side * _BAR_THICKNESS / 2
        axes.barh(
            position,
            mean,
            height=_BAR_THICKNESS,
            color=_BAR_COLOURS[quantity],
            hatch=_HATCHES[quantity],
            edgecolor="black",
            linewidth=0.3,
            label=quantity,
        )
        if int(classes["num_seeds"].max()) > 1:
            sd = classes["sd"].to_numpy(dtype=float)
            axes.errorbar(
                mean,
                position - _DOT_OFFSET * _BAR_THICKNESS,
                xerr=sd,
                fmt="none",
                ecolor="black",
                elinewidth=0.6,
                capsize=1.2,
                capthick=0.6,
            )
            single = rows[f"{quantity}_error"].to_numpy(dtype=float)
            # Below the whisker, which they would hide; whole even at an error of 0 or 1.
            height = rows["class_id"].to_numpy(dtype=float) + (side / 2 + _DOT_OFFSET) * _BAR_THICKNESS
            axes.plot(
                single,
                height,
                "o",
                markersize=1.5,
                color="white",
                markeredgecolor="black",
                markeredgewidth=0.3,
                clip_on=False,
            )
        axes.axvline(float(of_all["mean"].iloc[0]), color="black", linewidth=0.7, linestyle=_LINE_STYLES[quantity])
        # At the foot of the bar, where a star has room even beside an error of 1.
        worst = position[mean == mean.max()]
        axes.add_line(_stars(np.full(len(worst), 0.05), worst))
    num_classes = rows["class_id"].nunique()
    axes.set_xlim(0, 1)
    # "0" and "1", not "0.0" and "1.0": the ends of neighbouring panels stay apart.
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.xaxis.set_minor_locator(FixedLocator([0.25, 0.75]))
    axes.set_xlabel("Error")
    # First class on top, as in a table.
    axes.set_ylim(num_classes - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _label_classes(axes: Axes, numbers: DataFrame) -> None:
    classes = numbers[numbers["class_id"].notna()].drop_duplicates("class_id")
    labels = [_shortened(str(name)) for name in classes["class_name"]]
    axes.set_yticks(classes["class_id"].to_numpy(dtype=float), labels)


def _caption(rows: DataFrame, epsilon: float) -> str:
    num_seeds = [rows.loc[rows["method"] == method, "seed"].nunique() for method in _PANEL_TITLES]
    smallest, largest = min(num_seeds), max(num_seeds)
    seeds = f"{largest} seed{'s' if largest > 1 else ''}" if smallest == largest else f"{smallest} and {largest} seeds"
    caption = f"Test split, {rows['attack'].iloc[0].upper()}, ε = {format_epsilon(epsilon)}, {seeds}"
    return f"{caption}\nbars: mean, whiskers: ± 1 sd, dots: single seeds" if largest > 1 else caption


def _legend_handles() -> list[Artist]:
    bars = [
        Patch(
            facecolor=_BAR_COLOURS[quantity],
            hatch=_HATCHES[quantity],
            edgecolor="black",
            linewidth=0.3,
            label=f"{quantity} error",
        )
        for quantity in _QUANTITIES
    ]
    lines = [
        Line2D([], [], color="black", linewidth=0.7, linestyle=_LINE_STYLES[quantity], label=f"{quantity}, overall")
        for quantity in _QUANTITIES
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


def _listed(values: pd.Series[str]) -> str:
    return ", ".join(sorted(values.unique()))
