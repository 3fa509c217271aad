"""``scripts/plot.py``: figures from the tables of finished runs.

pandas and matplotlib are imported where they are needed, so that help answers at once.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.errors import UserError
from frl_repro.figures import FIGURES
from frl_repro.helptext import program_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    "attack": "evaluation attack, for example pgd-20   [the only one in the tables]",
    "out": "folder to write to, made if need be   [outputs/figures]",
    "formats": f"comma-separated choice of png, svg, pdf   [{_DEFAULT_FORMATS}]",
    "table": "true prints the errors by class of each run as well   [false]",
}

_EXAMPLES = """\
  {program} figure=1 runs=outputs/reference
  {program} figure=1 runs='outputs/exp1/*' epsilon=8/255 out=paper/figures formats=pdf
  {program} figure=1 runs=outputs/reference table=true
"""


@dataclass(frozen=True)
class _Options:
    figure: str
    runs: str
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
    from frl_repro.records import class_table, find_tables, read_classwise, write_table

    df = read_classwise(find_tables(options.runs))
    epsilon = float(df["epsilon"].max()) if options.epsilon is None else options.epsilon
    drawing = FIGURES[options.figure].draw(df, epsilon=epsilon, attack=options.attack)

    options.out.mkdir(parents=True, exist_ok=True)
    name = f"figure{options.figure}"
    numbers = options.out / f"{name}.csv"
    write_table(numbers, _plain_rows(drawing.numbers), list(drawing.numbers.columns))
    paths = [*save(drawing.figure, options.out, name, options.formats), numbers]
    if options.table:
        for _, run in df.groupby("run_id"):
            _say(class_table(run))
    for path in paths:
        _say(f"wrote {path}\n")


def _plain_rows(numbers: DataFrame) -> list[dict[str, object]]:
    # Missing values (no spread for a single seed, no class id for an overall row) become empty cells.
    objects = numbers.astype(object).where(numbers.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in objects.to_dict("records")]


def _parse(arguments: Sequence[str]) -> _Options:
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} is not of the form key=value; keys are {', '.join(_KEYS)}")
        if key not in _KEYS:
            raise UserError(f"unknown key {key!r}{_suggestion(key, _KEYS)}; keys are {', '.join(_KEYS)}")
        if key in given:
            raise UserError(f"{key}= is given twice")
        if not value:
            raise UserError(f"{key}= has no value; it takes: {' '.join(_KEYS[key].split())}")
        given[key] = value
    return _Options(
        figure=_choice("figure", given.get("figure", _DEFAULT_FIGURE), FIGURES),
        runs=given.get("runs", _DEFAULT_RUNS),
        epsilon=_epsilon(given["epsilon"]) if "epsilon" in given else None,
        attack=given.get("attack"),
        out=Path(given.get("out", "outputs/figures")).expanduser(),
        formats=_formats(given.get("formats", _DEFAULT_FORMATS)),
        table=_SWITCH[_choice("table", given.get("table", "false").lower(), _SWITCH)],
    )


def _epsilon(text: str) -> float:
    from frl_repro.records import parse_fraction

    epsilon = parse_fraction(text)
    if not 0 <= epsilon <= 1:
        raise UserError(f"epsilon={text} is outside [0, 1]: give it in pixel units, for example 8/255")
    return epsilon


def _formats(text: str) -> tuple[str, ...]:
    known = _DEFAULT_FORMATS.split(",")
    # A format named twice is written once.
    return tuple(dict.fromkeys(_choice("formats", part.strip().lower(), known) for part in text.split(",")))


def _choice(key: str, value: str, known: Iterable[str]) -> str:
    names = list(known)
    if value not in names:
        raise UserError(f"{key}={value} is unknown{_suggestion(value, names)}; known: {', '.join(names)}")
    return value


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _usage() -> str:
    keys = "\n".join(f"  {key:<9}{meaning}" for key, meaning in _KEYS.items())
    program = program_name()
    figures = "\n".join(f"  figure={name:<4}{entry.summary}" for name, entry in FIGURES.items())
    return (
        "Draw a figure from the tables (classwise.csv) of finished runs; needs no data set and no training.\n\n"
        f"usage: {program} [key=value ...]\n\n"
        f"keys   [default]\n{keys}\n\nfigures\n{figures}\n\nexamples\n{_EXAMPLES.format(program=program)}"
    )


def _say(text: str) -> None:
    sys.stdout.write(text)
