"""Which rows of the tables belong together: one evaluation, one setting, before and after. Needs no torch."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.errors import UserError
from frl_repro.records import (
    RUN_COLUMNS,
    SETTING_COLUMNS,
    overall,
    parse_fraction,
    select_epsilon,
    select_last_epoch,
    select_split,
)
from frl_repro.variants import VARIANT_COLUMN

if TYPE_CHECKING:
    from pandas import DataFrame

_SETTING = ("dataset", "model", "method", *SETTING_COLUMNS, VARIANT_COLUMN)

_COMMA = re.compile(r",(?![^\[]*\])")  # not those within [0.5,2]
BEFORE = "before retraining"
"""What a model that retraining starts from is called among methods."""

_MAX_LISTED = 4  # settings named in a message
_SCORE_DIGITS = 12  # of means of shares of counts: far below one sample

AUTOATTACK = "autoattack"
"""How the names of its measurements begin."""

CRITERIA = {
    "worst_robust": ("worst_class_robust_error",),
    "worst_natural": ("worst_class_natural_error",),
    "sum": ("worst_class_natural_error", "worst_class_robust_error"),
}
"""What a choice among settings minimises on validation: a column of `summary`, or the sum of two."""


def setting_columns(df: DataFrame) -> list[str]:
    """Columns that runs of one setting share; seeds differ."""
    return [name for name in _SETTING if name in df.columns]


def select_attack(rows: DataFrame, attack: str | None) -> DataFrame:
    """Rows of one evaluation attack; the only one there is for None.

    AutoAttack measures a few finished models, often on part of the images, beside what every run is measured with: it
    is left out unless it is named, or all there is.

    Raises
    ------
    UserError
        There are several and none is named, or none of this name.
    """
    if attack is None:
        rows = _without_extra(rows)
        if rows["attack"].nunique() > 1:
            raise UserError(f"the tables have several attacks, {listed(rows['attack'])}: choose one with attack=")
        return rows
    selected: DataFrame = rows[rows["attack"] == attack]
    if selected.empty:
        raise UserError(f"no rows with attack={attack!r}; the tables have {listed(rows['attack'])}")
    return selected


def _without_extra(rows: DataFrame) -> DataFrame:
    """Rows of attacks other than AutoAttack; all where there are no others."""
    is_extra = rows["attack"].str.startswith(AUTOATTACK)
    selected: DataFrame = rows if is_extra.all() else rows[~is_extra]
    return selected


def largest_epsilon(rows: DataFrame, attack: str | None) -> float:
    """The largest radius of an attack; for None as in `select_attack`, and of several attacks alike.

    Raises
    ------
    UserError
        None is of this name.
    """
    if attack is None:
        return float(_without_extra(rows)["epsilon"].max())
    return float(select_attack(rows, attack)["epsilon"].max())


def select_where(df: DataFrame, where: str) -> DataFrame:
    """Rows whose columns have the values of ``"alpha_nat=5,alpha_bndy=1"``, or whose variant has ``ema_decay=0.998``.

    Raises
    ------
    UserError
        A column does not exist, or no row has these values.
    """
    for part in [part.strip() for part in _COMMA.split(where) if part.strip()]:
        name, equals, value = part.partition("=")
        variants = set(df[VARIANT_COLUMN]) if VARIANT_COLUMN in df.columns else set()
        if any(f" {name}=" in f" {variant}" for variant in variants):
            df = df[[part in variant.split() for variant in df[VARIANT_COLUMN]]]
            if df.empty:
                raise UserError(f"no rows with {part}; the tables have {'; '.join(sorted(variants))}")
            continue
        if not equals or name not in df.columns:
            raise UserError(f"where={part!r}: expected column=value; columns are {', '.join(df.columns)}")
        column = df[name]
        wanted = parse_fraction(value) if pd.api.types.is_numeric_dtype(column) else value
        df = df[column == wanted]
        if df.empty:
            raise UserError(f"no rows with {part}; the tables have {name}={listed(column.dropna().map(shown))}")
    return df


def one_setting(df: DataFrame, method: str, *, command: str) -> DataFrame:
    """Rows of one method, all of one setting, every seed once.

    Raises
    ------
    UserError
        The tables lack the method, hold it under several settings, or hold several runs of one seed.
    """
    rows: DataFrame = df[df["method"] == method]
    if rows.empty:
        raise UserError(f"the tables have no run of method {method!r}: run `{command}`")
    settings = [setting_name(row) for _, row in rows.drop_duplicates(setting_columns(rows)).iterrows()]
    if len(settings) > 1:
        some = "; ".join(settings[:_MAX_LISTED]) + ("; ..." if len(settings) > _MAX_LISTED else "")
        raise UserError(
            f"the tables have {method!r} under {len(settings)} settings ({some}): choose one with where=, "
            "for example where=alpha_nat=5,alpha_bndy=1"
        )
    runs = rows.drop_duplicates("run_id")
    repeated = runs[runs["seed"].duplicated(keep=False)]
    if not repeated.empty:
        seed = repeated["seed"].iloc[0]
        run_ids = listed(repeated.loc[repeated["seed"] == seed, "run_id"])
        raise UserError(f"method {method!r} has several runs with seed {seed} ({run_ids}): narrow runs= to one of them")
    return rows


def before_and_after(rows: DataFrame, *, epsilon: float, attack: str | None, split: str = "test") -> DataFrame:
    """Rows of one radius measured at epoch 0 and at the last epoch, told apart in column ``when``.

    Raises
    ------
    UserError
        A run was not measured at epoch 0, or not at this radius or by this attack.
    """
    measured = select_split(rows, split)
    missing = set(measured["run_id"]) - set(measured.loc[measured["epoch"] == 0, "run_id"])
    if missing:
        raise UserError(f"{', '.join(sorted(missing))}: not measured at epoch 0, before retraining")
    parts = []
    for when, part in (("before", measured[measured["epoch"] == 0]), ("after", select_last_epoch(measured))):
        chosen = select_attack(select_epsilon(part, epsilon), attack).copy()
        chosen["when"] = when
        parts.append(chosen)
    return pd.concat(parts, ignore_index=True)


def summary(df: DataFrame, *, epsilon: float, attack: str | None = None) -> DataFrame:
    """One row a run, split and moment (before, after): settings, overall and worst-class errors.

    Returns
    -------
    DataFrame
        `records.overall`'s columns, the setting columns, and ``when``: "before" for epoch 0, "after" for the last
        epoch; other epochs are left out.
    """
    parts = []
    for split in sorted(df["split"].unique()):
        rows = select_attack(select_epsilon(select_split(df, split), epsilon), attack)
        for when, part in (("before", rows[rows["epoch"] == 0]), ("after", select_last_epoch(rows))):
            if not part.empty:
                parts.append(overall(part).assign(when=when))
    table = pd.concat(parts, ignore_index=True)
    names = [name for name in setting_columns(df) if name not in RUN_COLUMNS]
    settings = df.drop_duplicates("run_id").set_index("run_id")[names]
    return table.join(settings, on="run_id")


def with_bases(runs: DataFrame) -> DataFrame:
    """Rows of `summary` after training, and each model before retraining once, as method ``before retraining``.

    Runs that start from the same model repeat its row. It keeps the recipe's name: recipes train different ones.
    """
    before, after = runs[runs["when"] == "before"], runs[runs["when"] == "after"]
    errors = [name for name in runs.columns if name.startswith(("overall_", "worst_class_"))]
    before = before.drop_duplicates(["dataset", "model", "recipe", "split", "seed", *errors]).copy()
    before["method"] = BEFORE
    before[[name for name in runs.columns if name.startswith("alpha_")]] = math.nan
    if VARIANT_COLUMN in before.columns:
        before[VARIANT_COLUMN] = ""
    return pd.concat([part for part in (before, after) if not part.empty], ignore_index=True)


def by_setting(runs: DataFrame) -> DataFrame:
    """Mean, sample standard deviation and number of seeds of each setting's worst and overall errors.

    Parameters
    ----------
    runs
        Rows of `summary` of one split and moment.

    Raises
    ------
    UserError
        A setting holds several runs of one seed, which are no repetitions of each other.
    """
    repeated = runs[runs.duplicated([*setting_columns(runs), "seed"], keep=False)]
    if not repeated.empty:
        first = repeated.iloc[0]
        same = repeated[(repeated["seed"] == first["seed"]) & of_setting(repeated, first)]
        raise UserError(
            f"{setting_name(first)!r} has several runs with seed {first['seed']} ({listed(same['run_id'])}): "
            "narrow runs= or where= to one of them"
        )
    quantities = [
        name for name in runs.columns if name.startswith(("overall_", "worst_class_")) and not name.endswith("_name")
    ]
    grouped = runs.groupby(setting_columns(runs), dropna=False, sort=True)
    result = grouped[quantities].mean()
    for name in quantities:
        result[f"{name}_sd"] = grouped[name].std()
    result["num_seeds"] = grouped["seed"].nunique()
    return result.reset_index()


def of_setting(df: DataFrame, row: pd.Series) -> pd.Series[bool]:
    """Which rows have the setting of ``row``."""
    names = setting_columns(df)
    wanted = row[names]
    return ((df[names] == wanted) | (df[names].isna() & wanted.isna())).all(axis=1)


def on_shared_seeds(runs: DataFrame) -> DataFrame:
    """Rows of the seeds that every setting has: settings are compared on the same seeds alone.

    Raises
    ------
    UserError
        There is no such seed.
    """
    num_settings = len(runs.drop_duplicates(setting_columns(runs)))
    having = runs.drop_duplicates([*setting_columns(runs), "seed"])["seed"].value_counts()
    shared = having[having == num_settings].index
    if shared.empty:
        raise UserError(f"{num_settings} settings share no seed: they cannot be compared")
    selected: DataFrame = runs[runs["seed"].isin(shared)]
    return selected


def seeds_text(num_seeds: pd.Series[int]) -> str:
    """``"3 seeds"``, or ``"1 to 3 seeds"`` where settings have different numbers of them."""
    least, most = int(num_seeds.min()), int(num_seeds.max())
    return f"{most} seed{'s' * (most > 1)}" if least == most else f"{least} to {most} seeds"


def best_setting(runs: DataFrame, criterion: str) -> pd.Series:
    """The setting with the smallest criterion on the seeds that all have; of a tie, the first in their order.

    Parameters
    ----------
    runs
        Rows of `summary`, of the validation split after training: a choice made on test images is none.
    criterion
        A key of ``CRITERIA``.

    Raises
    ------
    UserError
        The rows are not of the validation split, or the settings share no seed.
    """
    if set(runs["split"]) != {"validation"}:
        raise UserError("settings are chosen on the validation split, never on test images")
    table = by_setting(on_shared_seeds(runs))
    # Rounded, so that means of the same counts tie whatever the order of their sums.
    score = table[list(CRITERIA[criterion])].sum(axis=1).round(_SCORE_DIGITS)
    return table.iloc[int(score.to_numpy().argmin())]


def main_setting(df: DataFrame, runs: DataFrame, score: str) -> tuple[DataFrame, str]:
    """Rows of the setting that a figure of one setting shows unless told otherwise, and a line that says so.

    It is the setting with the most seeds, and among several the one with the smallest mean score. The line is empty
    where there is one setting only.

    Parameters
    ----------
    df
        Rows of a table.
    runs
        One row for each of its runs, with setting columns and ``seed``.
    score
        Column to compare by, measured on validation images.
    """
    grouped = runs.groupby(setting_columns(runs), dropna=False, sort=True)
    table = grouped[score].mean().round(_SCORE_DIGITS).reset_index()
    if len(table) <= 1:
        return df, ""
    num_seeds = grouped["seed"].nunique().to_numpy()
    chosen = table[num_seeds == num_seeds.max()].sort_values(score, kind="stable").iloc[0]
    return df[of_setting(df, chosen)], (
        f"shown: {setting_name(chosen)}, of {len(table)} settings the one with most seeds that does best on validation "
        "images (worst-class robust error); where= chooses another"
    )


def one_value(df: DataFrame, *names: str) -> None:
    """Refuse rows of several data sets or models in a figure of one: ``names`` are columns."""
    for name in names:
        if df[name].nunique() > 1:
            raise UserError(f"this figure shows one {name}, the tables have {listed(df[name])}: narrow runs= or where=")


def setting_name(row: pd.Series) -> str:
    """A setting as people write it: ``reweight nat 5 bndy 1``, with what tells it from others of the same alphas.

    The recipe is named where it is not the report's.
    """
    parts = [str(row["method"])]
    parts += [
        f"{name} {row[f'alpha_{name}']:g}"
        for name in ("nat", "bndy", "margin", "rob")
        if pd.notna(row.get(f"alpha_{name}", math.nan))
    ]
    if row["recipe"] not in ("", "report"):
        parts.append(f"({row['recipe']})")
    parts += [row[VARIANT_COLUMN]] if row.get(VARIANT_COLUMN) else []
    return " ".join(parts)


def shown(value: object) -> str:
    """A value as it is written on the command line."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(values: pd.Series) -> str:
    """Distinct values, sorted, separated by commas."""
    return ", ".join(sorted({str(value) for value in values}))
