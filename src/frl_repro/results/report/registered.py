"""A registered study's tables: which run plays which role, chosen on selection images, at both radii."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.results import registration
from frl_repro.results.registration import ADVERSARIAL, BASE, COMBINED, EQUAL, MARGINS, NATURAL, REMARGIN, REWEIGHT
from frl_repro.results.report.questions import CHOSEN, NATURAL_ERROR, RADII, Errors, Quantity
from frl_repro.results.report.study import at_radius, counts_of, outcomes_in
from frl_repro.results.report.verdicts import Answer, judge
from frl_repro.results.tables import statistics
from frl_repro.results.tables.reading import find_tables, read_classwise
from frl_repro.results.tables.subsets import overall, select_checkpoint, select_epsilon

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

    from frl_repro.results.tables.outcomes import Outcomes

CANDIDATES = {"reweight": REWEIGHT, "margins": MARGINS, "combined": COMBINED, "remargin": REMARGIN}
"""Settings among which each seed chooses, by method."""

_FROM_SCRATCH = (NATURAL, ADVERSARIAL)
_KEYS = ("seed", "class_id")


@dataclass(frozen=True, eq=False)
class RegisteredStudy:
    """Class errors of every registered run at every radius.

    Attributes
    ----------
    rows : DataFrame
        Rows of ``classwise.csv`` of the test and of the selection split, with a column ``role``; each cell is a role,
        and so are the base and each method's chosen setting.
    chosen : dict of (method, seed) to str
        The cell that selection images prefer.
    outcomes : dict of (role, seed) to Outcomes
        Those found that count the same errors as the tables.
    """

    rows: DataFrame
    chosen: dict[tuple[str, int], str]
    outcomes: dict[tuple[str, int], Outcomes]

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

    def errors(self, roles: Sequence[str]) -> tuple[Errors, tuple[int, ...]]:
        """Test errors of roles on the seeds that all of them have."""
        seeds = self.seeds(roles)
        by_class = {
            (role, quantity): self._errors_of("test", role, seeds, quantity)
            for role in roles
            for quantity in (NATURAL_ERROR, *(("robust", radius) for radius in RADII))
        }
        named = {(role, quantity): self._worst_classes(role, seeds, quantity) for role, quantity in by_class}
        return Errors(by_class, named, self._shares), seeds

    def resampled(self, roles: Sequence[str]) -> Errors | None:
        """`errors` on bootstrap samples of the test images; None where the outcomes of a model are missing."""
        found, seeds = self.errors(roles)
        samples = self._samples
        if any((role, seed) not in samples for role in roles for seed in seeds):
            return None
        by_class = {
            (role, quantity): np.stack([samples[role, seed][quantity] for seed in seeds], axis=1)
            for role, quantity in found.by_class
        }
        return Errors(by_class, found.worst_class, self._shares)

    def judge(self) -> list[Answer]:
        """Answer the registered questions."""
        return judge(self.errors, self.resampled, roles=self.roles, seeds=registration.SEEDS)

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
            (str(split), (name, radius)): select_epsilon(rows, RADII[0] if radius is None else radius).pivot(
                index=["role", "seed"], columns="class_id", values=f"{name}_error"
            )
            for split, rows in self.rows.groupby("split")
            for name, radius in (NATURAL_ERROR, *(("robust", radius) for radius in RADII))
        }

    def _errors_of(self, split: str, role: str, seeds: Sequence[int], quantity: Quantity) -> NDArray[np.float64]:
        """Class errors of a role, shape (S, K)."""
        return self._tables[split, quantity].loc[role].loc[list(seeds)].to_numpy(dtype=np.float64)

    def _worst_classes(self, role: str, seeds: Sequence[int], quantity: Quantity) -> NDArray[np.int64]:
        """The class that selection images name as worst, for each seed.

        Models trained from scratch see every training image and have no selection images: the mean over the base models
        names one class for all of them.
        """
        if role not in _FROM_SCRATCH:
            named: NDArray[np.int64] = self._errors_of("selection", role, seeds, quantity).argmax(axis=1)
            return named
        is_base = (self.rows["role"] == BASE) & (self.rows["split"] == "selection")
        having = sorted(int(seed) for seed in self.rows.loc[is_base, "seed"].unique())
        if not having:
            raise UserError(
                f"{role} needs the base models' selection rows, which name its worst class: run {EQUAL!r} too"
            )
        mean = self._errors_of("selection", BASE, having, quantity).mean(axis=0)
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
            if not np.array_equal(one.labels, first.labels):
                continue
            names.append((key, NATURAL_ERROR))
            wrong.append(one.is_natural_error)
            for radius in RADII:
                is_error = at_radius(one, radius)
                assert is_error is not None  # it counted the tables' errors
                names.append((key, ("robust", radius)))
                wrong.append(is_error)
        samples = statistics.resampled_class_errors(first.labels, np.stack(wrong), num_classes=len(self.class_names))
        result: dict[tuple[str, int], dict[Quantity, NDArray[np.float64]]] = {}
        for place, (key, quantity) in enumerate(names):
            result.setdefault(key, {})[quantity] = samples[:, place]
        return result


def load_registered(runs: str | Path) -> RegisteredStudy | None:
    """Read the registered runs among the tables of ``runs`` (as in `reading.find_tables`); None where there are none.

    Raises
    ------
    UserError
        A registered run has no selection rows, or retrainings of one seed started from different bases.
    """
    table = select_checkpoint(read_classwise(find_tables(runs)), "last")
    registered = registration.registered_runs()
    is_ours = [
        run_id in registered and registered[run_id].registration == registration.STUDY for run_id in table["run_id"]
    ]
    table = table[is_ours]
    if table.empty:
        return None
    cells = table["run_id"].map({run_id: run.cell for run_id, run in registered.items()})
    table = table.assign(role=cells)[table["split"].isin(["test", "selection"])]
    is_last = table["epoch"] == table.groupby(["run_id", "split"])["epoch"].transform("max")
    after, before = table[is_last], table[(table["epoch"] == 0) & ~table["role"].isin(_FROM_SCRATCH)]
    base = _bases(before)
    chosen = _chosen(after)
    best = [
        after[(after["role"] == cell) & (after["seed"] == seed)].assign(role=CHOSEN[method])
        for (method, seed), cell in chosen.items()
    ]
    rows = pd.concat([after, base, *best], ignore_index=True)
    return RegisteredStudy(rows, chosen, _outcomes(rows, runs))


def _bases(before: DataFrame) -> DataFrame:
    """Rows of each seed's base, which every retraining measured as epoch 0."""
    counts = ["count", "num_natural_errors", "num_boundary_errors"]
    measurement = ["split", "epsilon", *_KEYS]
    differing = before.drop_duplicates([*measurement, *counts])
    again = differing[differing.duplicated(measurement)]
    if not again.empty:
        raise UserError(
            f"retrainings of seed {again['seed'].iloc[0]} started from different base models: train them from one"
        )
    return differing.assign(role=BASE)


