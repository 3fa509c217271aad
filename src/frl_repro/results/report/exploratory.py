"""Tables of what stands beside the registered study: departures, cadence, alphas, splits, longer training, AutoAttack.

All of it is exploratory (docs/registration.md): it explains and decides nothing. Runs lie in a folder for each part of
``scripts/study.py``, which makes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas import DataFrame

from frl_repro.basics.radii import format_epsilon
from frl_repro.results.registration import BASE, CELLS, EQUAL, EQUAL_MARGINS, registered_runs
from frl_repro.results.report.comparison import Comparison
from frl_repro.results.report.markdown import mean_sd, table
from frl_repro.results.report.questions import CHOSEN, RADII, REWEIGHT_51, quantities, robust_error
from frl_repro.results.report.registered import RegisteredStudy
from frl_repro.results.tables import statistics
from frl_repro.results.tables.reading import find_tables, read_classwise
from frl_repro.results.tables.selection import AUTOATTACK, CHOICE_SPLITS, attacks_of, select_attack
from frl_repro.results.tables.statistics import points
from frl_repro.results.tables.subsets import select_checkpoint, select_epsilon, select_last_epoch, select_split
from frl_repro.results.tables.variants import SETTINGS_COLUMN, parts_of, read_runs

_REGISTERED = "registered"  # folder of the registered runs


@dataclass(frozen=True)
class _Row:
    """A setting of a table.

    Attributes
    ----------
    name : str
    settings : mapping of str to str
        What its runs have, by key of ``run.json`` (``"alpha_nat"`` and so on are columns).
    place : str
        Folder of its runs; by default the table's.
    is_before : bool
        Whether it is the model that these runs start from.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    place: str = ""
    is_before: bool = False


@dataclass(frozen=True)
class _Table:
    """Settings, and the one that the others are compared with.

    Attributes
    ----------
    part : str
        Of ``scripts/study.py``, which makes the runs.
    rows : tuple of _Row
    reference : str
        Name of a row.
    place : str
        Folder of the runs; by default named as the part.
    repeats : str
        What tells repetitions of a setting apart: the seed, or the seed of the data split.
    """

    part: str
    rows: tuple[_Row, ...]
    reference: str
    place: str = ""
    repeats: str = "seed"


def _kept(**kept: bool) -> dict[str, str]:
    return {f"departures.{name}": str(value).lower() for name, value in kept.items()}


_LABELS_RIGHT = {
    **_kept(scrambled_labels=False, fixed_step=True, flipped_boundary=True, base_saw_validation=True),
    "frl.margin_centred": "false", "alpha_nat": "1.0", "alpha_margin": "10.0",
}  # fmt: skip
_AS_IN_THE_TEXT = {**_LABELS_RIGHT, "frl.margin_centred": "true", "frl.margin_bounds": "[0.5,2.0]"}
_PUT_RIGHT = "labels put right (1)"
_OF_REWEIGHT = {"flipped_boundary": "5", "weight_by_prediction": "8", "base_saw_validation": "7"}
_EVERY_48 = "every 48 steps (10 an epoch)"
_ALPHAS_51 = {"alpha_nat": "5.0", "alpha_bndy": "1.0"}
_PLAIN_ALPHAS = (1, 2, 5, 10)

