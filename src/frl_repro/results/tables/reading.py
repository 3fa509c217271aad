"""Find and read result tables; every cell is checked."""

from __future__ import annotations

import csv
import difflib
import glob
import io
import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home
from frl_repro.basics.radii import format_epsilon
from frl_repro.basics.regular_files import read_bytes
from frl_repro.basics.run_folder import check_file, read_object, walk
from frl_repro.results.tables.schema import (
    _RATIO_TOLERANCE,
    CHECKPOINT_COLUMN,
    CLASSWISE_COLUMNS,
    CLASSWISE_HEADER,
    MEASUREMENT_COLUMNS,
    POLICY_COLUMNS,
    SETTING_COLUMNS,
)
from frl_repro.settings.methods import ALPHA_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray
    from pandas import DataFrame

LOGGER = logging.getLogger(__name__)

_INTEGER_COLUMNS = ("seed", "epoch", "class_id", "count", "num_natural_errors", "num_boundary_errors")
_FLOAT_COLUMNS = ("epsilon", "natural_error", "boundary_error", "robust_error")
_NAME_COLUMNS = ("run_id", "dataset", "model", "method", "recipe", CHECKPOINT_COLUMN, "split", "attack")
_NAME = readback.text()
_ERROR_COLUMNS = ("natural_error", "boundary_error", "robust_error")

# What a spreadsheet would run as a formula: class names are what other people call their folders. Such texts are
# written with an apostrophe before them, as spreadsheets have it, and read without.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")

_PUBLISHED = "reference"  # folder in outputs/ that holds committed tables


def read_classwise(paths: str | Path | Iterable[str | Path]) -> DataFrame:
    """All rows of one or several ``classwise.csv`` files, checked, in the order of the files.

    A run found twice with the same rows (a copied folder) counts once. Columns beyond ``CLASSWISE_COLUMNS`` are kept.

    Parameters
    ----------
    paths
        One file or several, for example from `find_tables`.

    Raises
    ------
    UserError
        A file is unreadable, empty, lacks a column, holds a value that is not a number where one is due, contradicts
        itself (counts against errors, missing classes), or two files hold different numbers for the same run.
    """
    return merged(*read_sources([paths] if isinstance(paths, str | Path) else paths))


def read_sources(paths: Iterable[str | Path]) -> tuple[DataFrame, NDArray[Any]]:
    """All rows of ``classwise.csv`` files as they stand, and the file of each; see `read_classwise`.

    Raises
    ------
    UserError
        A file is wrong in itself.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise UserError("no classwise.csv given: name a folder, glob or file of finished runs")
    table, num_rows = _read_as_written(files) or _read_one_by_one(files)
    return table, np.repeat(np.asarray([str(file) for file in files], dtype=object), num_rows)


def merged(table: DataFrame, sources: NDArray[Any], *, extra: Collection[str] = ()) -> DataFrame:
    """Rows of several files with each number once.

    Parameters
    ----------
    table, sources
        From `read_sources`.
    extra
        Files that measure anew what a run has measured, or another of them: where they hold other numbers for the same,
        the run's count, or those of the first of these files. A line in the log says which were left out.

    Raises
    ------
    UserError
        Two other files hold different numbers for the same run.
    """
    is_copy = table.duplicated().to_numpy()
    table, sources = table[~is_copy].reset_index(drop=True), sources[~is_copy]
    keys = [*MEASUREMENT_COLUMNS, "class_id"]
    is_clash = table.duplicated(keys, keep=False).to_numpy()
    is_extra = np.isin(sources, list(extra))
    if (is_clash & is_extra).any():
        ranked = table.iloc[np.argsort(is_extra, kind="stable")]
        is_left_out = ranked.duplicated(keys).sort_index().to_numpy() & is_extra
        left_out = sorted(set(sources[is_left_out]))
        LOGGER.warning("left out, for their runs were measured alike with other numbers: %s", ", ".join(left_out))
        table, sources = table[~is_left_out].reset_index(drop=True), sources[~is_left_out]
        is_clash = table.duplicated(keys, keep=False).to_numpy()
    if is_clash.any():
        run_id = table["run_id"][int(is_clash.argmax())]
        held_by = sorted(set(sources[is_clash & (table["run_id"] == run_id).to_numpy()]))
        raise UserError(f"run {run_id!r} has different numbers for the same class in {' and '.join(held_by)}: keep one")
    return table


def read_policy(paths: Iterable[str | Path]) -> DataFrame:
    """All rows of one or several ``policy.csv`` files, numbers as numbers; empty cells are missing.

    Raises
    ------
    UserError
        A file is unreadable, empty or lacks a column.
    """
    tables = []
    for file in map(Path, paths):
        table = _read_text_table(file)
        for name in POLICY_COLUMNS:
            if name not in table.columns and name in SETTING_COLUMNS:
                table[name] = ""
            elif name not in table.columns:
                raise UserError(f"{file} lacks column {name!r}{_suggestion(name, table.columns)}")
        _check_names(table, file)
        for name in ("seed", "epoch", "class_id"):
            table[name] = _numbers(table[name], file).astype("int64")
        for name in (*POLICY_COLUMNS[-5:], *ALPHA_COLUMNS):
            table[name] = table[name].map(_float_or_nan).astype(float)
        for name in table.columns.difference(list(POLICY_COLUMNS)):  # a method's own
            table[name] = _numbers_where_all_are(table[name])
        tables.append(table)
    return pd.concat(tables, ignore_index=True).drop_duplicates(ignore_index=True)


def find_tables(runs: str | Path, name: str = "classwise.csv", *, hint: str = "is a run finished there?") -> list[Path]:
    """Sorted paths of the tables called ``name`` that ``runs`` stands for.

    Parameters
    ----------
    runs
        A folder (searched with all its subfolders, but for those called ``reference``: published tables repeat what
        stands beside them), a glob of folders or files, a file (of any name), or a comma-separated list of these. A
        name that exists is taken literally, commas and brackets included.
    name
        File name of the tables.
    hint
        What to do where there is none; ends the message.

    Raises
    ------
    UserError
        A part of ``runs`` does not exist, or no table of that name is in it.
    """
    text = str(runs)
    parts = [text] if Path(in_home(text)).exists() else [part.strip() for part in text.split(",")]
    found: set[Path] = set()
    for part in parts:
        found.update(_find_tables_in(part, name, hint))
    return sorted(found)


def read_json(path: str | Path) -> dict[str, Any]:
    """The content of a ``run.json``, the fields that anyone reads of it checked.

    Raises
    ------
    UserError
        The file cannot be read, is not JSON, or holds a field that is not what it must be.
    """
    try:
        return read_object(Path(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def unescaped(cell: str) -> str:
    """The text that a cell of a table stands for: without the apostrophe that keeps it from being a formula."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _find_tables_in(part: str, name: str, hint: str) -> list[Path]:
    path = Path(in_home(part))
    if path.is_file():
        return [path]
    if path.is_dir():
        tables = _tables_below(path, name)
    else:
        # A glob such as run/* also matches history.csv and checkpoints: of files, only tables are meant.
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (may be absolute)
        if not matches:
            raise UserError(f"nothing found at {part!r}: give a folder, glob or file of finished runs")
        tables = [match for match in matches if match.name == name and match.is_file()]
        tables += [table for match in matches if match.is_dir() for table in _tables_below(match, name)]
    if not tables:
        raise UserError(f"no {name} under {part!r}: {hint}")
    return tables


