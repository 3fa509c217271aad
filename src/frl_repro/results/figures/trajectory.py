"""How a class policy moved: errors it learnt from, class weights and margins over the epochs of retraining."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from frl_repro.basics.errors import UserError
from frl_repro.results.figures.style import (
    BLUE,
    COLUMN_WIDTH,
    GREY,
    ORANGE,
    TITLE_LINE_HEIGHT,
    add_legend,
    paper_style,
    shortened,
    wrapped,
)
from frl_repro.results.tables.schema import POLICY_COLUMNS
from frl_repro.results.tables.selection import (
    MAX_LISTED,
    main_setting,
    one_value,
    seeds_text,
    setting_columns,
    setting_name,
)
from frl_repro.results.tables.variants import BASE_COLUMN, SETTINGS_COLUMN, VARIANT_COLUMN

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from pandas import DataFrame

_PANELS = {
    "natural_error": "Natural error (validation)",
    "boundary_error": "Boundary error (validation)",
    "weight_nat": "Weight of the natural loss",
    "weight_bndy": "Weight of the boundary loss",
    "margin": "Training radius (grey levels)",
}
_HIGHLIGHTS, _POINT_SIZES = (ORANGE, BLUE), (5, 3)


def main_rows(df: DataFrame) -> tuple[DataFrame, str]:
    """Rows of the setting to show, one in which something moved where there is one, and a line that says which.

    Raises
    ------
    UserError
        The rows are of several data sets or models.
    """
    one_value(df, "dataset", "model")
    still = []
    for _, rows in df.groupby(setting_columns(df), dropna=False, sort=True):
        still += [] if _shown(_over_seeds(rows)) else [rows]
    if still and sum(map(len, still)) < len(df):
        df = df.drop(index=[place for rows in still for place in rows.index])
    else:
        still = []
    last = df[df["epoch"] == df.groupby("run_id")["epoch"].transform("max")]
    robust = (last["natural_error"] + last["boundary_error"]).groupby(last["run_id"]).max()
    runs = last.drop_duplicates("run_id").assign(worst=lambda rows: rows["run_id"].map(robust))
    chosen, note = main_setting(df, runs, "worst")
    names = [setting_name(rows.iloc[0]) for rows in still]
    some = "; ".join(names[:MAX_LISTED]) + ("; ..." if len(names) > MAX_LISTED else "")
    left_out = f"left out, nothing moved in {'it' if len(names) == 1 else 'them'}: {some}" if names else ""
    return chosen, "\n".join(filter(None, [note, left_out]))


def trajectory_figure(df: DataFrame) -> Figure:
    """One line a class over epochs, means over seeds; the classes that are worst at the end are drawn in colour.

    Parameters
    ----------
    df
        Rows of ``policy.csv`` of one setting.

    Raises
    ------
    UserError
        The rows are of several settings.
    """
    numbers = trajectory_numbers(df)
    shown = _shown(numbers)
    if not shown:
        raise UserError(
            f"nothing to draw of {setting_name(df.iloc[0])}: nothing that steers it moved; where= chooses others"
        )
    coloured = _worst_at_last(numbers)
    epochs = sorted(set(numbers["epoch"]))
    caption = wrapped(f"{setting_name(df.iloc[0])}, {seeds_text(df[['seed']].nunique())}")
    with paper_style():
        num_rows = -(-len(shown) // 2)
        height = 0.6 + 1.15 * num_rows + TITLE_LINE_HEIGHT * caption.count("\n")
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        grid = figure.subplots(num_rows, 2, sharex=True, squeeze=False).ravel()
        handles = []
        for axes, name in zip(grid, shown, strict=False):
            handles.append(_draw(axes, numbers, name, coloured))
            axes.set_title(_title(name), fontsize=6.5)  # two beside each other in one column
            axes.xaxis.set_major_locator(FixedLocator(epochs) if len(epochs) == 1 else MaxNLocator(integer=True))
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        for axes in grid[max(0, len(shown) - 2) : len(shown)]:
            axes.set_xlabel("Epoch")
            axes.tick_params(labelbottom=True)
        add_legend(figure, handles[0], num_columns=3)
        figure.suptitle(caption, fontsize=6.5)
    return figure


def trajectory_numbers(df: DataFrame) -> DataFrame:
    """Mean over seeds of each quantity by epoch and class.

    Raises
    ------
    UserError
        The rows are of several settings.
    """
    settings = {setting_name(row) for _, row in df.drop_duplicates("run_id").iterrows()}
    if len(settings) > 1:
        raise UserError(f"this figure shows one setting, the tables have {'; '.join(sorted(settings))}: use where=")
    return _over_seeds(df)


def _over_seeds(df: DataFrame) -> DataFrame:
    grouped = df.groupby(["epoch", "class_id", "class_name"], sort=True)[[*_PANELS, *_own_columns(df)]]
    return grouped.mean().reset_index()


def _own_columns(df: DataFrame) -> list[str]:
    """Columns that the method has of its own (`Method.columns`)."""
    others = df.columns.difference(
        [*POLICY_COLUMNS, *_PANELS, VARIANT_COLUMN, BASE_COLUMN, SETTINGS_COLUMN], sort=False
    )
    return [str(name) for name in others if df[name].dtype == float and df[name].notna().any()]


def _title(name: str) -> str:
    return _PANELS.get(name, name.replace("_", " ").capitalize())


def _shown(numbers: DataFrame) -> list[str]:
    """Quantities that differ among classes or epochs."""
    names = numbers.columns.drop(["epoch", "class_id", "class_name"])
    return [str(name) for name in names if numbers[name].notna().any() and numbers[name].nunique() > 1]


def _worst_at_last(numbers: DataFrame) -> list[str]:
    """The classes with the largest robust error after the last epoch, as many as there are highlights.

    Of a method that looks at no validation images: those with the largest weights.
    """
    last = numbers[numbers["epoch"] == numbers["epoch"].max()]
    robust = last["natural_error"] + last["boundary_error"]
    weights = last["weight_nat"] + last["weight_bndy"]
    score = weights.fillna(0) if robust.isna().all() else robust.fillna(0)
    worst = last.loc[score.nlargest(len(_HIGHLIGHTS)).index, "class_name"]
    return [str(name) for name in worst]


def _draw(axes: Axes, numbers: DataFrame, name: str, coloured: list[str]) -> list[Artist]:
    """Draw a panel and return what its legend shows."""
    scale = 255 if name == "margin" else 1
    marker = "o" if numbers["epoch"].nunique() == 1 else ""  # a line through one point is not seen
    lines: dict[str, Artist] = {}
    for class_name, part in numbers.groupby("class_name", sort=False):
        if class_name not in coloured:
            (line,) = axes.plot(
                part["epoch"], scale * part[name], color=GREY, linewidth=0.6, marker=marker, markersize=2
            )
            line.set_label("other classes")
            lines.setdefault("other classes", line)
    # Told apart from all classes, not only from each other.
    names = [str(name) for name in numbers["class_name"].unique()]
    label_of = dict(zip(names, shortened(names), strict=True))
    labels = [label_of[name] for name in coloured]
    # Of points at one place the first is larger: it is seen around the second, as a line is between its dashes.
    for class_name, label, colour, style, size in zip(
        coloured, labels, _HIGHLIGHTS, ("-", "--"), _POINT_SIZES, strict=False
    ):
        part = numbers[numbers["class_name"] == class_name]
        (line,) = axes.plot(
            part["epoch"],
            scale * part[name],
            color=colour,
            linestyle=style,
            linewidth=1.2,
            marker=marker,
            markersize=size,
        )
        line.set_label(label)
        lines[f"class {label}"] = line
    return list(lines.values())
