"""The models that claims compare: which runs play which part, their class errors by seed, resampled over test images.

A part ("role") is one setting over several seeds: the natural model, the model that retraining starts from, reweight
with the alphas that validation prefers, and so on. Tables give errors; ``outcomes.safetensors`` files, where there are
any, give which images are wrong, so that models can be compared on the same images.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home
from frl_repro.basics.run_folder import walk
from frl_repro.results.registration import of_first_study
from frl_repro.results.tables import statistics, theory
from frl_repro.results.tables.outcomes import Outcomes, are_of_same_images, read_outcomes
from frl_repro.results.tables.reading import find_tables
from frl_repro.results.tables.selection import (
    best_setting,
    choice_rows,
    choice_split,
    comparable,
    main_data,
    main_evaluation,
    main_setting,
    of_setting,
    on_shared_seeds,
    select_attack,
    setting_columns,
    setting_name,
    summary,
)
from frl_repro.results.tables.subsets import select_checkpoint, select_epsilon, select_last_epoch, select_split
from frl_repro.results.tables.variants import read_runs
from frl_repro.results.tables.where import classes_alone, select_where

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from pandas import DataFrame

NATURAL, ADVERSARIAL = "natural", "adversarial"
BASE = "base"
REWEIGHT, REMARGIN, COMBINED = "reweight", "remargin", "combined"
CONTROL = "remargin's control"
ROLES = (NATURAL, ADVERSARIAL, BASE, REWEIGHT, CONTROL, REMARGIN, COMBINED)
"""Parts of a study. ``base`` is what the retrained models start from; the control takes remargin's steps with equal
margins."""

QUANTITIES = ("natural", "robust")
OUTCOMES_GLOB = "*outcomes.safetensors"

_SCORE = "worst_class_robust_error"  # on selection or validation images: what settings are chosen by


class Errors(NamedTuple):
    """Class errors of several roles on common seeds.

    Attributes
    ----------
    by_role : dict of (role, quantity) to array, shape (..., S, K)
        Errors in [0, 1]; leading axes are bootstrap samples, if any.
    shares : array, shape (K,)
        Share of each class among the images.
    """

    by_role: dict[tuple[str, str], NDArray[np.float64]]
    shares: NDArray[np.float64]

    def of(self, role: str, quantity: str) -> NDArray[np.float64]:
        """Class errors of a role, shape (..., S, K)."""
        return self.by_role[role, quantity]

    def overall(self, role: str, quantity: str) -> NDArray[np.float64]:
        """Error over all images of a role, shape (..., S)."""
        total: NDArray[np.float64] = self.by_role[role, quantity] @ self.shares
        return total


@dataclass(frozen=True)
class Named:
    """A class, named as worst by images that no result is computed from.

    Attributes
    ----------
    class_id, name
        The class.
    on_validation : bool
        False where there are no validation images: then the test split itself named it, and results are biased.
    """

    class_id: int
    name: str
    on_validation: bool


@dataclass(frozen=True)
class Preferred:
    """A setting that selection or validation images prefer to the one that plays a role, on the seeds that both have.

    Attributes
    ----------
    setting : str
    split : str
        Which images.
    seeds : list of int
    worst : dict of str to float
        Worst-class natural and robust error on test images, mean of these seeds.
    """

    setting: str
    split: str
    seeds: list[int]
    worst: dict[str, float]


@dataclass(frozen=True, eq=False)
class Study:
    """Test errors of every role at one radius, with outcomes by image.

    Attributes
    ----------
    rows : DataFrame
        Rows of ``classwise.csv`` after training, of the test split, with a column ``role``. Where no run plays a part,
        those of all runs, with an empty one.
    settings : dict of str to str
        Role to the setting that plays it.
    preferred : dict of str to Preferred
        Role to a setting of the same method that does better on validation images, with fewer seeds.
    validation : DataFrame
        Rows of the base models on validation images; empty where there are none.
    epsilon : float
        Radius of the evaluation attack in pixel units.
    attack : str
        Its name.
    outcomes : dict of (role, seed) to Outcomes
        Those found that count the same errors as the tables.
    notes : tuple of str
        Which runs of those there are it leaves out.
    """

    rows: DataFrame
    settings: dict[str, str]
    preferred: dict[str, Preferred]
    validation: DataFrame
    epsilon: float
    attack: str
    outcomes: dict[tuple[str, int], Outcomes]
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

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes."""
        return [str(name) for name in self.rows.drop_duplicates("class_id").sort_values("class_id")["class_name"]]

    def seeds(self, roles: Sequence[str]) -> list[int]:
        """Seeds that all roles have, sorted."""
        having = [set(self.rows.loc[self.rows["role"] == role, "seed"]) for role in roles]
        return sorted(set.intersection(*having))

    def worst_on(self, role: str, seeds: Sequence[int]) -> dict[str, float]:
        """Worst-class natural and robust error of a role, mean of some of its seeds."""
        rows = self.rows[(self.rows["role"] == role) & self.rows["seed"].isin(seeds)]
        by_seed = rows.groupby("seed")
        return {quantity: float(by_seed[f"{quantity}_error"].max().mean()) for quantity in QUANTITIES}

    def errors(self, roles: Sequence[str]) -> Errors:
        """Class errors of roles on the seeds they share."""
        seeds = self.seeds(roles)
        chosen = self.rows[self.rows["role"].isin(roles) & self.rows["seed"].isin(seeds)]
        by_role = {
            (role, quantity): chosen[chosen["role"] == role]
            .pivot(index="seed", columns="class_id", values=f"{quantity}_error")
            .to_numpy(dtype=np.float64)
            for role in roles
            for quantity in QUANTITIES
        }
        count = chosen.drop_duplicates("class_id").sort_values("class_id")["count"].to_numpy(dtype=np.float64)
        return Errors(by_role, count / count.sum())

    def resampled(self, roles: Sequence[str]) -> Errors | None:
        """`errors` on bootstrap samples of the test images, shape (B, S, K) each.

        None where the outcomes of a model are missing.
        """
        wanted = [(role, seed) for role in roles for seed in self.seeds(roles)]
        samples = self._resampled
        if samples is None or not {(*one, QUANTITIES[0]) for one in wanted} <= samples.keys():
            return None
        return Errors(
            {
                (role, quantity): np.stack([samples[role, seed, quantity] for seed in self.seeds(roles)], axis=1)
                for role in roles
                for quantity in QUANTITIES
            },
            self.errors(roles).shares,
        )

    @functools.cached_property
    def _resampled(self) -> dict[tuple[str, int, str], NDArray[np.float64]] | None:
        """Every model's class errors on the same bootstrap samples, shape (B, K) each."""
        if not self.outcomes:
            return None
        first = next(iter(self.outcomes.values()))
        same = {
            key: one
            for key, one in self.outcomes.items()
            if are_of_same_images(one, first) and np.array_equal(one.labels, first.labels)
        }
        names, wrong = [], []
        for (role, seed), one in same.items():
            is_robust_error = at_radius(one, self.epsilon)
            assert is_robust_error is not None  # it counted the table's errors
            names += [(role, seed, quantity) for quantity in QUANTITIES]
            wrong += [one.is_natural_error, is_robust_error]
        samples = statistics.resampled_class_errors(first.labels, np.stack(wrong), num_classes=len(self.class_names))
        return {name: samples[:, place] for place, name in enumerate(names)}

    def worst(self, quantity: str) -> Named:
        """The class with the largest mean error of the base models on validation images.

        The adversarial models' test errors name it where nothing was measured on validation images.
        """
        rows, on_validation = self.validation, not self.validation.empty
        if not on_validation:
            rows = self.rows[self.rows["role"] == (ADVERSARIAL if ADVERSARIAL in self.settings else BASE)]
        means = rows.groupby(["class_id", "class_name"])[f"{quantity}_error"].mean()
        class_id, name = means.index[int(means.to_numpy().argmax())]
        return Named(int(class_id), str(name), on_validation)


