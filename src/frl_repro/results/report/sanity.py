"""Sanity checks on the page: which model passes what, and the figures behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frl_repro.basics.radii import format_epsilon
from frl_repro.results.figures.sanity import checked_epsilon, sanity_figure, sweep_numbers
from frl_repro.results.report.markdown import table as markdown_table
from frl_repro.results.report.page import Cell, Grid, Picture, alt_text, svg_of
from frl_repro.results.tables.sanity_rules import RULES, Rule, read_sanity, verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def sanity_grids(files: Sequence[Path]) -> list[Grid]:
    """Return one table of checks by models, each cell with its number and ✓ or ✗; nothing without files.

    Parameters
    ----------
    files
        ``sanity.csv`` files; a model is called after its folder.

    Raises
    ------
    UserError
        A file is no table of these checks.
    """
    if not files:
        return []
    tables = [read_sanity(file) for file in files]
    results = [verdicts(table) for table in tables]
    rows = [
        [
            Cell(f"{rule.check.replace('_', ' ')}: {rule.text}"),
            Cell(rule.allowed),
            *(_cell(rule, value, passes=passes) for _, value, passes in of_rule),
        ]
        for rule, of_rule in zip(RULES, zip(*results, strict=True), strict=True)
    ]
    radii = " and ".join(sorted({format_epsilon(checked_epsilon(table)) for table in tables}))
    caption = (
        f"Checks for gradient masking, radius {radii} unless another is named; test images drawn by the model's seed. "
        "Thresholds were fixed before any reference model was checked; reasons and sources: docs/sanity.md"
    )
    return [Grid(caption, ["check", "allowed", *(file.parent.name for file in files)], rows)]


def sanity_pictures(files: Sequence[Path]) -> list[Picture]:
    """Return the figure of each ``sanity.csv``: robust error by radius, and the loss on the way."""
    pictures = []
    for file in files:
        table = read_sanity(file)
        title = f"Is the robustness real? {file.parent.name}"
        figure, numbers = svg_of(sanity_figure(table, file.parent.name)), sweep_numbers(table)
        said = numbers.loc[numbers["class_name"] == "", ["epsilon", "value"]]
        pictures.append(Picture(f"sanity-{file.parent.name}", title, figure, alt_text(title, said)))
    return pictures


def sanity_table(files: Sequence[Path]) -> str:
    """Return the same table in Markdown, for the documentation."""
    grids = sanity_grids(files)
    if not grids:
        return "\nNo checkpoint has been checked yet: `python scripts/sanity.py checkpoint=FILE`.\n\n"
    (grid,) = grids
    return markdown_table(grid.header, [[cell.text for cell in row] for row in grid.rows])


def _cell(rule: Rule, value: float | None, *, passes: bool | None) -> Cell:
    return Cell(rule.shown(value) if passes is None else f"{rule.shown(value)} {'✓' if passes else '✗'}")
