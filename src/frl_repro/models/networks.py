"""From a model's settings and a data set to a network that fits both."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn

from frl_repro.basics.errors import UserError
from frl_repro.basics.plugins import allowed_function
from frl_repro.data import Dataset
from frl_repro.models import build_model, random_state_kept
from frl_repro.settings.schema import ModelConfig, OwnModelConfig


def new_network(config: ModelConfig, dataset: Dataset, *, seed: int) -> nn.Module:
    """Return a freshly initialised network for the data set's classes and images.

    Where the model normalises and its settings leave mean or standard deviation open, the data set's own are taken.

    Raises
    ------
    UserError
        Images that the network cannot take, or settings that do not fit them.
    """
    if isinstance(config, OwnModelConfig):
        return _own(config, num_classes=dataset.num_classes, image_shape=image_shape(dataset), seed=seed)
    settings = asdict(config)
    name = settings.pop("name")
    for key, usual in (("mean", dataset.channel_mean), ("std", dataset.channel_std)):
        if key in settings and settings[key] is None:
            settings[key] = usual
    return build_model(name, num_classes=dataset.num_classes, image_shape=image_shape(dataset), seed=seed, **settings)


def _own(config: OwnModelConfig, *, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """Return what the user's function makes; the global random state, which layers draw from, is put back."""
    make = allowed_function(config.factory, key="model.factory")
    with random_state_kept():
        torch.manual_seed(seed)
        network = make(num_classes=num_classes, image_shape=image_shape, **config.settings)
    if not isinstance(network, nn.Module):
        raise UserError(f"model.factory={config.factory} returns {type(network).__name__}, not a torch.nn.Module")
    return network


def image_shape(dataset: Dataset) -> tuple[int, int, int]:
    """Return (C, H, W) of the data set's images."""
    channels, height, width = dataset.test.images.shape[1:]
    return channels, height, width
