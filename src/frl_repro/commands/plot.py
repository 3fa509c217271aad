"""``scripts/plot.py``: figures from the tables of finished runs.

pandas and matplotlib are imported where they are needed, so that help answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import (
    ATTACK_HELP,
    EPSILON_HELP,
    TOP_HELP,
    WHERE_HELP,
    choice,
    parse_epsilon,
    run,
    switch,
    usage_text,
    whole_number,
)
from frl_repro.results.figures import FIGURES, IMAGE_FIGURES, STUDY_FIGURES, draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from frl_repro.results.figures import Drawing, FigureEntry, ImageFigureEntry

_DEFAULT_FIGURE = "1"
_DEFAULT_RUNS = "outputs"
_DEFAULT_FORMATS = "png,svg,pdf"
_CHECKPOINTS = ("last", "best")
_OF_TABLES = ("epsilon", "where", "attack", "checkpoint", "top", "table")  # keys that choose rows of tables

_KEYS = {
    "figure": f"which figure; see below   [{_DEFAULT_FIGURE}]",
    "runs": f"folder (searched recursively), glob, file, or comma-separated list of them   [{_DEFAULT_RUNS}]",
    "epsilon": EPSILON_HELP,
    "where": f"{WHERE_HELP}, for example alpha_nat=5,alpha_bndy=1   [all]",
    "attack": ATTACK_HELP,
    "checkpoint": "which of the kept checkpoints: last, or best by validation (evaluation.keep_best_by)   [last]",
    "top": TOP_HELP,
    "out": "folder to write to, made if need be   [outputs/figures]",
    "formats": f"comma-separated choice of png, svg, pdf   [{_DEFAULT_FORMATS}]",
    "table": "true prints the errors by class of each run as well   [false]",
}

_EXAMPLES = """\
  {program} figure=1 runs=outputs/reference
  {program} figure=1 runs='outputs/exp1/*' epsilon=8/255 out=paper/figures formats=pdf
  {program} figure=2 runs=outputs/exp2 where=alpha_nat=5,alpha_bndy=1
  {program} figure=2 where='dataset=image_folder root=photos' top=20
  {program} figure=examples runs=outputs/reference/models/combined
"""


@dataclass(frozen=True)
class _Options:
    figure: str
    runs: str
    where: str
    epsilon: float | None
    attack: str | None
    checkpoint: str
    top: int
    out: Path
    formats: tuple[str, ...]
    table: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure that ``argv`` (default: the command line) asks for; returns the exit code.

    A mistake of the user or of the file system is one line on stderr and exit code 1.
    """
    return run(argv, keys=_KEYS, usage=_usage, act=_draw)


def _draw(given: dict[str, str]) -> str:
    from frl_repro.results.figures.style import save
    from frl_repro.results.tables.writing import write_frame

    options = _options(given)
    if options.figure in IMAGE_FIGURES:
        _refuse_keys_of_tables(given, options.figure)
        drawing, tables = _from_images(IMAGE_FIGURES[options.figure], options), ""
    elif options.figure in STUDY_FIGURES:
        _refuse_keys_of_tables(given, options.figure)
        drawing, tables = STUDY_FIGURES[options.figure].draw(options.runs), ""
    else:
        drawing, tables = _from_tables(FIGURES[options.figure], options)

    options.out.mkdir(parents=True, exist_ok=True)
    name = f"figure{options.figure}" if options.figure.isdigit() else options.figure
    numbers = options.out / f"{name}.csv"
    write_frame(numbers, drawing.numbers)
    written = [*save(drawing.figure, options.out, name, options.formats), numbers]
    note = [f"{drawing.note}\n"] if drawing.note else []
    return "".join([tables, *note, *(f"wrote {path}\n" for path in written)])


