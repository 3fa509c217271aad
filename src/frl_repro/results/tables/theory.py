"""Class errors measured on Gaussian mixtures beside what theory says of them: one tidy table (docs/theory.md)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import is_same_radius
from frl_repro.results.tables.reading import find_tables, read_classwise, read_json
from frl_repro.results.tables.subsets import select_checkpoint, select_epsilon, select_last_epoch, select_split
from frl_repro.theory.cross_entropy import Policy, Term, cross_entropy_threshold, frl_fixed_point
from frl_repro.theory.gaussian import Mixture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pandas import DataFrame

DATASET, MODEL = "gaussian_mixture", "linear"
THEORY_FILE = "theory.csv"
COMMAND = "python train.py -m experiment=theory hydra/launcher=fused"

MIXTURE_COLUMNS = ("num_features", "eta", "sigma", "deviation_ratio", "prior_ratio")
QUANTITIES = ("natural", "robust")
CLASS_NAMES = ("easy", "hard")
METHODS = ("natural", "adversarial", "reweight", "remargin", "combined")
COLUMNS = (
    *MIXTURE_COLUMNS, "method", "epsilon", "seed", "run_id", "class_name", "count",
    "natural_error", "robust_error", "predicted_natural_error", "predicted_robust_error",
)  # fmt: skip
"""Columns of ``theory.csv``: one row a run and class, measured and predicted at the radius that the run trains for."""


def load_theory(runs: str | Path) -> DataFrame | None:
    """Return the table of the runs on Gaussian mixtures in ``runs``, else a ``theory.csv`` there; None without either.

    Raises
    ------
    UserError
        A table or ``run.json`` is damaged, or a ``theory.csv`` lacks columns.
    """
    configs = {}
    for table in _found(runs, "classwise.csv"):
        note = table.with_name("run.json")
        config = read_json(note).get("config", {}) if note.exists() else {}
        if config.get("dataset", {}).get("name") == DATASET and config.get("model", {}).get("name") == MODEL:
            configs[table] = config
    if configs:
        return _of_runs(configs)
    files = _found(runs, THEORY_FILE)
    if not files:
        return None
    return _read(files[0])


def _read(file: Path) -> DataFrame:
    """Return a ``theory.csv``, its cells checked."""
    damaged = UserError(
        f"{file} is no table of class errors on mixtures: make it anew with scripts/plot.py figure=theory"
    )
    try:
        rows = pd.read_csv(file)[list(COLUMNS)]
        numbers = rows[[name for name in COLUMNS if name not in ("method", "run_id", "class_name")]].astype(float)
    except (ValueError, KeyError, OSError):  # pandas' own errors are ValueErrors
        raise damaged from None
    errors = numbers[[name for name in numbers.columns if name.endswith("_error")]]
    is_known = rows["method"].isin(METHODS) & rows["class_name"].isin(CLASS_NAMES)
    if rows.empty or not is_known.all() or not ((errors >= 0) & (errors <= 1) | errors.isna()).all(axis=None):
        raise damaged
    return rows


def _found(runs: str | Path, name: str) -> list[Path]:
    try:
        return find_tables(runs, name)
    except UserError:
        return []


def _of_runs(configs: Mapping[Path, Mapping[str, Any]]) -> DataFrame:
    parts = []
    for path, config in configs.items():
        if not _is_known(config):
            continue
        rows = select_last_epoch(select_split(select_checkpoint(read_classwise([path]), "last"), "test"))
        # A run may be measured at other radii as well: its theory is that of the radius it was trained for.
        epsilon = _radius(config, measured=float(rows["epsilon"].max()))
        if not any(is_same_radius(epsilon, measured) for measured in rows["epsilon"].unique()):
            continue  # a starting model, which every experiment measures alike
        rows = select_epsilon(rows, epsilon).sort_values("class_id")
        predicted = _predicted(*_rests_on(config), epsilon)
        about = {name: config["dataset"][name] for name in MIXTURE_COLUMNS}
        parts.append(
            rows.assign(**about, **{f"predicted_{name}_error": predicted[k] for k, name in enumerate(QUANTITIES)})
        )
    if not parts:
        raise UserError(f"none of the runs on {DATASET} is of a method that theory knows: {', '.join(METHODS)}")
    order = {name: place for place, name in enumerate(METHODS)}
    table = pd.concat(parts)[list(COLUMNS)]
    table = table.assign(place=table["method"].map(order))
    by = ["deviation_ratio", "prior_ratio", "epsilon", "place", "seed"]
    ordered: DataFrame = table.sort_values(by, ascending=[False, True, True, True, True], kind="stable")
    return ordered.drop(columns="place").reset_index(drop=True)


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether a run trains as `frl_repro.theory.cross_entropy` assumes: every sample attacked, FRL as recipe=report."""
    frl, attack = config["frl"], config["attack"]
    if frl["name"] == "none":
        return attack["name"] == "none" or (attack["name"] in ("pgd", "fgsm") and attack["fraction"] == 1)
    is_report = not frl.get("accumulate") and frl.get("weight_rule") in (None, "softmax")
    return frl["name"] in METHODS and is_report and config["retrain"]["objective"] == "paired"


