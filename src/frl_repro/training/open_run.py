"""What one run works with, and what came of it: model, data, folder, measurements, records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frl_repro.basics import streams
from frl_repro.basics.run_folder import RUN_FILE
from frl_repro.data import Dataset, Split
from frl_repro.evaluation.measure import Measured, measure
from frl_repro.models.compute.backends import Backend
from frl_repro.models.networks import new_network
from frl_repro.models.origin import data_facts
from frl_repro.results import registration
from frl_repro.results.tables import writing
from frl_repro.results.tables.outcomes import SPLIT_DIGEST, Outcomes
from frl_repro.settings.config import RunConfig, rebuilding_settings, to_dict
from frl_repro.settings.methods import columns_of
from frl_repro.training.loggers import Logger


@dataclass(frozen=True)
class OpenRun:
    """All that one run works with.

    Attributes
    ----------
    validation : Split or None
        The validation images that are measured for the tables.
    model : nn.Module
        Where training starts, on the device.
    started : float
        ``time.perf_counter()`` when this process began the run.
    start : mapping or None
        ``file`` and ``sha256`` of the weights that retraining starts from.
    process : mapping
        What is recorded of this process: versions, commit, machine, command.
    network : mapping or None
        ``name`` and ``sha256`` of a network of the user's own, as training finds it; None for those of the package.
    """

    config: RunConfig
    dataset: Dataset
    validation: Split | None
    model: nn.Module
    device: torch.device
    backend: Backend
    folder: Path
    logger: Logger
    started: float
    start: Mapping[str, str] | None
    process: Mapping[str, Any]
    network: Mapping[str, str] | None = None

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that name the run in every table."""
        config = self.config
        return {
            "run_id": config.run_id,
            "dataset": config.dataset.name,
            "model": config.model.name,
            "method": config.method,
            "seed": config.seed,
            "recipe": config.recipe.name if config.has_method else None,
            **columns_of(config.alpha),
        }

    def origin(self, *, epoch: int, checkpoint: str) -> dict[str, Any]:
        """Return what the header of a checkpoint of an epoch says: ``checkpoint`` is which of the kept ones it is."""
        dataset = self.dataset
        shape = dataset.train.images.shape[1:]
        facts = data_facts(digest=dataset.digest, class_names=dataset.class_names, image_shape=shape)
        settings = rebuilding_settings(self.config)
        return {**self.keys, "epoch": epoch, "checkpoint": checkpoint, "settings": settings, "data": facts}

    @property
    def inputs(self) -> dict[str, str | None]:
        """The digests of what the run is made from."""
        digests = {"data": self.dataset.digest, "start": None if self.start is None else self.start["sha256"]}
        return digests if self.network is None else {**digests, "network": self.network["sha256"]}

    @property
    def made_from(self) -> dict[str, Mapping[str, Any] | None]:
        """What ``run.json`` says that the run is made from."""
        made_from = {"data": self.dataset.content, "start": self.start}
        return made_from if self.network is None else {**made_from, "network": self.network}

    def write_record(self, segments: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Write ``run.json``; ``segments`` says which process trained which epochs, ``more`` is added."""
        config = self.config
        names: dict[str, Any] = {"run_id": config.run_id, "config_hash": config.hash, "config": to_dict(config)}
        names["registration"] = registration.record_of(config.run_id)
        dataset = self.dataset
        names["class_counts"] = dict(zip(dataset.content["class_names"], dataset.class_counts.tolist(), strict=True))
        record = {**names, **self.made_from, **self.process, "segments": list(segments), **more}
        writing.write_json(self.folder / RUN_FILE, record)

    def measure(
        self, model: nn.Module, split: Split, split_name: str, epoch: int, *, checkpoint: str | None = None
    ) -> Measured:
        """Return the class rows of a split at every radius and what they count; random starts are the same in every
        epoch.
        """
        return measure(
            model,
            split,
            self.config.evaluation,
            class_names=self.dataset.class_names,
            seed=streams.derive_seed(self.config.seed, f"measure {split_name}"),
            device=self.device,
            backend=self.backend,
            keys={**self.keys, "split": split_name, "epoch": epoch, "checkpoint": checkpoint},
        )

    def outcomes(self, measured: Measured) -> Outcomes:
        """Return what a measurement says of each image."""
        first = measured.rows[0]
        about = {name: first[name] for name in (*self.keys, "split", "epoch", "checkpoint", "attack")}
        return measured.outcomes({**about, SPLIT_DIGEST: self.dataset.split_digest(first["split"])})


@dataclass(frozen=True)
class Fitted:
    """A trained model and what was recorded on the way.

    Attributes
    ----------
    model : nn.Module
        The one to measure: the running average when there is one.
    history, rows, policy_rows : list of dict
        Rows of ``history.csv``, ``classwise.csv`` (all but the final test) and ``policy.csv``.
    earlier_seconds : float
        Wall seconds of earlier processes.
    best_epoch : int or None
        The epoch whose weights are kept as well, in ``best.safetensors``; None where the last ones are all there is.
    segments : list of dict
        Of each process that trained a part: first and last of its ``epochs``, versions, commit, machine, command.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    policy_rows: list[dict[str, Any]]
    earlier_seconds: float
    best_epoch: int | None
    segments: list[dict[str, Any]]


def new_model(config: RunConfig, dataset: Dataset) -> nn.Module:
    """Return the run's freshly initialised model."""
    return new_network(config.model, dataset, seed=streams.derive_seed(config.seed, "initial weights"))
