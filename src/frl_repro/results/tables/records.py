"""Tidy result tables: what a run writes and what figures and reports read. Needs neither torch nor a data set."""

from __future__ import annotations

import csv
import difflib
import glob
import io
import json
import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from frl_repro.basics import readback
from frl_repro.basics.atomic import replacing, write_text
from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home
from frl_repro.basics.regular_files import read_bytes
from frl_repro.basics.run_folder import check_file, read_object, walk

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from pandas import DataFrame

LOGGER = logging.getLogger(__name__)

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

_INTEGER_COLUMNS = ("seed", "epoch", "class_id", "count", "num_natural_errors", "num_boundary_errors")
_FLOAT_COLUMNS = ("epsilon", "natural_error", "boundary_error", "robust_error")
_NAME_COLUMNS = ("run_id", "dataset", "model", "method", "recipe", CHECKPOINT_COLUMN, "split", "attack")
_NAME = readback.text()
_ERROR_COLUMNS = ("natural_error", "boundary_error", "robust_error")

# What a spreadsheet would run as a formula: class names are what other people call their folders. Such texts are
# written with an apostrophe before them, as spreadsheets have it, and read without.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")

_PUBLISHED = "reference"  # folder in outputs/ that holds committed tables

# Tables hold shortest round-trip floats, so stored and recomputed ratios differ by rounding only.
_RATIO_TOLERANCE = 1e-9
# Wide enough for an epsilon that went through float32, far narrower than one step of 1/255.
_EPSILON_TOLERANCE = 1e-6


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
        for name in (*POLICY_COLUMNS[-5:], *(name for name in SETTING_COLUMNS if name.startswith("alpha_"))):
            table[name] = table[name].map(_float_or_nan).astype(float)
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


def select_epsilon(df: DataFrame, epsilon: float) -> DataFrame:
    """Rows of ``df`` evaluated at ``epsilon`` ([0,1] pixel units), up to rounding.

    Raises
    ------
    UserError
        No row has this epsilon; the message names those there are.
    """
    is_selected = np.isclose(df["epsilon"].to_numpy(dtype=float), epsilon, rtol=0, atol=_EPSILON_TOLERANCE)
    if not is_selected.any():
        available = ", ".join(format_epsilon(value) for value in sorted(df["epsilon"].unique()))
        raise UserError(f"no rows with epsilon={format_epsilon(epsilon)}; the tables have {available}")
    selected: DataFrame = df[is_selected]
    return selected


def select_split(df: DataFrame, split: str) -> DataFrame:
    """Rows of ``df`` measured on ``split``.

    Raises
    ------
    UserError
        No row has this split; the message names those there are.
    """
    selected: DataFrame = df[df["split"] == split]
    if selected.empty:
        raise UserError(f"no rows with split={split!r}; the tables have {', '.join(sorted(df['split'].unique()))}")
    return selected


def select_last_epoch(df: DataFrame) -> DataFrame:
    """Rows of each run's last measured epoch."""
    last: DataFrame = df[df["epoch"] == df.groupby("run_id")["epoch"].transform("max")]
    return last


def select_checkpoint(df: DataFrame, which: str) -> DataFrame:
    """Rows of ``df`` up to the chosen checkpoint of each run, so that its last epoch there is that checkpoint's.

    Parameters
    ----------
    df
        Rows of ``classwise.csv``.
    which
        ``"last"`` leaves out the rows of the test split that are of another checkpoint. ``"best"`` leaves out every
        epoch after the best one, of the test and of the validation split.

    Raises
    ------
    UserError
        Runs that kept no best checkpoint, where it is asked for.
    """
    marks = df[CHECKPOINT_COLUMN]
    if which == "last":
        last: DataFrame = df[marks != "best"]
        return last
    best = df[marks.isin(["best", "best+last"])].groupby("run_id")["epoch"].max()
    missing = sorted(set(df["run_id"]) - set(best.index))
    if missing:
        raise UserError(
            f"{', '.join(missing)}: kept no best checkpoint, as runs with evaluation.keep_best_by=... do; narrow runs= "
            "or where= to these"
        )
    selected: DataFrame = df[df["epoch"] <= df["run_id"].map(best)]
    return selected


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


def overall(df: DataFrame) -> DataFrame:
    """Errors over all samples and of the worst class, one row per evaluation.

    Returns
    -------
    DataFrame
        ``MEASUREMENT_COLUMNS``, ``count``, and for each of natural, boundary and robust error
        ``overall_*`` (from summed counts, so classes weigh by their samples), ``worst_class_*`` (the maximum over
        classes) and ``worst_class_*_name`` (the first class that attains it). Errors are shares in [0, 1].
    """
    keys = list(MEASUREMENT_COLUMNS)
    totals = df.groupby(keys, sort=True)[["count", "num_natural_errors", "num_boundary_errors"]].sum()
    result = totals[["count"]].copy()
    errors = {
        "natural_error": totals["num_natural_errors"],
        "boundary_error": totals["num_boundary_errors"],
        "robust_error": totals["num_natural_errors"] + totals["num_boundary_errors"],
    }
    for quantity, num_errors in errors.items():
        worst = df.sort_values([quantity, "class_id"], ascending=[False, True]).groupby(keys, sort=True).first()
        result[f"overall_{quantity}"] = num_errors / totals["count"]
        result[f"worst_class_{quantity}"] = worst[quantity]
        result[f"worst_class_{quantity}_name"] = worst["class_name"]
    return result.reset_index()


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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if _FORMULA.match(value) else value
    # numpy's floats derive from float or convert to it; float's repr is the shortest that reads back the same.
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)


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
        if name.startswith("alpha_"):
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
