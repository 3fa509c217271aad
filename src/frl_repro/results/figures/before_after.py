"""Figures 2 to 4: error by class before and after retraining with reweight, remargin or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.results import DEFAULT_TOP
from frl_repro.results.figures.class_bars import Series, describe, draw_class_panels, looks
from frl_repro.results.figures.style import GREEN, GREY
from frl_repro.results.tables.selection import (
    before_and_after,
    choice_rows,
    main_setting,
    one_setting,
    one_value,
    setting_name,
    summary,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_OF_ANY = "reweight"  # whose figure shows any other method as well
_TITLES = {"natural": "Natural error", "robust": "Robust error"}
_LOOKS = dict(zip(("before", "after"), looks(GREY, GREEN), strict=True))


def method_shown(df: DataFrame, method: str) -> str:
    """Return the figure's own method; where it is not there and another one is alone, that one.

    Raises
    ------
    UserError
        There are several others.
    """
    found = sorted(df.loc[df["recipe"] != "", "method"].unique())
    if method in found or method != _OF_ANY:
        return method
    if len(found) > 1:
        others = ", ".join(found)
        raise UserError(f"the tables have no run of method {method!r}; of {others} choose one with where=method=")
    return str(found[0]) if found else method


def main_rows(df: DataFrame, *, method: str, epsilon: float, attack: str | None) -> tuple[DataFrame, str]:
    """Rows of the method's setting to show, and a line that says which; all rows where no images can choose one.

    Raises
    ------
    UserError
        The method's rows are of several data sets or models.
    """
    rows = df[df["method"] == method]
    one_value(rows, "dataset", "model")
    choosing = choice_rows(rows)
    if choosing.empty:
        return rows, ""
    runs = summary(choosing, epsilon=epsilon, attack=attack)
    return main_setting(rows, runs[runs["when"] == "after"], "worst_class_robust_error")


def before_after_figure(
    df: DataFrame, *, method: str, command: str, epsilon: float, attack: str | None, top: int = DEFAULT_TOP
) -> Figure:
    """Natural and robust error by class before and after retraining, side by side, on the test split.

    Parameters
    ----------
    df
        Rows of ``classwise.csv`` that hold ``method`` under one setting; other methods are left out.
    method, command
        Which class policy, and the command that runs it, for the message when it is missing.
    epsilon, attack
        The evaluation, as for Figure 1.
    top
        Of many classes so many of the worst and of the best before retraining are drawn, by robust error.

    Raises
    ------
    UserError
        As `before_after_numbers`.
    """
    rows = _rows(df, method, command, epsilon, attack)
    panels = {title: _series(rows, quantity) for quantity, title in _TITLES.items()}
    caption = describe([rows], epsilon=epsilon, first_line=f"Before and after {setting_name(rows.iloc[0])}")
    return draw_class_panels(
        panels, caption=caption, by=_series(rows, "robust")[0], by_text="robust error before", top=top
    )


def before_after_numbers(df: DataFrame, *, method: str, command: str, epsilon: float, attack: str | None) -> DataFrame:
    """The numbers of `before_after_figure`: ``when``, ``quantity``, class, ``mean``, ``sd``, ``num_seeds``.

    Raises
    ------
    UserError
        The tables lack the method, hold several settings or data sets, or runs that were not measured before.
    """
    rows = _rows(df, method, command, epsilon, attack)
    parts = []
    for quantity in _TITLES:
        for when, series in zip(_LOOKS, _series(rows, quantity), strict=True):
            part = series.numbers()
            part.insert(0, "when", when)
            part.insert(1, "quantity", quantity)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _rows(df: DataFrame, method: str, command: str, epsilon: float, attack: str | None) -> DataFrame:
    return before_and_after(one_setting(df, method, command=command), epsilon=epsilon, attack=attack)


def _series(rows: DataFrame, quantity: str) -> tuple[Series, Series]:
    before, after = (
        Series(f"{when} retraining", look, rows[rows["when"] == when], quantity) for when, look in _LOOKS.items()
    )
    return before, after