def _radius(config: Mapping[str, Any], *, measured: float) -> float:
    attack = config["attack"] if config.get("retrain") is None else config["retrain"]["attack"]
    return float(attack.get("epsilon", measured))


def _rests_on(config: Mapping[str, Any]) -> tuple[tuple[float, ...], str, tuple[tuple[str, float], ...], float, Any]:
    """What the prediction of a run rests on, the seed aside."""
    of_data, frl = config["dataset"], config["frl"]["name"]
    mixture = tuple(float(of_data[name]) for name in MIXTURE_COLUMNS)
    if frl == "none":
        return mixture, str(config["attack"]["name"]), (), 0.0, None
    alpha = tuple((name, float(value)) for name, value in config["alpha"].items() if value is not None)
    bounds = config["frl"].get("margin_bounds")
    return mixture, frl, alpha, float(config["tau"].get("bndy") or 0), None if bounds is None else tuple(bounds)


@functools.cache
def _predicted(
    mixture: tuple[float, ...],
    method: str,
    alpha: tuple[tuple[str, float], ...],
    tau: float,
    bounds: tuple[float, float] | None,
    epsilon: float,
) -> Any:
    """Natural and robust class errors, shape (2, 2), where training comes to rest; NaN where it does not."""
    classes = Mixture(int(mixture[0]), *mixture[1:])
    try:
        threshold = _threshold(classes, method, alpha, tau, bounds, epsilon)
    except ValueError:  # steps so long that the policy does not come to rest
        return np.full((2, 2), np.nan)
    return np.stack([classes.errors(threshold), classes.errors(threshold, epsilon)])


def _threshold(
    classes: Mixture,
    method: str,
    alpha: tuple[tuple[str, float], ...],
    tau: float,
    bounds: tuple[float, float] | None,
    epsilon: float,
) -> float:
    if method == "none":
        return cross_entropy_threshold(classes, [Term()])
    if not alpha:
        return cross_entropy_threshold(classes, [Term(epsilons=(epsilon, epsilon))])
    policy = Policy(dict(alpha), tau) if bounds is None else Policy(dict(alpha), tau, bounds)
    return frl_fixed_point(classes, epsilon, policy).threshold


def mixture_of(rows: DataFrame) -> Mixture:
    """Return the mixture that rows of one are about."""
    first = rows.iloc[0]
    return Mixture(int(first["num_features"]), *(float(first[name]) for name in MIXTURE_COLUMNS[1:]))


def by_class(rows: DataFrame, name: str) -> Any:
    """Return a column of rows of one method and radius by seed, shape (S, 2): easy, hard."""
    return rows.pivot(index="seed", columns="class_name", values=name)[list(CLASS_NAMES)].to_numpy(dtype=float)
