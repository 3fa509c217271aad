"""From a composed configuration in plain containers to a typed and checked one."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frl_repro.basics import suggestions
from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home
from frl_repro.settings.checks import check
from frl_repro.settings.config import Config, RunConfig
from frl_repro.settings.keys import Key, about, hints, within
from frl_repro.settings.lookup import choices_of, groups_of, sections_of, top_level_of
from frl_repro.settings.schema import GROUPS, NOT_IN_TRAINING, OWN, OWN_DATASET_DEFAULTS, SECTIONS, ModelConfig

C = TypeVar("C", bound=Config)
N = TypeVar("N")


def parse(composed: Mapping[str, Any], kind: type[C]) -> C:
    """Check a composed configuration and return it typed.

    Parameters
    ----------
    composed : mapping
        Plain nested containers, interpolations resolved.
    kind : type
        `RunConfig`, `EvaluateConfig` or `SanityConfig`.

    Raises
    ------
    UserError
        Unknown key or choice, wrong type, value out of range, or settings that contradict or ignore one another.
    """
    groups, sections = groups_of(kind), sections_of(kind)
    if kind is RunConfig:
        _refuse_what_only_measures(composed)
        _refuse_natural_from_scratch(composed)
    parts = {
        group: _parse_own(group, composed[group])
        if _is_own(group, composed.get(group))
        else _parse_group(group, choices_of(kind, group), composed.get(group))
        for group in groups
    }
    for name in sections:
        # A file that serves several methods may say how long one retrains; the command line may not (`cli`).
        is_absent = name == "retrain" and (name not in composed or parts["frl"].name == "none")
        parts[name] = None if is_absent else _parse_node(SECTIONS[name], composed.get(name, {}), f"{name}.")
    top_values = {name: value for name, value in composed.items() if name not in (*groups, *sections)}
    config = kind(**parts, keys=_parse_node(top_level_of(kind), top_values, ""))
    check(config)
    return config


def _refuse_what_only_measures(composed: Mapping[str, Any]) -> None:
    for group, choice in NOT_IN_TRAINING.items():
        node = composed.get(group)
        if isinstance(node, Mapping) and node.get("name") == choice:
            raise UserError(
                f"{group}={choice} measures finished models, it is too slow for training, which measures after epochs: "
                f"train without it, then python scripts/evaluate.py {group}={choice} checkpoint=<run>/model.safetensors"
            )


def _refuse_natural_from_scratch(composed: Mapping[str, Any]) -> None:
    """Before the attack is read: a method's file may set what ``attack=none`` lacks."""
    chosen = {}
    for group in ("attack", "frl", "recipe"):
        node = composed.get(group)
        chosen[group] = node.get("name") if isinstance(node, Mapping) else None
    if chosen["attack"] == "none" and chosen["recipe"] == "scratch" and chosen["frl"] != "none":
        raise UserError(f"frl={chosen['frl']} trains adversarially: attack=none attacks nothing")


def _is_own(group: str, node: Any) -> bool:
    return group in OWN and isinstance(node, Mapping) and "factory" in node


def _parse_own(group: str, node: Mapping[str, Any]) -> Any:
    """Return the settings of a model or data set from outside this package."""
    name = str(node.get("name"))
    if re.fullmatch(r"[A-Za-z0-9_]{1,60}", name) is None or name in GROUPS[group]:
        raise UserError(f"{group}.name={name}: give what has a factory a name of its own, of letters, digits and _")
    usual = OWN_DATASET_DEFAULTS if group == "dataset" else {}
    return _parse_node(OWN[group], {"settings": {}, **usual, **node}, f"{group}.")


def _parse_group(group: str, choices: Mapping[str, type], node: Any) -> Any:
    name = str(node.get("name")) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or name is None or name not in choices:
        raise UserError(f"{group}={name if name is not None else node}: unknown choice; known: {', '.join(choices)}")
    return _parse_node(choices[name], node, f"{group}.")


