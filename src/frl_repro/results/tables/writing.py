"""Write result tables and JSON files: whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frl_repro.basics.atomic import replacing, write_text
from frl_repro.results.tables.reading import _FORMULA
from frl_repro.results.tables.schema import _ADDED_COLUMNS, MEASUREMENT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pandas import DataFrame


def classwise_rows(
    keys: Mapping[str, Any],
    class_names: Sequence[str],
    count: Sequence[int],
    num_natural_errors: Sequence[int],
    num_boundary_errors: Sequence[int],
) -> list[dict[str, Any]]:
    """Rows of ``classwise.csv`` for one evaluation, one per class.

    Parameters
    ----------
    keys
        ``MEASUREMENT_COLUMNS`` and their values; further columns (say ``alpha_nat``) are copied to every row.
    class_names
        Names of the K classes, in the order of their labels.
    count, num_natural_errors, num_boundary_errors
        Samples, samples wrong when clean, and samples right when clean but wrong when attacked: K integers each.

    Raises
    ------
    ValueError
        A key is missing, a sequence is not of length K, a class has no samples, or errors exceed samples.
    """
    missing = [name for name in MEASUREMENT_COLUMNS if name not in keys]
    if missing:
        raise ValueError(f"keys lack {', '.join(missing)}; a row needs {', '.join(MEASUREMENT_COLUMNS)}")
    lengths = {len(class_names), len(count), len(num_natural_errors), len(num_boundary_errors)}
    if len(lengths) != 1:
        raise ValueError(f"one name and three counts a class are needed, got sequences of lengths {sorted(lengths)}")

    rows = []
    for class_id, class_name in enumerate(class_names):
        total, natural, boundary = (int(c[class_id]) for c in (count, num_natural_errors, num_boundary_errors))
        if total <= 0 or natural < 0 or boundary < 0 or natural + boundary > total:
            raise ValueError(
                f"class {class_name!r}: {natural} natural and {boundary} boundary errors among {total} samples; "
                "counts must be at least 0, samples at least 1, and errors at most samples"
            )
        rows.append(
            {
                **keys,
                "class_id": class_id,
                "class_name": class_name,
                "count": total,
                "num_natural_errors": natural,
                "num_boundary_errors": boundary,
                "natural_error": natural / total,
                "boundary_error": boundary / total,
                # One division of the summed counts: the identity natural + boundary holds in integers.
                "robust_error": (natural + boundary) / total,
            }
        )
    return rows


def write_table(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write ``rows`` as a CSV file, atomically; equal rows give equal bytes on every platform.

    Parameters
    ----------
    path
        File to write or replace.
    rows
        One mapping per line with exactly the keys ``columns``, save that those which came later may be missing;
        ``None`` becomes an empty cell. Texts that a spreadsheet would run as a formula get an apostrophe before them,
        which `read_classwise` and the other readers take off.
    columns
        The header, in order.

    Raises
    ------
    ValueError
        A row lacks a column or holds one that is not in ``columns``.
    """
    path = Path(path)
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            differing = (row.keys() - set(columns)) | (set(columns) - row.keys() - _ADDED_COLUMNS)
            if differing:
                raise ValueError(f"{path.name}: row and header differ in {sorted(differing)}")
            writer.writerow([_cell(row.get(name)) for name in columns])


def write_frame(path: str | Path, df: DataFrame) -> None:
    """Write a data frame as `write_table` does; missing values become empty cells."""
    objects = df.astype(object).where(df.notna(), None)
    rows = [{str(name): value for name, value in row.items()} for row in objects.to_dict("records")]
    write_table(path, rows, [str(name) for name in df.columns])


def write_json(path: str | Path, obj: Any) -> None:
    """Write ``obj`` as JSON, atomically: sorted keys, two-space indent, newline at the end.

    Raises
    ------
    ValueError
        ``obj`` holds a number that JSON cannot (NaN, infinity).
    TypeError
        ``obj`` holds a type that JSON cannot.
    """
    write_text(Path(path), json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if _FORMULA.match(value) else value
    # numpy's floats derive from float or convert to it; float's repr is the shortest that reads back the same.
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)
