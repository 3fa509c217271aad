"""Evaluate a model class by class, and attack it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from frl_repro.api.models import measurable
from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.data import in_unit_range
from frl_repro.data.given import check_classes, class_names_of, split_of
from frl_repro.evaluation.measure import measure
from frl_repro.results.tables import schema
from frl_repro.settings.checks import check_evaluation
from frl_repro.settings.parse import node
from frl_repro.settings.schema import PGDEvaluationConfig

EPSILONS = (8 / 255, 16 / 255)
"""Radii of the reproduction report."""


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    epsilons: float | Sequence[float] = EPSILONS,
    step_size: float = 2 / 255,
    num_steps: int = 20,
    random_start: bool = True,
    num_restarts: int = 1,
    early_stop: bool = False,
    batch_size: int = 500,
    seed: int = 0,
    device: str | None = None,
    backend: str = "auto",
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    method: str = "external",
) -> pd.DataFrame:
    """Return the errors of a model by class, clean and under PGD in the L-infinity ball, at every radius.

    Parameters
    ----------
    model : nn.Module
        Takes images in [0, 1], shape (N, C, H, W), and returns logits, shape (N, K). It is measured in evaluation mode.
        Afterwards its mode, gradients, weights and device are as before.
    data : pair of Tensors, torch Dataset, or DataLoader
        Images, floats in [0, 1] or uint8, and labels 0 to K - 1, shape (N,). Each class needs an image.
    epsilons : float or sequence of float
        Radii in pixel units, in [0, 1]; 0 leaves images as they are.
    step_size : float
        Length of a step of PGD in pixel units, in [0, 1].
    num_steps : int
        Gradient steps of each restart, at least 1.
    random_start : bool
        Start at a random point of the ball; otherwise at the clean image.
    num_restarts : int
        Runs of the attack, of which each image keeps the strongest. More than one needs a random start.
    early_stop : bool
        Count an image as wrong at its first wrong iterate instead of its last one (stronger).
    batch_size : int
        Images attacked at a time. A batch that does not fit into memory is split.
    seed : int
        Drives the random starts.
    device : str, optional
        ``cpu``, ``cuda``, ``cuda:N`` or ``auto``: a copy of the model is measured there. None: where the model is.
    backend : str
        ``auto``, ``torch``, or ``native`` (compiled on first use) for a small network on a processor.
    class_names : sequence of str, length K, optional
        None: those that a torchvision data set has, else ``class 0`` and so on.
    name : str, optional
        What the column ``run_id`` says, for figures of several models. None: the class of the model.
    method : str
        What the column ``method`` says.

    Returns
    -------
    DataFrame
        A row for each radius and class, with the columns of ``classwise.csv``: ``class_id``, ``class_name``, ``count``,
        ``natural_error``, ``boundary_error``, ``robust_error`` (in [0, 1]), ``epsilon``, ``attack`` and what names the
        measurement. `table` and `figure` take it.

    Raises
    ------
    UserError
        Images outside [0, 1], labels out of range, a class without images, a model that returns no logits, or a setting
        out of range.
    """
    radii = [epsilons] if isinstance(epsilons, Real) else list(epsilons)  # type: ignore[arg-type]
    settings = node(
        PGDEvaluationConfig,
        {
            "name": "pgd", "epsilons": radii, "step_size": step_size, "num_steps": num_steps,
            "random_start": random_start, "num_restarts": num_restarts, "early_stop": early_stop,
            "batch_size": batch_size, "validation_every": 1, "num_validation": None, "keep_best_by": None,
        },
    )  # fmt: skip
    check_evaluation(settings)
    split = split_of(data, name="data")
    with measurable(model, split.images, device, backend) as (own, place, computing, K):
        names = class_names_of(data, class_names, num_classes=K)
        check_classes(split, names, name="data")
        kind = type(model).__name__
        measured = measure(
            own,
            split,
            settings,
            class_names=names,
            seed=streams.derive_seed(seed, "measure test"),
            device=place,
            backend=computing,
            keys={
                "run_id": name or kind, "dataset": "own", "model": kind, "method": method, "seed": seed,
                **dict.fromkeys(schema.SETTING_COLUMNS), schema.CHECKPOINT_COLUMN: None, "split": "test", "epoch": 0,
            },
        )  # fmt: skip
    df = pd.DataFrame(measured.rows, columns=list(schema.CLASSWISE_HEADER))
    texts = ["recipe", schema.CHECKPOINT_COLUMN]  # as `reading.read_classwise` has it: no text is an empty one
    return df.assign(
        variant="", base="", settings="", **{column: df[column].fillna("").astype(str) for column in texts}
    )


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float | Tensor = 8 / 255,
    step_size: float | Tensor = 2 / 255,
    num_steps: int = 20,
    random_start: bool = True,
    num_restarts: int = 1,
    objective: Literal["cross_entropy", "kl"] = "cross_entropy",
    early_stop: bool = False,
    seed: int = 0,
    device: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return images attacked by PGD in the L-infinity ball, clipped to [0, 1].

    Parameters
    ----------
    model : nn.Module
        As in `evaluate`; left as it was.
    x : Tensor, shape (N, C, H, W)
        Floating in [0, 1], or uint8.
    y : Tensor, shape (N,)
        Labels, 0 to K - 1.
    epsilon : float or Tensor, shape (N,)
        Radius in pixel units, in [0, 1].
    step_size : float or Tensor, shape (N,)
        Length of a step in pixel units, in [0, 1].
    num_steps : int
        As in `evaluate`.
    random_start : bool
        As in `evaluate`.
    num_restarts : int
        As in `evaluate`.
    objective : str
        Loss that is raised: ``cross_entropy`` with the true class, or ``kl``, the divergence from the clean prediction.
    early_stop : bool
        Stop at the first wrong iterate; otherwise go on to the last step.
    seed : int
        Drives the random starts.
    device : str, optional
        As in `evaluate`.
    backend : str
        As in `evaluate`.

    Returns
    -------
    Tensor, shape (N, C, H, W), float32
        On the device of ``x``.

    Raises
    ------
    UserError
        As in `evaluate`.
    """
    split = split_of((x, y), name="attack")
    with measurable(model, split.images, device, backend) as (own, place, computing, K):
        check_classes(split, [f"class {k}" for k in range(K)], name="attack", needs_all=False)
        radius, step = (v.to(place) if isinstance(v, Tensor) else v for v in (epsilon, step_size))
        attacked = pgd(
            own,
            in_unit_range(split.images).to(place),
            split.labels.to(place),
            epsilon=radius,
            step_size=step,
            num_steps=num_steps,
            use_random_start=random_start,
            num_restarts=num_restarts,
            objective=objective,
            early_stop=early_stop,
            generator=streams.generator(seed, "attack", device=place) if random_start else None,
            ascend=computing.ascend,
            logits=computing.logits,
        )
    return attacked.to(torch.as_tensor(x).device)
