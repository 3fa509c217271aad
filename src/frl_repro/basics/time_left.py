"""How long work will still take, and how people say it. Imports nothing slow."""

from __future__ import annotations

from collections.abc import Sequence

_SKIPPED = 0.05  # a piece that took less than this share of the longest one had been done before: it says nothing


def duration(seconds: float) -> str:
    """Return a time span as people say it: ``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``."""
    for limit, unit, size in ((100, "s", 1), (6000, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{int(unit == 'h')}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def mean_of_worked(seconds: Sequence[float]) -> float | None:
    """Return the mean time of the pieces that were worked on; None without any.

    Parameters
    ----------
    seconds : sequence of float
        What each piece took; those that had been done before took next to nothing.
    """
    longest = max(seconds, default=0.0)
    worked = [one for one in seconds if one >= _SKIPPED * longest]
    return sum(worked) / len(worked) if longest > 0 else None


def seconds_left(seconds: Sequence[float], num_left: int, *, at_once: int = 1) -> float | None:
    """Return how long the remaining pieces of some work will take; None where nothing tells.

    Parameters
    ----------
    seconds : sequence of float
        What each piece took so far.
    num_left : int
        Pieces that have not ended.
    at_once : int
        Pieces under way at the same time.
    """
    mean = mean_of_worked(seconds)
    return None if mean is None else mean * num_left / max(1, min(at_once, num_left))
