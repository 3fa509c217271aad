"""Declarations of settings: meaning, range or choices, and kind.

A setting is a field of a dataclass in `schema` or `methods`, declared there and nowhere else; ``conf/`` holds values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

IN_EVERY_HASH = object()

# Whole numbers have an end: seeds are kept as 64-bit integers in tables, counts as C integers in native code.
SEED, COUNT, COUNT_OR_NONE = "[0, 2^63)", "[1, 2^31)", "[0, 2^31)"


@dataclass(frozen=True)
class Key:
    """What is known of a setting beside its name and type.

    Attributes
    ----------
    help : str
        What it means, with unit; shown by ``--help`` with the range.
    bounds : str, optional
        Range of a number, or of each number of a list, in interval notation.
    one_of : sequence of str, optional
        Values of a text.
    is_machine : bool
        It says how to compute, not what: no part of a run's hash.
    is_path : bool
    is_per_run : bool
        Runs that differ in it alone can be fused: a number of a method, which `Method.per_run` gives of each run.
    is_optional : bool
        Files of ``conf/retrain`` have it or not; None in methods that do not read it.
    choices : mapping, optional
        Name to dataclass, where the setting is a group of settings.
    added_as : Any
        For keys that came later: with this value a run does what it did before there was the key, and keeps the hash
        and the folder that it had.
    """

    help: str = ""
    bounds: str | None = None
    one_of: Sequence[str] | None = None
    is_machine: bool = False
    is_path: bool = False
    is_per_run: bool = False
    is_optional: bool = False
    choices: Mapping[str, type] | None = None
    added_as: Any = IN_EVERY_HASH


_PLAIN = Key()


def key(explanation: str, bounds: str | None = None, **about: Any) -> Any:
    """Declare a setting that every file of its choice has; ``about``: further attributes of `Key`."""
    return field(default="???", metadata={"key": Key(explanation, bounds, **about)})


def own(explanation: str, bounds: str | None = None, **about: Any) -> Any:
    """Declare a setting that a method's file in ``conf/retrain`` has or has not."""
    return field(default=None, metadata={"key": Key(explanation, bounds, is_optional=True, **about)})


def about(item: dataclasses.Field[Any]) -> Key:
    """Return what is known of a setting."""
    known: Key = item.metadata.get("key", _PLAIN)
    return known


# Asked for every key of every job of a sweep, and slow to make.
hints = functools.cache(get_type_hints)


def within(number: float, bounds: str) -> bool:
    """Return whether a number lies in an interval such as ``"(0, 1]"``, ``"(0, inf)"`` or ``"[1, 2^31)"``."""
    low, high = map(_end, bounds[1:-1].split(","))
    above = number > low if bounds[0] == "(" else number >= low
    below = number < high if bounds[-1] == ")" else number <= high
    return above and below


def _end(text: str) -> float:
    base, _, exponent = text.partition("^")
    return float(base) ** int(exponent or 1)
