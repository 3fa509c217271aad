"""Tables from outcomes of an attack of several parts: class errors, and which part broke how many. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from frl_repro.results.tables.outcomes import NATURAL_ERROR, NOT_BROKEN
from frl_repro.results.tables.schema import CHECKPOINT_COLUMN, MEASUREMENT_COLUMNS, RUN_COLUMNS, SETTING_COLUMNS
from frl_repro.results.tables.writing import classwise_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from frl_repro.results.tables.outcomes import Outcomes

COMPONENTS_FILE = "autoattack.csv"

COMPONENT_COLUMNS = (
    *RUN_COLUMNS, *SETTING_COLUMNS, CHECKPOINT_COLUMN, *MEASUREMENT_COLUMNS[len(RUN_COLUMNS) :],
    "batch_size", "attack_seed",
    "component", "class_id", "class_name", "count", "num_attacked", "num_broken",
)  # fmt: skip
"""Columns of ``autoattack.csv``: one row for each radius, part of the attack and class."""


def class_rows(outcomes: Outcomes, keys: Mapping[str, Any], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of ``classwise.csv``; ``keys`` are their columns but for the radius, the class and its counts."""
    rows: list[dict[str, Any]] = []
    for epsilon, is_error in outcomes.is_robust_error.items():
        counts = outcomes.class_counts(is_error, len(class_names)).T.tolist()
        rows += classwise_rows({**keys, "epsilon": epsilon}, class_names, *counts)
    return rows


def component_rows(outcomes: Outcomes, keys: Mapping[str, Any], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of ``autoattack.csv``.

    ``num_attacked`` counts the images of a class that had withstood the parts before, ``num_broken`` those of them that
    this part broke. Natural errors and ``num_broken`` of all parts add up to the class's robust errors.

    Parameters
    ----------
    outcomes : Outcomes
        With components.
    keys : mapping
        The columns but for radius, part, class and counts.
    class_names : sequence of str, length K
    """
    rows: list[dict[str, Any]] = []
    for epsilon, codes in outcomes.broken_by.items():
        # found[c, code]: images of class c that came to an end by code
        found = np.zeros((len(class_names), NATURAL_ERROR + 1 + len(outcomes.components)), dtype=np.int64)
        np.add.at(found, (outcomes.labels, codes), 1)
        standing = found.sum(1) - found[:, NATURAL_ERROR]
        for code, component in enumerate(outcomes.components, start=NATURAL_ERROR + 1):
            rows += [
                {
                    **keys,
                    "epsilon": epsilon,
                    "component": component,
                    "class_id": class_id,
                    "class_name": class_name,
                    "count": int(found[class_id].sum()),
                    "num_attacked": int(standing[class_id]),
                    "num_broken": int(found[class_id, code]),
                }
                for class_id, class_name in enumerate(class_names)
            ]
            standing = standing - found[:, code]
        assert (standing == found[:, NOT_BROKEN]).all()
    return rows
