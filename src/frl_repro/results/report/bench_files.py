"""The bench's table, figures and page as files; from tables alone, without torch, data or weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from frl_repro.basics.atomic import write_text
from frl_repro.results.figures.pareto import pareto_figure
from frl_repro.results.figures.style import save
from frl_repro.results.report.bench import COLUMNS, leaderboard
from frl_repro.results.report.bench_models import Bench, read_bench
from frl_repro.results.report.bench_page import render
from frl_repro.results.tables.writing import write_frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class BenchFiles:
    """The bench as it was read, its leaderboard, and the files that were written.

    Attributes
    ----------
    bench : Bench
    board : DataFrame
    written : list of Path
    """

    bench: Bench
    board: DataFrame
    written: list[Path]


def write_bench(folders: Sequence[Path], out: Path, *, draws_files: bool = True) -> BenchFiles:
    """Write ``leaderboard.csv``, ``leaderboard.html`` and, unless they are not wanted, the figures as files.

    Parameters
    ----------
    folders : sequence of Path
        Where the tables lie; of a run found twice the first folder's counts.
    out : Path
    draws_files : bool
        The page has its figures either way.

    Raises
    ------
    UserError
        There are no runs.
    """
    bench = read_bench(folders)
    board = leaderboard(bench)
    out.mkdir(parents=True, exist_ok=True)
    write_frame(out / "leaderboard.csv", board[list(COLUMNS)])
    written = [out / "leaderboard.csv"]
    for name, rows in board.groupby("track", sort=False) if draws_files else ():
        written += save(pareto_figure(rows), out, f"pareto-{name}")
    write_text(out / "leaderboard.html", render(bench, board))
    return BenchFiles(bench, board, [*written, out / "leaderboard.html"])
