"""Figures drawn from tidy tables alone: no torch, no data set, no training.

`FIGURES` maps a figure's name on the command line to its entry. To add one, write a module with its drawing function
and an entry here. Drawing code is imported when a figure is drawn, so that listing the figures stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers it shows."""

    figure: Figure
    numbers: DataFrame


class Draw(Protocol):
    """Draws one figure from the rows of ``classwise.csv``."""

    def __call__(self, df: DataFrame, *, epsilon: float, attack: str | None) -> Drawing:
        """Draw the rows evaluated at ``epsilon`` ([0,1] pixel units) by ``attack`` (None: the only one there is)."""


@dataclass(frozen=True)
class FigureEntry:
    """What the command line knows about a figure."""

    summary: str
    draw: Draw


def _draw_figure1(df: DataFrame, *, epsilon: float, attack: str | None) -> Drawing:
    from frl_repro.figures.figure1 import figure1, figure1_numbers  # noqa: PLC0415 (matplotlib is slow to import)

    return Drawing(
        figure=figure1(df, epsilon=epsilon, attack=attack),
        numbers=figure1_numbers(df, epsilon=epsilon, attack=attack),
    )


FIGURES: dict[str, FigureEntry] = {
    "1": FigureEntry("natural and robust error by class, natural beside adversarial training", _draw_figure1),
}
