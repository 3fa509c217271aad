"""Differences among runs that share all table columns: data and settings of ``run.json``. Needs no torch.

A table names the data set, the model, the method, the recipe and the alphas. Two runs that agree in these may still
differ in the images behind a data set's name, a departure, a running average or a number of steps; counted as two seeds
of one setting they would be averaged. Every reader of several runs gets its rows from `read_runs` or `with_variants`:
rows that agree in `selection.setting_columns` are one setting, and differ in the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from frl_repro.basics.radii import format_epsilon
from frl_repro.results.tables.reading import merged, read_json, read_sources
from frl_repro.results.tables.schema import SETTING_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from pandas import DataFrame

VARIANT_COLUMN = "variant"
BASE_COLUMN = "base"
"""What tells the models apart that runs start from; of runs without a class policy, the data and steps they train with.
Runs that agree in it can be compared."""

SETTINGS_COLUMN = "settings"
"""All that ``run.json`` says of how a run was trained, as text like ``variant``; empty where that is not known."""

EXTERNAL = "external"
"""What checkpoints that none of our runs wrote are called among methods."""

_ALIKE = ("dataset", "model", "method", *SETTING_COLUMNS)

_SECTIONS = ("dataset", "model", "attack", "trainer", "frl", "tau", "retrain", "departures")
"""Parts of a run's configuration that say how it was trained and are not columns of the tables."""

_OF_BASES = ("dataset.", "model.", "attack.", "trainer.", "init_from")

_OF_RETRAINING = "retrain."

BEFORE_THE_KEY = {
    "num_accumulation": "1",
    "precision": "float32",
    "augmentation": "none",
    "selection_fraction": "0.0",
    "imbalance": "none",
    "ema_from_start": "false",
}
"""Behaviour of runs from before a key existed, by key; null for others."""

_OF_THE_MACHINE = ("root", "download", "cache_dir")
"""Keys of these parts that change no number; ``root`` does for data sets that are folders, see below."""

_FOLDERS = ("image_folder",)
"""Data sets whose images are the files in ``root``."""

_OF_TRAINING = (
    "dataset.name", "dataset.validation_fraction", "dataset.selection_fraction", "dataset.split_seed",
    "dataset.num_train", "dataset.augmentation", "dataset.imbalance", "dataset.imbalance_ratio",
)  # fmt: skip
"""Keys of a data set that leave its test images as they are; runs that differ in another one are of other data."""

_SPLIT_SEED, _THE_SEED = "dataset.split_seed", "seed"
"""The key of a run's split, and what it is called where each run's split is drawn by the run's own seed."""

_IN_PIXEL_UNITS = ("epsilon", "step_size")
_DIGEST_LENGTH = 8  # characters of a digest in a name

_PART = re.compile(r'[^\s=]+="(?:[^"]|"")*"|\S+')


class _Value(NamedTuple):
    """A setting's value: as shown, as compared, and as shown where two values look alike."""

    shown: str
    identity: str
    precise: str


@dataclass(frozen=True)
class _About:
    """What ``run.json`` says of the run whose table stands beside it.

    Attributes
    ----------
    run_id : str
    checkpoint : str
        The file that scripts/evaluate.py measured; then settings are not those of a training. Empty for runs.
    settings : dict of str to _Value
        By dotted key.
    base : str
        Name of the folder of the starting model that was trained for this run; empty where there is none.
    root, digest : str
        Where the data were and what they held; empty where it is not known, or where a name stands for them.
    """

    run_id: str = ""
    checkpoint: str = ""
    settings: dict[str, _Value] = field(default_factory=dict)
    base: str = ""
    root: str = ""
    digest: str = ""


