"""Check what is read back from files before it is used: type, size, range and characters of every field.

Files of runs are handed on, and edited. What one says may name a folder, be shown on a terminal or count epochs, so no
field is used that was not checked here. Needs neither torch nor pandas.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from frl_repro.basics.errors import UserError
from frl_repro.basics.regular_files import check_regular

Check = Callable[[Any], None]
"""Raises `UnfitError` for a value that is not as it must be."""

_MAX_BYTES = 64 << 20  # of a note: a sweep of a million runs lists them in that
_MAX_SHOWN = 60  # characters of a wrong value in a message
_MAX_DEPTH = 12
_LAST_COUNT = 2**63 - 1  # what torch and pandas hold as an integer


class UnfitError(Exception):
    """What is wrong with a value: where inside of it, and why."""

    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(why)
        self.why, self.where = why, where


def text(pattern: str = r"[^\x00-\x1f\x7f]*", *, max_length: int = 1000, what: str = "a text of one line") -> Check:
    """Return the check of a text; ``pattern`` must match all of it, ``what`` is said otherwise."""
    compiled = re.compile(pattern)

    def check(value: Any) -> None:
        if not isinstance(value, str) or len(value) > max_length or compiled.fullmatch(value) is None:
            raise UnfitError(f"must be {what} of at most {max_length} characters, not {shown(value)}")

    return check


def file_name(max_length: int = 200) -> Check:
    """Return the check of a name that becomes that of a file or folder: it can lead nowhere else."""
    letters = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
    return text(letters, max_length=max_length, what="letters, digits and _ . + - (it names a folder)")


SHA256 = text(r"[0-9a-f]{64}", max_length=64, what="a sha256 in hexadecimal digits")
ANY_TEXT = text(r"(?s).*", max_length=100_000, what="a text")


def whole(low: int = 0, high: int = _LAST_COUNT) -> Check:
    """Return the check of an integer in a range, ends included."""

    def check(value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UnfitError(f"must be a whole number from {low} to {high}, not {shown(value)}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Return the check of a finite number in a range, ends included."""

    def check(value: Any) -> None:
        is_finite = isinstance(value, float) and math.isfinite(value)
        is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LAST_COUNT
        if not (is_finite or is_whole) or not low <= value <= high:
            raise UnfitError(f"must be a number from {low:g} to {high:g}, not {shown(value)}")

    return check


def one_of(*known: Any) -> Check:
    """Return the check of a value that is one of a few."""

    def check(value: Any) -> None:
        if not any(type(value) is type(one) and value == one for one in known):
            raise UnfitError(f"must be one of {', '.join(map(str, known))}, not {shown(value)}")

    return check


def maybe(check: Check) -> Check:
    """Return the check of a value that may be null."""

    def check_unless_null(value: Any) -> None:
        if value is not None:
            check(value)

    return check_unless_null


def items(check: Check, *, min_length: int = 0, max_length: int = 1_000_000) -> Check:
    """Return the check of a list of which every item passes ``check``."""

    def check_items(value: Any) -> None:
        if not isinstance(value, list | tuple) or not min_length <= len(value) <= max_length:
            raise UnfitError(f"must be a list of {min_length} to {max_length} items, not {shown(value)}")
        for place, item in enumerate(value):
            _inside(f"[{place}]", check, item)

    return check_items


def entries(name: Check, check: Check, *, max_length: int = 100_000) -> Check:
    """Return the check of a mapping of which every key passes ``name`` and every value ``check``."""

    def check_entries(value: Any) -> None:
        if not isinstance(value, Mapping) or len(value) > max_length:
            raise UnfitError(f"must be a mapping of at most {max_length} entries, not {shown(value)}")
        for key, item in value.items():
            _inside(f".{shown(key)}", name, key)
            _inside(f".{key}", check, item)

    return check_entries


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Return the check of a mapping with these fields; others are let pass, for nobody reads them."""

    def check_fields(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise UnfitError(f"must be a mapping, not {shown(value)}")
        for name, check in required.items():
            if name not in value:
                raise UnfitError("is missing", f".{name}")
            _inside(f".{name}", check, value[name])
        for name, check in (optional or {}).items():
            if name in value:
                _inside(f".{name}", check, value[name])

    return check_fields


def cell(value: Any) -> None:
    """Check a value of a table's row: a text, a number, a boolean or null."""
    if isinstance(value, str):
        ANY_TEXT(value)
    elif value is not None and not isinstance(value, bool):
        number()(value)


_KEY = text(r"[A-Za-z_][A-Za-z0-9_]*", max_length=100, what="letters, digits and _")


def settings(value: Any, depth: int = 0) -> None:
    """Check nested settings: mappings with plain keys, of lists, texts, numbers, booleans and null."""
    if depth > _MAX_DEPTH:
        raise UnfitError(f"is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        entries(_KEY, lambda inner: settings(inner, depth + 1))(value)
    elif isinstance(value, list):
        items(lambda inner: settings(inner, depth + 1))(value)
    else:
        cell(value)


SETTINGS = entries(_KEY, settings)


def checked(value: Any, check: Check, *, source: str | Path, remedy: str) -> Any:
    """Return the value when it passes.

    Parameters
    ----------
    value
        What was read.
    check : Check
    source : str or Path
        What it was read from; begins the message.
    remedy : str
        What to do about it; ends the message.

    Raises
    ------
    UserError
        It does not pass: the message names the field, what it must be, and what it is.
    """
    try:
        check(value)
    except UnfitError as problem:
        where = problem.where.lstrip(".")
        raise UserError(f"{source} is damaged: {f'{where} ' if where else ''}{problem.why}; {remedy}") from None
    return value


def read_json(path: Path, check: Check, *, remedy: str) -> Any:
    """Return the content of a JSON file when it passes.

    Raises
    ------
    UserError
        The file is too large, no JSON, or does not pass.
    OSError
        It cannot be read, or is no file but a pipe or a device.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path} is damaged: it has more than {_MAX_BYTES >> 20} MiB; {remedy}")
    return checked(parse_json(content, source=path, remedy=remedy), check, source=path, remedy=remedy)


def parse_json(content: str | bytes, *, source: str | Path, remedy: str) -> Any:
    """Return the value of JSON text.

    Raises
    ------
    UserError
        It is no JSON; NaN and infinities are none.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # JSON and UTF-8 decoding errors alike
        raise UserError(f"{source} is damaged, not valid JSON; {remedy}") from None


def shown(value: Any) -> str:
    """Return a value for a message: one short line of plain characters."""
    if isinstance(value, Mapping | list | tuple) and len(value) > 5:  # all of it may be large
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a huge number"
    whole_text = ascii(value[: _MAX_SHOWN + 1] if isinstance(value, str | bytes) else value)
    return whole_text if len(whole_text) <= _MAX_SHOWN else f"{whole_text[:_MAX_SHOWN]}..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _inside(where: str, check: Check, value: Any) -> None:
    try:
        check(value)
    except UnfitError as problem:
        raise UnfitError(problem.why, where + problem.where) from None