TABLES = {
    "audit": _Table(
        "audit",
        (
            _Row("base", _LABELS_RIGHT, is_before=True),
            _Row("as published", {**_LABELS_RIGHT, **_kept(scrambled_labels=True)}),
            _Row(_PUT_RIGHT, _LABELS_RIGHT),
            _Row("labels right, margins as the text has them (2)", _AS_IN_THE_TEXT),
            _Row("labels right, step follows the margin (9)", {**_LABELS_RIGHT, **_kept(fixed_step=False)}),
            _Row(
                "labels right, margins as the text has them (2), step follows (9)",
                {**_AS_IN_THE_TEXT, **_kept(fixed_step=False)},
            ),
            _Row("labels right, boundary error of the text (5)", {**_LABELS_RIGHT, **_kept(flipped_boundary=False)}),
            _Row("labels right, base without validation (7)", {**_LABELS_RIGHT, **_kept(base_saw_validation=False)}),
            _Row("labels right, natural loss not reweighted (10)", {**_LABELS_RIGHT, "alpha_nat": "0.0"}),
            _Row("labels right, no class policy", {**_LABELS_RIGHT, "alpha_nat": "0.0", "alpha_margin": "0.0"}),
        ),
        _PUT_RIGHT,
    ),
    "departures": _Table(
        "departures",
        (
            _Row("none of them", _kept(**dict.fromkeys(_OF_REWEIGHT, False))),
            *(
                _Row(f"{name.replace('_', ' ')} ({number}) alone", _kept(**{one: one == name for one in _OF_REWEIGHT}))
                for name, number in _OF_REWEIGHT.items()
            ),
            _Row("all three, as published", _kept(**dict.fromkeys(_OF_REWEIGHT, True))),
        ),
        "none of them",
    ),
    "cadence": _Table(
        "cadence",
        (
            _Row("every step", {"frl.update_every": "1"}),
            _Row(_EVERY_48, {"frl.update_every": "48", **_ALPHAS_51}, "exp2"),
            _Row("every epoch", {"frl.update_every": "epoch"}),
        ),
        _EVERY_48,
    ),
    "longer": _Table(
        "longer",
        (
            _Row("base: 15 epochs at 8/255", _ALPHAS_51, "exp2", is_before=True),
            _Row("25 epochs at 8/255", {"attack.epsilon": str(RADII[0])}),
            _Row("25 epochs at 16/255", {"attack.epsilon": str(RADII[1])}),
            _Row("base, then 10 epochs at 16/255 with equal weights", {"retrain.trainer.ema_decay": ""}, "controls"),
            _Row("base, then 10 epochs at 16/255 with reweight 5:1", _ALPHAS_51, "exp2"),
        ),
        "base, then 10 epochs at 16/255 with equal weights",
    ),
    "grid": _Table(
        "grid",
        tuple(
            _Row(f"{nat}:{bndy}", {"alpha_nat": f"{nat}.0", "alpha_bndy": f"{bndy}.0"})
            for nat in _PLAIN_ALPHAS
            for bndy in _PLAIN_ALPHAS
        ),
        "5:1",
        place="exp2",
    ),
    "split": _Table("split", (_Row(BASE, is_before=True), _Row(REWEIGHT_51)), BASE, repeats="dataset.split_seed"),
}  # fmt: skip
"""By the name of the mark in a page."""

PLACES = tuple(one.part for one in TABLES.values() if not one.place)
"""Folders of such runs alone: one may bear the method and alphas of a published model, and differ in other settings."""


def tables(runs: str | Path, registered: RegisteredStudy | None) -> dict[str, Callable[[], str]]:
    """Return every table by name, made when it is called; where there are no runs it says what makes them."""
    found: dict[str, Callable[[], str]] = {
        f"exploratory-{name}": functools.partial(_setting_table, Path(runs), one) for name, one in TABLES.items()
    }
    found["exploratory-split"] = functools.partial(_split_table, Path(runs), registered)
    found["exploratory-autoattack"] = functools.partial(_autoattack_table, Path(runs), registered)
    return found


def _not_run(part: str) -> str:
    return f"\nNot run yet: `python scripts/study.py parts={part} committed=skip`.\n\n"


# ------------------------------------------------------------------------------------------------------------- settings


def load(runs: Path, name: str) -> Comparison:
    """Return the runs of a table as a comparison; each row that has runs is a role.

    A role's worst class is the one that held-back images name.
    """
    return _comparison(runs, TABLES[name])


