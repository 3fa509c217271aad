"""Radii as people and files write them. Imports nothing slow."""

from __future__ import annotations

import math

from frl_repro.basics.errors import UserError

EPSILON_TOLERANCE = 1e-6
"""Wide enough for an epsilon that went through float32, far narrower than one step of 1/255."""


def format_epsilon(epsilon: float) -> str:
    """An epsilon as people write it: ``"8/255"`` where it is a whole number of 8-bit grey levels, else ``%g``."""
    levels = epsilon * 255
    nearest = round(levels)
    is_whole = abs(levels - nearest) < 255 * EPSILON_TOLERANCE
    return f"{nearest}/255" if is_whole and 0 < nearest < 255 else f"{epsilon:g}"


def is_same_radius(one: float, other: float) -> bool:
    """Whether tables and files, which keep a radius by its name or find it up to rounding, cannot tell two apart."""
    return abs(one - other) <= EPSILON_TOLERANCE or format_epsilon(one) == format_epsilon(other)


def parse_fraction(text: str) -> float:
    """The number that ``"8/255"`` or ``"0.03"`` stands for.

    Raises
    ------
    UserError
        ``text`` is neither a finite decimal number nor a fraction of two.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{text!r} is not a number: write a decimal such as 0.03 or a fraction such as 8/255")
    return value
