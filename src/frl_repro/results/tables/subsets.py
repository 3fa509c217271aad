"""Choose rows of result tables: a split, a radius, an epoch, a checkpoint; and class rows summed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import EPSILON_TOLERANCE, format_epsilon
from frl_repro.results.tables.schema import CHECKPOINT_COLUMN, MEASUREMENT_COLUMNS

if TYPE_CHECKING:
    from pandas import DataFrame


def select_epsilon(df: DataFrame, epsilon: float) -> DataFrame:
    """Rows of ``df`` evaluated at ``epsilon`` ([0,1] pixel units), up to rounding.

    Raises
    ------
    UserError
        No row has this epsilon; the message names those there are.
    """
    is_selected = np.isclose(df["epsilon"].to_numpy(dtype=float), epsilon, rtol=0, atol=EPSILON_TOLERANCE)
    if not is_selected.any():
        available = ", ".join(format_epsilon(value) for value in sorted(df["epsilon"].unique()))
        raise UserError(f"no rows with epsilon={format_epsilon(epsilon)}; the tables have {available}")
    selected: DataFrame = df[is_selected]
    return selected


def select_split(df: DataFrame, split: str) -> DataFrame:
    """Rows of ``df`` measured on ``split``.

    Raises
    ------
    UserError
        No row has this split; the message names those there are.
    """
    selected: DataFrame = df[df["split"] == split]
    if selected.empty:
        raise UserError(f"no rows with split={split!r}; the tables have {', '.join(sorted(df['split'].unique()))}")
    return selected


def select_last_epoch(df: DataFrame) -> DataFrame:
    """Rows of each run's last measured epoch."""
    last: DataFrame = df[df["epoch"] == df.groupby("run_id")["epoch"].transform("max")]
    return last


def select_checkpoint(df: DataFrame, which: str) -> DataFrame:
    """Rows of ``df`` up to the chosen checkpoint of each run, so that its last epoch there is that checkpoint's.

    Parameters
    ----------
    df
        Rows of ``classwise.csv``.
    which
        ``"last"`` leaves out the rows of the test split that are of another checkpoint. ``"best"`` leaves out every
        epoch after the best one, of the test and of the validation split.

    Raises
    ------
    UserError
        Runs that kept no best checkpoint, where it is asked for.
    """
    marks = df[CHECKPOINT_COLUMN]
    if which == "last":
        last: DataFrame = df[marks != "best"]
        return last
    best = df[marks.isin(["best", "best+last"])].groupby("run_id")["epoch"].max()
    missing = sorted(set(df["run_id"]) - set(best.index))
    if missing:
        raise UserError(
            f"{', '.join(missing)}: kept no best checkpoint, as runs with evaluation.keep_best_by=... do; narrow runs= "
            "or where= to these"
        )
    selected: DataFrame = df[df["epoch"] <= df["run_id"].map(best)]
    return selected


def overall(df: DataFrame) -> DataFrame:
    """Errors over all samples and of the worst class, one row per evaluation.

    Returns
    -------
    DataFrame
        ``MEASUREMENT_COLUMNS``, ``count``, and for each of natural, boundary and robust error
        ``overall_*`` (from summed counts, so classes weigh by their samples), ``worst_class_*`` (the maximum over
        classes) and ``worst_class_*_name`` (the first class that attains it). Errors are shares in [0, 1].
    """
    keys = list(MEASUREMENT_COLUMNS)
    totals = df.groupby(keys, sort=True)[["count", "num_natural_errors", "num_boundary_errors"]].sum()
    result = totals[["count"]].copy()
    errors = {
        "natural_error": totals["num_natural_errors"],
        "boundary_error": totals["num_boundary_errors"],
        "robust_error": totals["num_natural_errors"] + totals["num_boundary_errors"],
    }
    for quantity, num_errors in errors.items():
        worst = df.sort_values([quantity, "class_id"], ascending=[False, True]).groupby(keys, sort=True).first()
        result[f"overall_{quantity}"] = num_errors / totals["count"]
        result[f"worst_class_{quantity}"] = worst[quantity]
        result[f"worst_class_{quantity}_name"] = worst["class_name"]
    return result.reset_index()
