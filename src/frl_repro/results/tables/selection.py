"""Select and group rows: one evaluation, one setting, before and after. Needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon
from frl_repro.results.tables.schema import RUN_COLUMNS, SETTING_COLUMNS
from frl_repro.results.tables.subsets import overall, select_epsilon, select_last_epoch, select_split
from frl_repro.results.tables.variants import BASE_COLUMN, EXTERNAL, VARIANT_COLUMN
from frl_repro.settings.methods import ALPHA_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection

    from pandas import DataFrame

_SETTING = ("dataset", "model", "method", *SETTING_COLUMNS, VARIANT_COLUMN)

BEFORE = "before retraining"
"""Method name of a base in tables of settings."""

MAX_LISTED = 4
"""How many settings or names a message lists."""

_SCORE_DIGITS = 12  # of means of shares of counts: far below one sample

AUTOATTACK = "autoattack"
"""How the names of its measurements begin."""

CRITERIA = {
    "worst_robust": ("worst_class_robust_error",),
    "worst_natural": ("worst_class_natural_error",),
    "sum": ("worst_class_natural_error", "worst_class_robust_error"),
}
"""What a choice among settings minimises: a column of `summary`, or the sum of two."""

CHOICE_SPLITS = ("selection", "validation")
"""Splits that settings are chosen on, the better one first: class policies have steered by validation images."""


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


def attacks_of(rows: DataFrame) -> list[str]:
    """Attacks that runs were measured with, that of most runs first; AutoAttack only where there is no other."""
    num_runs = _without_extra(rows).groupby("attack")["run_id"].nunique()
    return [str(attack) for attack in num_runs.sort_values(ascending=False, kind="stable").index]


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
        some = "; ".join(settings[:MAX_LISTED]) + ("; ..." if len(settings) > MAX_LISTED else "")
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
        `subsets.overall`'s columns, the setting columns, and ``when``: "before" for epoch 0 of a run that trained on
        from there, "after" for the last epoch; other epochs are left out.
    """
    trained = set(df.loc[df["epoch"] > 0, "run_id"])
    measured = select_attack(select_epsilon(df, epsilon), attack)
    parts = []
    for split in sorted(measured["split"].unique()):
        rows = select_split(measured, split)
        is_before = (rows["epoch"] == 0) & rows["run_id"].isin(trained)
        for when, part in (("before", rows[is_before]), ("after", select_last_epoch(rows))):
            if not part.empty:
                parts.append(overall(part).assign(when=when))
    table = pd.concat(parts, ignore_index=True)
    names = [name for name in (*setting_columns(df), BASE_COLUMN) if name not in RUN_COLUMNS and name in df.columns]
    runs = [name for name in RUN_COLUMNS if name in df.columns]
    return table.merge(df.drop_duplicates(runs)[[*runs, *names]], on=runs, how="left", validate="many_to_one")


def with_bases(runs: DataFrame) -> DataFrame:
    """Rows of `summary` after training, and each model before retraining once, as method ``before retraining``.

    Runs that start from the same model repeat its row. It keeps the recipe's name: recipes train different ones.
    """
    before, after = runs[runs["when"] == "before"], runs[runs["when"] == "after"]
    if VARIANT_COLUMN in before.columns:
        before = before.assign(**{VARIANT_COLUMN: before[BASE_COLUMN]})
        alike = [VARIANT_COLUMN]
    else:
        alike = [name for name in runs.columns if name.startswith(("overall_", "worst_class_"))]
    before = before.drop_duplicates(["dataset", "model", "recipe", "split", "seed", *alike]).copy()
    before["method"] = BEFORE
    before[[name for name in ALPHA_COLUMNS if name in runs.columns]] = math.nan
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