def read_runs(files: Sequence[Path]) -> DataFrame:
    """Return the rows of tables of runs and measured checkpoints, told apart by data set, ``variant`` and ``base``.

    A measurement of a run's checkpoint that repeats what the run itself measured is left out, with a line in the log.
    So is, without one, what a starting model was measured by when it was trained, where no other run was measured by
    that attack: the runs that start from it hold it, by their own attack, as their epoch 0.

    Parameters
    ----------
    files
        ``classwise.csv`` files, from `reading.find_tables`.

    Raises
    ------
    UserError
        A table or a ``run.json`` is damaged, or two folders hold different numbers for one run.
    """
    table, sources = read_sources(files)  # all of it is checked, also what is left out
    run_of = dict(zip(sources, table["run_id"], strict=True))
    abouts = {str(file): _about(file, run_of[str(file)]) for file in files}
    classes = table.assign(source=sources).drop_duplicates(["source", "class_id"]).sort_values("class_id")
    class_names = {str(source): tuple(names) for source, names in classes.groupby("source")["class_name"]}
    name_of = dict(zip(sources, table["dataset"], strict=True))
    names = _data_names({str(file): str(name_of[str(file)]) for file in files}, abouts, class_names)
    measurements = {file for file, about in abouts.items() if about.checkpoint}
    # A table may hold several data sets: those that its run.json does not speak of keep their names.
    of_file = zip(sources, table["dataset"], strict=True)
    renamed = [names[source] if name == name_of[source] else name for source, name in of_file]
    table = table.assign(dataset=renamed)
    is_left_out = _is_of_bases_alone(table, sources, abouts)
    table = merged(table[~is_left_out].reset_index(drop=True), sources[~is_left_out], extra=measurements)
    return _named(table, list(abouts.values()))


def _is_of_bases_alone(table: DataFrame, sources: NDArray[Any], abouts: Mapping[str, _About]) -> NDArray[np.bool_]:
    """Which rows are a starting model's own, by an attack that no other run was measured by.

    Starting models are shared by runs that are measured in different ways, so that they have a measurement of their
    own, always the same.
    """
    bases = {about.base for about in abouts.values()} - {""}
    files = [file for file, about in abouts.items() if not about.checkpoint and Path(file).parent.name in bases]
    is_of_base = np.isin(sources, files)
    of_others = table.loc[~is_of_base, "attack"].unique()
    is_left_out: NDArray[np.bool_] = is_of_base & ~table["attack"].isin(of_others).to_numpy()
    return is_left_out


def with_variants(table: DataFrame, files: Iterable[str | Path]) -> DataFrame:
    """Return a table with the columns ``variant``, such as ``"ema_decay=0.998"``, ``base`` and ``settings``.

    The first two name what tells runs apart, and are empty where all agree.

    Parameters
    ----------
    table
        Rows of ``classwise.csv`` or ``policy.csv``.
    files
        The files they were read from, and others that it shares data sets with; ``run.json`` is looked for beside each.

    Raises
    ------
    UserError
        A ``run.json`` is damaged.
    """
    abouts = {str(file): _about(Path(file)) for file in files}
    known = {f: a.settings["dataset.name"].shown for f, a in abouts.items() if "dataset.name" in a.settings}
    names = {abouts[file].run_id: name for file, name in _data_names(known, abouts, {}).items()}
    renamed = [names.get(run_id, name) for run_id, name in zip(table["run_id"], table["dataset"], strict=True)]
    return _named(table.assign(dataset=renamed), list(abouts.values()))


def parts_of(variant: str) -> dict[str, str]:
    """Return the settings that a variant, or a run's ``settings``, names, by key."""
    parts = (part.partition("=") for part in _PART.findall(variant))
    return {key: unquoted(value) for key, _, value in parts}


def differences(settings: Collection[str]) -> dict[str, str]:
    """Return for each run's ``settings`` those in which some of them differ, as text like ``variant``."""
    of_run = {
        text: {key: _Value(value, value, value) for key, value in parts_of(text).items()}
        for text in dict.fromkeys(settings)
        if text
    }
    return {**dict.fromkeys(settings, ""), **_texts(of_run)}