def _tables_below(folder: Path, name: str) -> list[Path]:
    tables = []
    for here, folders, files in walk(folder):
        folders[:] = [below for below in folders if below != _PUBLISHED]
        tables += [here / name] if name in files else []
    return tables


def _read_one_by_one(files: Sequence[Path]) -> tuple[DataFrame, list[int]]:
    """All rows of the files, and how many there are of each."""
    tables = []
    for file in files:
        table = _read_text_table(file)
        for name in CLASSWISE_COLUMNS:
            if name not in table.columns:
                raise UserError(f"{file} lacks column {name!r}{_suggestion(name, table.columns)}")
        tables.append(_checked(table, file))
    return pd.concat(tables, ignore_index=True), [len(table) for table in tables]


def _read_as_written(files: Sequence[Path]) -> tuple[DataFrame, list[int]] | None:
    """The same where every file is sound and has the columns that runs write, else None: checks are made but once.

    A thousand tables take a second instead of twenty. What is wrong with which file, reading one by one says.
    """
    rows: list[list[str]] = []
    num_rows: list[int] = []
    columns: list[str] = []
    try:
        for file in files:
            content = read_bytes(file)
            check_file(file, content)
            header, *body = (row for row in csv.reader(io.StringIO(content.decode(), newline=""), strict=True) if row)
            columns = columns or header
            if b"\r" in content or not body or header != columns:
                return None
            if any(len(row) != len(header) for row in body):
                return None
            rows += body
            num_rows.append(len(body))
        is_usual = set(CLASSWISE_COLUMNS) <= set(columns) <= set(CLASSWISE_HEADER) and len(set(columns)) == len(columns)
        if not is_usual:
            return None
        table = pd.DataFrame([[unescaped(cell) for cell in row] for row in rows], columns=columns, dtype="str")
        of_file = np.repeat(np.arange(len(num_rows)), num_rows)
        return _checked(table, files[0], of_file=of_file), num_rows  # which file it is, nobody learns from this
    except (ValueError, OSError, csv.Error):  # a `UserError` is a ValueError, and so is what is no UTF-8
        return None


