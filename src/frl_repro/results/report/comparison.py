"""The models that questions compare: class errors by role and seed at every radius, resampled over test images.

A role is a part that some runs play: the natural model, the base, reweight at 5:1, the setting of reweight that a seed
prefers, and so on. Tables give errors; ``outcomes.safetensors`` files, where there are any, give which images are
wrong, so that models can be compared on the same images.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home
from frl_repro.basics.run_folder import walk
from frl_repro.results.registration import ADVERSARIAL, BASE, NATURAL
from frl_repro.results.report.questions import NATURAL_ERROR, Errors, Quantity, quantities
from frl_repro.results.tables import statistics
from frl_repro.results.tables.outcomes import Outcomes, are_of_same_images, read_outcomes
from frl_repro.results.tables.selection import CHOICE_SPLITS
from frl_repro.results.tables.subsets import overall, select_epsilon

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

OUTCOMES_GLOB = "*outcomes.safetensors"

FROM_SCRATCH = (NATURAL, ADVERSARIAL)
"""Models that see every training image and so have no selection images of their own."""

_SCORE_DIGITS = 12  # of means of shares of counts: far below one sample


@dataclass(frozen=True, eq=False)
class Comparison:
    """Class errors of every role.

    Attributes
    ----------
    rows : DataFrame
        Rows of ``classwise.csv`` of the test split and of those that choices are made on (see
        `selection.CHOICE_SPLITS`), at the epoch that counts, with a column ``role``.
    radii : tuple of float
        Radii that every role was measured at, in pixel units, sorted.
    outcomes : dict of (role, seed) to Outcomes
        Those found that count the same errors as the tables.
    """

    rows: DataFrame
    radii: tuple[float, ...]
    outcomes: Mapping[tuple[str, int], Outcomes]

    @property
    def roles(self) -> list[str]:
        """Roles that some run plays."""
        return [str(role) for role in self.rows["role"].unique()]

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes."""
        return [str(name) for name in self.rows.drop_duplicates("class_id").sort_values("class_id")["class_name"]]

    def seeds(self, roles: Sequence[str]) -> tuple[int, ...]:
        """Seeds that all roles have, sorted."""
        return tuple(sorted(set.intersection(*(self._seeds[role] for role in roles))))

    def errors(self, roles: Sequence[str]) -> Errors:
        """Test errors of roles on the seeds that all of them have."""
        seeds = self.seeds(roles)
        by_class = {
            (role, quantity): self._errors_of("test", role, seeds, quantity)
            for role in roles
            for quantity in quantities(self.radii)
        }
        named = {(role, quantity): self._worst_classes(role, seeds, quantity) for role, quantity in by_class}
        return Errors(by_class, named, self._shares)

    def resampled(self, roles: Sequence[str]) -> Errors | None:
        """`errors` on bootstrap samples of the test images; None where the outcomes of a model are missing."""
        samples, seeds = self._samples, self.seeds(roles)
        if any((role, seed) not in samples for role in roles for seed in seeds):
            return None
        found = self.errors(roles)
        by_class = {
            (role, quantity): np.stack([samples[role, seed][quantity] for seed in seeds], axis=1)
            for role, quantity in found.by_class
        }
        return Errors(by_class, found.worst_class, self._shares)

    @functools.cached_property
    def _seeds(self) -> dict[str, set[int]]:
        return {str(role): {int(seed) for seed in rows["seed"].unique()} for role, rows in self._test.groupby("role")}

    @functools.cached_property
    def _test(self) -> DataFrame:
        return self.rows[self.rows["split"] == "test"]

    @functools.cached_property
    def _shares(self) -> NDArray[np.float64]:
        count = self._test.drop_duplicates("class_id").sort_values("class_id")["count"].to_numpy(dtype=np.float64)
        shares: NDArray[np.float64] = count / count.sum()
        return shares

    @functools.cached_property
    def _tables(self) -> dict[tuple[str, Quantity], DataFrame]:
        """Class errors by split and quantity: a row for each role and seed, a column for each class."""
        return {
            (str(split), (name, radius)): select_epsilon(rows, self.radii[0] if radius is None else radius).pivot(
                index=["role", "seed"], columns="class_id", values=f"{name}_error"
            )
            for split, rows in self.rows.groupby("split")
            for name, radius in quantities(self.radii)
        }

    def _errors_of(self, split: str, role: str, seeds: Sequence[int], quantity: Quantity) -> NDArray[np.float64]:
        """Class errors of a role, shape (S, K)."""
        return self._tables[split, quantity].loc[role].loc[list(seeds)].to_numpy(dtype=np.float64)

    @property
    def is_named_by_test(self) -> bool:
        """Whether some role has no held-back images, so that its largest test error stands for its worst class."""
        return any(self._naming_splits[self._judge(role)] == "test" for role in self.roles)

    def _judge(self, role: str) -> str:
        """The role whose held-back images name a role's worst class."""
        if role not in FROM_SCRATCH:
            return role
        return next(one for one in (BASE, ADVERSARIAL, role) if one in self._seeds)

    @functools.cached_property
    def _naming_splits(self) -> dict[str, str]:
        """The split whose images name a role's worst class: the best of ``CHOICE_SPLITS`` that all its runs have.

        Test images themselves where there is none: the error is biased upwards then.
        """
        having = self.rows.groupby("role")["split"].unique()
        return {
            str(role): next((split for split in CHOICE_SPLITS if split in splits), "test")
            for role, splits in having.items()
        }

    def _worst_classes(self, role: str, seeds: Sequence[int], quantity: Quantity) -> NDArray[np.int64]:
        """The class that held-back images name as worst, for each seed.

        Models trained from scratch see every training image: the mean over the base models names one class for all of
        them, and where there is no base the mean over the adversarial models on test images.
        """
        if role not in FROM_SCRATCH:
            named: NDArray[np.int64] = self._errors_of(self._naming_splits[role], role, seeds, quantity).argmax(axis=1)
            return named
        judge = self._judge(role)
        mean = self._errors_of(self._naming_splits[judge], judge, sorted(self._seeds[judge]), quantity).mean(axis=0)
        return np.full(len(seeds), int(mean.argmax()))

    @functools.cached_property
    def _samples(self) -> dict[tuple[str, int], dict[Quantity, NDArray[np.float64]]]:
        """Every model's class errors on the same bootstrap samples, shape (B, K) each."""
        if not self.outcomes:
            return {}
        first = next(iter(self.outcomes.values()))
        names: list[tuple[tuple[str, int], Quantity]] = []
        wrong: list[NDArray[np.bool_]] = []
        for key, one in self.outcomes.items():
            if not (are_of_same_images(one, first) and np.array_equal(one.labels, first.labels)):
                continue
            names.append((key, NATURAL_ERROR))
            wrong.append(one.is_natural_error)
            for radius in self.radii:
                is_error = at_radius(one, radius)
                assert is_error is not None  # it counted the tables' errors
                names.append((key, ("robust", radius)))
                wrong.append(is_error)
        samples = statistics.resampled_class_errors(first.labels, np.stack(wrong), num_classes=len(self.class_names))
        result: dict[tuple[str, int], dict[Quantity, NDArray[np.float64]]] = {}
        for place, (key, quantity) in enumerate(names):
            result.setdefault(key, {})[quantity] = samples[:, place]
        return result


