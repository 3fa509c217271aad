"""A run's data set, network and starting model: loaded, made or found, and compared with what was recorded of them."""

from __future__ import annotations

import copy
import dataclasses
import glob
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from frl_repro.basics.errors import UserError, reason
from frl_repro.basics.run_folder import DONE_FILE, RUN_FILE, WEIGHTS_FILE, check_finished, read_object, recorded_sha256
from frl_repro.data import Dataset, load_dataset
from frl_repro.models.compute import distributed
from frl_repro.models.identity import differences, network_record, recorded_start, refuse_changes, weights_record
from frl_repro.models.origin import checkpoint_file
from frl_repro.settings.config import RunConfig
from frl_repro.settings.schema import DatasetConfig, ImageFolderConfig, OwnModelConfig
from frl_repro.training.open_run import new_model


class Inputs:
    """Data sets and networks by their settings; the data set that was loaded last is kept, and of each what it holds.

    A subclass hands out what it was given instead (`Given`).
    """

    is_given = False
    """Whether training, and retraining as well, starts from the weights of `network`."""

    def __init__(self, load: Callable[[DatasetConfig], Dataset] = load_dataset) -> None:
        self._load_from_files = load
        self._loaded: tuple[DatasetConfig, Dataset] | None = None
        self._contents: dict[str, dict[str, Any]] = {}

    def load(self, config: DatasetConfig) -> Dataset:
        """Return a data set; where several processes share a run, all of them call it.

        Raises
        ------
        UserError, OSError
            It cannot be had.
        """
        with distributed.first_on_machine_first():
            return self._load(config)

    def content(self, config: DatasetConfig) -> dict[str, Any]:
        """Return what a data set holds (`Dataset.content`); one process may call it alone. Raises as `load` does."""
        key = repr(config)
        if key not in self._contents:
            self._contents[key] = self._load(config).content
        return self._contents[key]

    def network(self, config: RunConfig, dataset: Dataset) -> nn.Module:
        """Return the network that training starts with, on any device."""
        return new_model(config, dataset)

    def record(self, config: RunConfig, network: nn.Module) -> dict[str, str] | None:
        """Return class and sha256 of what `network` has returned; None for networks of the package."""
        return network_record(network) if isinstance(config.model, OwnModelConfig) else None

    def own_network(self, config: RunConfig) -> dict[str, str] | None:
        """Return the record of the network that training would start with now; needs no other process."""
        if not isinstance(config.model, OwnModelConfig):
            return None
        return self.record(config, self.network(config, self._load(config.dataset)))

    def _load(self, config: DatasetConfig) -> Dataset:
        if self._loaded is None or self._loaded[0] != config:
            self._loaded = None  # frees its memory before the next one is loaded
            self._loaded = config, self._load_from_files(config)
        return self._loaded[1]


class Given(Inputs):
    """A network and a data set as objects: training starts from the network's weights and leaves it as it is.

    Parameters
    ----------
    network : nn.Module
    dataset : Dataset
    """

    is_given = True

    def __init__(self, network: nn.Module, dataset: Dataset) -> None:
        super().__init__(lambda _: dataset)
        self._network = network

    def network(self, config: RunConfig, dataset: Dataset) -> nn.Module:  # noqa: ARG002
        """Return a copy of the network."""
        return copy.deepcopy(self._network)


def find_base(
    base: RunConfig, data: Mapping[str, Any], *, wanted: str | None, network: Mapping[str, str] | None = None
) -> tuple[Path | None, RunConfig]:
    """Return the finished run that trained a base model on these very images, however it was measured, if there is one.

    Looked for in the store of starting models, then beside it: a sweep that trains a robust model as a row of its table
    need not train it again for the rows that start from it.

    Parameters
    ----------
    base : RunConfig
        As `RunConfig.base` has it.
    data : mapping
        What its data set holds (`Dataset.content`).
    wanted : str or None
        Sha256 of weights that are to be preferred: those that a run began with.
    network : mapping, optional
        What is recorded of a network of the user's own: a base of another one serves not.

    Returns
    -------
    folder : Path or None
    base : RunConfig
        The same settings; where the store keeps a base of other data under this name, with a folder of its own.

    Raises
    ------
    UserError
        A file of the run is missing or damaged, or the store's folder holds something else.
    """
    made_from = {"data": data, "network": network}
    found = [
        folder
        for folder in _trained_alike(base)
        if _has_trained_on(folder, data, base) and not differences(read_object(folder / RUN_FILE), {"network": network})
    ]
    for folder in sorted(found, key=lambda folder: recorded_sha256(folder).get(WEIGHTS_FILE) != wanted)[:1]:
        check_finished(folder)
        return folder, base
    # The run there is finished but of no use, or was begun on other data.
    recorded = read_object(base.folder / RUN_FILE) if (base.folder / RUN_FILE).exists() else {}
    if recorded and ((base.folder / DONE_FILE).exists() or differences(recorded, made_from)):
        other = f"-network_{network['sha256'][:8]}" if network else ""
        own = base.folder.with_name(f"{base.folder.name}-data_{data['digest'][:8]}{other}")
        base = dataclasses.replace(base, keys=dataclasses.replace(base.keys, run_dir=str(own)))
    return None, base