def _checked(table: DataFrame, file: Path, *, of_file: NDArray[np.int64] | None = None) -> DataFrame:
    """A table of text with numbers as numbers, checked; ``of_file`` says of which file each row is, of several."""
    for name in (*SETTING_COLUMNS, CHECKPOINT_COLUMN):
        if name not in table.columns:
            table[name] = ""
    for name in (*_INTEGER_COLUMNS, *_FLOAT_COLUMNS):
        table[name] = _numbers(table[name], file)
    for name in _INTEGER_COLUMNS:
        _refuse(table[name] % 1 != 0, file, name, "is not a whole number", table)
        table[name] = table[name].astype("int64")
    for name in table.columns.difference(list(CLASSWISE_COLUMNS)):
        if name in ("recipe", CHECKPOINT_COLUMN):
            continue
        if name in ALPHA_COLUMNS:
            table[name] = table[name].map(_float_or_nan).astype(float)
            continue
        table[name] = _numbers_where_all_are(table[name])
    _check_names(table, file)
    _check_counts(table, file)
    _check_classes(table, file, np.zeros(len(table), dtype=np.int64) if of_file is None else of_file)
    return table


def _read_text_table(file: Path) -> DataFrame:
    """All cells as text, so that no class called "None" or "007" changes its name."""
    try:
        content = read_bytes(file)
        check_file(file, content)
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8").map(unescaped)
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{file} is empty") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV table: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if table.empty:
        raise UserError(f"{file} is empty: it has a header and no rows")
    return table


def _numbers(column: pd.Series[Any], file: Path) -> pd.Series[float]:
    # Python's float, not pandas' faster parser, which may be off in the last digit.
    values = column.map(_float_or_nan).astype(float)
    is_bad = ~np.isfinite(values.to_numpy())
    if is_bad.any():
        line = int(is_bad.argmax())
        raise UserError(f"{file}, row {line + 1}, column {column.name!r}: {column.iloc[line]!r} is not a finite number")
    return values


def _numbers_where_all_are(column: pd.Series[Any]) -> pd.Series[Any]:
    values = column.map(_float_or_nan).astype(float)
    is_number_or_empty = values.notna() | (column == "")
    return values if bool(is_number_or_empty.all()) else column


def _float_or_nan(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _check_names(table: DataFrame, file: Path) -> None:
    """Refuse names of runs and measurements that are no line of text: they are shown on terminals and in figures."""
    for name in _NAME_COLUMNS:
        for value in table[name].unique() if name in table.columns else ():
            readback.checked(value, _NAME, source=f"{file}, column {name!r}", remedy="delete it and repeat the run")


def _check_counts(table: DataFrame, file: Path) -> None:
    natural, boundary, count = table["num_natural_errors"], table["num_boundary_errors"], table["count"]
    _refuse(count <= 0, file, "count", "is not at least 1: a class without samples has no error", table)
    _refuse(natural < 0, file, "num_natural_errors", "is negative", table)
    _refuse(boundary < 0, file, "num_boundary_errors", "is negative", table)
    for name in _ERROR_COLUMNS:
        _refuse((table[name] < 0) | (table[name] > 1), file, name, "is outside [0, 1]", table)
    _refuse((table["epsilon"] < 0) | (table["epsilon"] > 1), file, "epsilon", "is outside [0, 1]", table)
    from_counts = {
        "natural_error": (natural, "num_natural_errors / count"),
        "boundary_error": (boundary, "num_boundary_errors / count"),
        "robust_error": (natural + boundary, "(num_natural_errors + num_boundary_errors) / count"),
    }
    for name, (num_errors, formula) in from_counts.items():
        is_off = (table[name] - num_errors / count).abs() > _RATIO_TOLERANCE
        _refuse(is_off, file, name, f"is not {formula}", table)


def _check_classes(table: DataFrame, file: Path, of_file: NDArray[np.int64]) -> None:
    """Refuse a table that lost rows or holds a class twice: every evaluation has the run's classes 0..K-1 once."""
    num_classes = table.groupby([of_file, "run_id"])["class_id"].transform("max") + 1
    per_evaluation = table.groupby([of_file, *MEASUREMENT_COLUMNS])["class_id"]
    is_incomplete = (per_evaluation.transform("nunique") != num_classes) | (
        per_evaluation.transform("size") != num_classes
    )
    if is_incomplete.any():
        first = table[is_incomplete].iloc[0]
        raise UserError(
            f"{file}, column 'class_id': run {first['run_id']!r}, split {first['split']!r}, epoch {first['epoch']}, "
            f"epsilon {format_epsilon(first['epsilon'])} does not have each of its {num_classes[is_incomplete].iloc[0]}"
            " classes exactly once"
        )


def _refuse(is_bad: pd.Series[bool], file: Path, name: str, what: str, table: DataFrame) -> None:
    if is_bad.any():
        line = int(np.asarray(is_bad).argmax())
        raise UserError(f"{file}, row {line + 1}, column {name!r}: {table[name].iloc[line]:g} {what}")


def _suggestion(name: str, known: Iterable[Any]) -> str:
    close = difflib.get_close_matches(name, [str(other) for other in known], n=1)
    return f" (it has {close[0]!r})" if close else ""
