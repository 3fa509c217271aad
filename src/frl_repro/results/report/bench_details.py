"""What a row of the leaderboard leads to: the chosen models of a method with settings, classes and trajectory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from frl_repro.results import DEFAULT_TOP
from frl_repro.results.protocol import BASE
from frl_repro.results.report.bench_models import BASE_MODEL, CRITERIA, Bench, Model
from frl_repro.results.report.page import Cell, Grid
from frl_repro.results.tables.reading import read_policy
from frl_repro.results.tables.text_tables import worst_and_best

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 220, 90
_WEIGHTS = {"weight_nat": "class weight", "weight_bndy": "class weight (boundary)", "margin": "radius"}
_LEAST_MOVE = 1e-6


@dataclass(frozen=True)
class Detail:
    """A method on a track from one start.

    Attributes
    ----------
    anchor, title : str
    runs : Grid
        The chosen model of each seed.
    classes : Grid
        Errors by class.
    thumbnail : Markup
        How the classes' weights or radii moved; empty where there is no table of it.
    note : str
        What the thumbnail shows.
    """

    anchor: str
    title: str
    runs: Grid
    classes: Grid
    thumbnail: Markup
    note: str


def anchor(track: str, start: str, method: str) -> str:
    """Return the page's place of a method's chosen models."""
    return re.sub(r"[^\w-]", "-", f"run-{track}-{start}-{method}")


def details(bench: Bench) -> list[Detail]:
    """Return what is known of every method's chosen models, in the order of tracks, starts and methods."""
    return [
        _detail(bench, track, start, method)
        for track in bench.tracks
        for start, method in sorted({place[1:3] for place in bench.models if place[0] == track})
    ]


def _detail(bench: Bench, track: str, start: str, method: str) -> Detail:
    models = bench.chosen(track, start, method, next(iter(CRITERIA)))
    where = "starting models" if method == BASE_MODEL else "from the base" if start == BASE else "from scratch"
    thumbnail, note = _thumbnail(models, bench.class_names[track])
    title = f"{track}: {method}, {where}"
    return Detail(
        anchor(track, start, method),
        title,
        _runs(bench, track, models),
        _classes(bench, track, models),
        thumbnail,
        note,
    )


def _runs(bench: Bench, track: str, models: Mapping[int, Model]) -> Grid:
    names, radii = bench.class_names[track], bench.radii(track)
    rows = []
    for seed, model in models.items():
        cells = [Cell(str(seed), str(seed)), Cell(model.setting or "-", model.setting, is_text=True)]
        for radius in radii:
            worst = int(model.selection[radius].argmax())
            cells.append(Cell(f"{names[worst]} {100 * model.worst(radius):.1f}", f"{model.worst(radius):.6f}"))
        rows.append([*cells, Cell(model.run_id or "-", model.run_id, is_text=True)])
    header = ["seed", "chosen setting", *(f"worst class, {radius}" for radius in radii), "run"]
    return Grid(
        "The chosen model of each seed; robust test error in percent of the class that its selection images name",
        header,
        rows,
    )


def _classes(bench: Bench, track: str, models: Mapping[int, Model]) -> Grid:
    """Return errors by class, mean over seeds; of many classes the worst and the best."""
    names, radii = bench.class_names[track], bench.radii(track)
    errors = {
        quantity: np.stack([model.test[quantity] for model in models.values()]).mean(0)
        for quantity in ("natural", *radii)
    }
    last = errors[radii[-1]] if radii else errors["natural"]
    rows = [
        [Cell(name, name), *(_percent(of[place], is_worst=place == of.argmax()) for of in errors.values())]
        for place, name in enumerate(names)
    ]
    caption = "Test errors by class in percent, mean over seeds"
    ends = worst_and_best(last.tolist(), DEFAULT_TOP)
    if ends is not None:
        shown = {*ends[0], *ends[1]}
        rest = [place for place in range(len(names)) if place not in shown]
        middle = [Cell(f"({len(rest)} between, mean)")]
        middle += [_percent(float(of[rest].mean()), is_worst=False) for of in errors.values()]
        rows = [*(rows[place] for place in ends[0]), middle, *(rows[place] for place in ends[1])]
        caption += f"; the {DEFAULT_TOP} worst and the {DEFAULT_TOP} best of {len(names)}"
    header = ["class", "natural", *(f"robust, {radius}" for radius in radii)]
    return Grid(caption, header, rows)


def _percent(value: float, *, is_worst: bool) -> Cell:
    return Cell(f"{100 * value:.1f}", f"{value:.6f}", is_worst)


def _thumbnail(models: Mapping[int, Model], names: Sequence[str]) -> tuple[Markup, str]:
    """Return how the first seed's model treated the classes over the epochs; the worst class is drawn strong."""
    for seed, model in models.items():
        if model.policy is None or not model.policy.exists():
            continue
        table = read_policy([model.policy])
        for column, what in _WEIGHTS.items():
            lines = table.pivot_table(index="epoch", columns="class_id", values=column).to_numpy(dtype=float)
            if len(lines) > 1 and np.isfinite(lines).all() and np.ptp(lines) > _LEAST_MOVE:
                radius = next(reversed([key for key in model.selection if key != "natural"]))
                worst = int(model.selection[radius].argmax())
                note = (
                    f"{what} of each class over {len(lines)} epochs, seed {seed}, from {lines.min():.2g} to "
                    f"{lines.max():.2g}; strong: {names[worst]}"
                )
                return _drawn(lines, worst, note), note
    return Markup(""), ""


def _drawn(lines: np.ndarray, worst: int, note: str) -> Markup:
    low, high = float(lines.min()), float(lines.max())
    x = np.linspace(2, _WIDTH - 2, len(lines))
    y = _HEIGHT - 3 - (lines - low) / (high - low) * (_HEIGHT - 6)
    order = [*(place for place in range(lines.shape[1]) if place != worst), worst]
    parts = [
        '<polyline class="{}" points="{}"/>'.format(
            "strong" if place == worst else "faint",
            " ".join(f"{a:.0f},{b:.0f}" for a, b in zip(x, y[:, place], strict=True)),
        )
        for place in order
    ]
    label = escape(note)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return Markup(f'<svg class="thumbnail" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>')
