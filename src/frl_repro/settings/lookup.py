"""Which settings there are: keys of every program, who reads them, and what an unknown key may have meant."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frl_repro.basics import suggestions
from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.settings.config import Config, EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.files import settings_in, trained_like
from frl_repro.settings.keys import Key, about
from frl_repro.settings.methods import SettingsByMethod
from frl_repro.settings.programs import EvaluateKeys, RunKeys, SanityKeys
from frl_repro.settings.schema import GROUPS, NOT_IN_TRAINING, SECTIONS

GROUP_HELP = {
    "model": "the network",
    "dataset": "the images, their splits and augmentation",
    "attack": "what training is attacked with",
    "trainer": "optimiser, epochs, learning rate",
    "evaluation": "the attack and the radii that errors are measured with",
    "frl": "the class-wise method",
    "recipe": "whose loss and training a method uses",
    "sweep": "a grid of settings, with -m",
    "experiment": "the settings of one figure or table",
    "row": "one row of a table (experiment=paper_table, theory)",
    "schedule": "how long the rows of experiment=paper_table train",
}
"""What is chosen in each group of ``conf/``."""


def groups_of(kind: type[Any]) -> list[str]:
    """Return the groups that a program has."""
    return [f.name for f in dataclasses.fields(kind) if f.name in GROUPS]


def sections_of(kind: type[Any]) -> list[str]:
    """Return the parts of a program's configuration that only some methods have."""
    return [f.name for f in dataclasses.fields(kind) if f.name in SECTIONS]


def choices_of(kind: type[Any], group: str) -> Mapping[str, type]:
    """Return the choices of a group that a program has."""
    left_out = NOT_IN_TRAINING.get(group) if kind is RunConfig else None
    if left_out is None:
        return GROUPS[group]  # as it is: methods are looked up one by one
    return {choice: schema for choice, schema in GROUPS[group].items() if choice != left_out}


def top_level_of(kind: type[Any]) -> type:
    """Return the settings of a program outside every group."""
    return {RunConfig: RunKeys, EvaluateConfig: EvaluateKeys, SanityConfig: SanityKeys}[kind]


def all_keys(kind: type[Config]) -> dict[str, list[str]]:
    """Return every key of every choice, with the choices (``"attack=pgd"``) that read it."""
    keys: dict[str, list[str]] = {f.name: [] for f in dataclasses.fields(top_level_of(kind))}
    for group in groups_of(kind):
        for choice, schema in _declared_choices(kind, group).items():
            for item in dataclasses.fields(schema):
                if item.name != "name":
                    keys.setdefault(f"{group}.{item.name}", []).append(f"{group}={choice}")
    for section in sections_of(kind):
        for item in dataclasses.fields(SECTIONS[section]):
            for inner in (about(item).choices or {}).values():
                keys.update(
                    {f"{section}.{item.name}.{f.name}": [] for f in dataclasses.fields(inner) if f.name != "name"}
                )
            if about(item).choices is None:
                keys[f"{section}.{item.name}"] = []
    return keys


def explanations(kind: type[Config]) -> dict[str, dict[str, Key]]:
    """Return what is known of every key by place: ``""``, ``"tau"``, ``"attack=pgd"``, ``"retrain.attack=pgd"``."""
    parts: dict[str, type] = {"": top_level_of(kind)}
    parts |= {f"{group}={name}": s for group in groups_of(kind) for name, s in _declared_choices(kind, group).items()}
    for section in sections_of(kind):
        parts[section] = SECTIONS[section]
        for item in dataclasses.fields(SECTIONS[section]):
            parts |= {f"{section}.{item.name}={name}": s for name, s in (about(item).choices or {}).items()}
    return {part: {item.name: about(item) for item in dataclasses.fields(schema)} for part, schema in parts.items()}


def _declared_choices(kind: type[Any], group: str) -> Mapping[str, type]:
    """Return the choices of a group, made without importing methods."""
    choices = choices_of(kind, group)
    return choices.declared() if isinstance(choices, SettingsByMethod) else choices


