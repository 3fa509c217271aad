"""``scripts/collect.py``: gather finished runs into one table, name the best setting by validation, print the grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.helptext import program_name
from frl_repro.keyvalue import parse_epsilon, run, usage_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame

_KEYS = {
    "runs": "folder (searched recursively), glob, file, or comma-separated list of them   [outputs]",
    "epsilon": "radius of the evaluation attack in pixel units, 0.03 or 8/255   [the largest in the tables]",
    "attack": "evaluation attack, for example pgd-20   [the only one in the tables]",
    "where": "only rows with these values, for example method=reweight,alpha_bndy=1   [all]",
    "out": "file to write the table to, one row a run and split   [none]",
}
_GRIDS = (("alpha_nat", "alpha_bndy"), ("alpha_nat", "alpha_margin"))


def main(argv: Sequence[str] | None = None) -> int:
    """Gather what ``argv`` (default: the command line) asks for; returns the exit code."""
    return run(argv, keys=_KEYS, usage=_usage, act=_collect)


def _collect(given: dict[str, str]) -> str:
    from frl_repro.records import find_tables, read_classwise, write_frame
    from frl_repro.selection import (
        CRITERIA,
        best_setting,
        by_setting,
        select_where,
        setting_columns,
        setting_name,
        summary,
        with_bases,
    )
    from frl_repro.variants import with_variants

    files = find_tables(given.get("runs", "outputs"))
    df = select_where(with_variants(read_classwise(files), files), given.get("where", ""))
    epsilon = parse_epsilon(given["epsilon"]) if "epsilon" in given else float(df["epsilon"].max())
    runs = summary(df, epsilon=epsilon, attack=given.get("attack"))
    if "out" in given:
        path = Path(given["out"]).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(path, runs)

    text = []
    points = with_bases(runs)
    after = points[points["when"] == "after"]
    for split in sorted(after["split"].unique()):
        part = by_setting(points[points["split"] == split])
        text.append(_table(part, title=f"{split} split, {_at(epsilon)}, errors in percent, mean (sd) over seeds"))
    retrained = after[(after["split"] == "validation") & (after["recipe"] != "")]
    for method in sorted(retrained["method"].unique()):
        candidates = retrained[retrained["method"] == method]
        if candidates.drop_duplicates(setting_columns(candidates)).shape[0] > 1:
            lines = [f"best {method} by validation:"]
            for criterion in CRITERIA:
                lines.append(f"  {criterion:<14}{setting_name(best_setting(candidates, criterion))}")
            text.append("\n".join(lines) + "\n")
        text += [grid for axes in _GRIDS if (grid := _grid(candidates, axes))]
    if "out" in given:
        text.append(f"wrote {given['out']}\n")
    return "\n".join(text)


def _at(epsilon: float) -> str:
    from frl_repro.records import format_epsilon

    return f"epsilon {format_epsilon(epsilon)}"


def _table(part: DataFrame, *, title: str) -> str:
    from frl_repro.selection import setting_name
    from frl_repro.text_tables import aligned

    columns = [["setting", *(setting_name(row) for _, row in part.iterrows())]]
    columns.append(["seeds", *(str(n) for n in part["num_seeds"])])
    for name, label in (("overall", "overall"), ("worst_class", "worst class")):
        for quantity in ("natural", "robust"):
            mean, sd = part[f"{name}_{quantity}_error"], part[f"{name}_{quantity}_error_sd"]
            cells = [
                f"{100 * m:.1f}" + (f" ({100 * s:.1f})" if not math.isnan(s) else "")
                for m, s in zip(mean, sd, strict=True)
            ]
            columns.append([f"{label} {quantity}", *cells])
    return f"{title}\n{aligned(columns)}\n"


def _grid(candidates: DataFrame, axes: tuple[str, str]) -> str:
    """The worst-class errors on validation as a table, where two alphas vary."""
    from frl_repro.text_tables import aligned

    row_name, column_name = axes
    complete = candidates.dropna(subset=list(axes))
    if complete.empty or min(complete[name].nunique() for name in axes) < 2:
        return ""
    text = []
    for quantity in ("natural", "robust"):
        pivot = complete.pivot_table(index=row_name, columns=column_name, values=f"worst_class_{quantity}_error")
        columns = [[f"{row_name} \\ {column_name}", *(f"{value:g}" for value in pivot.index)]]
        for value in pivot.columns:
            columns.append([f"{value:g}", *(f"{100 * v:.1f}" if not math.isnan(v) else "-" for v in pivot[value])])
        text.append(f"worst-class {quantity} error in percent, validation split\n{aligned(columns)}\n")
    return "\n".join(text)


def _usage() -> str:
    program = program_name()
    examples = (
        f"  {program} runs=outputs/exp2\n"
        f"  {program} runs=outputs where=method=reweight epsilon=8/255 out=outputs/reweight.csv"
    )
    return usage_text(
        "Gather the tables (classwise.csv) of finished runs: errors by setting, the best setting by validation.",
        program=program,
        keys=_KEYS,
        sections={"examples": examples},
    )
