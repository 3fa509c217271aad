"""Anyone's runs as a study: which run plays which role, by its method and alphas. Nothing in it is registered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.results.protocol import AVERAGED
from frl_repro.results.registration import (
    ADVERSARIAL,
    BASE,
    EQUAL,
    EQUAL_MARGINS,
    NATURAL,
    of_one_study,
)
from frl_repro.results.report.comparison import Comparison, choose, matching_outcomes, outcomes_in
from frl_repro.results.report.questions import CHOSEN, COMBINED_51, COMBINED_55, REWEIGHT_51, REWEIGHT_55
from frl_repro.results.report.verdicts import Answer, judge
from frl_repro.results.tables import theory
from frl_repro.results.tables.reading import find_tables
from frl_repro.results.tables.selection import (
    CHOICE_SPLITS,
    choice_rows,
    comparable,
    main_data,
    main_evaluation,
    main_setting,
    select_attack,
    setting_columns,
    setting_name,
    summary,
)
from frl_repro.results.tables.subsets import select_checkpoint, select_epsilon, select_last_epoch, select_split
from frl_repro.results.tables.variants import VARIANT_COLUMN, read_runs
from frl_repro.results.tables.where import classes_alone, select_where

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pandas import DataFrame, Series

_METHODS = ("natural", "adversarial", "finetune", "reweight", "remargin", "combined")
"""Methods whose runs play a role."""

_SCORE = "worst_class_robust_error"  # what one of several settings is preferred by, on held-back images


@dataclass(frozen=True, eq=False)
class Study(Comparison):
    """Class errors of every role that some run plays. Where no run plays one, rows of all runs with an empty role.

    Attributes
    ----------
    settings : dict of str to str
        Role to the setting that plays it; of a chosen one, the settings with their numbers of seeds.
    epsilon : float
        The radius that figures and tables of one radius show, in pixel units.
    attack : str
        The evaluation attack.
    notes : tuple of str
        What of the runs is left out, and what makes numbers biased.
    """

    settings: dict[str, str]
    epsilon: float
    attack: str
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> tuple[str, str]:
        """Data set and model."""
        first = self.rows.iloc[0]
        return str(first["dataset"]), str(first["model"])

    def is_about(self, about: Mapping[str, Any]) -> bool:
        """Whether what a file says of its run is of this data set and model, as far as their names tell."""
        dataset, model = self.model
        named = dataset.split(" ")[0]
        return bool(about.get("dataset", named) == named and about.get("model", model) == model)

    def at_main_radius(self, role: str) -> DataFrame:
        """Test rows of a role at ``epsilon``."""
        return select_epsilon(select_split(self.rows[self.rows["role"] == role], "test"), self.epsilon)

    def judge(self) -> list[Answer]:
        """Answer the questions as far as the runs go; nothing is decided. None where no run plays a role."""
        return judge(self, registered=None) if self.settings else []


def study_rows(runs: str | Path, where: str = "") -> tuple[DataFrame, str]:
    """Return the rows of the data set and model that a study of ``runs`` is about, and a line that says which.

    Raises
    ------
    UserError
        There are no tables, or none with what ``where`` asks for; or it asks for some classes alone.
    """
    all_rows = _without_theory(read_runs(of_one_study(find_tables(runs))))
    df = select_where(all_rows, where)
    if classes_alone(all_rows, df):
        raise UserError(f"where={where!r}: questions compare the classes with each other and need all of them")
    df = select_checkpoint(df, "last")
    return main_data(df, _METHODS)


def _without_theory(rows: DataFrame) -> DataFrame:
    """Rows but those on Gaussian mixtures, which `report.theory` judges; all where there are no others."""
    others = rows[rows["dataset"].str.partition(" ")[0] != theory.DATASET]
    return rows if others.empty else others


def load_study(runs: str | Path, *, epsilon: float | None = None, attack: str | None = None, where: str = "") -> Study:
    """Read tables and outcomes, and find the runs that play each role.

    Of several data sets or models the one with most methods is studied, of models that were trained unlike those that
    can be compared (see `selection.comparable`). A role that is one setting (``reweight 5:1``) is played by the one
    with most seeds, and then by the one that held-back images prefer. Where each seed chooses (``reweight, chosen``),
    it chooses among the settings that all seeds of the method have; a note names the others.

    Parameters
    ----------
    runs
        As in `reading.find_tables`; outcomes are searched in the same places.
    epsilon : float, optional
        The only radius, in pixel units; by default all that every run of a role has.
    attack : str, optional
        Evaluation attack; by default the one that most runs were measured with.
    where : str
        Which rows, as in `where.select_where`.

    Raises
    ------
    UserError
        No tables, or none at this radius or by this attack.
    """
    df, data_note = study_rows(runs, where)
    radius, attack, note = main_evaluation(df, epsilon=epsilon, attack=attack)
    notes = [one for one in (data_note, note) if one]
    df = select_attack(df, attack)
    df = comparable(df[df["run_id"].isin(set(select_epsilon(df, radius)["run_id"]))])
    radii = (radius,) if epsilon is not None else _common_radii(df[df["method"].isin(_METHODS)], radius)
    df = pd.concat([select_epsilon(df, one) for one in radii])
    found = {role: rows for role, rows in _roles(df) if not rows.empty}
    if not found:
        notes.append(f"no run of {runs} plays a part in the questions: {', '.join(_METHODS)}")
        rows = select_last_epoch(select_split(df, "test")).assign(role="")
        return Study(rows, radii, {}, {}, radius, attack, tuple(notes))
    parts: list[DataFrame] = []
    settings: dict[str, str] = {}
    for role, rows in found.items():
        played, name, said = _chosen(rows, radii) if role in CHOSEN.values() else (*_one_setting(rows, radius), "")
        if said:
            notes.append(f"{role}: {said}")
        if not played.empty:
            parts.append(played.assign(role=role))
            settings[role] = name
    everything = pd.concat(parts, ignore_index=True)
    after = everything[everything["epoch"] == everything.groupby("run_id")["epoch"].transform("max")]
    # Methods start from the same models: each seed's counts once.
    before = everything[(everything["epoch"] == 0) & (everything["recipe"] != "")]
    before = before.drop_duplicates(["split", "epsilon", "seed", "class_id"]).assign(role=BASE)
    if not before.empty:
        settings[BASE] = BASE
    rows = pd.concat([after, before], ignore_index=True)
    rows = rows[rows["split"].isin(["test", *CHOICE_SPLITS])]
    outcomes = matching_outcomes(rows[rows["split"] == "test"], outcomes_in(runs), radii)
    study = Study(rows, radii, outcomes, settings, radius, attack, tuple(notes))
    if study.is_named_by_test:
        biased = (
            "no images were held back: the worst class is the one with the largest test error, which is biased upwards"
        )
        return replace(study, notes=(*notes, biased))
    return study


def _common_radii(rows: DataFrame, radius: float) -> tuple[float, ...]:
    """Radii that all runs were measured at, sorted; ``radius`` alone where there are no runs."""
    num_runs = rows.groupby(rows["epsilon"].round(6))["run_id"].nunique()
    common = [float(value) for value in num_runs.index[num_runs == rows["run_id"].nunique()]]
    return tuple(common) or (radius,)


def _roles(df: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """Yield every role with the rows of the runs that could play it."""

    def of(method: str, is_meant: Series[bool] | None = None) -> DataFrame:
        rows = df["method"] == method
        return df[rows if is_meant is None else rows & is_meant]

    def alphas(nat: float, bndy: float) -> Series[bool]:
        return (df["alpha_nat"] == nat) & (df["alpha_bndy"] == bndy)

    is_averaged = df[VARIANT_COLUMN].str.contains(AVERAGED)
    yield NATURAL, of("natural")
    yield ADVERSARIAL, of("adversarial")
    yield EQUAL, of("finetune", ~is_averaged)
    yield REWEIGHT_51, of("reweight", alphas(5, 1))
    yield REWEIGHT_55, of("reweight", alphas(5, 5))
    yield CHOSEN["reweight"], of("reweight")
    yield CHOSEN["margins"], of("combined", alphas(0, 0))
    yield COMBINED_51, of("combined", alphas(5, 1))
    yield COMBINED_55, of("combined", alphas(5, 5))
    yield CHOSEN["combined"], of("combined", ~alphas(0, 0))
    yield EQUAL_MARGINS, of("remargin", df["alpha_margin"] == 0)
    yield CHOSEN["remargin"], of("remargin", df["alpha_margin"] > 0)


def _one_setting(rows: DataFrame, epsilon: float) -> tuple[DataFrame, str]:
    """Rows of the setting with most seeds that does best on held-back images, and its name."""
    if len(rows.drop_duplicates(setting_columns(rows))) > 1:
        runs = summary(rows, epsilon=epsilon)
        rows, _ = main_setting(rows, choice_rows(runs[runs["when"] == "after"]), _SCORE)
    return rows, setting_name(rows.iloc[0])


def _chosen(rows: DataFrame, radii: Sequence[float]) -> tuple[DataFrame, str, str]:
    """Rows of each seed's chosen setting, the settings with their numbers of seeds, and what to know of the choice."""
    setting = rows.groupby(setting_columns(rows), dropna=False).ngroup()
    names = {place: setting_name(rows.loc[setting == place].iloc[0]) for place in setting.unique()}
    rows = rows.assign(role=setting.map(names))
    seeds = rows.groupby("role", sort=False)["seed"].nunique()
    candidates = [str(name) for name in seeds.index[seeds == seeds.max()]]
    fewer = [f"{name} ({number})" for name, number in seeds[seeds < seeds.max()].items()]
    said = f"left out, with fewer seeds than {candidates[0]} ({seeds.max()}): {', '.join(fewer)}" if fewer else ""
    if len(candidates) == 1:
        return rows[rows["role"] == candidates[0]], candidates[0], said
    after = rows[rows["epoch"] == rows.groupby("run_id")["epoch"].transform("max")]
    chosen = choose(choice_rows(after), radii, candidates)
    if not chosen:
        said = f"no held-back images, or no common seed, to choose one of {', '.join(candidates)} by; where= names one"
        return rows.iloc[:0], "", said
    is_played = [chosen.get(int(seed)) == name for seed, name in zip(rows["seed"], rows["role"], strict=True)]
    number = Counter(chosen.values())
    return (
        rows[is_played],
        "; ".join(f"{name} ({count} seed{'s' * (count > 1)})" for name, count in number.most_common()),
        said,
    )