def _trained_alike(base: RunConfig) -> list[Path]:
    """Return the folders of finished runs with a base's settings, that of the store first."""
    store, beside = base.folder.parent, base.folder.parent.parent
    named_alike = f"{glob.escape(base.run_id.removesuffix(base.hash))}*/{DONE_FILE}"
    found = []
    for done in [base.folder / DONE_FILE, *sorted(store.glob(named_alike)), *sorted(beside.glob(named_alike))]:
        folder = done.parent
        if folder in found or not done.exists():
            continue
        try:
            recorded = read_object(folder / RUN_FILE).get("config")
        except UserError:
            if folder == base.folder:
                raise
            continue  # damaged; the user did not ask for this run
        except OSError:
            continue
        is_alike = isinstance(recorded, Mapping) and base.is_trained_like(recorded)
        if is_alike and (folder == base.folder or (folder / WEIGHTS_FILE).exists()):
            found.append(folder)
    return found


def _has_trained_on(folder: Path, data: Mapping[str, Any], base: RunConfig) -> bool:
    """Return whether a run was trained on these images and classes; its test images may be others."""
    recorded = read_object(folder / RUN_FILE).get("data")
    if not isinstance(recorded, Mapping):
        # Of an older version, which kept no digest: settings and checksums say what the images are, but of own folders.
        return not isinstance(base.dataset, ImageFolderConfig)
    return _trained_on(recorded) == _trained_on(data)


def _trained_on(data: Mapping[str, Any]) -> tuple[Any, Any]:
    splits = data.get("splits")
    return data.get("class_names"), splits.get("train") if isinstance(splits, Mapping) else None


def own_start(config: RunConfig, recorded: Mapping[str, Any], data: Inputs) -> dict[str, str] | None:
    """Return the weights that a finished run would start from now (`weights_record`); None where it needs none.

    Raises
    ------
    UserError, OSError
        They, or the data that the model was trained on, cannot be had.
    """
    if config.retrain is None or data.is_given:
        return None
    if config.keys.init_from is not None:
        return weights_record(checkpoint_file(config.keys.init_from, key="init_from"))
    base = config.base()
    folder, _ = find_base(
        base, data.content(base.dataset), wanted=recorded_start(recorded), network=data.own_network(base)
    )
    return None if folder is None else weights_record(folder / WEIGHTS_FILE)


def compare_finished(config: RunConfig, data: Inputs) -> str:
    """Refuse a finished run that was made from something else than what there is now.

    Returns
    -------
    str
        What cannot be compared, since it is not to be had any more, in words; empty where all was compared.

    Raises
    ------
    UserError
        As in `refuse_changes`.
    """
    recorded = read_object(config.folder / RUN_FILE)
    has_digest = isinstance(recorded.get("data"), Mapping)
    asked: dict[str, Callable[[], Any]] = {}
    if has_digest:
        asked["data"] = lambda: data.content(config.dataset)
    if has_digest or config.keys.init_from is not None:
        asked["start"] = lambda: own_start(config, recorded, data)
    if recorded.get("network") is not None:
        asked["network"] = lambda: data.own_network(config)
    now: dict[str, Any] = {"data": None, "start": None, "network": None}
    missing = []
    for name, ask in asked.items():
        try:
            now[name] = ask()
        except (UserError, OSError) as problem:
            missing.append(reason(problem))
    refuse_changes(config.folder, differences(recorded, now), is_finished=True)
    return "; ".join(dict.fromkeys(missing))