def _comparison(runs: Path, one: _Table) -> Comparison:
    parts = [rows.assign(role=row.name) for row in one.rows if not (rows := _rows_of(runs, one, row)).empty]
    rows = pd.concat(parts, ignore_index=True) if parts else DataFrame({"role": []})
    return Comparison(rows, RADII, {})


def _rows_of(runs: Path, one: _Table, row: _Row) -> DataFrame:
    """Rows of one setting at the epoch that counts, of the test split and those that name the worst class."""
    everything = _read(runs / (row.place or one.place or one.part))
    if everything.empty:
        return everything
    settings = [parts_of(text) for text in everything[SETTINGS_COLUMN]]
    meant = np.ones(len(everything), dtype=bool)
    for key, value in row.settings.items():
        if key in everything.columns:
            meant &= everything[key].astype(str).to_numpy() == value
        else:
            meant &= np.array([of_run.get(key, "") == value for of_run in settings])
    rows = everything.assign(
        seed=[int(of.get(one.repeats, 0)) for of in settings] if one.repeats != "seed" else everything["seed"]
    )
    rows = rows[meant & rows["split"].isin(["test", *CHOICE_SPLITS])]
    if row.is_before:
        return rows[rows["epoch"] == 0].drop_duplicates(["split", "epsilon", "seed", "class_id"])
    return rows[rows["epoch"] == rows.groupby(["run_id", "split"])["epoch"].transform("max")]


@functools.cache
def _read(folder: Path) -> DataFrame:
    files = find_tables(folder) if any(folder.glob("*/classwise.csv")) else []
    return select_checkpoint(read_runs(files), "last") if files else DataFrame()


def _setting_table(runs: Path, one: _Table) -> str:
    study = _comparison(runs, one)
    if one.reference not in study.roles:
        return _not_run(one.part)
    strong = robust_error(RADII[-1])
    rows = []
    for row in (row for row in one.rows if row.name in study.roles):
        errors = study.errors((row.name, one.reference))
        against = "-"
        if row.name != one.reference:
            change = errors.worst(row.name, strong) - errors.worst(one.reference, strong)
            against = points(statistics.over_seeds(change.tolist()))
        rows.append([*_error_cells(study, row.name), against])
    header = _error_header("setting")
    shown = table([*header, f"worst, robust at {format_epsilon(RADII[-1])}, against “{one.reference}”"], rows)
    missing = [row.name for row in one.rows if row.name not in study.roles]
    return shown + (f"Not run yet: {', '.join(missing)}.\n\n" if missing else "")


def _error_header(first: str) -> list[str]:
    shown = ["natural", *(f"robust at {format_epsilon(radius)}" for radius in RADII)]
    return [f"{first}; errors in percent", "n", *(f"worst: {one}" for one in shown), *(f"all: {one}" for one in shown)]


def _error_cells(study: Comparison, role: str) -> list[str]:
    errors = study.errors((role,))
    cells = [mean_sd(take(role, one)) for take in (errors.worst, errors.overall) for one in quantities(RADII)]
    return [role, str(len(study.seeds((role,)))), *cells]


def _split_table(runs: Path, registered: RegisteredStudy | None) -> str:
    """Spread over data splits of one seed, beside the spread over registered seeds, each with a split of its own."""
    study = _comparison(runs, TABLES["split"])
    if BASE not in study.roles:
        return _not_run("split")
    rows = []
    for role in (BASE, REWEIGHT_51):
        name, *cells = _error_cells(study, role)
        rows.append([f"{name}: splits of seed 0", *cells])
        if registered is not None:
            name, *cells = _error_cells(registered, role)
            rows.append([f"{name}: registered seeds, each with its split", *cells])
    return table(_error_header("mean ± deviation"), rows)


# ----------------------------------------------------------------------------------------------------------- AutoAttack

