"""The registered study's tables: which run plays which role, with each method's setting chosen on selection images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.results import registration
from frl_repro.results.registration import BASE, COMBINED, EQUAL, MARGINS, REMARGIN, REWEIGHT
from frl_repro.results.report.comparison import FROM_SCRATCH, Comparison, choose, matching_outcomes, outcomes_in
from frl_repro.results.report.questions import CHOSEN, RADII
from frl_repro.results.report.verdicts import Answer, judge
from frl_repro.results.tables.reading import find_tables, read_classwise
from frl_repro.results.tables.selection import select_attack
from frl_repro.results.tables.subsets import select_checkpoint

if TYPE_CHECKING:
    from pandas import DataFrame

CANDIDATES = {"reweight": REWEIGHT, "margins": MARGINS, "combined": COMBINED, "remargin": REMARGIN}
"""Settings among which each seed chooses, by method."""


@dataclass(frozen=True, eq=False)
class RegisteredStudy(Comparison):
    """Class errors of every registered run at both radii; each cell is a role.

    So are the base and each method's chosen setting.

    Attributes
    ----------
    chosen : dict of (method, seed) to str
        The cell that selection images prefer.
    """

    chosen: dict[tuple[str, int], str]

    def judge(self) -> list[Answer]:
        """Answer the registered questions."""
        return judge(self, registered=registration.SEEDS)


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
    table = select_attack(table, None)
    cells = table["run_id"].map({run_id: run.cell for run_id, run in registered.items()})
    table = table.assign(role=cells)[table["split"].isin(["test", "selection"])]
    is_last = table["epoch"] == table.groupby(["run_id", "split"])["epoch"].transform("max")
    after, before = table[is_last], table[(table["epoch"] == 0) & ~table["role"].isin(FROM_SCRATCH)]
    if before.empty:
        raise UserError(
            "the registered models trained from scratch need the base models, which name their worst class: "
            f"run {EQUAL!r}"
        )
    base = _bases(before)
    selection = after[after["split"] == "selection"]
    chosen = {
        (method, seed): cell
        for method, cells in CANDIDATES.items()
        for seed, cell in choose(selection, RADII, cells).items()
    }
    best = [
        after[(after["role"] == cell) & (after["seed"] == seed)].assign(role=CHOSEN[method])
        for (method, seed), cell in chosen.items()
    ]
    rows = pd.concat([after, base, *best], ignore_index=True)
    outcomes = matching_outcomes(rows[rows["split"] == "test"], outcomes_in(runs), RADII)
    return RegisteredStudy(rows, RADII, outcomes, chosen)


def _bases(before: DataFrame) -> DataFrame:
    """Return the rows of each seed's base, which every retraining measured as epoch 0.

    Raises
    ------
    UserError
        Retrainings of one seed started from different models.
    """
    counts = ["count", "num_natural_errors", "num_boundary_errors"]
    measurement = ["split", "epsilon", "seed", "class_id"]
    differing = before.drop_duplicates([*measurement, *counts])
    again = differing[differing.duplicated(measurement)]
    if not again.empty:
        raise UserError(
            f"retrainings of seed {again['seed'].iloc[0]} started from different base models: train them from one"
        )
    return differing.assign(role=BASE)