def _chosen(after: DataFrame) -> dict[tuple[str, int], str]:
    """The registered setting with the smallest worst-class robust error on selection images, mean over both radii."""
    selection = after[after["split"] == "selection"]
    worst = [
        overall(select_epsilon(selection, radius)).set_index("run_id")["worst_class_robust_error"] for radius in RADII
    ]
    score = (worst[0] + worst[1]) / 2
    of_run = selection.drop_duplicates("run_id").set_index("run_id")[["role", "seed"]].assign(score=score)
    chosen: dict[tuple[str, int], str] = {}
    for method, cells in CANDIDATES.items():
        for seed, of_seed in of_run[of_run["role"].isin(cells)].groupby("seed"):
            scores = of_seed.set_index("role")["score"]
            if set(scores.index) == set(cells):
                # A tie goes to the first as registered.
                chosen[method, int(str(seed))] = min(cells, key=lambda cell: round(float(scores[cell]), 12))
    return chosen


def _outcomes(rows: DataFrame, runs: str | Path) -> dict[tuple[str, int], Outcomes]:
    """Outcomes of each role's model: those of its seed that count the errors of the tables at both radii."""
    test, candidates = rows[rows["split"] == "test"], outcomes_in(runs)
    found: dict[tuple[str, int], Outcomes] = {}
    for (role, seed), model in test.groupby(["role", "seed"]):
        expected = {radius: _counted(select_epsilon(model, radius)) for radius in RADII}
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
