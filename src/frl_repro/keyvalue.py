"""``key=value`` command lines of the scripts that read tables. Imports nothing slow."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from frl_repro.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def parse_arguments(arguments: Sequence[str], keys: Mapping[str, str]) -> dict[str, str]:
    """Return the given values by key.

    Parameters
    ----------
    arguments
        ``key=value`` texts.
    keys
        Known keys and what they take.

    Raises
    ------
    UserError
        An argument of another form, an unknown key (with a suggestion), one given twice or without a value.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} is not of the form key=value; keys are {', '.join(keys)}")
        if key not in keys:
            raise UserError(f"unknown key {key!r}{suggestion(key, keys)}; keys are {', '.join(keys)}")
        if key in given:
            raise UserError(f"{key}= is given twice")
        if not value:
            raise UserError(f"{key}= has no value; it takes: {' '.join(keys[key].split())}")
        given[key] = value
    return given


def choice(key: str, value: str, known: Iterable[str]) -> str:
    """Return the value if it is known; UserError with a suggestion otherwise."""
    names = list(known)
    if value not in names:
        raise UserError(f"{key}={value} is unknown{suggestion(value, names)}; known: {', '.join(names)}")
    return value


def parse_epsilon(text: str) -> float:
    """Return a radius in pixel units from ``"8/255"`` or ``"0.03"``; UserError outside [0, 1]."""
    from frl_repro.records import parse_fraction  # noqa: PLC0415 (pandas is slow to import)

    epsilon = parse_fraction(text)
    if not 0 <= epsilon <= 1:
        raise UserError(f"epsilon={text} is outside [0, 1]: give it in pixel units, for example 8/255")
    return epsilon


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"``, or nothing when no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
