"""How rankings of methods differ between tracks, starts, radii and attacks: rank correlation with an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from frl_repro.results.protocol import BASE, SCRATCH
from frl_repro.results.report.bench_models import BASE_MODEL, CRITERIA, Bench, Model
from frl_repro.results.tables.statistics import NUM_RESAMPLES, Interval

_LEAST_METHODS = 4  # of three, a rank correlation takes four values

Ranked = dict[str, dict[int, float]]
"""By method, each seed's worst-class error."""


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of two rankings of the same methods.

    Attributes
    ----------
    between : str
        ``tracks``, ``starts``, ``radii`` or ``attacks``.
    one, other : str
    num_methods, num_seeds : int
        The fewest seeds of a method.
    interval : Interval
        Over seeds, which are resampled for all methods together; two tracks each by itself.
    """

    between: str
    one: str
    other: str
    num_methods: int
    num_seeds: int
    interval: Interval


def agreements(bench: Bench, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> list[Agreement]:
    """Return every comparison of two rankings by the worst class's robust error, at the settings chosen by it.

    A method from a base and from scratch is two; two tracks are compared by what both have. Fewer than four in common
    are no ranking.
    """
    found: list[Agreement | None] = []

    def add(between: str, names: tuple[str, str], sides: tuple[Ranked, Ranked], *, is_paired: bool) -> None:
        found.append(_agreement(between, names, sides, is_paired=is_paired, seed=seed, num_resamples=num_resamples))

    for track in bench.tracks:
        radii = bench.radii(track)
        by_pgd = {radius: _ranked(bench, track, radius, Model.worst) for radius in radii}
        by_autoattack = {radius: _ranked(bench, track, radius, Model.autoattack_worst) for radius in radii}
        for one, other in combinations(radii, 2):
            add("radii", (f"{track}, {one}", other), (by_pgd[one], by_pgd[other]), is_paired=True)
        for radius in radii:
            names = (f"{track}, {radius}, PGD-20", "AutoAttack")
            add("attacks", names, (by_pgd[radius], by_autoattack[radius]), is_paired=True)
            starts = [_of_start(by_pgd[radius], start) for start in (BASE, SCRATCH)]
            add("starts", (f"{track}, {radius}, from a base", "from scratch"), (starts[0], starts[1]), is_paired=True)
    for one, other in combinations(bench.tracks, 2):
        for radius in [radius for radius in bench.radii(one) if radius in bench.radii(other)]:
            sides = (_ranked(bench, one, radius, Model.worst), _ranked(bench, other, radius, Model.worst))
            add("tracks", (f"{one}, {radius}", other), sides, is_paired=False)
    return [one for one in found if one is not None]


def _ranked(bench: Bench, track: str, radius: str, worst: Callable[[Model, str], float]) -> Ranked:
    criterion = next(iter(CRITERIA))
    places = sorted({place[1:3] for place in bench.models if place[0] == track and place[2] != BASE_MODEL})
    ranked: Ranked = {}
    for start, method in places:
        models = bench.chosen(track, start, method, criterion)
        if worst is Model.autoattack_worst:
            models = {seed: model for seed, model in models.items() if radius in model.autoattack}
        if models:
            ranked[f"{start} {method}"] = {seed: worst(model, radius) for seed, model in models.items()}
    return ranked


def _of_start(ranked: Ranked, start: str) -> Ranked:
    return {name.removeprefix(f"{start} "): of for name, of in ranked.items() if name.startswith(f"{start} ")}


def _agreement(
    between: str,
    names: tuple[str, str],
    sides: tuple[Ranked, Ranked],
    *,
    is_paired: bool,
    seed: int,
    num_resamples: int,
) -> Agreement | None:
    methods = sorted(set(sides[0]) & set(sides[1]))
    if len(methods) < _LEAST_METHODS:
        return None
    tables = [_table(side, methods) for side in sides]
    if is_paired:
        common = sorted(set(tables[0][0]) & set(tables[1][0]))
        tables = [_table(side, methods, common) for side in sides]
    if any(not len(seeds) for seeds, _ in tables):
        return None
    (estimate,) = _correlation(*(errors.mean(1)[None] for _, errors in tables))
    num_seeds = min(len(seeds) for seeds, _ in tables)
    if num_seeds < 2:
        return Agreement(between, *names, len(methods), num_seeds, Interval(float(estimate), np.nan, np.nan))
    generator = np.random.default_rng(seed)
    draws = [generator.integers(len(seeds), size=(num_resamples, len(seeds))) for seeds, _ in tables]
    draws = [draws[0], draws[0]] if is_paired else draws
    means = [errors[:, draw].mean(-1).T for (_, errors), draw in zip(tables, draws, strict=True)]
    low, high = np.nanquantile(_correlation(*means), [0.025, 0.975])
    return Agreement(between, *names, len(methods), num_seeds, Interval(float(estimate), float(low), float(high)))


def _table(
    side: Ranked, methods: Sequence[str], seeds: Sequence[int] | None = None
) -> tuple[list[int], NDArray[np.float64]]:
    """Return the seeds that all methods have, and errors of shape (methods, seeds)."""
    shared = sorted(set.intersection(*(set(side[method]) for method in methods)))
    chosen = shared if seeds is None else list(seeds)
    return chosen, np.array([[side[method][seed] for seed in chosen] for method in methods]).reshape(len(methods), -1)


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Spearman's correlation of each pair of rows, shape (B,); NaN where all of a row are equal."""
    ranks = [stats.rankdata(side, axis=-1) for side in (one, other)]
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    found: NDArray[np.float64] = np.divide((a * b).sum(-1), size, out=np.full(len(size), np.nan), where=size > 0)
    return found