def _from_tables(entry: FigureEntry, options: _Options) -> tuple[Drawing, str]:
    """Draw from the rows that the options choose; with it the errors by class of each run as text, where asked for."""
    from frl_repro.results.registration import of_first_study, registered_left_out
    from frl_repro.results.tables.reading import find_tables, read_policy
    from frl_repro.results.tables.subsets import select_checkpoint
    from frl_repro.results.tables.text_tables import class_table
    from frl_repro.results.tables.variants import read_runs, with_variants
    from frl_repro.results.tables.where import classes_alone, select_where

    found = find_tables(options.runs, entry.table)
    paths = of_first_study(found)
    is_classwise = entry.table == "classwise.csv"
    df = (
        read_runs(paths)
        if is_classwise
        else with_variants(read_policy(paths), of_first_study(find_tables(options.runs)))
    )
    all_rows, df = df, select_where(df, options.where)
    classes = classes_alone(all_rows, df)
    if is_classwise:
        df = select_checkpoint(df, options.checkpoint)
    drawing = draw(entry, df, epsilon=options.epsilon, attack=options.attack, top=options.top)
    of_classes = f"of classes {classes} alone: what is called overall or worst is so among these" if classes else ""
    notes = [registered_left_out(found), drawing.note, of_classes]
    drawing = replace(drawing, note="\n".join(filter(None, notes)))
    is_printed = is_classwise and options.table
    tables = [class_table(rows, top=options.top) for _, rows in df.groupby("run_id")] if is_printed else []
    return drawing, "".join(tables)


def _from_images(entry: ImageFigureEntry, options: _Options) -> Drawing:
    """Draw from the one file of images that ``runs=`` stands for."""
    from frl_repro.results.tables.reading import find_tables

    paths = find_tables(options.runs, entry.file, hint=f"keep one with `{entry.keep}`")
    if len(paths) > 1:
        found = ", ".join(str(path.parent) for path in paths)
        raise UserError(f"figure={options.figure} shows one {entry.file}, there are {len(paths)}: runs= one of {found}")
    return entry.draw(paths[0])


def _refuse_keys_of_tables(given: dict[str, str], figure: str) -> None:
    for key in _OF_TABLES:
        if key in given:
            shows = "images are shown as they were kept" if figure in IMAGE_FIGURES else "it shows all of its runs"
            raise UserError(f"{key}= has no effect with figure={figure}: {shows}")


def _options(given: dict[str, str]) -> _Options:
    from frl_repro.results import DEFAULT_TOP

    return _Options(
        figure=choice("figure", given.get("figure", _DEFAULT_FIGURE), (*FIGURES, *STUDY_FIGURES, *IMAGE_FIGURES)),
        runs=given.get("runs", _DEFAULT_RUNS),
        where=given.get("where", ""),
        epsilon=parse_epsilon(given["epsilon"]) if "epsilon" in given else None,
        attack=given.get("attack"),
        checkpoint=choice("checkpoint", given.get("checkpoint", "last"), _CHECKPOINTS),
        top=whole_number("top", given["top"]) if "top" in given else DEFAULT_TOP,
        out=Path(in_home(given.get("out", "outputs/figures"))),
        formats=_formats(given.get("formats", _DEFAULT_FORMATS)),
        table=switch("table", given.get("table", "false").lower()),
    )


def _formats(text: str) -> tuple[str, ...]:
    known = _DEFAULT_FORMATS.split(",")
    # A format named twice is written once.
    return tuple(dict.fromkeys(choice("formats", part.strip().lower(), known) for part in text.split(",")))


def _usage() -> str:
    program = program_name()
    summaries = {name: entry.summary for name, entry in FIGURES.items()}
    summaries |= {name: entry.summary for name, entry in STUDY_FIGURES.items()}
    summaries |= {name: entry.summary for name, entry in IMAGE_FIGURES.items()}
    figures = "\n".join(f"  figure={name:<12}{summary}" for name, summary in summaries.items())
    return usage_text(
        "Draw a figure from the tables of finished runs, or from kept images; needs no data set and no training.",
        program=program,
        keys=_KEYS,
        sections={"figures": figures, "examples": _EXAMPLES.format(program=program).rstrip("\n")},
    )
