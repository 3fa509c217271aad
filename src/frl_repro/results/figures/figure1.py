"""Figure 1 of the reproduction report: error by class of the naturally and of the adversarially trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon
from frl_repro.results import DEFAULT_TOP
from frl_repro.results.figures.class_bars import Series, describe, draw_class_panels, looks
from frl_repro.results.figures.style import BLUE, ORANGE
from frl_repro.results.tables.selection import comparable, listed, main_setting, select_attack
from frl_repro.results.tables.subsets import select_epsilon, select_last_epoch, select_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_PANEL_TITLES = {"natural": "Natural training", "adversarial": "Adversarial training"}
_COMMAND = "python train.py -m experiment=exp1"
_LOOKS = dict(zip(("natural", "robust"), looks(BLUE, ORANGE), strict=True))


def main_rows(df: DataFrame) -> tuple[DataFrame, str]:
    """Rows of one setting of each model, trained on the same images with the same steps, and a line that says which."""
    df = comparable(df)
    parts, notes = [], []
    for method in _PANEL_TITLES:
        rows = df[df["method"] == method]
        # Nothing of these models is chosen on validation images.
        rows, note = main_setting(rows, rows.iloc[:0].assign(score=0.0), "score") if len(rows) else (rows, "")
        parts.append(rows)
        notes.append(note)
    return pd.concat(parts), "\n".join(filter(None, notes))


def figure1(df: DataFrame, *, epsilon: float, attack: str | None = None, top: int = DEFAULT_TOP) -> Figure:
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
    top
        Of many classes so many of the worst and of the best of the adversarial model are drawn, by robust error.

    Raises
    ------
    UserError
        As `figure1_numbers`.
    """
    rows = _select_rows(df, epsilon=epsilon, attack=attack)
    panels = {title: _series(rows, method) for method, title in _PANEL_TITLES.items()}
    parts = [rows[rows["method"] == method] for method in _PANEL_TITLES]
    return draw_class_panels(
        panels,
        caption=describe(parts, epsilon=epsilon),
        by=_series(rows, "adversarial")[1],
        by_text="adversarial robust error",
        top=top,
    )


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
    rows = _select_rows(df, epsilon=epsilon, attack=attack)
    parts = []
    for method in _PANEL_TITLES:
        for series in _series(rows, method):
            part = series.numbers()
            part.insert(0, "method", method)
            part.insert(1, "quantity", series.quantity)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _series(rows: DataFrame, method: str) -> tuple[Series, Series]:
    natural, robust = (
        Series(f"{quantity} error", look, rows[rows["method"] == method], quantity) for quantity, look in _LOOKS.items()
    )
    return natural, robust


def _select_rows(df: DataFrame, *, epsilon: float, attack: str | None) -> DataFrame:
    for method in _PANEL_TITLES:
        if not (df["method"] == method).any():
            raise UserError(f"the tables have no model with method={method!r}, Figure 1 needs both: run `{_COMMAND}`")
    rows = select_split(df[df["method"].isin(_PANEL_TITLES)], "test")
    # Before choosing epsilon and attack: a run's last epoch is the one it ended at, not the last one attacked so.
    rows = select_epsilon(select_last_epoch(rows), epsilon)
    rows = select_attack(rows, attack)
    for name in ("dataset", "model"):
        if rows[name].nunique() > 1:
            raise UserError(f"Figure 1 shows one {name}, the tables have {listed(rows[name])}: narrow runs=")
    for method in _PANEL_TITLES:
        _check_seeds(rows[rows["method"] == method], method, epsilon)
    if rows.groupby("class_id")["class_name"].nunique().max() > 1 or rows.groupby("run_id").size().nunique() > 1:
        raise UserError("the runs do not share the same classes: narrow runs=")
    return rows


def _check_seeds(rows: DataFrame, method: str, epsilon: float) -> None:
    if rows.empty:
        raise UserError(f"method {method!r} was not evaluated at epsilon={format_epsilon(epsilon)}: run `{_COMMAND}`")
    runs = rows.drop_duplicates("run_id")
    is_repeated = runs["seed"].duplicated(keep=False)
    if is_repeated.any():
        seed = runs["seed"][is_repeated].iloc[0]
        run_ids = listed(runs["run_id"][runs["seed"] == seed])
        raise UserError(f"method {method!r} has several runs with seed {seed} ({run_ids}): narrow runs= to one of them")
    if runs["epoch"].nunique() > 1:
        ends = ", ".join(f"{run_id} at {epoch}" for run_id, epoch in zip(runs["run_id"], runs["epoch"], strict=True))
        raise UserError(f"runs of method {method!r} end at different epochs ({ends}): finish them or narrow runs=")
