"""The bench's models from tables: where each stands (track, start, method, seed), its class errors and its cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon
from frl_repro.basics.run_folder import POLICY_FILE
from frl_repro.results.protocol import AUTOATTACK_FOLDER, BASE, CONTESTANTS, SCRATCH, TRACKS, contestant_of
from frl_repro.results.registration import bench_runs
from frl_repro.results.tables.reading import find_tables, read_classwise, read_json
from frl_repro.results.tables.selection import attacks_of, select_attack, setting_name
from frl_repro.results.tables.subsets import select_checkpoint
from frl_repro.results.tables.variants import read_runs

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from pandas import DataFrame

CRITERIA: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]] = {
    "worst class": lambda errors, _: float(errors.max()),
    "average + worst class": lambda errors, shares: float(errors.max() + errors @ shares),
}
"""What a seed's choice among a method's settings minimises: robust errors of selection images, mean over the radii."""

_VALUE = re.compile(r"dataset\.(\w+)=([\d.]+)")
_SIZES = {"num_train": None, "validation_fraction": 0.2}
"""What makes a data set's splits large or small, and what ``experiment=bench`` has."""

BASE_MODEL = "base"
"""What the models that retraining starts from are called among methods."""

START_NAMES = {BASE: "a base", SCRATCH: "scratch"}
"""What a method is trained from, for readers."""


@dataclass(frozen=True, eq=False)
class Model:
    """A finished model's class errors.

    Attributes
    ----------
    setting : str
        As people write it.
    selection, test : dict of str to array, shape (K,)
        Errors by class: ``natural``, and robust ones by radius as ``8/255``.
    shares : array, shape (K,)
        Of each class in the test split.
    image_steps, seconds : float
        What it cost; NaN where that was not recorded.
    run_id : str
        Of the run that made it; empty for a base.
    num_test : int
        Test images.
    autoattack : dict of str to array, shape (K,)
        Class errors by radius, where AutoAttack measured it: of the class that selection images name on all images.
    policy : Path, optional
        Table of what the method did, where there is one.
    """

    setting: str
    selection: dict[str, NDArray[np.float64]]
    test: dict[str, NDArray[np.float64]]
    shares: NDArray[np.float64]
    image_steps: float
    seconds: float
    run_id: str = ""
    num_test: int = 0
    autoattack: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    policy: Path | None = None

    @property
    def is_registered(self) -> bool:
        """Whether its run was fixed beforehand; a base has no run of its own here."""
        return self.run_id in bench_runs() or not self.run_id

    def score(self, criterion: str, radii: Sequence[str]) -> float:
        """Return what the choice minimises; rounded, so that equal counts tie."""
        of_radii = [CRITERIA[criterion](self.selection[radius], self.shares) for radius in radii]
        return round(float(np.mean(of_radii)), 12)

    def worst(self, quantity: str) -> float:
        """Return the test error of the class that selection images name as worst."""
        return float(self.test[quantity][self.selection[quantity].argmax()])

    def average(self, quantity: str) -> float:
        """Return the test error of all images."""
        return float(self.test[quantity] @ self.shares)

    def autoattack_worst(self, radius: str) -> float:
        """Return AutoAttack's error of the class that selection images name as worst."""
        return float(self.autoattack[radius][self.selection[radius].argmax()])

    def autoattack_average(self, radius: str) -> float:
        """Return AutoAttack's error of all images: its class errors, weighed by the classes of the test split."""
        return float(self.autoattack[radius] @ self.shares)


@dataclass(frozen=True, eq=False)
class Bench:
    """Every model of the bench.

    Attributes
    ----------
    models : dict of (track, start, method, seed) to list of Model
        One model for each setting tried, in the order of their names.
    class_names : dict of str to list of str
        By track.
    """

    models: dict[tuple[str, str, str, int], list[Model]]
    class_names: dict[str, list[str]]

    @property
    def tracks(self) -> list[str]:
        """Data and networks in the order of the protocol, others after them."""
        order = {name: number for number, name in enumerate(TRACKS)}
        return sorted({track for track, *_ in self.models}, key=lambda name: (order.get(name, len(order)), name))

    def radii(self, track: str) -> list[str]:
        """Return the radii that every model of a track was measured at, the smallest first."""
        of_models = [set(model.test) for (of, *_), models in self.models.items() if of == track for model in models]
        shared = set.intersection(*of_models) - {"natural"}
        return sorted(shared, key=lambda radius: float(radius.split("/")[0]))

    def has(self, track: str, start: str, method: str) -> bool:
        """Return whether there is a model of a method."""
        return any(place[:3] == (track, start, method) for place in self.models)

    def chosen(self, track: str, start: str, method: str, criterion: str) -> dict[int, Model]:
        """Return the model of each seed whose setting its selection images prefer; a tie goes to the first."""
        of_seed = {seed: models for (*of, seed), models in self.models.items() if of == [track, start, method]}
        shared = set.intersection(*({model.setting for model in models} for models in of_seed.values()))
        radii = self.radii(track)
        return {
            seed: min(
                [model for model in models if not shared or model.setting in shared],
                key=lambda model: model.score(criterion, radii),
            )
            for seed, models in sorted(of_seed.items())
        }