def study_rows(runs: str | Path, where: str = "") -> tuple[DataFrame, str]:
    """Return the rows of the data set and model that a study of ``runs`` is about, and a line that says which.

    Raises
    ------
    UserError
        There are no tables, or none with what ``where`` asks for; or it asks for some classes alone.
    """
    all_rows = _without_theory(read_runs(of_first_study(find_tables(runs))))
    df = select_where(all_rows, where)
    if classes_alone(all_rows, df):
        raise UserError(f"where={where!r}: claims compare the classes with each other and need all of them")
    df = select_checkpoint(df, "last")
    return main_data(df, ROLES)


def _without_theory(rows: DataFrame) -> DataFrame:
    """Rows but those on Gaussian mixtures, which `report.theory` judges; all where there are no others."""
    others = rows[rows["dataset"].str.partition(" ")[0] != theory.DATASET]
    return rows if others.empty else others


def load_study(runs: str | Path, *, epsilon: float | None = None, attack: str | None = None, where: str = "") -> Study:
    """Read tables and outcomes, and find the runs that play each role.

    Of several data sets or models the one with most roles is studied, of models that were trained unlike those that can
    be compared (see `selection.comparable`). Of several settings of a method, the one with most seeds that does best on
    selection images plays its role; on validation images where runs have no others.

    Parameters
    ----------
    runs
        As in `reading.find_tables`; outcomes are searched in the same places.
    epsilon : float, optional
        Radius in pixel units; the largest that most runs have by default.
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
    df = comparable(select_attack(select_epsilon(df, radius), attack))
    by_role = {role: rows for role in ROLES if not (rows := _rows_of(df, role)).empty}
    notes = tuple(filter(None, (data_note, note)))
    if not by_role:
        return Study(
            rows=select_last_epoch(select_split(df, "test")).assign(role=""),
            settings={},
            preferred={},
            validation=df.iloc[:0],
            epsilon=radius,
            attack=attack,
            outcomes={},
            notes=(
                *filter(None, (data_note, note)),
                f"no run of {runs} plays a part in the claims: {', '.join(ROLES)}",
            ),
        )
    chosen = {role: _one_setting(rows, radius) for role, rows in by_role.items()}
    before = pd.concat([rows[rows["epoch"] == 0] for rows in chosen.values()])
    # Methods start from the same models: each seed's counts once.
    before = before.drop_duplicates(["split", "seed", "class_id"])
    after = {role: select_last_epoch(select_split(rows, "test")) for role, rows in chosen.items()}
    if not before.empty:
        after[BASE] = before[before["split"] == "test"]
    rows = pd.concat([part.assign(role=role) for role, part in after.items()], ignore_index=True)
    preferred = {role: _preferred(part, chosen[role], radius) for role, part in by_role.items()}
    return Study(
        rows=rows,
        settings={role: BASE if role == BASE else setting_name(part.iloc[0]) for role, part in after.items()},
        preferred={role: one for role, one in preferred.items() if one is not None},
        validation=before[before["split"] == "validation"],
        epsilon=radius,
        attack=attack,
        outcomes=_matching(rows, outcomes_in(runs), radius),
        notes=notes,
    )


def _rows_of(df: DataFrame, role: str) -> DataFrame:
    """Rows of the runs that could play a role; none for the bases, which are other runs' epoch 0."""
    rows: DataFrame = df[df["method"] == (REMARGIN if role == CONTROL else role)]
    if role in (REMARGIN, CONTROL):
        rows = rows[(rows["alpha_margin"] > 0) == (role == REMARGIN)]
    return rows


