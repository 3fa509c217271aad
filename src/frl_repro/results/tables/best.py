"""Which epoch's checkpoint is best: the one with the smallest error on validation images. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BEST_FILE = "best.safetensors"
"""The weights of that epoch, in the run's folder beside those of the last."""

LAST, BEST, BOTH = "last", "best", "best+last"
"""What column ``checkpoint`` of ``classwise.csv`` says of rows of the test split; empty before retraining."""


def validation_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the errors of one measurement of the validation split, in [0, 1], at the first of its radii.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``classwise.csv``, all classes at every radius.

    Returns
    -------
    dict
        ``overall_natural``, ``overall_robust`` and ``worst_class_robust``; the last two are what
        ``evaluation.keep_best_by`` chooses by.

    Raises
    ------
    ValueError
        A row is of another split: a choice made on test images is none.
    """
    if any(row["split"] != "validation" for row in rows):
        raise ValueError("checkpoints are chosen on the validation split alone")
    first = [row for row in rows if row["epsilon"] == rows[0]["epsilon"]]
    count = sum(row["count"] for row in first)
    natural, boundary = (sum(row[f"num_{name}_errors"] for row in first) for name in ("natural", "boundary"))
    return {
        "overall_natural": natural / count,
        "overall_robust": (natural + boundary) / count,
        "worst_class_robust": max(row["robust_error"] for row in first),
    }