def choice_rows(rows: DataFrame) -> DataFrame:
    """Rows of the split that settings are chosen on: `selection` where every run has it, else `validation`.

    Runs of both kinds are compared on the images that both have.

    Parameters
    ----------
    rows
        Of classwise tables or of `summary`, all splits; a test row is never returned.
    """
    run_ids = set(rows["run_id"])
    is_kept_apart = rows["split"] == CHOICE_SPLITS[0]
    chosen: DataFrame = rows[
        is_kept_apart if set(rows.loc[is_kept_apart, "run_id"]) == run_ids else rows["split"] == CHOICE_SPLITS[1]
    ]
    return chosen


def choice_split(rows: DataFrame) -> str:
    """Name of the split that rows of `choice_rows` are of."""
    return str(rows["split"].iloc[0])


def best_setting(runs: DataFrame, criterion: str) -> pd.Series:
    """The setting with the smallest criterion on the seeds that all have; of a tie, the first in their order.

    See `best_settings`.
    """
    return best_settings(runs, criterion).iloc[0]


def best_settings(runs: DataFrame, criterion: str) -> DataFrame:
    """The settings with the smallest criterion on the seeds that all have, from `by_setting`; several where they tie.

    Parameters
    ----------
    runs
        Rows of `summary` after training, of one split (`choice_rows`): a choice made on test images is none.
    criterion
        A key of ``CRITERIA``.

    Raises
    ------
    UserError
        The rows are of another split or of several, or the settings share no seed.
    """
    if runs["split"].nunique() != 1 or choice_split(runs) not in CHOICE_SPLITS:
        raise UserError(f"settings are chosen on one of the splits {' and '.join(CHOICE_SPLITS)}, never on test images")
    table = by_setting(on_shared_seeds(runs))
    # Rounded, so that means of the same counts tie whatever the order of their sums.
    score = table[list(CRITERIA[criterion])].sum(axis=1).round(_SCORE_DIGITS)
    best: DataFrame = table[score == score.min()]
    return best


def main_setting(df: DataFrame, runs: DataFrame, score: str) -> tuple[DataFrame, str]:
    """Rows of the setting that a figure of one setting shows unless told otherwise, and a line that says so.

    It is the setting with the most seeds, and among several the one with the smallest mean score; those without a score
    come last, in their order. The line is empty where there is one setting only.

    Parameters
    ----------
    df
        Rows of a table.
    runs
        One row for each of its runs that has a score, with setting columns and ``seed``; of one split, ``split`` if it
        is not the validation split.
    score
        Column to compare by, measured on images of that split.
    """
    names = setting_columns(df)
    num_seeds = df.groupby(names, dropna=False, sort=True)["seed"].nunique().rename("num_seeds").reset_index()
    if len(num_seeds) <= 1:
        return df, ""
    most = num_seeds[num_seeds["num_seeds"] == num_seeds["num_seeds"].max()]
    scores = [round(float(runs.loc[of_setting(runs, row), score].mean()), _SCORE_DIGITS) for _, row in most.iterrows()]
    chosen = most.assign(score=scores).sort_values("score", kind="stable").iloc[0]
    if pd.notna(chosen["score"]):
        split = choice_split(runs) if "split" in runs.columns else "validation"
        why = f"the one with most seeds that does best on {split} images (worst-class robust error)"
    else:
        why = "the one with most seeds" if len(most) == 1 else "the first of those with most seeds"
    return df[of_setting(df, chosen)], (
        f"shown: {setting_name(chosen)}, of {len(num_seeds)} settings {why}; where= chooses another"
    )


def main_data(df: DataFrame, methods: Collection[str] = ()) -> tuple[DataFrame, str]:
    """Rows of the data set and model that a figure of one shows unless told otherwise, and a line that says so.

    They are those with most of the methods, then with most runs. The line is empty where there is one of each.
    """
    names = ["dataset", "model"]
    if len(df.drop_duplicates(names)) <= 1:
        return df, ""
    ranked = [
        (
            part[part["method"].isin(methods)]["method"].nunique(),
            part["run_id"].nunique(),
            place,
            (str(key[0]), str(key[1])),
        )
        for place, (key, part) in enumerate(df.groupby(names, sort=True))
    ]
    *_, chosen = max(ranked, key=lambda one: (one[0], one[1], -one[2]))
    others = "; ".join(", ".join(key) for *_, key in ranked if key != chosen)
    rows: DataFrame = df[(df["dataset"] == chosen[0]) & (df["model"] == chosen[1])]
    return (
        rows,
        f"shown: {', '.join(chosen)}; not shown: {others}; where=dataset=... or where=model=... chooses another",
    )


