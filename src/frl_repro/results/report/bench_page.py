"""The leaderboard as one HTML file: filters, a sortable table, the Pareto figure, and every chosen model's classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from frl_repro.results.figures.pareto import pareto_figure
from frl_repro.results.protocol import BASE, VERSION
from frl_repro.results.report.bench_models import BASE_MODEL, CRITERIA, Bench
from frl_repro.results.report.page import Cell, Grid, Picture, svg_of, template

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_MINUS = "\N{MINUS SIGN}"
_FILTERS = {"track": "data and network", "start": "start", "epsilon": "radius", "criterion": "settings chosen by"}
_HEADER = (
    "method", "seeds", "natural, all", "natural, worst", "robust, all", "robust, worst", "largest on test",
    "against control [95 %], points", "p (Holm)", "rho", "NSD", "settings tried", "chosen", "million image-steps",
    "minutes",
)  # fmt: skip


def render(bench: Bench, board: DataFrame) -> str:
    """Return the page.

    Parameters
    ----------
    bench, board
        From `bench.read_bench` and `bench.leaderboard`.
    """
    pictures = [
        Picture(
            f"pareto-{track}", f"{track}: average against worst class, settings chosen by the worst class",
            svg_of(pareto_figure(rows)), _spoken(str(track), rows),
        )
        for track, rows in board.groupby("track", sort=False)
    ]  # fmt: skip
    choices = {name: [str(value) for value in dict.fromkeys(board[name])] for name in _FILTERS}
    return template("bench.html.j2").render(
        version=VERSION,
        filters={name: (label, choices[name]) for name, label in _FILTERS.items()},
        board=_grid(board),
        pictures=pictures,
        classes=[table for track in bench.tracks for table in _class_tables(bench, track)],
        num_models=sum(len(models) for models in bench.models.values()),
    )


def _grid(board: DataFrame) -> Grid:
    rows, tags = [], []
    for _, row in board.sort_values(["track", "start", "criterion", "epsilon", "robust_worst"]).iterrows():
        rows.append(
            [
                Cell(row["method"], row["method"]),
                _number(row["num_seeds"], "{:.0f}"),
                *(
                    _number(100 * row[name], "{:.1f}")
                    for name in (
                        "natural_average", "natural_worst", "robust_average", "robust_worst", "robust_maximum"
                    )
                ),
                _difference(row),
                _number(row["adjusted_p"], "{:.3f}"),
                _number(row["rho"], "{:.2f}"),
                _number(row["nsd"], "{:.2f}"),
                _number(row["num_settings"], "{:.0f}"),
                Cell(row["chosen"], row["chosen"]),
                _number(row["image_steps"] / 1e6, "{:.3g}"),
                _number(row["seconds"] / 60, "{:.1f}"),
            ]
        )  # fmt: skip
        tags.append({name: str(row[name]) for name in _FILTERS})
    caption = (
        "Test errors in percent, means over seeds. Worst: of the class that selection images name; largest on test: "
        "the maximum over classes, biased upwards. Against control: difference of the worst class's robust error to "
        "that of finetune with the same start and seed; p over all comparisons of one view"
    )
    return Grid(caption, _HEADER, rows, tags=tags)


def _class_tables(bench: Bench, track: str) -> list[tuple[str, Grid]]:
    """Robust errors by class of every method's chosen models, mean over seeds; a table for each start and radius."""
    names, criterion = bench.class_names[track], next(iter(CRITERIA))
    tables = []
    for start in sorted({start for of, start, *_ in bench.models if of == track}):
        methods = sorted({method for of, at, method, _ in bench.models if (of, at) == (track, start)})
        for radius in ("natural", *bench.radii(track)):
            rows = []
            for method in methods:
                models = list(bench.chosen(track, start, method, criterion).values())
                errors = np.stack([model.test[radius] for model in models]).mean(0)
                cells = [_number(100 * value, "{:.1f}") for value in errors]
                worst = int(errors.argmax())
                cells[worst] = Cell(cells[worst].text, cells[worst].key, is_worst=True)
                rows.append([Cell(method, method), *cells])
            what = "natural error" if radius == "natural" else f"robust error at {radius}"
            where = "from the base" if start == BASE else "from scratch"
            title = f"{track}, {where}: {what} by class"
            tables.append((title, Grid(f"{title}, percent, mean over seeds", ["method", *names], rows)))
    return tables


def _number(value: float, form: str) -> Cell:
    if math.isnan(value):
        return Cell("-", "")
    return Cell(form.format(value).replace("-", _MINUS), f"{value:.8g}")


def _difference(row: Series) -> Cell:
    estimate, low, high = (100 * float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(estimate):
        return Cell("-", "")
    bounds = "" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]"
    return Cell(f"{estimate:+.1f}{bounds}".replace("-", _MINUS), f"{estimate:.8g}")


def _spoken(track: str, rows: DataFrame) -> str:
    """Return the figure's numbers in words, for those who do not see it."""
    first = rows[rows["criterion"] == rows["criterion"].iloc[0]]
    said = [
        f"{row['method']}, {'starting model' if row['method'] == BASE_MODEL else 'start ' + row['start']}, radius "
        f"{row['epsilon']}: all {100 * row['robust_average']:.1f}, worst {100 * row['robust_worst']:.1f}"
        for _, row in first.iterrows()
    ]
    return f"{track}, robust errors in percent. {'; '.join(said)}."
