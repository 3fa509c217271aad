"""``key=value`` command lines of the scripts that read tables. Imports nothing slow."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from frl_repro.basics import process, standard_streams
from frl_repro.basics.errors import UserError, printable, reason
from frl_repro.basics.suggestions import keys_named, keys_near, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

EPSILON_HELP = "radius of the evaluation attack in pixel units, 0.03 or 8/255   [the largest that most runs have]"
ATTACK_HELP = "evaluation attack, for example pgd-20   [the one of most runs, AutoAttack apart]"
WHERE_HELP = "only rows with these values (one with a comma in double quotes: 'class_name=\"cats, dogs\"')"
TOP_HELP = "of many classes show so many of the worst and of the best, and the others' mean   [10]"
"""What keys take that several scripts read."""


def run(
    argv: Sequence[str] | None,
    *,
    keys: Mapping[str, str],
    usage: Callable[[], str],
    act: Callable[[dict[str, str]], str | tuple[str, int]],
) -> int:
    """Do what a command line asks for and return the exit code; a mistake is one line on stderr and code 1.

    Parameters
    ----------
    argv
        Arguments; None for those of the process.
    keys
        Known keys and what they take.
    usage
        Makes the text of ``--help``.
    act
        Takes the given values by key, returns the text for stdout, or with it an exit code other than 0.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        process.set_up()
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(usage())
            return 0
        answer = act(parse_arguments(arguments, keys))
        text, code = (answer, 0) if isinstance(answer, str) else answer
        sys.stdout.write(printable(text))
        sys.stdout.flush()
        if (why := standard_streams.problem()) is not None:
            raise UserError(why)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as problem:
        sys.stderr.write(f"error: {reason(problem)}\n")
        return 1
    return code


def usage_text(summary: str, *, program: str, keys: Mapping[str, str], sections: Mapping[str, str]) -> str:
    """Return a usage text, wrapped to the terminal: what the program does, its keys, then titled sections."""
    width = max(8, *map(len, keys)) + 1
    key_lines = "\n".join(f"  {key:<{width}} {' '.join(meaning.split())}" for key, meaning in keys.items())
    text = f"{summary}\n\nusage: {program} [key=value ...]\n\nkeys   [default]\n{key_lines}\n"
    text += "".join(f"\n{title}\n{body}\n" for title, body in sections.items())
    return "".join(f"{line}\n" for typed in text.splitlines() for line in _wrapped(typed))


def _wrapped(line: str) -> list[str]:
    """Return a line in pieces that fit the terminal; of two columns the second one stays where it is."""
    width = max(shutil.get_terminal_size((120, 24)).columns, 60)
    if len(line) <= width:
        return [line]
    first = re.match(r" *\S+(?: \S+)*  +(?=\S)| *", line)
    indent = 0 if first is None else first.end()
    if indent > width // 2:
        return [line]
    lead, rest = line[:indent], line[indent:]
    pieces = textwrap.wrap(rest, width - indent, break_on_hyphens=False, break_long_words=False)
    return [lead + pieces[0], *(" " * indent + piece for piece in pieces[1:])]


def parse_arguments(arguments: Sequence[str], keys: Mapping[str, str]) -> dict[str, str]:
    """Return the given values by key.

    Parameters
    ----------
    arguments
        ``key=value`` texts.
    keys
        Known keys and what they take.

    Raises
    ------
    UserError
        An argument of another form, an unknown key (with a suggestion), one given twice or without a value.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} is not of the form key=value; keys are {', '.join(keys)}")
        if key not in keys:
            raise UserError(f"unknown key {key!r}{_suggestion(_nearest_key(key, keys))}; keys are {', '.join(keys)}")
        if key in given:
            raise UserError(f"{key}= is given twice")
        if not value:
            raise UserError(f"{key}= has no value; it takes: {' '.join(keys[key].split())}")
        given[key] = value
    return given


def choice(key: str, value: str, known: Iterable[str]) -> str:
    """Return the value if it is known; UserError with a suggestion otherwise."""
    names = list(known)
    if value not in names:
        raise UserError(f"{key}={value} is unknown{_suggestion(nearest(value, names))}; known: {', '.join(names)}")
    return value


def switch(key: str, value: str) -> bool:
    """Return whether the value is ``true``; UserError for anything but ``true`` and ``false``."""
    return choice(key, value, ("true", "false")) == "true"


def whole_number(key: str, value: str, *, least: int = 1) -> int:
    """Return a whole number from ``least``, not below 0, and below 10^9; UserError for anything else."""
    if not re.fullmatch("0*[0-9]{1,9}", value) or int(value) < least:
        raise UserError(f"{key}={value} is not a whole number from {least}, below 10^9")
    return int(value)


def parse_epsilon(text: str) -> float:
    """Return a radius in pixel units from ``"8/255"`` or ``"0.03"``; UserError outside [0, 1]."""
    from frl_repro.basics.radii import parse_fraction

    try:
        epsilon = parse_fraction(text)
    except UserError as problem:
        raise UserError(f"epsilon={text}: {problem}") from None
    if not 0 <= epsilon <= 1:
        raise UserError(f"epsilon={text} is outside [0, 1]: give it in pixel units, for example 8/255")
    return epsilon


def _nearest_key(word: str, keys: Iterable[str]) -> str | None:
    known = list(keys)
    return next(iter(keys_named(word, known) or keys_near(word, known)), None)


def _suggestion(close: str | None) -> str:
    """Return ``", did you mean 'x'?"``, or nothing when no known word is near."""
    return f", did you mean {close!r}?" if close else ""
