"""Result tables as text for people: aligned columns, errors by class of one run, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frl_repro.errors import UserError
from frl_repro.records import format_epsilon, overall, read_classwise, select_last_epoch, select_split
from frl_repro.run_folder import CLASSWISE_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from pandas import DataFrame


def aligned(columns: Sequence[Sequence[str]], *, num_header: int = 1, num_footer: int = 0) -> str:
    """Return columns of cells as lines of text: the first column left-aligned, header and footer set apart by rules."""
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in zip(*columns, strict=True))
    ]
    rule = "-" * len(lines[0])
    body, footer = lines[num_header : len(lines) - num_footer], lines[len(lines) - num_footer :]
    parts = [*lines[:num_header], rule, *body, *([rule, *footer] if footer else [])]
    return "\n".join(text.rstrip() for text in parts)


def table_of_run(folder: Path) -> str:
    """Return the class table of a finished run as text; before and after for retraining."""
    table = read_classwise([folder / CLASSWISE_FILE])
    return before_after_table(table) if (table["epoch"] == 0).any() else class_table(table)


def class_table(df: DataFrame, *, split: str = "test") -> str:
    """One run's errors in percent as text for people: a line per class, the worst of each column marked ``*``.

    Parameters
    ----------
    df
        Rows of one run; its last epoch is shown, with every attack and epsilon measured there.
    split
        The split to show.

    Raises
    ------
    UserError
        ``df`` holds several runs, or no rows of ``split``.
    """
    run_ids = df["run_id"].unique()
    if len(run_ids) > 1:
        raise UserError(f"a class table shows one run, got {len(run_ids)}: {', '.join(sorted(run_ids))}")
    rows = select_last_epoch(select_split(df, split))
    totals = overall(rows)
    first = rows.iloc[0]

    one_attack = rows[(rows["attack"] == first["attack"]) & (rows["epsilon"] == first["epsilon"])]
    columns = [["class", "", "", *one_attack.sort_values("class_id")["class_name"], "overall"]]
    # Natural errors do not depend on the attack: one column stands for all of them.
    columns.append(["natural", "", "", *_percents(rows, totals.iloc[0], "natural_error")])
    for _, total in totals.iterrows():
        header = [str(total["attack"]), format_epsilon(total["epsilon"])]
        for title in ("boundary", "robust"):
            columns.append([title, *header, *_percents(rows, total, f"{title}_error")])

    return (
        f"{first['run_id']}: errors in percent, {split} split, epoch {first['epoch']}, "
        f"{totals['count'].iloc[0]} samples (* worst class)\n{aligned(columns, num_header=3, num_footer=1)}\n"
    )


def before_after_table(df: DataFrame, *, split: str = "test") -> str:
    """One retraining's errors in percent as text for people: before (epoch 0) and after, a line per class.

    Parameters
    ----------
    df
        Rows of one run that was measured at epoch 0 and at its last epoch.
    split
        The split to show.

    Raises
    ------
    UserError
        ``df`` holds several runs, or no rows of ``split`` at epoch 0.
    """
    run_ids = df["run_id"].unique()
    if len(run_ids) > 1:
        raise UserError(f"a class table shows one run, got {len(run_ids)}: {', '.join(sorted(run_ids))}")
    rows = select_split(df, split)
    before, after = rows[rows["epoch"] == 0], select_last_epoch(rows)
    if before.empty:
        raise UserError(f"{run_ids[0]} was not measured at epoch 0")
    first = after.iloc[0]
    one_attack = after[(after["attack"] == first["attack"]) & (after["epsilon"] == first["epsilon"])]
    columns = [["class", "", "", *one_attack.sort_values("class_id")["class_name"], "overall"]]
    for _, total in overall(after).iterrows():
        header = [str(total["attack"]), format_epsilon(total["epsilon"])]
        quantities = ("natural", "robust") if len(columns) == 1 else ("robust",)
        for quantity in quantities:
            where = ["", ""] if quantity == "natural" else header
            for title, part in (("before", before), ("after", after)):
                chosen = overall(part)
                same = chosen[(chosen["attack"] == total["attack"]) & (chosen["epsilon"] == total["epsilon"])]
                label = f"{quantity} {title}"
                columns.append([label, *where, *_percents(part, same.iloc[0], f"{quantity}_error")])
    return (
        f"{first['run_id']}: errors in percent, {split} split, before and after {first['epoch']} epochs, "
        f"{one_attack['count'].sum()} samples (* worst class)\n{aligned(columns, num_header=3, num_footer=1)}\n"
    )


def _percents(rows: DataFrame, total: pd.Series[Any], quantity: str) -> list[str]:
    """Per class and overall, the worst class marked, for the evaluation that ``total`` (from `overall`) sums up."""
    is_shown = (rows["attack"] == total["attack"]) & (rows["epsilon"] == total["epsilon"])
    values = rows[is_shown].sort_values("class_id")[quantity].tolist()
    worst = max(values)
    cells = [f"{100 * value:.1f}{'*' if value == worst else ' '}" for value in values]
    return [*cells, f"{100 * total[f'overall_{quantity}']:.1f} "]