def _one_setting(rows: DataFrame, epsilon: float) -> DataFrame:
    """Rows of the setting with most seeds that does best on the images of the choice."""
    if len(rows.drop_duplicates(setting_columns(rows))) == 1:
        return rows
    return main_setting(rows, _to_choose_by(rows, epsilon), _SCORE)[0]


def _preferred(rows: DataFrame, chosen: DataFrame, epsilon: float) -> Preferred | None:
    """The setting that does best on the choice's images of the seeds that all have; None if it is the chosen one."""
    if len(rows.drop_duplicates(setting_columns(rows))) == 1:
        return None
    try:
        shared = on_shared_seeds(_to_choose_by(rows, epsilon))
    except UserError:
        return None
    best = best_setting(shared, "worst_robust")
    if of_setting(chosen, best).all():
        return None
    seeds = sorted(int(seed) for seed in shared["seed"].unique())
    test = summary(rows[of_setting(rows, best) & rows["seed"].isin(seeds)], epsilon=epsilon)
    test = test[(test["split"] == "test") & (test["when"] == "after")]
    worst = {quantity: float(test[f"worst_class_{quantity}_error"].mean()) for quantity in QUANTITIES}
    return Preferred(setting_name(best), choice_split(shared), seeds, worst)


def _to_choose_by(rows: DataFrame, epsilon: float) -> DataFrame:
    runs = summary(rows, epsilon=epsilon)
    return choice_rows(runs[runs["when"] == "after"])


def outcomes_in(runs: str | Path) -> list[Outcomes]:
    """Return all outcomes in the folders of ``runs``, published ones among them."""
    folders = [Path(in_home(part.strip())) for part in str(runs).split(",")]
    files = [
        here / name
        for folder in folders
        if folder.is_dir()
        for here, _, names in walk(folder)
        for name in names
        if Path(name).match(OUTCOMES_GLOB)
    ]
    return [read_outcomes(path) for path in sorted(files)]


def _matching(rows: DataFrame, outcomes: Sequence[Outcomes], epsilon: float) -> dict[tuple[str, int], Outcomes]:
    """Outcomes of the models in the tables: those of the same seed that count the same errors in every class."""
    found = {}
    for role, seed in rows[["role", "seed"]].drop_duplicates().itertuples(index=False):
        model = rows[(rows["role"] == role) & (rows["seed"] == seed)].sort_values("class_id")
        counts = model[["count", "num_natural_errors", "num_boundary_errors"]].to_numpy()
        for one in outcomes:
            if one.about.get("seed") == seed and np.array_equal(counts_of(one, epsilon, len(counts)), counts):
                found[str(role), int(seed)] = one
    return found


def counts_of(one: Outcomes, epsilon: float, num_classes: int) -> NDArray[np.int64]:
    """Images, natural and boundary errors of each class, shape (K, 3); no rows where the radius was not measured."""
    is_robust_error = at_radius(one, epsilon)
    if is_robust_error is None or one.labels.max(initial=0) >= num_classes:  # not measured so, or of other data
        return np.empty((0, 3), dtype=np.int64)
    return one.class_counts(is_robust_error, num_classes)


def at_radius(one: Outcomes, epsilon: float) -> NDArray[np.bool_] | None:
    """Return which images are robust errors at a radius, shape (N,); None where it was not measured."""
    for radius, is_error in one.is_robust_error.items():
        if abs(radius - epsilon) < 1e-6:  # as subsets.select_epsilon
            return is_error
    return None