def unquoted(text: str) -> str:
    """Return what a text in double quotes stands for, in which two stand for one; another one as it is."""
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def _quoted(text: str) -> str:
    return '"{}"'.format(text.replace('"', '""')) if re.search(r'[\s"]', text) else text


def _about(file: Path, run_id: str = "") -> _About:
    path = file.with_name("run.json")
    if not path.exists():
        return _About(run_id)
    run = read_json(path)
    config = run.get("config") or {}
    data, start = run.get("data"), run.get("start")
    digest = str(data.get("digest") or "") if isinstance(data, dict) else ""
    dataset = config.get("dataset") or {}
    root = str(dataset.get("root") or "") if dataset.get("name") in _FOLDERS else ""
    checkpoint = "" if "config_hash" in run else str(config.get("checkpoint") or "")
    sections = ("dataset",) if checkpoint else _SECTIONS
    settings = dict(_flattened({name: config[name] for name in sections if config.get(name) is not None}, ""))
    if config.get("init_from") is not None:
        of_start = str(start.get("sha256") or "") if isinstance(start, dict) else ""
        settings["init_from"] = _content(str(config["init_from"]), of_start)
    trained_for_it = start if isinstance(start, dict) and config.get("init_from") is None else {}
    base = PurePath(str(trained_for_it.get("file") or "")).parent.name
    return _About(str(run.get("run_id") or run_id), checkpoint, settings, base, root, digest)


def _flattened(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, _Value]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        elif value is not None and key not in _OF_THE_MACHINE:
            identity = json.dumps(value, separators=(",", ":")).strip('"')
            yield f"{prefix}{key}", _Value(_shown(key, value, identity), identity, identity)


def _shown(key: str, value: Any, identity: str) -> str:
    if not isinstance(value, float):
        return identity
    return format_epsilon(value) if key in _IN_PIXEL_UNITS else f"{value:g}"


def _content(name: str, digest: str) -> _Value:
    """Return a file or folder as a setting: compared by its digest, where that is known."""
    return _Value(name, digest, f"{name}@{digest[:_DIGEST_LENGTH]}") if digest else _Value(name, name, name)