def read_bench(runs: str | Path | Sequence[Path]) -> Bench:
    """Read the bench's runs among the tables of one folder or several; of a run found twice the first folder's counts.

    Registered runs stand under the names of the registration, and a seed counts once all registered settings of its
    method have run. Other runs of a registered method on its track are left out.

    Raises
    ------
    UserError
        There is no run of a method with selection images.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else list(runs)
    files = _tables_of(folders)
    rows = read_runs(files)
    rows = select_checkpoint(rows[rows["recipe"] != ""], "last")
    has_selection = set(rows.loc[rows["split"] == "selection", "run_id"])
    rows = rows[rows["run_id"].isin(has_selection) & rows["split"].isin(["selection", "test"])]
    if rows.empty:
        shown = ", ".join(map(str, folders))
        raise UserError(f"{shown} has no run with selection images (experiment=bench): run scripts/bench.py first")
    rows = select_attack(rows, attacks_of(rows)[0])
    notes = {file.parent.name: file.with_name("run.json") for file in files}
    last = rows.groupby("run_id")["epoch"].transform("max")
    attacked = _autoattack(folders)
    models: dict[tuple[str, str, str, int], list[Model]] = {}
    class_names: dict[str, list[str]] = {}
    bases: dict[tuple[str, int], Model] = {}
    for run_id, of_run in rows.groupby("run_id", sort=True):
        note = read_json(notes[str(run_id)]) if notes[str(run_id)].exists() else {}
        place, setting = _named(str(run_id), of_run.iloc[0], note)
        cost = _cost(note)
        is_last = last.loc[of_run.index] == of_run["epoch"]
        model = _model(of_run[is_last], setting, cost, str(run_id), attacked.get(str(run_id), {}))
        models.setdefault(place, []).append(replace(model, policy=notes[str(run_id)].with_name(POLICY_FILE)))
        before = of_run[(of_run["epoch"] == 0) & ~is_last]
        track, seed = place[0], place[-1]
        if not before.empty and (track, seed) not in bases:  # every retraining of a seed measured it
            bases[track, seed] = _model(before, "", Cost(image_steps=cost.base), "", {})
        if track not in class_names:
            class_names[track] = [str(name) for name in of_run.sort_values("class_id")["class_name"].unique()]
    models = {place: _in_order(place, of_place) for place, of_place in _registered_first(models).items()}
    models |= {(track, BASE, BASE_MODEL, seed): [model] for (track, seed), model in bases.items()}
    return Bench(models, class_names)


def _tables_of(folders: Sequence[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        try:
            tables = find_tables(folder, hint="run scripts/bench.py first")
        except UserError:
            if len(folders) == 1:
                raise
            continue
        own = {table.parent.name: table for table in tables if AUTOATTACK_FOLDER not in table.parts}
        found = own | found
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: no runs; run scripts/bench.py first")
    return sorted(found.values())


def _autoattack(folders: Sequence[Path]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return AutoAttack's class errors by run and radius."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for folder in reversed(folders):
        files = sorted(folder.glob(f"**/{AUTOATTACK_FOLDER}/*/classwise.csv"))
        for (run_id, epsilon), part in read_classwise(files).groupby(["run_id", "epsilon"]) if files else ():
            errors = part.sort_values("class_id")["robust_error"].to_numpy(dtype=np.float64)
            found.setdefault(str(run_id), {})[format_epsilon(float(str(epsilon)))] = errors
    return found


def _named(run_id: str, row: pd.Series, note: Mapping[str, Any]) -> tuple[tuple[str, str, str, int], str]:
    """Return a run's place on the bench (track, start, method, seed) and its setting."""
    run = bench_runs().get(run_id)
    if run is not None:
        return (run.track, run.start, run.method, run.seed), run.setting
    method = contestant_of(row["method"], row["alpha_nat"], row["alpha_bndy"], row["variant"])
    return (*_place(row, note), method, int(row["seed"])), _setting(row)


