"""From a model and its test images to AutoAttack's tables and outcomes, over several processes if need be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from frl_repro.basics import radii
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER, bar
from frl_repro.data import Dataset, Split
from frl_repro.data.splits import subset
from frl_repro.evaluation import autoattack
from frl_repro.models.compute.backends import Backend
from frl_repro.results.tables import components, schema, writing
from frl_repro.results.tables.outcomes import (
    NATURAL_ERROR,
    NOT_ATTACKED,
    NOT_BROKEN,
    OUTCOMES_FILE,
    SPLIT_DIGEST,
    Outcomes,
    read_outcomes,
    write_outcomes,
)
from frl_repro.settings.schema import AutoAttackEvaluationConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTIAL_FILE = "outcomes.partial.safetensors"
"""What there is of an unfinished measurement; not found by those who look for outcomes."""

_SECONDS = "wall_seconds"


def autoattack_name(settings: AutoAttackEvaluationConfig) -> str:
    """Return the attack's name in tables: ``autoattack``, of part of the images ``autoattack-1000_images``.

    Numbers of part of the images or of part of the attacks are never taken for those of all.
    """
    name = settings.name
    name += "" if settings.num_components is None else f"-first_{settings.num_components}"
    name += "" if settings.num_images is None else f"-{settings.num_images}_images"
    name += "-whole_classes" if settings.whole_classes else ""
    return name + (f"-subset_{settings.subset_seed}" if settings.subset_seed else "")


def measure_with_autoattack(
    model: nn.Module,
    dataset: Dataset,
    settings: AutoAttackEvaluationConfig,
    *,
    seed: int,
    weights: str,
    device: torch.device,
    backend: Backend,
    keys: Mapping[str, Any],
    folder: Path,
    run_record: Mapping[str, Any],
) -> None:
    """Write tables and outcomes of AutoAttack on the test images, or on part of them.

    Outcomes are kept after every batch; those of an interrupted measurement are taken up, and it ends with the bytes
    that it would have written in one go. The finished outcomes come last: where they are, nothing is left to do.

    Parameters
    ----------
    model, dataset, device, backend
        What is measured, on what, where and by whom.
    settings : AutoAttackEvaluationConfig
    seed : int
        AutoAttack's own.
    weights : str
        Digest of the weights: outcomes of others are not taken up.
    keys : mapping
        The columns that name the run, the split and the epoch.
    folder : Path
        Receives the files.
    run_record : mapping
        What ``run.json`` says besides the time it took.

    Raises
    ------
    UserError
        There are fewer images than asked for, or too few for one of each class.
    """
    images = _chosen_images(dataset.test, settings)
    split = dataset.test if images is None else dataset.test.select(torch.from_numpy(images))
    names = autoattack.components(dataset.num_classes)[: settings.num_components]
    keys = {**keys, "attack": autoattack_name(settings)}
    attack_keys = {"batch_size": settings.batch_size, "attack_seed": seed}
    package = {"pyautoattack": version("pyautoattack")}
    about = {**keys, **attack_keys, **package, "backend": backend.name, "weights": weights}
    about[SPLIT_DIGEST] = dataset.split_digest("test")
    codes = {epsilon: np.full(len(split), NOT_ATTACKED, dtype=np.uint8) for epsilon in settings.epsilons}

    finished, partial = folder / OUTCOMES_FILE, folder / PARTIAL_FILE
    earlier = _earlier(finished, about, split, images)
    is_finished = earlier is not None
    earlier = earlier or _earlier(partial, about, split, images)
    if earlier is not None:
        codes |= _codes_of(earlier, settings.epsilons)
    started = time.monotonic() - (0 if earlier is None else earlier.about.get(_SECONDS, 0))

    def outcomes(**more: Any) -> Outcomes:
        return Outcomes(
            labels=split.labels.numpy(),
            is_natural_error=np.logical_or.reduce([found == NATURAL_ERROR for found in codes.values()]),
            is_robust_error={epsilon: found != NOT_BROKEN for epsilon, found in codes.items()},
            about={**about, **more},
            components=names,
            broken_by=codes,
            images=images,
        )

    def keep() -> None:
        write_outcomes(partial, outcomes(**{_SECONDS: time.monotonic() - started}))

    num_before = sum(int((found != NOT_ATTACKED).sum()) for found in codes.values())
    with bar(f"AutoAttack {keys['split']}", len(split) * len(codes), done=num_before) as advance:
        autoattack.attack_split(
            model,
            split,
            forward=backend.forward_of_images,
            codes=codes,
            num_classes=dataset.num_classes,
            batch_size=settings.batch_size,
            seed=seed,
            device=device,
            num_components=settings.num_components,
            keep=keep,
            advance=advance,
        )
    if not is_finished:
        found, class_names = outcomes(), dataset.class_names
        rows = components.class_rows(found, keys, class_names)
        writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_HEADER)
        rows = components.component_rows(found, {**keys, **attack_keys}, class_names)
        writing.write_table(folder / components.COMPONENTS_FILE, rows, components.COMPONENT_COLUMNS)
        record = {**run_record, "versions": {**run_record["versions"], **package}}
        record[_SECONDS] = round(time.monotonic() - started, 1)
        writing.write_json(folder / "run.json", record)
        write_outcomes(finished, found)
    partial.unlink(missing_ok=True)


def _chosen_images(split: Split, settings: AutoAttackEvaluationConfig) -> NDArray[np.int64] | None:
    """Return the places of the images to attack; None for all."""
    if settings.num_images is None:
        return None
    num_classes = int(split.labels.max()) + 1
    for class_id in settings.whole_classes or []:
        if class_id >= num_classes:
            raise UserError(f"evaluation.whole_classes: {class_id} is no class, they are 0 to {num_classes - 1}")
    try:
        chosen: NDArray[np.int64] = subset(split.labels, settings.num_images, settings.subset_seed).numpy()
    except UserError as problem:
        raise UserError(f"evaluation.num_images={settings.num_images}: {problem}") from None
    whole = np.flatnonzero(np.isin(split.labels.numpy(), settings.whole_classes or []))
    return np.union1d(chosen, whole) if len(whole) else chosen


def _earlier(path: Path, about: Mapping[str, Any], split: Split, images: NDArray[np.int64] | None) -> Outcomes | None:
    """Return what an earlier process found of the same measurement; None where there is none."""
    if not path.exists():
        return None
    found = read_outcomes(path)
    theirs = {name: value for name, value in found.about.items() if name != _SECONDS}
    is_same = {SPLIT_DIGEST: about[SPLIT_DIGEST], **theirs} == about  # older files do not say which images they are of
    places = [np.arange(len(split)) if one is None else one for one in (found.images, images)]
    if is_same and np.array_equal(places[0], places[1]) and np.array_equal(found.labels, split.labels.numpy()):
        return found
    LOGGER.info("%s is of other weights, images or versions: measured anew", path)
    return None


def _codes_of(earlier: Outcomes, epsilons: Sequence[float]) -> dict[float, NDArray[np.uint8]]:
    """Return the codes by the radii of the settings; a file holds these as text, which may round them."""
    by_text = {radii.format_epsilon(epsilon): codes for epsilon, codes in earlier.broken_by.items()}
    wanted = {epsilon: by_text.get(radii.format_epsilon(epsilon)) for epsilon in epsilons}
    return {epsilon: codes.copy() for epsilon, codes in wanted.items() if codes is not None}