def _data_names(
    names: Mapping[str, str], abouts: Mapping[str, _About], class_names: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """Return what each table's data set is called: its name, with what tells its images from others of that name.

    Parameters
    ----------
    names, abouts, class_names
        By file; the class names of a file may be missing.
    """
    result = {}
    for name in set(names.values()):
        files = [file for file, of_file in names.items() if of_file == name]
        known = {file: _of_test_images(abouts[file].settings) for file in files if abouts[file].settings}
        texts = _texts(known)
        folders = defaultdict(list)
        for file in files:
            folders[texts.get(file, "")].append(file)
        for text, same in folders.items():
            contents = _texts(
                {file: {"root": value} for file, value in _contents({f: abouts[f] for f in same}).items()}
            )
            for file in same:
                result[file] = " ".join(filter(None, (name, text, contents.get(file, ""))))
    # Where nothing was recorded of the images, classes may still tell: errors of other classes are of other data.
    holders = defaultdict(set)
    for file, called in result.items():
        holders[called].add(class_names.get(file, ()))
    for file, called in list(result.items()):
        if len(holders[called]) > 1:
            classes = class_names.get(file, ())
            digest = hashlib.sha256("\0".join(classes).encode("utf-8", "surrogateescape")).hexdigest()
            result[file] = f"{called} classes={len(classes)}@{digest[:_DIGEST_LENGTH]}"
    return result


def _of_test_images(settings: Mapping[str, _Value]) -> dict[str, _Value]:
    return {key: value for key, value in settings.items() if key.startswith("dataset.") and key not in _OF_TRAINING}


def _contents(abouts: Mapping[str, _About]) -> dict[str, _Value]:
    """Return what lies behind one data set's name, by file: where it is from, and its digest where that has changed.

    A digest covers all splits and so depends on how they were made: it is compared among runs that made them alike. Two
    folders that hold the same are one.
    """
    roots = _tails({about.root for about in abouts.values()})
    first_root: dict[tuple[str, ...], str] = {}
    alias = {root: root for root in roots}
    digests = defaultdict(set)
    for about in abouts.values():
        made = tuple(about.settings[key].identity if key in about.settings else "" for key in _OF_TRAINING[:-1])
        if about.digest:
            one, other = alias[first_root.setdefault((*made, about.digest), about.root)], alias[about.root]
            alias = {root: one if to == other else to for root, to in alias.items()}
            digests[(*made, about.root)].add(about.digest)
    have_changed = {alias[key[-1]] for key, found in digests.items() if len(found) > 1}
    return {
        file: _content(roots[root], about.digest or "unknown")
        if (root := alias[about.root]) in have_changed
        else _Value(roots[root], root, root)
        for file, about in abouts.items()
    }


def _named(table: DataFrame, abouts: Sequence[_About]) -> DataFrame:
    """Return a table with its variants and bases."""
    settings = {about.run_id: about.settings for about in abouts if about.settings and not about.checkpoint}
    files = {about.run_id: about.checkpoint for about in abouts if about.checkpoint}
    tails = _tails(set(files.values()))
    # The name of such a checkpoint ends with the digest of its file.
    digests = {run_id: run_id[-_DIGEST_LENGTH:] for run_id in files}
    externals = {run_id: {"checkpoint": _content(tails[file], digests[run_id])} for run_id, file in files.items()}
    columns = [name for name in _ALIKE if name in table.columns]
    places = table.groupby(columns, dropna=False).ngroup()
    runs = table.assign(place=places).drop_duplicates(["run_id", "place"])
    settings = _with_own_splits(settings, runs)
    variants: dict[tuple[str, int], str] = {}
    for place in sorted(set(places)):
        part = runs[runs["place"] == place]
        is_external = part["method"].iloc[0] == EXTERNAL
        known = externals if is_external else settings
        texts = _texts({run_id: known[run_id] for run_id in part["run_id"] if run_id in known}, names_all=is_external)
        taken = set()
        for run_id, seed in zip(part["run_id"], part["seed"], strict=True):
            text = texts.get(run_id, "")
            if (text, seed) in taken:  # what it differs in is not known: it is no other seed of this setting
                text = f"{text} run={_quoted(run_id)}".strip()
            taken.add((text, seed))
            variants[run_id, place] = text
    bases: dict[str, str] = {}
    # What is retrained starts from a base; a method that trains from scratch is alike what has no method.
    is_retrained = [
        _is_retrained(settings[run_id]) if run_id in settings else recipe != ""
        for run_id, recipe in zip(runs["run_id"], runs["recipe"], strict=True)
    ]
    for _, part in runs.assign(is_retrained=is_retrained).groupby(["dataset", "model", "is_retrained"]):
        bases |= _texts({run_id: _of_base(settings[run_id]) for run_id in part["run_id"] if run_id in settings})
    texts_of_all = {
        run_id: " ".join(f"{key}={_quoted(value.precise)}" for key, value in of_run.items())
        for run_id, of_run in settings.items()
    }
    return table.assign(
        **{
            VARIANT_COLUMN: [variants[key] for key in zip(table["run_id"], places, strict=True)],
            BASE_COLUMN: [bases.get(run_id, "") for run_id in table["run_id"]],
            SETTINGS_COLUMN: [texts_of_all.get(run_id, "") for run_id in table["run_id"]],
        }
    )


def _with_own_splits(settings: dict[str, dict[str, _Value]], runs: DataFrame) -> dict[str, dict[str, _Value]]:
    """Return settings in which a split that was drawn by the run's own seed is called that, whatever the seed.

    Seeds of one setting then agree, though each has a split of its own. A run whose seed happens to be that of a split
    which several seeds share, such as seed 0 of seeds 0, 1, 2 on split 0, is one of those.
    """
    own, shared, shared_on_data = defaultdict(set), set(), set()
    of_run = {}
    runs = runs.drop_duplicates("run_id")
    columns = (runs[name] for name in ("run_id", "seed", "place", "dataset", "model"))
    for run_id, seed, place, *data_and_model in zip(*columns, strict=True):
        known = settings.get(run_id, {})
        if _SPLIT_SEED not in known:
            continue
        others = frozenset((key, value.identity) for key, value in known.items() if key != _SPLIT_SEED)
        split, alike, data = known[_SPLIT_SEED].identity, (place, others), tuple(data_and_model)
        if split == str(seed):
            of_run[run_id] = (split, alike, data)
            own[alike].add(split)
        else:
            shared.add((split, alike))
            shared_on_data.add((split, data))
    the_seed = {_SPLIT_SEED: _Value(_THE_SEED, _THE_SEED, _THE_SEED)}
    follows = {
        run_id
        for run_id, (split, alike, data) in of_run.items()
        # A single run does not say whether its split is shared: then it is as other runs on these data have it.
        if (split, alike) not in shared and (len(own[alike]) > 1 or (split, data) not in shared_on_data)
    }
    return {run_id: known | the_seed if run_id in follows else known for run_id, known in settings.items()}


def _is_retrained(settings: Mapping[str, _Value]) -> bool:
    return any(key.startswith(_OF_RETRAINING) for key in settings)


def _of_base(settings: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the settings of the model that a run starts from; of a run that starts anew, all but its attack."""
    chosen = {key: value for key, value in settings.items() if key.startswith(_OF_BASES)}
    if not _is_retrained(settings):
        return {key: value for key, value in chosen.items() if not key.startswith("attack.")}
    saw_validation = settings.get("departures.base_saw_validation")
    if saw_validation is not None and saw_validation.identity == "true":
        chosen.pop("dataset.validation_fraction", None)
    return chosen


def _texts(settings: Mapping[str, Mapping[str, _Value]], *, names_all: bool = False) -> dict[str, str]:
    """Return for each run the settings in which some differ, as text; with ``names_all`` the others as well."""
    keys = sorted({key for of_run in settings.values() for key in of_run})
    parts: dict[str, list[str]] = {run: [] for run in settings}
    for key in keys:
        values = {run: _value(of_run, key) for run, of_run in settings.items()}
        # What holds the same has one name, the first, wherever it lies.
        first: dict[str, _Value] = {}
        for value in values.values():
            first.setdefault(value.identity, value)
        if len(first) == 1 and not names_all:
            continue
        tells_apart = len({value.shown for value in first.values()}) == len(first)
        for run, value in values.items():
            called = first[value.identity]
            text = called.shown if tells_apart else called.precise
            parts[run].append(f"{_short(key, keys)}={_quoted(text)}")
    return {run: " ".join(of_run) for run, of_run in parts.items()}


def _value(settings: Mapping[str, _Value], key: str) -> _Value:
    """A setting; of a run that was before there was the setting, what it did."""
    if key in settings:
        return settings[key]
    before = BEFORE_THE_KEY.get(key.rsplit(".", 1)[-1], "null")
    return _Value(before, before, before)


def _short(key: str, keys: Iterable[str]) -> str:
    """The last part of a key, or the whole where another key ends alike."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(other.rsplit(".", 1)[-1] == last for other in keys) == 1 else key


def _tails(paths: Collection[str]) -> dict[str, str]:
    """Return for each path its last parts, as many as tell all of them apart."""
    parts = {path: PurePath(path).parts for path in paths}
    for length in range(1, max(map(len, parts.values()), default=0)):
        tails = {path: "/".join(of_path[-length:]) for path, of_path in parts.items()}
        if len(set(tails.values())) == len(tails):
            return tails
    return {path: path for path in paths}
