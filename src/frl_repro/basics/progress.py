"""Progress for people: on a terminal a live line with the time left, elsewhere a plain line now and then.

Everything that takes long is counted by a `Progress`: training, measuring, AutoAttack, decoding, commands of a study.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tqdm import tqdm

from frl_repro.basics.time_left import duration

LOGGER = logging.getLogger("frl_repro")

FIRST_LINE = 30.0
"""Seconds without another word after which a plain line says how far work is; twice as long until the next."""
_RAREST_LINE = 1800.0  # seconds
_SECONDS_BETWEEN_DRAWINGS = 0.2
_LIVE = "{desc}: {percentage:3.0f}%|{bar}| "  # and the time left


class _StandardOutput(logging.Handler):
    """Write messages to whatever standard output is at that moment, above a live line that may be drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        if sys.stdout is None:  # a program without a console
            return
        # Programs see to their streams (`standard_streams`); those of a caller of the library are its own.
        encoding = sys.stdout.encoding or "utf-8"
        tqdm.write(self.format(record).encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
        sys.stdout.flush()


def set_up_logging() -> None:
    """Send the package's messages to standard output as plain lines, once."""
    if not LOGGER.handlers:
        LOGGER.addHandler(_StandardOutput())
        LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)
    LOGGER.disabled = False  # hydra/hydra_logging=disabled disables every logger that there is


def set_up_for_import() -> None:
    """Show the package's messages, unless the program that imports it has set up logging of its own."""
    if not (LOGGER.handlers or logging.getLogger().handlers):
        set_up_logging()


@contextmanager
def silence() -> Iterator[None]:
    """Show neither messages nor progress inside: of the processes that share a run, one speaks."""
    LOGGER.addFilter(_no_record)  # unlike a disabled logger it outlives Hydra, which sets up logging anew
    try:
        yield
    finally:
        LOGGER.removeFilter(_no_record)


def _no_record(_record: logging.LogRecord) -> bool:
    return False


class _Sweep(NamedTuple):
    """Where the work of this process stands in a sweep whose jobs run one after the other."""

    num_after: int
    seconds: float | None  # of a job, from those that have ended


_sweep: _Sweep | None = None


@contextmanager
def in_sweep(*, num_after: int, seconds: float | None) -> Iterator[None]:
    """Let the progress inside tell the time left of a sweep as well.

    Parameters
    ----------
    num_after : int
        Jobs that come after this work.
    seconds : float or None
        What a job took so far, on average; None where none has ended.
    """
    global _sweep  # noqa: PLW0603 (threads that train fused runs read it)
    before, _sweep = _sweep, _Sweep(num_after, seconds)
    try:
        yield
    finally:
        _sweep = before


class Progress:
    """How far some work is and how long it will still take; several threads may advance it.

    Parameters
    ----------
    description : str
        What is being done.
    total : float
        How much there is to do, in any unit.
    """

    def __init__(self, description: str, total: float = 0.0) -> None:
        self._description, self._total, self._done = description, total, 0.0
        self._lock = threading.Lock()
        self._started: float | None = None
        self._pause, self._last_said = FIRST_LINE, time.monotonic()
        self._is_live = _no_record not in LOGGER.filters and sys.stderr is not None and sys.stderr.isatty()
        self._drawn = 0.0
        self._bar: Any = None  # drawn with the first news: much work turns out to be done already

    def expect(self, amount: float) -> None:
        """Have more to do; less with a negative amount: it was done before, or will never be."""
        with self._lock:
            self._total = max(self._done, self._total + amount)

    def start(self) -> None:
        """Begin to count time; the first `advance` does so too, but does not count what it took itself."""
        with self._lock:
            self._started = self._started or time.monotonic()

    def advance(self, amount: float) -> None:
        """Have done so much."""
        with self._lock:
            self._started = self._started or time.monotonic()
            self._done += amount
            if self._is_live:
                self._draw()
                return
            is_due = time.monotonic() - self._last_said >= self._pause
        if is_due:
            LOGGER.info("%s", self._line())
            self.said(is_line=True)

    def describe(self, description: str) -> None:
        """Change what is said to be done."""
        with self._lock:
            self._description = description
            if self._bar is not None:
                self._draw()

    def said(self, *, is_line: bool = False) -> None:
        """Take note that people have just been told how far it is: by a line of its own, or by another one."""
        with self._lock:
            self._last_said = time.monotonic()
            self._pause = min(2 * self._pause, _RAREST_LINE) if is_line else self._pause

    def seconds_left(self) -> float | None:
        """Return how long it will still take; None where nothing is done yet."""
        if self._started is None or self._done <= 0:
            return None
        return (time.monotonic() - self._started) * max(0.0, self._total - self._done) / self._done

    def left(self) -> str:
        """Return the time left in words, of the sweep too where there are jobs after this work; empty where unknown."""
        own = self.seconds_left()
        if own is None or self._started is None:
            return ""
        if _sweep is None or _sweep.num_after == 0:
            return f"about {duration(own)} left" if own >= 1 else ""
        job = _sweep.seconds or time.monotonic() - self._started + own
        of_sweep = f"{duration(own + _sweep.num_after * job)} of the sweep"
        return f"about {duration(own)} left, {of_sweep}" if own >= 1 else f"about {of_sweep} left"

    def close(self) -> None:
        """Take the live line away."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            self._bar = None

    @property
    def _share(self) -> float:
        return min(1.0, self._done / self._total) if self._total > 0 else 0.0

    def _line(self) -> str:
        left = self.left()
        return f"{self._description}: {100 * self._share:.0f} %" + (f", {left}" if left else "")

    def _draw(self) -> None:
        now = time.monotonic()
        if self._bar is not None and now - self._drawn < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._drawn = now
        if self._bar is None:
            self._bar = tqdm(desc=self._description, total=1.0, bar_format=_LIVE, leave=False)
        self._bar.n = self._share
        self._bar.bar_format = _LIVE + self.left()
        self._bar.set_description_str(self._description, refresh=True)


@contextmanager
def bar(description: str, total: float, *, done: float = 0.0) -> Iterator[Callable[[float], object]]:
    """Yield a function that advances the progress of some work.

    Parameters
    ----------
    description : str
        What is being done.
    total : float
        How much there is, in any unit.
    done : float
        So much of it was done before.
    """
    progress = Progress(description, total - done)
    progress.start()
    try:
        yield progress.advance
    finally:
        progress.close()
