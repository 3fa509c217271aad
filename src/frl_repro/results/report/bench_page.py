"""The leaderboard as one HTML file: claims, filters, a sortable table, the Pareto figures, and every chosen model."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from frl_repro.results.figures.pareto import pareto_figure
from frl_repro.results.protocol import CNN_SMALL, IMBALANCED, LENET5, VERSION
from frl_repro.results.report.bench import interval_in
from frl_repro.results.report.bench_claims import CLAIMS
from frl_repro.results.report.bench_details import anchor, details
from frl_repro.results.report.bench_models import BASE_MODEL, CRITERIA, Bench
from frl_repro.results.report.bench_ranks import agreements
from frl_repro.results.report.bench_verdicts import fate_of, judge
from frl_repro.results.report.page import Cell, Grid, Picture, svg_of, template
from frl_repro.results.tables.statistics import points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame, Series

    from frl_repro.results.report.bench_verdicts import Answer

_MINUS = "\N{MINUS SIGN}"
_WIDTH = 8.5  # inches of a figure that takes a page's whole width
_FILTERS = {"track": "data and network", "start": "start", "epsilon": "radius", "criterion": "settings chosen by"}
_HEADER = (
    "method", "seeds", "robust, all", "robust, worst", "worst against control [95 %]", "p (Holm)",
    "all against control [95 %]", "AutoAttack, all", "AutoAttack, worst", "natural, all", "natural, worst",
    "largest on test", "largest if equal", "max less min", "rho", "NSD", "tuning bought [95 %]", "settings tried",
    "chosen", "million image-steps", "minutes",
)  # fmt: skip
_MARKS = {"survives": "✓", "fails": "✗", "open": "?"}


def render(bench: Bench, board: DataFrame) -> str:
    """Return the page.

    Parameters
    ----------
    bench, board
        From `bench_models.read_bench` and `bench.leaderboard`.
    """
    pictures = [
        Picture(
            f"pareto-{track}", f"{track}: average against worst class, settings chosen by the worst class",
            svg_of(pareto_figure(rows, width=_WIDTH)), _spoken(str(track), rows),
        )
        for track, rows in board.groupby("track", sort=False)
    ]  # fmt: skip
    choices = {name: [str(value) for value in dict.fromkeys(board[name])] for name in _FILTERS}
    return template("bench.html.j2").render(
        version=VERSION,
        filters={name: (label, choices[name]) for name, label in _FILTERS.items()},
        claims=_claims(judge(board)),
        board=_grid(board),
        ranks=_ranks(bench),
        pictures=pictures,
        details=details(bench),
        num_models=sum(len(models) for models in bench.models.values()),
    )


def _claims(answers: Sequence[Answer]) -> Grid | None:
    """Return what becomes of each claim; None without registered runs."""
    if not answers:
        return None
    rows = []
    for method, claim in CLAIMS.items():
        of_track = {one.track: one for one in answers if one.method == method and one.is_published_start}
        fate = fate_of(method, answers)
        cells = [Cell(method, method), Cell(f"{_MARKS[fate]} {fate}", fate)]
        for track in (LENET5, CNN_SMALL, IMBALANCED):
            answer = of_track.get(track)
            if answer is None:
                cells.append(Cell("-", "", is_text=True))
                continue
            text = f"{answer.verdict} ({min(one.num_seeds for one in answer.evidence)} seeds)"
            text += "; AutoAttack turns the sign" if answer.turns_under_autoattack else ""
            cells.append(Cell(text, answer.verdict, href=f"#{anchor(track, answer.start, method)}", is_text=True))
        rows.append([*cells, Cell(claim.text, claim.text, is_text=True)])
    caption = (
        "The worst class's robust error below the control's, and the error of all classes no more above it than the "
        "method's price, at every radius; paired over seeds, Holm's correction. Survives: reproduced on both deciding "
        "data sets (docs/registration.md)"
    )
    header = ["method", "the claim", "Fashion-MNIST, LeNet-5", "CIFAR-10, cnn_small", "imbalanced", "as published"]
    return Grid(caption, header, rows)


def _grid(board: DataFrame) -> Grid:
    rows, tags = [], []
    for _, row in board.sort_values("robust_worst", kind="stable").iterrows():
        name = row["method"] if row["registered"] else f"{row['method']} (not registered)"
        percent = {
            key: _number(100 * row[key], "{:.1f}")
            for key in (
                "robust_average", "robust_worst", "autoattack_average", "autoattack_worst", "natural_average",
                "natural_worst", "robust_maximum", "if_equal", "gap",
            )
        }  # fmt: skip
        *before, natural, worst_natural, maximum, if_equal, gap = percent.values()
        rows.append(
            [
                Cell(name, name, href=f"#{anchor(row['track'], row['start'], row['method'])}"),
                _number(row["num_seeds"], "{:.0f}"),
                *before[:2],
                _difference(row, "difference"),
                _p(row["adjusted_p"]),
                _difference(row, "average_difference"),
                *before[2:],
                natural,
                worst_natural,
                maximum,
                if_equal,
                gap,
                _number(row["rho"], "{:.2f}"),
                _number(row["nsd"], "{:.2f}"),
                _difference(row, "tuning"),
                _number(row["num_settings"], "{:.0f}"),
                Cell(_short(row["chosen"]), row["chosen"], is_text=True),
                _number(row["image_steps"] / 1e6, "{:.3g}"),
                _number(row["seconds"] / 60, "{:.1f}"),
            ]
        )
        tags.append({name: str(row[name]) for name in _FILTERS} | {"method": str(row["method"])})
    caption = (
        "Test errors in percent, differences in points, means over seeds. Worst: of the class that selection images "
        "name. Largest on test: the maximum over classes, biased upwards; if equal: what it would be on average were "
        "all classes alike. Against control: finetune with the same start and seed; p over all comparisons of one view."
        " A method's name leads to its models"
    )
    return Grid(caption, _HEADER, rows, tags=tags)


def _short(settings: str) -> str:
    """Return settings without the groups that their keys stand in."""
    return re.sub(r"\b(frl|alpha|retrain\.trainer)\.", "", settings)


def _ranks(bench: Bench) -> Grid | None:
    rows = []
    for one in agreements(bench):
        low, high = one.interval.low, one.interval.high
        bounds = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        text = "-" if math.isnan(one.interval.estimate) else f"{one.interval.estimate:.2f}{bounds}"
        cells = [Cell(one.between, one.between), Cell(one.one, one.one, is_text=True)]
        cells.append(Cell(one.other, one.other, is_text=True))
        cells += [_number(one.num_methods, "{:.0f}"), _number(one.num_seeds, "{:.0f}")]
        rows.append(
            [*cells, Cell(text.replace("-", _MINUS) if len(text) > 1 else text, f"{one.interval.estimate:.6g}")]
        )
    caption = (
        "Spearman's correlation of two rankings of the same methods by the worst class's robust error; intervals from "
        "resampled seeds"
    )
    header = ["between", "one", "the other", "methods", "seeds", "correlation [95 %]"]
    return Grid(caption, header, rows) if rows else None


def _number(value: float, form: str) -> Cell:
    if math.isnan(value):
        return Cell("-", "")
    return Cell(form.format(value).replace("-", _MINUS), f"{value:.8g}")


def _p(value: float) -> Cell:
    return Cell("< .001", f"{value:.8g}") if value < 0.001 else _number(value, "{:.3f}")


def _difference(row: Series, name: str) -> Cell:
    interval = interval_in(row, name)
    if math.isnan(interval.estimate):
        return Cell("-", "")
    return Cell(points(interval).replace("-", _MINUS), f"{100 * interval.estimate:.8g}")


def _spoken(track: str, rows: DataFrame) -> str:
    """Return the figure's numbers in words, for those who do not see it."""
    first = rows[rows["criterion"] == next(iter(CRITERIA))]
    said = [
        f"{row['method']}, {'starting model' if row['method'] == BASE_MODEL else 'start ' + row['start']}, radius "
        f"{row['epsilon']}: all {100 * row['robust_average']:.1f}, worst {100 * row['robust_worst']:.1f}"
        for _, row in first.iterrows()
    ]
    return f"{track}, robust errors in percent. {'; '.join(said)}."
