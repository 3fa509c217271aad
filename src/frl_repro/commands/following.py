"""Watch runs until nothing works on them any more: redrawn on a terminal, changes alone elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from frl_repro.basics import standard_streams
from frl_repro.basics.errors import printable

_SECONDS_BETWEEN = 2.0  # two looks
_LOOKS_TAKE = 20  # times as long passes between two looks as one takes: a thousand runs keep nobody busy
_NUM_QUIET = 3  # looks in a row that find nothing at work: between two jobs of a sweep there may be one
_SECONDS_BETWEEN_EPOCHS = 60.0  # two lines about the epochs of one run, where lines stay
_INTERRUPTED = 130  # the shell's convention for a command ended by Ctrl-C


@dataclass(frozen=True)
class Sight:
    """What a look at the runs has found.

    Attributes
    ----------
    text : str
        A summary, and a table of the runs.
    states, progress : mapping of Path to str
        By run: its state, and how far it is.
    is_under_way : bool
        Some process works on them.
    code : int
        Exit code.
    """

    text: str
    states: Mapping[Path, str]
    progress: Mapping[Path, str]
    is_under_way: bool
    code: int


def follow(look: Callable[[], Sight], where: str) -> tuple[str, int]:
    """Show runs until no process works on them, their reader leaves, or Ctrl-C.

    Parameters
    ----------
    look : callable
        Returns what there is now.
    where : str
        What is looked at, for people.

    Returns
    -------
    (str, int)
        What is left to be shown, and the exit code.
    """
    sight = look()
    if not sight.is_under_way:
        return f"nothing is running under {where}\n{sight.text}", sight.code
    screen = _Screen() if sys.stdout.isatty() else _Lines()
    try:
        screen.show(sight)
        num_quiet = 0
        while num_quiet < _NUM_QUIET and not standard_streams.reader_has_left():
            started = time.monotonic()
            sight = look()
            screen.show(sight)
            num_quiet = 0 if sight.is_under_way else num_quiet + 1
            if num_quiet < _NUM_QUIET:
                time.sleep(max(_SECONDS_BETWEEN, _LOOKS_TAKE * (time.monotonic() - started)))
    except KeyboardInterrupt:
        return "\n", _INTERRUPTED
    return screen.last(sight, where), sight.code


class _Screen:
    """A terminal: what was shown is replaced."""

    def __init__(self) -> None:
        self._num_lines = 0

    def show(self, sight: Sight) -> None:
        """Draw anew what fits."""
        width, height = shutil.get_terminal_size((100, 24))
        lines = printable(sight.text).rstrip("\n").split("\n")
        most = max(3, height - 2)
        if len(lines) > most:
            lines = [*lines[: most - 1], f"... and {len(lines) - most + 1} more lines (show=none: the counts alone)"]
        back = f"\x1b[{self._num_lines}A\x1b[J" if self._num_lines else ""
        sys.stdout.write(back + "".join(f"{line[: width - 1]}\n" for line in lines))
        sys.stdout.flush()
        self._num_lines = len(lines)

    def last(self, sight: Sight, where: str) -> str:
        """Return what to say at the end."""
        del sight
        return f"nothing is running under {where} any more\n"


class _Lines:
    """A file or a pipe: everything once, then a line for each change."""

    def __init__(self) -> None:
        self._before: Sight | None = None
        self._said: dict[Path, float] = {}

    def show(self, sight: Sight) -> None:
        """Write what has changed."""
        if self._before is None:
            lines = [sight.text.rstrip("\n")]
        else:
            at = time.strftime("%H:%M:%S")
            lines = [f"{at}  {change}" for change in self._changes(self._before, sight)]
        self._before = sight
        if lines:
            sys.stdout.write(printable("".join(f"{line}\n" for line in lines)))
            sys.stdout.flush()

    def _changes(self, before: Sight, now: Sight) -> list[str]:
        changes = []
        for run, state in now.states.items():
            earlier = before.states.get(run)
            if state != earlier:
                changes.append(f"{state}  {run}" if earlier is None else f"{earlier} -> {state}  {run}")
            elif state == "running" and now.progress[run] != before.progress[run]:
                if time.monotonic() - self._said.get(run, float("-inf")) < _SECONDS_BETWEEN_EPOCHS:
                    continue
                changes.append(f"{state} {now.progress[run]}  {run}")
            else:
                continue
            self._said[run] = time.monotonic()
        return [*changes, *(f"gone  {run}" for run in before.states.keys() - now.states.keys())]

    def last(self, sight: Sight, where: str) -> str:
        """Return what to say at the end."""
        return f"nothing is running under {where} any more\n{sight.text.splitlines()[0]}\n"
