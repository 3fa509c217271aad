"""AutoAttack on the bench's chosen models: 1,000 test images and the class that selection images name as worst."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.basics.errors import reason
from frl_repro.basics.run_folder import WEIGHTS_FILE
from frl_repro.commands.bench_published import PUBLISHED, folders
from frl_repro.results.protocol import AUTOATTACK_FOLDER
from frl_repro.results.tables.outcomes import OUTCOMES_FILE

if TYPE_CHECKING:
    from frl_repro.results.report.bench_models import Bench, Model

NUM_IMAGES = 1000
NUM_COMPONENTS = 2
"""APGD on cross-entropy and targeted APGD: docs/registration.md says why."""


def measure_chosen(
    run_ids: Collection[str], seed: int, runs: Path, *, more: Sequence[str] = (), command: str
) -> list[str]:
    """Measure the chosen models of a seed among these runs, or what is left of them; returns a line for each failure.

    The chosen settings are those that the worst class of selection images prefers.

    Parameters
    ----------
    run_ids : collection of str
    seed : int
    runs : Path
        Folder of the runs; results go to its folder ``autoattack``.
    more : sequence of str
        Settings of ``scripts/evaluate.py`` added to every measurement.
    command : str
        For the record.
    """
    from frl_repro.commands.jobs import configure_evaluation
    from frl_repro.evaluation.measure import measure_checkpoint
    from frl_repro.results.report.bench_models import read_bench

    failed = []
    for model, radii in chosen_models(read_bench(folders(runs)), seed):
        if model.run_id not in run_ids or is_measured(model, runs):
            continue
        weights = runs / model.run_id / WEIGHTS_FILE
        if not weights.exists():
            failed.append(f"AutoAttack of {model.run_id}: its weights are not on this machine")
            continue
        overrides = [*overrides_of(model, radii, weights, runs), *more]
        try:
            measure_checkpoint(configure_evaluation(*overrides), command=command)
        except Exception as problem:
            failed.append(f"scripts/evaluate.py {shlex.join(overrides)}: {reason(problem)}")
    return failed


def chosen_models(bench: Bench, seed: int) -> list[tuple[Model, list[str]]]:
    """Return the model of every track, start and method of a seed that the worst class prefers, with its radii."""
    from frl_repro.results.report.bench_models import CRITERIA

    criterion = next(iter(CRITERIA))
    found = []
    for track, start, method in sorted({tuple(place[:3]) for place in bench.models if place[-1] == seed}):
        model = bench.chosen(track, start, method, criterion).get(seed)
        if model is not None and model.run_id:
            found.append((model, bench.radii(track)))
    return found


def overrides_of(model: Model, radii: Sequence[str], weights: Path, runs: Path) -> list[str]:
    """Return the settings of ``scripts/evaluate.py``: each radius, and all images of what it names as worst class."""
    worst = sorted({int(model.selection[radius].argmax()) for radius in radii})
    return [
        f"checkpoint={weights}",
        "evaluation=autoattack",
        f"evaluation.epsilons=[{','.join(radii)}]",
        f"evaluation.num_images={min(NUM_IMAGES, model.num_test)}",
        f"evaluation.whole_classes=[{','.join(map(str, worst))}]",
        f"evaluation.num_components={NUM_COMPONENTS}",
        f"output_dir={runs / AUTOATTACK_FOLDER}",
    ]


def is_measured(model: Model, runs: Path) -> bool:
    """Return whether a model has been measured, here or in the committed results."""
    here = (runs / AUTOATTACK_FOLDER).glob(f"{model.run_id}-*/{OUTCOMES_FILE}")
    return any(here) or any(PUBLISHED.glob(f"*/{AUTOATTACK_FOLDER}/{model.run_id}-*/classwise.csv"))
