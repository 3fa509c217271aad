"""Columns of the result tables. Imports nothing slow."""

from __future__ import annotations

from frl_repro.settings.methods import ALPHA_COLUMNS

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

SETTING_COLUMNS = ("recipe", *ALPHA_COLUMNS)
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
