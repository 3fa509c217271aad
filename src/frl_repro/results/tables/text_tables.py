"""Result tables as text for people: aligned columns, errors by class of one run, before and after."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

from frl_repro.basics.errors import UserError, one_line, printable
from frl_repro.basics.radii import format_epsilon
from frl_repro.basics.run_folder import CLASSWISE_FILE
from frl_repro.results import DEFAULT_TOP
from frl_repro.results.tables.reading import read_classwise
from frl_repro.results.tables.subsets import overall, select_last_epoch, select_split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from pandas import DataFrame

_MAX_TIED = 3  # classes that may be marked as worst though they are more than half


def aligned(columns: Sequence[Sequence[str]], *, num_header: int = 1, num_footer: int = 0) -> str:
    """Return columns of cells as lines of text: the first column left-aligned, header and footer set apart by rules."""
    columns = [[one_line(cell) for cell in column] for column in columns]
    widths = [max(map(display_width, column)) for column in columns]
    lines = [
        "  ".join(_padded(cell, width, is_first=not index) for index, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in zip(*columns, strict=True))
    ]
    rule = "-" * display_width(lines[0])
    body, footer = lines[num_header : len(lines) - num_footer], lines[len(lines) - num_footer :]
    parts = [*lines[:num_header], rule, *body, *([rule, *footer] if footer else [])]
    return "\n".join(text.rstrip() for text in parts)


def _padded(cell: str, width: int, *, is_first: bool) -> str:
    room = " " * (width - display_width(cell))
    return cell + room if is_first else room + cell


def table_of_run(folder: Path, *, top: int = DEFAULT_TOP) -> str:
    """Return the class table of a finished run as text; before and after for retraining."""
    table = read_classwise([folder / CLASSWISE_FILE])
    is_retrained = (table["epoch"] == 0).any()
    return (before_after_table if is_retrained else class_table)(table, top=top)


def class_table(df: DataFrame, *, split: str = "test", top: int = DEFAULT_TOP) -> str:
    """One run's errors in percent as text for people: a line per class, the worst of each column marked ``*``.

    Of many classes the worst and the best are shown, by robust error at the largest radius of the last attack.

    Parameters
    ----------
    df
        Rows of one run; its last epoch is shown, with every attack and epsilon measured there.
    split
        The split to show.
    top
        How many of the worst and of the best.

    Raises
    ------
    UserError
        ``df`` holds several runs, or no rows of ``split``.
    """
    _check_one_run(df)
    rows = select_last_epoch(select_split(df, split))
    totals = overall(rows)
    columns = []
    # Natural errors do not depend on the attack: one column stands for all of them.
    columns.append((["natural", "", ""], _errors(rows, totals.iloc[0], "natural_error")))
    for _, total in totals.iterrows():
        header = [str(total["attack"]), format_epsilon(total["epsilon"])]
        for title in ("boundary", "robust"):
            columns.append(([title, *header], _errors(rows, total, f"{title}_error")))
    first = rows.iloc[0]
    title = (
        f"{first['run_id']}: errors in percent, {split} split, epoch {first['epoch']}, "
        f"{totals['count'].iloc[0]} samples (* worst class)"
    )
    return _table(title, _class_names(rows), columns, top)


def before_after_table(df: DataFrame, *, split: str = "test", top: int = DEFAULT_TOP) -> str:
    """One retraining's errors in percent as text for people: before (epoch 0) and after, a line per class.

    Of many classes the worst and the best after retraining are shown, as in `class_table`.

    Parameters
    ----------
    df
        Rows of one run that was measured at epoch 0 and at its last epoch.
    split
        The split to show.
    top
        How many of the worst and of the best.

    Raises
    ------
    UserError
        ``df`` holds several runs, or no rows of ``split`` at epoch 0.
    """
    _check_one_run(df)
    rows = select_split(df, split)
    before, after = rows[rows["epoch"] == 0], select_last_epoch(rows)
    if before.empty:
        raise UserError(f"{rows['run_id'].iloc[0]} was not measured at epoch 0")
    first = after.iloc[0]
    totals = overall(after)
    columns = []
    for place, (_, total) in enumerate(totals.iterrows()):
        header = [str(total["attack"]), format_epsilon(total["epsilon"])]
        for quantity in ("natural", "robust") if place == 0 else ("robust",):
            where = ["", ""] if quantity == "natural" else header
            for title, part in (("before", before), ("after", after)):
                chosen = overall(part)
                same = chosen[(chosen["attack"] == total["attack"]) & (chosen["epsilon"] == total["epsilon"])]
                columns.append(([f"{quantity} {title}", *where], _errors(part, same.iloc[0], f"{quantity}_error")))
    title = (
        f"{first['run_id']}: errors in percent, {split} split, before (epoch 0) and after (epoch {first['epoch']}), "
        f"{totals['count'].iloc[0]} samples (* worst class)"
    )
    return _table(title, _class_names(after), columns, top)


def worst_and_best(errors: Sequence[float], top: int) -> tuple[list[int], list[int]] | None:
    """Return the places of the ``top`` largest and smallest errors, largest first; None where these are about all."""
    if len(errors) <= 2 * top + 1:
        return None
    order = sorted(range(len(errors)), key=lambda place: (-errors[place], place))
    return order[:top], order[-top:]


def is_worst(errors: Sequence[float]) -> list[bool]:
    """Return which errors are the largest; none where all or most are: what is said of most classes tells nothing."""
    worst = [error == max(errors) for error in errors]
    num_worst = sum(worst)
    says_nothing = num_worst == len(worst) or num_worst > max(_MAX_TIED, len(worst) / 2)
    return [False] * len(worst) if says_nothing else worst


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for wide characters, none for combining marks."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in ("W", "F")) for c in printable(text)
    )


class _Errors(NamedTuple):
    """A column of a class table: errors by class, and over all images."""

    by_class: list[float]
    of_all: float


def _table(title: str, names: Sequence[str], columns: Sequence[tuple[list[str], _Errors]], top: int) -> str:
    """Return errors by class; of many classes the worst and the best by the last column, and the others' mean."""
    last = columns[-1][1].by_class
    shown = worst_and_best(last, top)
    worst, best = shown or (list(range(len(names))), [])
    between = sorted(set(range(len(names))) - {*worst, *best})
    cells = [["class", "", "", *(names[k] for k in worst)]]
    cells[0] += [f"({len(between)} between, mean)"] * bool(between) + [*(names[k] for k in best), "overall"]
    for header, errors in columns:
        marks = is_worst(errors.by_class)
        texts = [f"{100 * error:.1f}{'*' if mark else ' '}" for error, mark in zip(errors.by_class, marks, strict=True)]
        middle = [f"{100 * sum(errors.by_class[k] for k in between) / len(between):.1f} "] if between else []
        cells.append(
            [*header, *(texts[k] for k in worst), *middle, *(texts[k] for k in best), f"{100 * errors.of_all:.1f} "]
        )
    if shown:
        title += (
            f"; the {top} worst and the {top} best of {len(names)} classes by the last column, top= changes how many"
        )
    return f"{title}\n{aligned(cells, num_header=3, num_footer=1)}\n"


def _check_one_run(df: DataFrame) -> None:
    run_ids = df["run_id"].unique()
    if len(run_ids) > 1:
        raise UserError(f"a class table shows one run, got {len(run_ids)}: {', '.join(sorted(run_ids))}")


def _class_names(rows: DataFrame) -> list[str]:
    return [str(name) for name in rows.drop_duplicates("class_id").sort_values("class_id")["class_name"]]


def _errors(rows: DataFrame, total: pd.Series[Any], quantity: str) -> _Errors:
    """Errors of the evaluation that ``total`` (from `overall`) sums up."""
    is_shown = (rows["attack"] == total["attack"]) & (rows["epsilon"] == total["epsilon"])
    values = rows[is_shown].sort_values("class_id")[quantity].tolist()
    return _Errors(values, float(total[f"overall_{quantity}"]))
