"""Which methods a track takes over from two others: those on their fronts (docs/registration.md)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from frl_repro.basics.errors import UserError
from frl_repro.results.figures.pareto import front
from frl_repro.results.protocol import CNN_SMALL, CONTESTANTS, LENET5
from frl_repro.results.report.bench_models import CRITERIA

if TYPE_CHECKING:
    from frl_repro.results.report.bench_models import Bench, Model

SOURCES = (LENET5, CNN_SMALL)
NUM_PICKED = 5
_LEAST_SEEDS = 3


def front_methods(bench: Bench) -> dict[str, str]:
    """Return the methods that another track takes over, the best first, each with the setting that it runs with.

    Candidates are the published methods, each from its own start, at the settings chosen by the worst class. Those on
    the front of either track (average against worst class, mean over seeds and radii) are ordered by the sum of their
    ranks by the worst class; where fewer than five are on a front, the others follow in that order. The setting is the
    one that most seeds of the CIFAR-10 track chose, of a tie the first of the protocol.

    Raises
    ------
    UserError
        A candidate lacks three seeds on one of the tracks.
    """
    # Classes are balanced on both tracks.
    names = [name for name, one in CONTESTANTS.items() if not one.is_control and not one.needs_imbalance]
    chosen = {(track, name): _chosen(bench, track, name) for track in SOURCES for name in names}
    ranks, on_a_front = np.zeros(len(names)), set()
    for track in SOURCES:
        radii = bench.radii(track)
        errors = np.array([_errors(chosen[track, name], radii) for name in names])
        on_a_front |= {names[place] for place in front(errors[:, 0], errors[:, 1])}
        ranks += stats.rankdata(errors[:, 1])
    order = sorted(range(len(names)), key=lambda place: (names[place] not in on_a_front, ranks[place], place))
    picked = [names[place] for place in order[:NUM_PICKED]]
    return {name: _most_chosen(name, list(chosen[CNN_SMALL, name].values())) for name in picked}


def _chosen(bench: Bench, track: str, name: str) -> dict[int, Model]:
    start = CONTESTANTS[name].starts[0]
    found = {} if not bench.has(track, start, name) else bench.chosen(track, start, name, next(iter(CRITERIA)))
    if len(found) < _LEAST_SEEDS:
        raise UserError(
            f"methods are picked from {' and '.join(SOURCES)}: {name} has {len(found)} finished seeds on {track}, and "
            f"{_LEAST_SEEDS} are needed"
        )
    return found


def _errors(models: dict[int, Model], radii: list[str]) -> tuple[float, float]:
    """Return average and worst robust error, means over seeds and radii."""
    average = np.mean([model.average(radius) for model in models.values() for radius in radii])
    worst = np.mean([model.worst(radius) for model in models.values() for radius in radii])
    return float(average), float(worst)


def _most_chosen(name: str, models: list[Model]) -> str:
    counts = Counter(model.setting for model in models)
    settings = CONTESTANTS[name].settings
    return max(settings, key=lambda setting: (counts[setting], -settings.index(setting)))
