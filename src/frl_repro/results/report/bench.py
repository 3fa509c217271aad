"""The bench's leaderboard: each method's setting chosen within a seed, its errors, cost, intervals and comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from frl_repro.results.protocol import CONTESTANTS, CONTROL
from frl_repro.results.report.bench_claims import CLAIMS, Claim
from frl_repro.results.report.bench_models import BASE_MODEL, CRITERIA, Bench, Model
from frl_repro.results.report.verdicts import holm, p_value
from frl_repro.results.tables import statistics
from frl_repro.results.tables.text_tables import aligned

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = (
    "track", "start", "method", "criterion", "epsilon", "registered", "num_seeds", "num_settings", "chosen",
    "natural_average", "natural_worst", "robust_average", "robust_worst", "robust_maximum", "if_equal", "gap",
    "robust_average_low", "robust_average_high", "robust_worst_low", "robust_worst_high",
    "difference", "difference_low", "difference_high", "adjusted_p", "num_comparisons",
    "average_difference", "average_difference_low", "average_difference_high", "price", "average_adjusted_p",
    "rho", "nsd", "tuning", "tuning_low", "tuning_high",
    "autoattack_seeds", "autoattack_average", "autoattack_worst",
    "autoattack_difference", "autoattack_difference_low", "autoattack_difference_high",
    "image_steps", "seconds",
)  # fmt: skip
"""Of ``leaderboard.csv``: errors in [0, 1], means over seeds.