def _parse_node(schema: type, values: Mapping[str, Any], prefix: str) -> Any:
    types = hints(schema)
    known = {f.name: f for f in dataclasses.fields(schema)}
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.')}={_shown(values)}: expected keys with values, not a value")
    for name in values:
        if name not in known:
            close = suggestions.keys_named(name, list(known)) or suggestions.keys_near(name, list(known))
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"unknown key {prefix}{name}; {hint}")
    result = {}
    for name, item in known.items():
        full = f"{prefix}{name}"
        if name not in values:
            if about(item).is_optional:
                continue
            raise UserError(f"{full} is missing")
        if (choices := about(item).choices) is not None:
            result[name] = _parse_group(full, choices, values[name])
            continue
        value = _as_numbers(values[name]) if "float" in str(types[name]) else values[name]
        # One key at a time, so that the message can name the key and show the value as it was typed.
        try:
            merged = OmegaConf.merge(_typed_key(schema, name), {name: value})
            result[name] = OmegaConf.to_container(merged)[name]  # type: ignore[index, call-overload]
        except OmegaConfBaseException:
            raise UserError(f"{full}={_shown(values[name])}: expected {_type_name(types[name])}") from None
        if about(item).is_path and result[name] is not None:
            result[name] = in_home(result[name])
        _check_value(full, result[name], about(item), shown=_shown(values[name]))
    return schema(**result)


@functools.cache  # asked for every key of every job of a sweep, and slow to make
def _typed_key(schema: type, name: str) -> DictConfig:
    """Return a configuration of one key, typed as in the schema, without a value."""
    single = dataclasses.make_dataclass("Single", [(name, hints(schema)[name], dataclasses.field(default=MISSING))])
    typed: DictConfig = OmegaConf.structured(single)
    return typed


def _check_value(key: str, value: Any, known: Key, *, shown: str) -> None:
    if value is None:
        return
    if known.one_of is not None and value not in known.one_of:
        hint = suggestions.choice_hint(shown, known.one_of)
        raise UserError(f"{key}={shown}: unknown choice; {hint}known: {', '.join(known.one_of)}")
    if known.bounds is not None:
        numbers = value if isinstance(value, list) else [value]
        if not all(within(number, known.bounds) for number in numbers):
            hint = suggestions.number_hint(key, numbers)
            raise UserError(f"{key}={shown}: must lie in {known.bounds}{hint}")


_FRACTION = re.compile(r"\s*([-+]?[0-9.eE+-]+?)\s*/\s*([0-9.eE+-]+)\s*")


def _as_numbers(value: Any) -> Any:
    """Return the value with fractions such as ``"8/255"`` worked out; anything else is left for the type check."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_numbers(v) for v in value]
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    try:
        quotient = float(match[1]) / float(match[2])
    except (ValueError, ZeroDivisionError):
        return value
    return quotient if math.isfinite(quotient) else value


def _type_name(hint: Any) -> str:
    names = {
        "int": "a whole number",
        "float": "a number or a fraction such as 8/255",
        "bool": "true or false",
        "str": "a text",
        "list[float]": "a list of numbers such as [8/255,16/255]",
    }
    text = hint.__name__ if isinstance(hint, type) and "[" not in str(hint) else str(hint)
    parts = [part.strip() for part in text.split("|")]
    return " or ".join(names.get(part, "null" if part == "None" else part) for part in parts)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def node(schema: type[N], values: Mapping[str, Any], prefix: str = "") -> N:
    """Return settings of one part, checked: every key of its dataclass must be there.

    Parameters
    ----------
    schema : type
        A dataclass of `frl_repro.settings.schema`, or a method's ``Settings``.
    values : mapping
    prefix : str
        What stands before a key in messages: ``"frl."``.

    Raises
    ------
    UserError
        An unknown or missing key, or a value of the wrong type or out of range.
    """
    parsed: N = _parse_node(schema, values, prefix)
    return parsed


def model_settings(settings: Mapping[str, Any]) -> ModelConfig:
    """Return the settings of a model that a checkpoint holds, checked.

    Raises
    ------
    UserError
        An unknown model or key, or a value of the wrong type or out of range.
    """
    parsed: ModelConfig = _parse_group("model", GROUPS["model"], settings)
    return parsed