def path_keys(kind: type[Config]) -> set[str]:
    """Return the keys that take a path: a leading ``~`` stands for the home folder, and every character for itself."""
    return {key for key, item in _declared(kind) if about(item).is_path}


def list_keys(kind: type[Config]) -> set[str]:
    """Return the keys that take a list."""
    return {key for key, item in _declared(kind) if "list[" in str(item.type)}


def _declared(kind: type[Config]) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield every key with its declaration; one of several choices once for each."""
    schemas = [("", top_level_of(kind)), *((f"{name}.", SECTIONS[name]) for name in sections_of(kind))]
    schemas += [(f"{group}.", s) for group in groups_of(kind) for s in _declared_choices(kind, group).values()]
    for prefix, schema in schemas:
        for item in dataclasses.fields(schema):
            inner = about(item).choices or {}
            for choice in inner.values():
                yield from ((f"{prefix}{item.name}.{f.name}", f) for f in dataclasses.fields(choice))
            if not inner:
                yield f"{prefix}{item.name}", item


@functools.cache
def method_keys() -> dict[str, set[str]]:
    """Return the keys that each method has under each recipe, ``"frl=reweight recipe=report"`` to dotted keys."""
    by_recipe = {
        path: {key for key in settings_in(path, CONFIG_DIR) if key.split(".", maxsplit=1)[0] in (*SECTIONS, "frl")}
        for path in sorted((CONFIG_DIR / "retrain").glob("*/*.yaml"))
    }
    methods = {f"frl={path.stem} recipe={path.parent.name}": keys for path, keys in by_recipe.items()}
    for path in sorted((CONFIG_DIR / "frl").glob("*.yaml")):
        own = {f"frl.{key}" for key in settings_in(path, CONFIG_DIR)}
        for like in trained_like(path):
            for p, keys in by_recipe.items():
                if p.stem == like:
                    off = _turned_off(p.with_name(path.name))
                    methods[f"frl={path.stem} recipe={p.parent.name}"] = own | (keys - off)
    return methods


def _turned_off(path: Path) -> set[str]:
    """Return the keys that a method's own file of a recipe sets to null: it lacks them in the training it takes in."""
    return {key for key, value in settings_in(path, CONFIG_DIR).items() if value == "null"} if path.exists() else set()


def unknown_key(key: str, kind: type[Config], *, value: str = "", choices: Mapping[str, str] | None = None) -> str:
    """Return the message for a key that no choice reads, with what it may have meant.

    Parameters
    ----------
    key : str
        As it was typed.
    kind : type
        What the command reads: `RunConfig`, `EvaluateConfig` or `SanityConfig`.
    value : str
        As it was typed, for groups.
    choices : mapping, optional
        Group to choice of the command's first job; None where that is not known.
    """
    keys = all_keys(kind)
    groups = [*groups_of(kind), *(["experiment", "row", "schedule"] if kind is RunConfig else [])]
    belongs = {name: _belongs_to(name, readers, choices) for name, readers in keys.items()}
    readable = [name for name, condition in belongs.items() if condition is None] + groups
    others = [name for name, condition in belongs.items() if condition]
    elsewhere = _commands_with(key, kind)

    if key in suggestions.ADVICE and kind is RunConfig:
        return f"unknown key {key}: {suggestions.ADVICE[key]}"
    group, _, inner = key.partition(".")
    is_choosing = group in groups and inner in ("name", "type", "kind")
    meant = [group] if is_choosing else _keys_meant(key, readable, others, kind)
    if not meant and not elsewhere:
        near = suggestions.keys_near(key, readable)
        # A place that was named counts more than whether its key is read.
        meant = near if near and "." not in key else suggestions.keys_near(key, [*readable, *others]) or near
    ours = f"{key} is a key of {' and '.join(elsewhere)}"
    if meant:
        is_retraining = choices is not None and choices.get("frl", "none") != "none"
        shown = {_with_value(name, value, kind): belongs.get(name) for name in meant}
        hint = suggestions.offered(shown, is_retraining=is_retraining)
        is_ours = elsewhere and not any(name.rpartition(".")[2] == key for name in meant)
        return f"unknown key {key}; {hint}{f' ({ours})' if is_ours else ''}"
    if elsewhere:
        return f"unknown key {key} here: {ours}"
    if group == "frl" and kind is RunConfig:
        return f"unknown key {key}; {_keys_by_method(choices)}"
    inside = sorted(name.split(".", 1)[1] for name in keys if name.startswith(f"{group}."))
    if inside:
        return f"unknown key {key}; {group} has {', '.join(inside)}"
    known = ", ".join([*groups_of(kind), *sections_of(kind)])
    return f"unknown key {key}; known are {known} (--help all lists every key)"