``robust_worst`` is of the class that selection images name, ``robust_maximum`` the largest test error, ``if_equal``
what that would be on average were all classes alike, ``gap`` the largest less the smallest test error. ``difference``
is of ``robust_worst`` to the control's, same start and seed, ``average_difference`` of ``robust_average``; the p-value
of the latter is against ``price``. ``tuning`` is the chosen setting's ``robust_worst`` less the published one's.
AutoAttack's worst class is the one that selection images name under PGD.
"""


def leaderboard(bench: Bench) -> DataFrame:
    """Return a row for each track, start, method, criterion of choice and radius; see `COLUMNS`."""
    found = []
    for track in bench.tracks:
        places = sorted({(start, method) for of, start, method, _ in bench.models if of == track})
        for criterion in CRITERIA:
            chosen = {place: bench.chosen(track, *place, criterion) for place in places}
            for radius in bench.radii(track):
                rows = [
                    _row(models, chosen.get((place[0], CONTROL), {}), place[1], radius)
                    | _tuning(bench, (track, *place), models, radius)
                    | {"track": track, "start": place[0], "method": place[1], "criterion": criterion}
                    for place, models in chosen.items()
                ]
                _adjust(rows)
                found += rows
    return pd.DataFrame(found).reindex(columns=[*COLUMNS])


def said(board: DataFrame) -> str:
    """Return the board as a text: methods by worst-class robust error, at the largest radius, chosen by it."""
    text = []
    for (track, start), rows in board.groupby(["track", "start"], sort=True):
        radius = rows["epsilon"].iloc[-1]
        shown = rows[(rows["criterion"] == next(iter(CRITERIA))) & (rows["epsilon"] == radius)]
        shown = shown.sort_values("robust_worst")
        columns = [
            ["method", *shown["method"]],
            ["seeds", *map(str, shown["num_seeds"])],
            ["settings", *map(str, shown["num_settings"])],
            *(
                [head, *(f"{100 * value:.1f}" for value in shown[name])]
                for head, name in (
                    ("natural", "natural_average"), ("worst natural", "natural_worst"),
                    ("robust", "robust_average"), ("worst robust", "robust_worst"),
                )
            ),
            ["M image-steps", *("-" if np.isnan(value) else f"{value / 1e6:.3g}" for value in shown["image_steps"])],
        ]  # fmt: skip
        title = f"{track}, start={start}: errors in percent at {radius}, settings chosen by the worst class"
        text.append(f"{title}\n{aligned(columns)}\n")
    return "\n".join(text)


def _row(models: dict[int, Model], control: dict[int, Model], method: str, radius: str) -> dict[str, object]:
    of_seeds = list(models.values())
    values = {
        "natural_average": [model.average("natural") for model in of_seeds],
        "natural_worst": [model.worst("natural") for model in of_seeds],
        "robust_average": [model.average(radius) for model in of_seeds],
        "robust_worst": [model.worst(radius) for model in of_seeds],
        "robust_maximum": [float(model.test[radius].max()) for model in of_seeds],
        "if_equal": [_if_equal(model, radius) for model in of_seeds],
        "gap": [float(np.ptp(model.test[radius])) for model in of_seeds],
        "nsd": [statistics.normalised_deviation(model.test[radius]) for model in of_seeds],
        "image_steps": [model.image_steps for model in of_seeds],
        "seconds": [model.seconds for model in of_seeds],
    }
    row: dict[str, object] = {
        "epsilon": radius, "num_seeds": len(models), "chosen": _counted([model.setting for model in of_seeds]),
        "registered": all(model.is_registered for model in of_seeds),
        **{name: float(np.mean(numbers)) for name, numbers in values.items()},
    }  # fmt: skip
    for name in ("robust_average", "robust_worst"):
        interval = statistics.over_seeds(values[name])
        row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    attacked = {seed: model for seed, model in models.items() if radius in model.autoattack}
    row["autoattack_seeds"] = len(attacked)
    if attacked:
        row["autoattack_average"] = float(np.mean([model.autoattack_average(radius) for model in attacked.values()]))
        row["autoattack_worst"] = float(np.mean([model.autoattack_worst(radius) for model in attacked.values()]))
    shared = [seed for seed in models if seed in control]
    if method not in (CONTROL, BASE_MODEL) and shared:
        pairs = [(models[seed], control[seed]) for seed in shared]
        row |= _compared(pairs, method, radius)
    return row


def _compared(pairs: Sequence[tuple[Model, Model]], method: str, radius: str) -> dict[str, object]:
    """Return differences to the control: of the worst class, of all classes, under AutoAttack, and rho."""
    row: dict[str, object] = {"price": CLAIMS.get(method, Claim("")).price}
    worst = [one.worst(radius) - other.worst(radius) for one, other in pairs]
    average = [one.average(radius) - other.average(radius) for one, other in pairs]
    attacked = [(one, other) for one, other in pairs if radius in one.autoattack and radius in other.autoattack]
    row |= _interval("difference", worst) | _interval("average_difference", average)
    if attacked:
        differences = [one.autoattack_worst(radius) - other.autoattack_worst(radius) for one, other in attacked]
        row |= _interval("autoattack_difference", differences)
    row |= {"p": p_value(np.asarray(worst), 0.0), "average_p": p_value(np.asarray(average), float(str(row["price"])))}
    gains = [
        statistics.rho(one.test[radius], other.test[radius]) for one, other in pairs if other.test[radius].max() < 1
    ]
    row["rho"] = float(np.mean(gains)) if gains else np.nan
    return row


def _interval(name: str, values: Sequence[float]) -> dict[str, object]:
    interval = statistics.over_seeds(values)
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def interval_in(row: pd.Series, name: str) -> statistics.Interval:
    """Return an interval from its columns in a row of `leaderboard`."""
    return statistics.Interval(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _if_equal(model: Model, radius: str) -> float:
    """Return the largest class error that equal classes would show on average with as many images."""
    num_classes = len(model.shares)
    return statistics.expected_maximum(model.average(radius), round(model.num_test / num_classes), num_classes)


def _tuning(bench: Bench, place: tuple[str, str, str], models: dict[int, Model], radius: str) -> dict[str, object]:
    """Return the number of settings, and what the choice among them bought the worst class."""
    tried = {seed: bench.models[(*place, seed)] for seed in models}
    number = len({model.setting for of_seed in tried.values() for model in of_seed})
    published = CONTESTANTS[place[2]].settings[0] if place[2] in CONTESTANTS else None
    if number < 2 or any(of_seed[0].setting != published for of_seed in tried.values()):
        return {"num_settings": number}
    bought = [model.worst(radius) - tried[seed][0].worst(radius) for seed, model in models.items()]
    return {"num_settings": number, **_interval("tuning", bought)}


def _adjust(rows: list[dict[str, object]]) -> None:
    """Add Holm's correction over the comparisons of a view; what joined later is corrected as if it were one of them.

    A view's comparisons are the registered ones; all, where there are none.
    """
    compared = [row for row in rows if "p" in row]
    family = [row for row in compared if row["registered"]] or compared
    for p, adjusted in (("p", "adjusted_p"), ("average_p", "average_adjusted_p")):
        values = [float(str(row[p])) for row in family]
        for row, value in zip(family, holm(values), strict=True):
            row[adjusted] = value
        for row in compared:
            if row not in family:
                row[adjusted] = holm([*values, float(str(row[p]))])[-1]
    for row in compared:
        row["num_comparisons"] = len(family)


def _counted(settings: Sequence[str]) -> str:
    counts = Counter(setting for setting in settings if setting)
    return ", ".join(f"{setting} ({number} of {len(settings)})" for setting, number in counts.most_common())