def choose(runs: DataFrame, radii: Sequence[float], candidates: Sequence[str]) -> dict[int, str]:
    """Return, for each seed that has all candidates, the one with the smallest worst-class robust error.

    The mean over the radii counts; a tie goes to the first candidate.

    Parameters
    ----------
    runs : DataFrame
        Rows of one split that choices are made on, never test, after training, with a column ``role``.
    radii : sequence of float
    candidates : sequence of str
        Roles.
    """
    rows = runs[runs["role"].isin(candidates)]
    if rows.empty:
        return {}
    if not set(rows["split"]) <= set(CHOICE_SPLITS):
        raise UserError(f"settings are chosen on one of the splits {' and '.join(CHOICE_SPLITS)}, never on test images")
    worst = [overall(select_epsilon(rows, radius)).set_index("run_id")["worst_class_robust_error"] for radius in radii]
    of_run = rows.drop_duplicates("run_id").set_index("run_id")[["role", "seed"]]
    scored = of_run.assign(score=sum(worst) / len(worst))
    chosen: dict[int, str] = {}
    for seed, of_seed in scored.groupby("seed"):
        scores = of_seed.set_index("role")["score"]
        if set(scores.index) == set(candidates):
            chosen[int(str(seed))] = min(candidates, key=lambda role: round(float(scores[role]), _SCORE_DIGITS))
    return chosen


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


def matching_outcomes(
    rows: DataFrame, candidates: Sequence[Outcomes], radii: Sequence[float]
) -> dict[tuple[str, int], Outcomes]:
    """Return the outcomes of each role's model: those of its seed that count the errors of the tables at every radius.

    Parameters
    ----------
    rows : DataFrame
        Rows of the test split with a column ``role``.
    candidates : sequence of Outcomes
    radii : sequence of float
    """
    found: dict[tuple[str, int], Outcomes] = {}
    for (role, seed), model in rows.groupby(["role", "seed"]):
        expected = {radius: _counted(select_epsilon(model, radius)) for radius in radii}
        for one in candidates:
            if one.about.get("seed") == seed and all(
                np.array_equal(counts_of(one, radius, len(counts)), counts) for radius, counts in expected.items()
            ):
                found[str(role), int(str(seed))] = one
                break
    return found


def _counted(rows: DataFrame) -> NDArray[np.int64]:
    ordered = rows.sort_values("class_id")
    return ordered[["count", "num_natural_errors", "num_boundary_errors"]].to_numpy(dtype=np.int64)


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
