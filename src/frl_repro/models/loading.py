"""From a checkpoint file to the network in it: what is not known of it is said, and data of other classes refused.

No table may be silent about a checkpoint that was trained on other classes, or whose architecture had to be assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER
from frl_repro.data import Dataset
from frl_repro.models import COMPUTATIONS, checkpoints
from frl_repro.models.networks import new_network
from frl_repro.models.origin import read_origin, settings_of
from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.parse import model_settings
from frl_repro.settings.schema import DatasetConfig, ModelConfig, OwnModelConfig

_MAX_SHOWN_CLASSES = 4


def network_of(
    path: Path,
    config: EvaluateConfig | SanityConfig,
    dataset: Dataset,
    *,
    key: str | None = None,
    setting: str = "checkpoint",
) -> nn.Module:
    """Return the network in a checkpoint, built for the data set; lines say what is not known of it.

    Parameters
    ----------
    path : Path
    config
        Its model's settings are taken where the checkpoint does not say its own.
    dataset : Dataset
    key : str, optional
        As in `frl_repro.models.checkpoints.load_weights`.
    setting : str
        What the checkpoint is given by, for messages.

    Raises
    ------
    UserError
        The data are of other classes than the checkpoint's; or the file is no checkpoint of this architecture.
    """
    compare_data(path, dataset, config.dataset, setting=setting)
    model = new_network(model_of(path, config.model, setting=setting), dataset, seed=0)
    load_weights_and_say(path, model, config, key=key, setting=setting)
    return model


def load_weights_and_say(
    path: Path, model: nn.Module, config: RunConfig | EvaluateConfig | SanityConfig, *, key: str | None, setting: str
) -> None:
    """Load weights, and say how they were matched and, of a checkpoint of other code, what is assumed of it."""
    key_setting = "init_from_key" if setting == "init_from" else "checkpoint_key"
    matched = checkpoints.load_weights(path, model, key=key, setting=key_setting)
    if read_origin(path) is not None:
        LOGGER.info("%s: weights matched %s", path, matched)
        return
    name = config.model.name
    LOGGER.info(
        "%s: not written by this program: tensors matched %s; activation functions cannot be seen in a checkpoint: "
        "assumed are model=%s (%s) and the classes and images of dataset=%s",
        path, matched, name, COMPUTATIONS.get(name, "as its code has it"), config.dataset.name,
    )  # fmt: skip


def refuse_other_model(path: Path, model: ModelConfig, *, setting: str = "checkpoint") -> None:
    """Refuse settings of a model that are not those of the checkpoint, where it says what it was trained with.

    Raises
    ------
    UserError
        Naming the first that differs.
    """
    trained = settings_of(path).get("model", {})
    for name, value in trained.items():
        here = getattr(model, name, None)
        if here != value:
            key = "model" if name == "name" else f"model.{name}"
            raise UserError(
                f"{key}={_shown(here)}: {setting}={path} was trained with {key}={_shown(value)}; leave {key} out"
            )


def model_of(path: Path, assumed: ModelConfig, *, setting: str) -> ModelConfig:
    """Return the model's settings that a checkpoint says, else the assumed ones."""
    if isinstance(assumed, OwnModelConfig):  # the user's files say what it is, never a checkpoint
        return assumed
    trained = settings_of(path).get("model", {})
    is_whole = trained.keys() == {item.name for item in dataclasses.fields(assumed)} or len(trained) > 1
    if trained and is_whole:
        try:
            return model_settings(trained)
        except UserError as problem:
            raise UserError(f"{setting}={path}: {problem}") from None
    if trained and trained["name"] != assumed.name:
        raise UserError(
            f"{setting}={path} was trained with model={trained['name']}, whose settings it does not hold; "
            f"they cannot be those of model={assumed.name}"
        )
    return assumed


def compare_data(path: Path, dataset: Dataset, config: DatasetConfig, *, setting: str, refuses: bool = True) -> None:
    """Compare a data set with the one that a checkpoint was trained on, as far as that is known, and say what differs.

    Parameters
    ----------
    path : Path
    dataset : Dataset
        What it is measured on, or trained on further.
    config : DatasetConfig
        Its settings.
    setting : str
        What the checkpoint is given by, for messages.
    refuses : bool
        Whether other classes are an error; else they are said.

    Raises
    ------
    UserError
        The classes are other ones, or the images have another number of channels.
    """
    origin = read_origin(path)
    if origin is None:
        return
    of_training = settings_of(path).get("dataset", {})
    facts = origin.get("data")
    if facts is None:
        _say_what_is_assumed(path, of_training, config)
        return
    trained = f"{setting}={path} was trained on dataset={origin.get('dataset')}"
    problem = _other_classes(facts["class_names"], dataset)
    channels, *size = facts["image_shape"]
    own_channels, *own_size = dataset.test.images.shape[1:]
    if channels != own_channels:
        problem = f"images of {channels} channels, those of dataset={config.name} have {own_channels}"
    if problem:
        if refuses:
            raise UserError(f"{trained}, {problem}: give it images of its own classes, in their order")
        LOGGER.info("%s, %s", trained, problem)
        return
    differences = _differences(of_training, config)
    if list(own_size) != size:
        differences.append(f"images of {_by(own_size)} (there {_by(size)})")
    if differences:
        LOGGER.info("%s; here are %s", trained, ", ".join(differences))
    elif facts["digest"] != dataset.digest:
        LOGGER.info("%s with the same settings, but its images are not those that it was trained on", trained)


def _by(size: list[int]) -> str:
    return "x".join(map(str, size))


def _other_classes(names: list[str], dataset: Dataset) -> str | None:
    """Return how a checkpoint's classes differ from those of a data set; None where they are the same."""
    own = list(dataset.class_names)
    if names == own:
        return None
    if sorted(names) == sorted(own):
        return f"whose classes come in another order than those of dataset={dataset.name}"
    return f"classes {_classes(names)}; dataset={dataset.name} has {_classes(own)}"


def _classes(names: list[str]) -> str:
    listed = ", ".join(readback.shown(name) for name in names[:_MAX_SHOWN_CLASSES])
    return f"{listed}{' ...' if len(names) > _MAX_SHOWN_CLASSES else ''} ({len(names)})"


def _differences(of_training: Mapping[str, Any], config: DatasetConfig) -> list[str]:
    """Return the settings of the data that are not those of the training."""
    here = dataclasses.asdict(config)
    if here["name"] != of_training.get("name"):
        return [f"dataset={here['name']}"]
    return [
        f"dataset.{name}={_shown(here[name])} (there {_shown(value)})"
        for name, value in of_training.items()
        if name in here and name not in ("root", "augmentation") and here[name] != value
    ]


def _say_what_is_assumed(path: Path, of_training: Mapping[str, Any], config: DatasetConfig) -> None:
    """Say what is not known of a checkpoint of ours that does not hold its data, as those of version 0.1."""
    name = of_training.get("name")
    if name is None:
        LOGGER.info("%s: says nothing of its data: assumed are those of dataset=%s", path, config.name)
    elif name != config.name:
        LOGGER.info("%s: was trained on dataset=%s and is taken to dataset=%s", path, name, config.name)
    elif len(of_training) == 1:
        LOGGER.info("%s: says model and data set (%s), not their settings: assumed are those given here", path, name)
    elif differences := _differences(of_training, config):
        LOGGER.info("%s: was trained on other data; here are %s", path, ", ".join(differences))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return readback.shown(value).strip("'")
