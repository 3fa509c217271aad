"""Progress for people: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LOGGER = logging.getLogger("frl_repro")


class _StandardOutput(logging.Handler):
    """Write messages to whatever standard output is at that moment, above a bar that may be drawn there."""

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


@contextmanager
def silence() -> Iterator[None]:
    """Show neither messages nor bars inside: of the processes that share a run, one speaks."""
    LOGGER.addFilter(_no_record)  # unlike a disabled logger it outlives Hydra, which sets up logging anew
    try:
        yield
    finally:
        LOGGER.removeFilter(_no_record)


def _no_record(_record: logging.LogRecord) -> bool:
    return False


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[float], object]]:
    """Yield a function that advances a bar of ``total`` images; it draws nothing where there is no terminal."""
    is_disabled = True if _no_record in LOGGER.filters else None
    with tqdm(desc=description, total=total, unit="image", unit_scale=True, leave=False, disable=is_disabled) as drawn:
        yield drawn.update
