"""Tables and figures of what was trained or measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.api.training import Trained
from frl_repro.basics.errors import UserError
from frl_repro.basics.run_folder import POLICY_FILE
from frl_repro.results import DEFAULT_TOP
from frl_repro.results.figures import FIGURES, draw
from frl_repro.results.tables import text_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(result: Trained | pd.DataFrame, *, split: str = "test", top: int = DEFAULT_TOP) -> str:
    """Return errors by class in percent as text, the worst class of each column marked; before and after of retraining.

    Parameters
    ----------
    result : Trained or DataFrame
        Of `train` or `evaluate`: one model.
    split : str
        ``test`` or ``validation``.
    top : int
        Of many classes, how many of the worst and of the best.

    Raises
    ------
    UserError
        Rows of several models, or none of the split.
    """
    df = result.classwise if isinstance(result, Trained) else result
    is_retrained = bool((df["epoch"] == 0).any() and (df["epoch"] > 0).any())
    return (text_tables.before_after_table if is_retrained else text_tables.class_table)(df, split=split, top=top)


def figure(
    which: str,
    *results: Trained | pd.DataFrame,
    epsilon: float | None = None,
    attack: str | None = None,
    top: int = DEFAULT_TOP,
) -> Figure:
    """Return one of the package's figures, drawn from what was trained or measured.

    Parameters
    ----------
    which : str
        As in ``scripts/plot.py``: ``1`` to ``4``, ``grid``, ``trajectory``, ``settings``, ``tradeoff``.
    *results : Trained or DataFrame
        Of `train` or `evaluate`. ``trajectory`` shows a `Trained`, or its ``policy``.
    epsilon : float, optional
        Radius of the evaluation to show, in pixel units. None: the largest that most models have.
    attack : str, optional
        Attack of the evaluation to show, ``pgd-20``. None: the one of most models.
    top : int
        As in `table`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UserError
        An unknown figure, or results that do not hold what it shows.
    """
    if which not in FIGURES:
        raise UserError(f"figure {which!r}: unknown; known: {', '.join(FIGURES)}")
    entry = FIGURES[which]
    tables = [_table_for(entry.table, result) for result in results]
    if not tables:
        raise UserError(f"figure {which!r}: give what `evaluate` or `train` has returned")
    df = pd.concat(tables, ignore_index=True)
    return draw(entry, df, epsilon=epsilon, attack=attack, top=top).figure


def _table_for(file: str, result: Trained | pd.DataFrame) -> pd.DataFrame:
    if isinstance(result, pd.DataFrame):
        return result
    df = result.policy if file == POLICY_FILE else result.classwise
    if df is None:
        raise UserError("this figure shows class weights and radii: they are of a training with a method")
    return df
