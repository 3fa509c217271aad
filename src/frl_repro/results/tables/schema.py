"""Columns of the result tables, and radii as they are written. Imports nothing slow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from frl_repro.basics.errors import UserError

if TYPE_CHECKING:
    pass


RUN_COLUMNS = ("run_id", "dataset", "model", "method", "seed")
"""What tells one trained model from another."""

MEASUREMENT_COLUMNS = (*RUN_COLUMNS, "split", "epoch", "attack", "epsilon")
"""What tells one evaluation from another; each has one row per class."""

CLASSWISE_COLUMNS = (
    *MEASUREMENT_COLUMNS,
    "class_id",
    "class_name",
    "count",
    "num_natural_errors",
    "num_boundary_errors",
    "natural_error",
    "boundary_error",
    "robust_error",
)
"""Columns of ``classwise.csv`` that readers require; they keep any others."""

SETTING_COLUMNS = ("recipe", "alpha_nat", "alpha_bndy", "alpha_margin", "alpha_rob")
"""How a class policy was steered; empty where there is none. Readers add them, empty, to tables without."""

CHECKPOINT_COLUMN = "checkpoint"
"""Which kept checkpoint rows of the selection and of the test split are of: ``last``, ``best`` (by validation) or
``best+last``, where these are one; empty elsewhere. Readers add it, empty, to tables without."""

CLASSWISE_HEADER = (*RUN_COLUMNS, *SETTING_COLUMNS, CHECKPOINT_COLUMN, *CLASSWISE_COLUMNS[len(RUN_COLUMNS) :])
"""Columns of ``classwise.csv`` as written, in order."""

HISTORY_COLUMNS = (
    "run_id", "epoch", "num_steps", "learning_rate", "train_loss", "train_clean_error", "train_attacked_error",
    "validation_natural_error", "validation_robust_error",
)  # fmt: skip
"""Columns of ``history.csv``: one row an epoch."""

POLICY_COLUMNS = (
    *RUN_COLUMNS, *SETTING_COLUMNS, "epoch", "class_id", "class_name",
    "natural_error", "boundary_error", "weight_nat", "weight_bndy", "margin",
)  # fmt: skip
"""Columns of ``policy.csv``: one row an epoch and class; errors are those of the epoch's last update."""

_ADDED_COLUMNS = frozenset({"alpha_rob", CHECKPOINT_COLUMN, "validation_natural_error", "validation_robust_error"})
"""Columns that came later: rows without them, of an unfinished run for example, are written with empty cells."""

# Tables hold shortest round-trip floats, so stored and recomputed ratios differ by rounding only.
_RATIO_TOLERANCE = 1e-9
# Wide enough for an epsilon that went through float32, far narrower than one step of 1/255.
_EPSILON_TOLERANCE = 1e-6


def format_epsilon(epsilon: float) -> str:
    """An epsilon as people write it: ``"8/255"`` where it is a whole number of 8-bit grey levels, else ``%g``."""
    levels = epsilon * 255
    nearest = round(levels)
    is_whole = abs(levels - nearest) < 255 * _EPSILON_TOLERANCE
    return f"{nearest}/255" if is_whole and 0 < nearest < 255 else f"{epsilon:g}"


def is_same_radius(one: float, other: float) -> bool:
    """Whether tables and files, which keep a radius by its name or find it up to rounding, cannot tell two apart."""
    return abs(one - other) <= _EPSILON_TOLERANCE or format_epsilon(one) == format_epsilon(other)


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