def comparable(df: DataFrame) -> DataFrame:
    """Rows of runs that can be compared with each other, of one data set and model.

    Of runs without a class policy those that train on the same images with the same steps, of retrained runs those that
    start from models trained alike: each time the group with most methods and seeds, the first of a tie. Checkpoints of
    unknown training stay.
    """
    if BASE_COLUMN not in df.columns:
        return df
    is_known = df["method"] != EXTERNAL
    parts = [df[~is_known]]
    for is_retrained in (False, True):
        part = df[is_known & ((df["recipe"] != "") == is_retrained)]
        groups = [group for _, group in part.groupby(BASE_COLUMN, sort=True)]
        sizes = [len(group.drop_duplicates(["method", "seed"])) for group in groups]
        parts += [groups[sizes.index(max(sizes))]] if groups else []
    return pd.concat(parts).sort_index()


def main_evaluation(df: DataFrame, *, epsilon: float | None, attack: str | None) -> tuple[float, str, str]:
    """Radius and attack that tables are read at unless told otherwise, and a line that names the runs without.

    The attack is the one that most methods and then most runs were measured with, AutoAttack apart (see
    `select_attack`); the radius the largest of those that most of these runs have.

    Returns
    -------
    epsilon : float
    attack : str
    note : str
        Empty where all runs were measured so.

    Raises
    ------
    UserError
        Several attacks measured equally many runs and none is named, or nothing was measured as asked for.
    """
    rows = df if attack is None else select_attack(df, attack)
    rows = rows if epsilon is None else select_epsilon(rows, epsilon)
    if attack is None:
        rows = _without_extra(rows)
        for what in ("method", "run_id"):
            number = rows.groupby("attack")[what].transform("nunique")
            rows = rows[number == number.max()]
        rows = select_attack(rows, None)
    if epsilon is None:
        # Up to rounding, as `select_epsilon` reads them.
        num_runs = rows.groupby(rows["epsilon"].round(6))["run_id"].transform("nunique")
        epsilon = float(rows.loc[num_runs == num_runs.max(), "epsilon"].max())
    chosen = str(rows["attack"].iloc[0])
    measured = set(select_epsilon(rows, epsilon)["run_id"])
    missing = sorted(set(df["run_id"]) - measured)
    if not missing:
        return epsilon, chosen, ""
    some = ", ".join(missing[:MAX_LISTED]) + (", ..." if len(missing) > MAX_LISTED else "")
    return (
        epsilon,
        chosen,
        (
            f"left out, not measured by {chosen} at epsilon {format_epsilon(epsilon)}: {len(missing)} of "
            f"{df['run_id'].nunique()} runs ({some}); attack= and epsilon= choose others"
        ),
    )


def one_value(df: DataFrame, *names: str) -> None:
    """Refuse rows of several data sets or models in a figure of one: ``names`` are columns."""
    for name in names:
        if df[name].nunique() > 1:
            found = listed(df[name].replace("", "(no name)"))
            raise UserError(f"this figure shows one {name}, the tables have {found}: narrow runs= or where=")


def setting_name(row: pd.Series) -> str:
    """A setting as people write it: ``reweight nat 5 bndy 1``, with what tells it from others of the same alphas.

    The recipe is named where it is not the reproduction report's.
    """
    parts = [str(row["method"])]
    parts += [
        f"{name.removeprefix('alpha_')} {row[name]:g}" for name in ALPHA_COLUMNS if pd.notna(row.get(name, math.nan))
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
