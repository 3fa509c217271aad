"""Heat maps over two step lengths, or two numbers of another method: worst-class errors after retraining."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon, parse_fraction
from frl_repro.results.figures.style import COLUMN_WIDTH, RED, paper_style, wrapped
from frl_repro.results.tables.selection import (
    best_settings,
    by_setting,
    choice_rows,
    choice_split,
    of_setting,
    on_shared_seeds,
    one_value,
    seeds_text,
    setting_columns,
    summary,
)
from frl_repro.results.tables.variants import SETTINGS_COLUMN, VARIANT_COLUMN, differences, parts_of
from frl_repro.settings.methods import ALPHA_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from pandas import DataFrame

_QUANTITIES = {"natural": "Worst-class natural error (%)", "robust": "Worst-class robust error (%)"}
_LABELS = {name: name.replace("_", " ") for name in ALPHA_COLUMNS}
_CRITERION = "sum"
_COMMAND = "python train.py -m frl=reweight sweep=alpha_grid"


def main_rows(df: DataFrame) -> tuple[DataFrame, str]:
    """Rows of a grid of alphas, of the recipe and settings that most of its cells have, and a line that says so."""
    if SETTINGS_COLUMN not in df.columns:
        return df, ""
    kept, notes = [df], []
    for method, part in df[df["recipe"] != ""].groupby("method"):
        if len(_varied(part)) != 2:
            continue
        told_apart = differences(part[SETTINGS_COLUMN].unique())
        apart = "recipe=" + part["recipe"] + " " + part[SETTINGS_COLUMN].map(told_apart)
        cells = part.assign(apart=apart).drop_duplicates(["apart", *_varied(part)])
        num_cells = cells["apart"].value_counts(sort=False).sort_index()
        first, *others = map(str, num_cells.sort_values(ascending=False, kind="stable").index)
        if others:
            kept = [rows[rows["method"] != method] for rows in kept]
            kept.append(part[apart == first].assign(**{VARIANT_COLUMN: ""}))
            notes.append(
                f"shown: {method} {first.strip()}, as most cells; left out: {'; '.join(map(str.strip, others))}"
            )
    return pd.concat(kept), "\n".join(notes)


def grid_figure(df: DataFrame, *, epsilon: float, attack: str | None) -> Figure:
    """Worst-class errors on the test split over the grid of step lengths, means over seeds.

    A frame marks the setting that selection images (else validation images, see `choice_rows`) prefer by the sum of
    both worst-class errors; of a tie each one.

    Raises
    ------
    UserError
        As `grid_numbers`.
    """
    numbers, split = _numbers(df, epsilon=epsilon, attack=attack)
    rows, columns = _axes(numbers)
    with paper_style():
        side = 0.32 * max(numbers[rows].nunique(), 2)
        figure = Figure(figsize=(COLUMN_WIDTH, 0.95 + side), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
        for axes, (quantity, title) in zip(panels, _QUANTITIES.items(), strict=True):
            _draw(axes, numbers, rows, columns, f"worst_class_{quantity}_error")
            axes.set_title(title)
            axes.set_xlabel(_LABELS.get(columns, columns))
        panels[0].set_ylabel(_LABELS.get(rows, rows))
        seeds = seeds_text(numbers["num_seeds"])
        what = f"{numbers['method'].iloc[0]}, test split, ε = {format_epsilon(epsilon)}, {seeds}"
        num_best = int(numbers["is_chosen"].sum())
        said = f"frames: {num_best} tied" if num_best > 1 else "frame: chosen"
        said = "no frame: all tied" if num_best == len(numbers) else said
        figure.suptitle(wrapped(f"{what}\n{said} on {split} (sum of both)"), fontsize=6.5)
    return figure


def grid_numbers(df: DataFrame, *, epsilon: float, attack: str | None) -> DataFrame:
    """One row a setting: worst-class errors on the test split, seeds, and whether it is chosen, alone or not.

    Only seeds that every setting has are used.

    Raises
    ------
    UserError
        The tables hold no method, or several, with a grid of two alphas; several data sets, recipes or variants; no
        seed that all settings share; or no rows of another split to choose by.
    """
    return _numbers(df, epsilon=epsilon, attack=attack)[0]


def _numbers(df: DataFrame, *, epsilon: float, attack: str | None) -> tuple[DataFrame, str]:
    """The numbers, and the split that the setting was chosen on."""
    runs = summary(df[df["recipe"] != ""], epsilon=epsilon, attack=attack) if (df["recipe"] != "").any() else None
    if runs is None:
        raise UserError(f"the tables hold no retraining: run `{_COMMAND}`")
    after = runs[runs["when"] == "after"]
    varied = [str(m) for m, part in after.groupby("method") if len(_varied(part) or _own_varied(part)) == 2]
    if len(varied) != 1:
        found = f"several ({', '.join(varied)}): choose one with where=method=" if varied else f"none: run `{_COMMAND}`"
        shows = "a method with a grid of two alphas, or of two numbers of its own"
        raise UserError(f"this figure shows {shows}; the tables have {found}")
    after = after[after["method"] == varied[0]]
    own = [] if _varied(after) else _own_varied(after)
    axes = (*_LABELS, VARIANT_COLUMN) if own else tuple(_LABELS)
    one_value(after, *(name for name in setting_columns(after) if name not in axes))
    after = on_shared_seeds(after)
    choosing = choice_rows(after)
    if choosing.empty:
        raise UserError("the tables have no validation rows to choose a setting by")
    best = best_settings(choosing, _CRITERION)
    numbers = by_setting(after[after["split"] == "test"])
    numbers["is_chosen"] = np.any([of_setting(numbers, row) for _, row in best.iterrows()], axis=0)
    for name in own:
        numbers[name] = [parse_fraction(parts_of(variant)[name]) for variant in numbers[VARIANT_COLUMN]]
    return numbers, choice_split(choosing)


def _axes(numbers: DataFrame) -> tuple[str, str]:
    rows, columns = _varied(numbers) or _own_varied(numbers)
    return rows, columns


def _varied(rows: DataFrame) -> list[str]:
    return [name for name in _LABELS if name in rows.columns and rows[name].nunique() > 1]


def _own_varied(rows: DataFrame) -> list[str]:
    """Return the settings in which runs of a method without alphas differ, where all of their values are numbers."""
    if VARIANT_COLUMN not in rows.columns:
        return []
    values = pd.DataFrame([parts_of(variant) for variant in rows[VARIANT_COLUMN].unique()])
    varied = [str(name) for name in values.columns if values[name].nunique(dropna=False) > 1]
    return varied if all(values[name].map(_is_number).all() for name in varied) else []


def _is_number(text: object) -> bool:
    try:
        parse_fraction(str(text))
    except UserError:
        return False
    return True


def _draw(axes: Axes, numbers: DataFrame, rows: str, columns: str, quantity: str) -> None:
    table = numbers.pivot_table(index=rows, columns=columns, values=quantity)
    values = table.to_numpy(dtype=float)
    axes.imshow(values, cmap="cividis_r", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if np.isfinite(values[i, j]):
                # cividis_r is dark at large values. No pure black or white: on pages these follow dark mode.
                colour = "#fefefe" if values[i, j] > middle else "#010101"
                axes.text(j, i, f"{100 * values[i, j]:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(table.columns)), [f"{value:g}" for value in table.columns])
    axes.set_yticks(range(len(table.index)), [f"{value:g}" for value in table.index])
    axes.tick_params(length=0)
    framed = numbers.iloc[:0] if numbers["is_chosen"].all() else numbers[numbers["is_chosen"]]  # of a tie of all, none
    for chosen in framed.to_dict("records"):
        x, y = list(table.columns).index(chosen[columns]), list(table.index).index(chosen[rows])
        axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=RED, linewidth=1.5))
