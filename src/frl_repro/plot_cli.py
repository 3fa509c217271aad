"""``scripts/plot.py``: figures from the tables of finished runs.

pandas and matplotlib are imported where they are needed, so that help answers at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.errors import UserError
from frl_repro.figures import FIGURES
from frl_repro.helptext import program_name
from frl_repro.keyvalue import choice, parse_arguments, parse_epsilon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame

# Without arguments: the published figure from the published tables.
_DEFAULT_FIGURE = "1"
_DEFAULT_RUNS = "outputs/reference"
_DEFAULT_FORMATS = "png,svg,pdf"
_SWITCH = {"true": True, "false": False}

_KEYS = {
    "figure": f"which figure; see below   [{_DEFAULT_FIGURE}]",
    "runs": f"folder (searched recursively), glob, file, or comma-separated list of them   [{_DEFAULT_RUNS}]",
    "epsilon": "radius of the evaluation attack in pixel units, 0.03 or 8/255   [the largest in the tables]",
    "where": "only rows with these values, for example alpha_nat=5,alpha_bndy=1   [all]",
    "attack": "evaluation attack, for example pgd-20   [the only one in the tables]",
    "out": "folder to write to, made if need be   [outputs/figures]",
    "formats": f"comma-separated choice of png, svg, pdf   [{_DEFAULT_FORMATS}]",
    "table": "true prints the errors by class of each run as well   [false]",
}

_EXAMPLES = """\
  {program} figure=1 runs=outputs/reference
  {program} figure=1 runs='outputs/exp1/*' epsilon=8/255 out=paper/figures formats=pdf
  {program} figure=1 runs=outputs/reference table=true
  {program} figure=2 runs=outputs/exp2 where=alpha_nat=5,alpha_bndy=1
  {program} figure=grid runs=outputs/exp2
"""


@dataclass(frozen=True)
class _Options:
    figure: str
    runs: str
    where: str
    epsilon: float | None
    attack: str | None
    out: Path
    formats: tuple[str, ...]
    table: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure that ``argv`` (default: the command line) asks for; returns the exit code.

    A mistake of the user or of the file system is one line on stderr and exit code 1.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        _say(_usage())
        return 0
    try:
        _draw(_parse(arguments))
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _draw(options: _Options) -> None:
    from frl_repro.figures.style import save
    from frl_repro.records import class_table, find_tables, read_classwise, read_policy, write_table
    from frl_repro.selection import select_where

    entry = FIGURES[options.figure]
    paths = find_tables(options.runs, entry.table)
    df = select_where(read_policy(paths) if entry.table == "policy.csv" else read_classwise(paths), options.where)
    epsilon = options.epsilon
    if epsilon is None:
        epsilon = float(df["epsilon"].max()) if "epsilon" in df.columns else 0.0
    drawing = entry.draw(df, epsilon=epsilon, attack=options.attack)

    options.out.mkdir(parents=True, exist_ok=True)
    name = f"figure{options.figure}" if options.figure.isdigit() else options.figure
    numbers = options.out / f"{name}.csv"
    write_table(numbers, _plain_rows(drawing.numbers), list(drawing.numbers.columns))
    written = [*save(drawing.figure, options.out, name, options.formats), numbers]
    if options.table and entry.table == "classwise.csv":
        for _, run in df.groupby("run_id"):
            _say(class_table(run))
    for path in written:
        _say(f"wrote {path}\n")


def _plain_rows(numbers: DataFrame) -> list[dict[str, object]]:
    # Missing values (no spread for a single seed, no class id for an overall row) become empty cells.
    objects = numbers.astype(object).where(numbers.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in objects.to_dict("records")]


def _parse(arguments: Sequence[str]) -> _Options:
    given = parse_arguments(arguments, _KEYS)
    return _Options(
        figure=choice("figure", given.get("figure", _DEFAULT_FIGURE), FIGURES),
        runs=given.get("runs", _DEFAULT_RUNS),
        where=given.get("where", ""),
        epsilon=parse_epsilon(given["epsilon"]) if "epsilon" in given else None,
        attack=given.get("attack"),
        out=Path(given.get("out", "outputs/figures")).expanduser(),
        formats=_formats(given.get("formats", _DEFAULT_FORMATS)),
        table=_SWITCH[choice("table", given.get("table", "false").lower(), _SWITCH)],
    )


def _formats(text: str) -> tuple[str, ...]:
    known = _DEFAULT_FORMATS.split(",")
    # A format named twice is written once.
    return tuple(dict.fromkeys(choice("formats", part.strip().lower(), known) for part in text.split(",")))


def _usage() -> str:
    keys = "\n".join(f"  {key:<9}{meaning}" for key, meaning in _KEYS.items())
    program = program_name()
    figures = "\n".join(f"  figure={name:<12}{entry.summary}" for name, entry in FIGURES.items())
    return (
        "Draw a figure from the tables (classwise.csv) of finished runs; needs no data set and no training.\n\n"
        f"usage: {program} [key=value ...]\n\n"
        f"keys   [default]\n{keys}\n\nfigures\n{figures}\n\nexamples\n{_EXAMPLES.format(program=program)}"
    )


def _say(text: str) -> None:
    sys.stdout.write(text)
