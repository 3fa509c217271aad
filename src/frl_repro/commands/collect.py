"""``scripts/collect.py``: gather finished runs into one table, name the best setting by validation, print the grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.basics.paths import in_home
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import EPSILON_HELP, WHERE_HELP, choice, parse_epsilon, run, usage_text, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame

_KEYS = {
    "runs": "folder (searched recursively), glob, file, or comma-separated list of them   [outputs]",
    "epsilon": EPSILON_HELP,
    "attack": "evaluation attack, for example pgd-20   [a table for each, AutoAttack apart]",
    "checkpoint": "which of the kept checkpoints: last, or best by validation (evaluation.keep_best_by)   [last]",
    "errors": "comma-separated choice of natural, boundary, robust to show   [natural,robust]",
    "where": f"{WHERE_HELP}, for example method=reweight,alpha_bndy=1   [all]",
    "top": "of many settings show so many of the worst and of the best, by worst-class robust error   [all]",
    "out": "file to write the table to, one row a run and split   [none]",
}
_CHECKPOINTS = ("last", "best")
_ERRORS = ("natural", "boundary", "robust")
_GRIDS = (("alpha_nat", "alpha_bndy"), ("alpha_nat", "alpha_margin"))


def main(argv: Sequence[str] | None = None) -> int:
    """Gather what ``argv`` (default: the command line) asks for; returns the exit code."""
    return run(argv, keys=_KEYS, usage=_usage, act=_collect)


def _collect(given: dict[str, str]) -> str:
    import pandas as pd

    from frl_repro.basics.errors import UserError
    from frl_repro.results.registration import of_first_study, registered_left_out
    from frl_repro.results.tables.reading import find_tables
    from frl_repro.results.tables.selection import (
        attacks_of,
        main_evaluation,
        select_attack,
        summary,
        with_bases,
    )
    from frl_repro.results.tables.subsets import select_checkpoint, select_epsilon
    from frl_repro.results.tables.variants import read_runs
    from frl_repro.results.tables.where import classes_alone, select_where
    from frl_repro.results.tables.writing import write_frame

    checkpoint = choice("checkpoint", given.get("checkpoint", "last"), _CHECKPOINTS)
    errors = [choice("errors", part.strip(), _ERRORS) for part in given.get("errors", "natural,robust").split(",")]
    top = whole_number("top", given["top"]) if "top" in given else None
    wanted = parse_epsilon(given["epsilon"]) if "epsilon" in given else None
    found = find_tables(given.get("runs", "outputs"))
    all_rows = read_runs(of_first_study(found))
    df = select_where(all_rows, given.get("where", ""))
    classes = classes_alone(all_rows, df)
    df = select_checkpoint(df, checkpoint)
    if "attack" in given:
        df = select_attack(df, given["attack"])
    if wanted is not None:
        select_epsilon(df, wanted)  # refuses a radius that no run has

    note = registered_left_out(found)
    text, collected = [f"{note}\n"] if note else [], []
    groups = list(df.groupby(["dataset", "model"]))
    for (dataset, model), rows in groups:
        attacks = attacks_of(rows)
        for attack in attacks:
            of_attack = select_attack(rows, attack)
            try:
                epsilon, _, note = main_evaluation(of_attack, epsilon=wanted, attack=attack)
            except UserError as problem:
                text.append(f"{dataset}, {model}, {attack}: {problem}\n")
                continue
            runs = summary(of_attack, epsilon=epsilon, attack=attack)
            collected.append(runs)
            title = f"{dataset}, {model}, " if len(groups) > 1 else ""
            title += f"{attack.upper()}, " if len(attacks) > 1 else ""
            title += "best checkpoint by validation, " if checkpoint == "best" else ""
            title += f"classes {classes} alone, " if classes else ""
            text += _summaries(with_bases(runs), epsilon, title=title, errors=errors, top=top, classes=classes)
            text += [f"{note}\n"] if note else []
    if "out" in given:
        if not collected:
            raise UserError(f"out={given['out']}: nothing to write. {' '.join(part.strip() for part in text)}")
        path = Path(in_home(given["out"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(path, pd.concat(collected, ignore_index=True))
        text.append(f"wrote {given['out']}\n")
    return "\n".join(text)


def _summaries(
    points: DataFrame, epsilon: float, *, title: str, errors: Sequence[str], top: int | None, classes: str
) -> list[str]:
    """What is said of one data set and model: a table of each split, and of each method the choice and the grid."""
    from frl_repro.basics.radii import format_epsilon
    from frl_repro.results.tables.selection import by_setting, choice_rows, setting_columns

    text = []
    after = points[points["when"] == "after"]
    for split in sorted(after["split"].unique()):
        part = by_setting(points[points["split"] == split])
        what = f"{title}{split} split, epsilon {format_epsilon(epsilon)}, errors in percent, mean (sd) over seeds"
        text.append(_table(part, title=what, errors=errors, top=top, is_of_some_classes=bool(classes)))
    for _, of_method in after[after["recipe"] != ""].groupby("method"):
        candidates = choice_rows(of_method)
        if candidates.empty:
            continue
        if len(candidates.drop_duplicates(setting_columns(candidates))) > 1:
            text.append(_choice(candidates, of=f", by classes {classes} alone" if classes else ""))
        text += [grid for axes in _GRIDS for grid in _grids(candidates, axes, classes)]
    return text


def _choice(candidates: DataFrame, *, of: str) -> str:
    """The setting that each criterion prefers, on the seeds that all settings have."""
    from frl_repro.basics.errors import UserError
    from frl_repro.results.tables.selection import CRITERIA, best_settings, choice_split, on_shared_seeds, setting_name

    best_of = f"best {candidates['method'].iloc[0]} by {choice_split(candidates)}{of}"
    try:
        seeds = sorted(on_shared_seeds(candidates)["seed"].unique())
    except UserError as problem:
        return f"{best_of}: {problem}\n"
    lines = [f"{best_of} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}):"]
    for criterion in CRITERIA:
        best = best_settings(candidates, criterion)
        tied = f" (and {len(best) - 1} more that tie)" if len(best) > 1 else ""
        lines.append(f"  {criterion:<14}{setting_name(best.iloc[0])}{tied}")
    return "\n".join(lines) + "\n"


def _table(part: DataFrame, *, title: str, errors: Sequence[str], top: int | None, is_of_some_classes: bool) -> str:
    from frl_repro.results.tables.selection import setting_name
    from frl_repro.results.tables.text_tables import aligned, worst_and_best

    shown = None if top is None else worst_and_best(part["worst_class_robust_error"].tolist(), top)
    if shown is not None:
        title += f"; the {top} worst and {top} best of {len(part)} settings by worst-class robust error"
        part = part.iloc[[*shown[0], *shown[1]]]
    columns = [["setting", *(setting_name(row) for _, row in part.iterrows())]]
    columns.append(["seeds", *(str(n) for n in part["num_seeds"])])
    heads = ("these classes", "worst of these") if is_of_some_classes else ("overall", "worst class")
    for name, label in zip(("overall", "worst_class"), heads, strict=True):
        for quantity in errors:
            mean, sd = part[f"{name}_{quantity}_error"], part[f"{name}_{quantity}_error_sd"]
            cells = [
                f"{100 * m:.1f}" + (f" ({100 * s:.1f})" if not math.isnan(s) else "")
                for m, s in zip(mean, sd, strict=True)
            ]
            columns.append([f"{label} {quantity}", *cells])
    return f"{title}\n{aligned(columns)}\n"


def _grids(candidates: DataFrame, axes: tuple[str, str], classes: str) -> list[str]:
    """The worst-class errors of the choice as tables, one for each setting of the rest, where two alphas vary.

    On the seeds that all settings have; none where there is no such seed.
    """
    from frl_repro.basics.errors import UserError
    from frl_repro.results.tables.selection import on_shared_seeds, setting_columns

    try:
        complete = on_shared_seeds(candidates.dropna(subset=list(axes)))
    except UserError:
        return []
    rest = [name for name in setting_columns(complete) if name not in axes]
    groups = complete.groupby(rest, dropna=False)
    varying = [name for name in rest if complete[name].nunique(dropna=False) > 1]
    some = f", classes {classes} alone" if classes else ""
    return [
        _grid(part, axes, of="".join(f", {name} {part[name].iloc[0]}" for name in varying) + some)
        for _, part in groups
        if min(part[name].nunique() for name in axes) > 1
    ]


def _grid(part: DataFrame, axes: tuple[str, str], *, of: str) -> str:
    from frl_repro.results.tables.selection import by_setting, choice_split
    from frl_repro.results.tables.text_tables import aligned

    row_name, column_name = axes
    text = []
    for quantity in ("natural", "robust"):
        pivot = by_setting(part).pivot(index=row_name, columns=column_name, values=f"worst_class_{quantity}_error")
        columns = [[f"{row_name} \\ {column_name}", *(f"{value:g}" for value in pivot.index)]]
        for value in pivot.columns:
            columns.append([f"{value:g}", *(f"{100 * v:.1f}" if not math.isnan(v) else "-" for v in pivot[value])])
        text.append(f"worst-class {quantity} error in percent, {choice_split(part)} split{of}\n{aligned(columns)}\n")
    return "\n".join(text)


def _usage() -> str:
    program = program_name()
    examples = (
        f"  {program} runs=outputs/exp2\n"
        f"  {program} runs=outputs/paper_table errors=natural,boundary,robust checkpoint=best\n"
        f"  {program} runs=outputs where=method=reweight epsilon=8/255 out=outputs/reweight.csv"
    )
    return usage_text(
        "Gather the tables (classwise.csv) of finished runs: errors by setting, the best setting by validation.",
        program=program,
        keys=_KEYS,
        sections={"examples": examples},
    )
