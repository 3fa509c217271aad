"""What tells runs apart that tables call alike: settings of ``run.json`` that differ within a method. Needs no torch.

A table names the method, the recipe and the alphas. Two runs that agree in these may still differ in a departure, a
running average or a number of steps; counted as two seeds of one setting they would be averaged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frl_repro.records import SETTING_COLUMNS, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pandas import DataFrame

VARIANT_COLUMN = "variant"

_ALIKE = ("dataset", "model", "method", *SETTING_COLUMNS)

_SECTIONS = (
    "dataset",
    "model",
    "attack",
    "trainer",
    "frl",
    "tau",
    "retrain",
    "departures",
    "init_from",
    "init_from_key",
)
"""Parts of a run's configuration that say how it was trained and are not columns of the tables."""

BEFORE_THE_KEY = {"num_accumulation": "1", "precision": "float32", "augmentation": "none"}
"""What runs did whose ``run.json`` lacks a key because the key came later; null where this does not say."""

_OF_THE_MACHINE = ("root", "download", "cache_dir")
"""Keys of these parts that change no number."""


def with_variants(table: DataFrame, files: Iterable[str | Path]) -> DataFrame:
    """Return the table with a column ``variant``, such as ``"ema_decay=0.998"``; empty where nothing differs.

    Parameters
    ----------
    table
        Rows of ``classwise.csv`` or ``policy.csv``.
    files
        The files they were read from; ``run.json`` is looked for beside each.

    Raises
    ------
    UserError
        A ``run.json`` is damaged.
    """
    settings = {run_id: values for file in files for run_id, values in _settings_beside(Path(file))}
    names: dict[str, str] = {}
    for _, runs in table.drop_duplicates("run_id").groupby(
        [name for name in _ALIKE if name in table.columns], dropna=False
    ):
        run_ids = [run_id for run_id in runs["run_id"] if run_id in settings]
        keys = sorted({key for run_id in run_ids for key in settings[run_id]})
        differing = [key for key in keys if len({_value(settings[run_id], key) for run_id in run_ids}) > 1]
        for run_id in run_ids:
            names[run_id] = " ".join(f"{_short(key, keys)}={_value(settings[run_id], key)}" for key in differing)
    return table.assign(**{VARIANT_COLUMN: [names.get(run_id, "") for run_id in table["run_id"]]})


def _value(settings: Mapping[str, str], key: str) -> str:
    """A setting as text; of a run that was before there was the setting, what it did."""
    return settings.get(key, BEFORE_THE_KEY.get(key.rsplit(".", 1)[-1], "null"))


def _settings_beside(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    path = file.with_name("run.json")
    if path.exists():
        run = read_json(path)
        config = run.get("config", {})
        sections = {name: config[name] for name in _SECTIONS if config.get(name) is not None}
        yield str(run.get("run_id")), dict(_flattened(sections, ""))


def _flattened(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        elif value is not None and key not in _OF_THE_MACHINE:
            yield f"{prefix}{key}", json.dumps(value, separators=(",", ":")).strip('"')


def _short(key: str, keys: Iterable[str]) -> str:
    """The last part of a key, or the whole where another key ends alike."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(other.rsplit(".", 1)[-1] == last for other in keys) == 1 else key