_COMPARED = (
    (REWEIGHT_51, BASE), (REWEIGHT_51, EQUAL), (CHOSEN["reweight"], EQUAL), (CHOSEN["remargin"], EQUAL_MARGINS),
    (CHOSEN["margins"], CHOSEN["reweight"]), (CHOSEN["combined"], CHOSEN["reweight"]),
)  # fmt: skip
"""Differences of the registered questions, first less second."""


def _autoattack_table(runs: Path, registered: RegisteredStudy | None) -> str:
    """Worst class under PGD and under AutoAttack: errors of each model, then differences."""
    measured = {} if registered is None else _measured(runs, registered)
    if registered is None or not measured:
        return _not_run(AUTOATTACK).replace(" committed=skip", "")
    radii = [format_epsilon(radius) for radius in RADII]
    header = ["n", *(f"{attack}, {radius}" for radius in radii for attack in ("PGD-20", "AutoAttack"))]
    rows = []
    for role in (role for role in (BASE, *(cell.name for cell in CELLS), *CHOSEN.values()) if role in measured):
        seeds = sorted(measured[role])
        pairs = [_worst_errors(registered, measured, role, seeds, radius) for radius in RADII]
        rows.append([role, str(len(seeds)), *(mean_sd(errors) for pair in pairs for errors in pair)])
    errors = table(["robust error of the worst class, percent", *header], rows)
    rows = []
    for first, second in _COMPARED:
        seeds = sorted(set(measured.get(first, ())) & set(measured.get(second, ())))
        if not seeds:
            continue
        cells = []
        for radius in RADII:
            ours = _worst_errors(registered, measured, first, seeds, radius)
            theirs = _worst_errors(registered, measured, second, seeds, radius)
            cells += [points(statistics.over_seeds((a - b).tolist())) for a, b in zip(ours, theirs, strict=True)]
        rows.append([f"{first} against {second}", str(len(seeds)), *cells])
    name = next(iter(next(iter(measured.values())).values()))["attack"].iloc[0]
    said = f"The attack is called `{name}` in tables: docs/robustness.md explains the name.\n\n"
    return errors + table(["difference in points [95 % over seeds]", *header], rows) + said


def _measured(runs: Path, registered: RegisteredStudy) -> dict[str, dict[int, DataFrame]]:
    """Return AutoAttack's rows by role and seed; a chosen setting has those of the setting."""
    folder = runs / _REGISTERED / AUTOATTACK
    if not any(folder.glob("*/classwise.csv")):
        return {}
    found: dict[str, dict[int, DataFrame]] = {}
    rows_of_all = select_last_epoch(select_split(read_classwise(find_tables(folder)), "test"))
    # Of most models; a measurement by all four attacks and one by the first two have different names.
    rows_of_all = select_attack(rows_of_all, attacks_of(rows_of_all)[0])
    for run_id, rows in rows_of_all.groupby("run_id"):
        run = registered_runs().get(str(run_id))
        role, seed = (BASE, int(rows["seed"].iloc[0])) if run is None else (run.cell, run.seed)
        found.setdefault(role, {})[seed] = rows
    for (method, seed), cell in registered.chosen.items():
        if seed in found.get(cell, {}):
            found.setdefault(CHOSEN[method], {})[seed] = found[cell][seed]
    return found


def _worst_errors(
    study: RegisteredStudy, measured: dict[str, dict[int, DataFrame]], role: str, seeds: Sequence[int], radius: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each seed's robust error of the class that held-back images name, under PGD and under AutoAttack."""
    places = [study.seeds((role,)).index(seed) for seed in seeds]
    errors, quantity = study.errors((role,)), robust_error(radius)
    named = errors.worst_class[role, quantity][places]
    stronger = [
        select_epsilon(measured[role][seed], radius).set_index("class_id")["robust_error"][int(class_id)]
        for seed, class_id in zip(seeds, named, strict=True)
    ]
    return errors.worst(role, quantity)[places], np.array(stronger)