def _registered_first(
    models: dict[tuple[str, str, str, int], list[Model]],
) -> dict[tuple[str, str, str, int], list[Model]]:
    """Return models without those that a registered method has besides, and without seeds that are not complete."""
    registered = bench_runs()
    settings: dict[tuple[str, str, str], set[str]] = {}
    for run in registered.values():
        settings.setdefault((run.track, run.start, run.method), set()).add(run.setting)
    has_registered = {place[:3] for place, of_place in models.items() for m in of_place if m.run_id in registered}
    kept: dict[tuple[str, str, str, int], list[Model]] = {}
    for place, of_place in models.items():
        if place[:3] not in has_registered:
            kept[place] = of_place
            continue
        own = [model for model in of_place if model.run_id in registered]
        needed = 1 if TRACKS[place[0]].by_front else len(settings[place[:3]])
        if len({model.setting for model in own}) >= needed:
            kept[place] = own
    return kept


def _in_order(place: tuple[str, str, str, int], models: list[Model]) -> list[Model]:
    """Return models in the order of the protocol's settings, where they are of these: a tie goes to the first."""
    method = place[2]
    settings = CONTESTANTS[method].settings if method in CONTESTANTS else ()
    order = {setting: number for number, setting in enumerate(settings)}
    return sorted(models, key=lambda model: (order.get(model.setting, len(order)), model.setting))


def _place(row: pd.Series, note: Mapping[str, Any]) -> tuple[str, str]:
    """Return track and start of a run that is not registered: on other images than the track's it is another track."""
    dataset = re.sub(r" (selection_fraction|imbalance\w*)=\S+", "", str(row["dataset"]))
    imbalanced = "-imbalanced" if "imbalance" in f"{row['dataset']} {row['variant']}" else ""
    name = f"{dataset}-{row['model']}{imbalanced}".replace("cifar10_jpeg-", "cifar10-")
    own = (note.get("config") or {}).get("dataset") or {}
    values = {key: float(value) for key, value in _VALUE.findall(TRACKS[name].overrides)} if name in TRACKS else {}
    is_reduced = name in TRACKS and any(own.get(key) != values.get(key, usual) for key, usual in _SIZES.items())
    return f"{name}-reduced" if is_reduced else name, SCRATCH if row["recipe"] == SCRATCH else BASE


def _setting(row: pd.Series) -> str:
    """Return a setting as people write it; the track's imbalance and the start are no part of it."""
    return re.sub(r"\s*\b(imbalance\w*)=\S+|\s*\(scratch\)", "", setting_name(row)).strip()


@dataclass(frozen=True)
class Cost:
    """What a run cost: image-steps with its base, seconds without it, image-steps of the base; NaN: not recorded."""

    image_steps: float = np.nan
    seconds: float = np.nan
    base: float = np.nan


def _model(rows: DataFrame, setting: str, cost: Cost, run_id: str, autoattack: dict[str, NDArray[np.float64]]) -> Model:
    errors: dict[str, dict[str, NDArray[np.float64]]] = {"selection": {}, "test": {}}
    for (split, epsilon), part in rows.groupby(["split", "epsilon"]):
        by_class = part.sort_values("class_id")
        errors[str(split)][format_epsilon(float(str(epsilon)))] = by_class["robust_error"].to_numpy(dtype=np.float64)
        errors[str(split)]["natural"] = by_class["natural_error"].to_numpy(dtype=np.float64)
        if split == "test":
            count = by_class["count"].to_numpy(dtype=np.float64)
    shares = count / count.sum()
    return Model(
        setting, errors["selection"], errors["test"], shares, cost.image_steps, cost.seconds, run_id,
        int(count.sum()), autoattack,
    )  # fmt: skip


def _cost(run: Mapping[str, Any]) -> Cost:
    steps = run.get("image_steps")
    seconds = run.get("wall_seconds", np.nan) / max(1, run.get("num_side_by_side", 1))
    if steps is None:
        return Cost(seconds=seconds)
    return Cost(sum(value or 0.0 for value in steps.values()), seconds, steps.get("base") or np.nan)