def _keys_by_method(choices: Mapping[str, str] | None) -> str:
    """Return the keys in ``frl`` of the chosen method; where it has none or is not known, which methods have some."""
    of_methods: dict[str, set[str]] = {}
    for method, names in method_keys().items():
        of_methods.setdefault(method.split()[0], set()).update(
            name.removeprefix("frl.") for name in names if name.startswith("frl.") and name != "frl.name"
        )
    chosen = f"frl={(choices or {}).get('frl')}"
    if of_methods.get(chosen):
        return f"{chosen}: {', '.join(sorted(of_methods[chosen]))}"
    having = sorted(method.removeprefix("frl=") for method, found in of_methods.items() if found)
    return f"these methods have keys of their own: {', '.join(having)} (--help frl lists them)"


def _keys_meant(key: str, readable: Sequence[str], others: Sequence[str], kind: type[Config]) -> list[str]:
    """Return the keys that a word names: those that are read, or else those that other choices read."""
    read, rest = suggestions.keys_named(key, readable), suggestions.keys_named(key, others)
    head, _, tail = key.rpartition(".")
    if head and any(name.startswith(f"{head}.") for name in rest) and not any(n.startswith(f"{head}.") for n in read):
        return rest
    if key in suggestions.SECTIONS and not any(name.startswith(f"{key}.") for name in read):
        return [*read, *(name for name in rest if name.startswith(f"{key}."))]
    if kind is not RunConfig:  # it measures in several ways, and has few keys
        return [*(name for name in rest if name.rpartition(".")[2] == tail), *read]
    outside_methods = [name for name in rest if name.split(".")[0] not in (*SECTIONS, "frl")]
    return read or outside_methods or rest


def _belongs_to(key: str, readers: Sequence[str], choices: Mapping[str, str] | None) -> str | None:
    """Return what must be chosen for a key to be read; None where it is, and an empty text where nothing reads it."""
    methods = method_keys() if key.split(".", maxsplit=1)[0] in (*SECTIONS, "frl") else {}
    if choices is None:
        return None
    if methods:
        chosen = f"frl={choices.get('frl')} recipe={choices.get('recipe')}"
        own = [method for method, names in methods.items() if key in names]
        if chosen in own:
            return None
        recipe = f" recipe={choices.get('recipe')}"
        usual = [method.removesuffix(" recipe=report") for method in own if method.endswith(recipe)] or own
        return next((method for method in usual if method.startswith("frl=reweight")), usual[0] if usual else "")
    group = key.split(".", maxsplit=1)[0]
    return None if not readers or f"{group}={choices.get(group)}" in readers else " or ".join(readers)


def _commands_with(key: str, kind: type[Config]) -> list[str]:
    """Return the other commands that have such a key or group."""
    commands: dict[type[Config], str] = {
        RunConfig: "train.py", EvaluateConfig: "scripts/evaluate.py", SanityConfig: "scripts/sanity.py",
    }  # fmt: skip
    return [
        command
        for other, command in commands.items()
        if other is not kind and (key in all_keys(other) or key in groups_of(other))
    ]


def _with_value(name: str, value: str, kind: type[Config]) -> str:
    """Return a group with the choice that a value stands for; any other key as it is."""
    close = suggestions.nearest(value, choices_of(kind, name)) if value and name in groups_of(kind) else None
    return f"{name}={close}" if close else name
