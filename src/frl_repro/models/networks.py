"""From a model's settings and a data set to a network that fits both."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from frl_repro.data import Dataset
from frl_repro.models import build_model
from frl_repro.settings.schema import ModelConfig


def new_network(config: ModelConfig, dataset: Dataset, *, seed: int) -> nn.Module:
    """Return a freshly initialised network for the data set's classes and images.

    Where the model normalises and its settings leave mean or standard deviation open, the data set's own are taken.

    Raises
    ------
    UserError
        Images that the network cannot take, or settings that do not fit them.
    """
    settings = asdict(config)
    name = settings.pop("name")
    for key, usual in (("mean", dataset.channel_mean), ("std", dataset.channel_std)):
        if key in settings and settings[key] is None:
            settings[key] = usual
    channels, height, width = dataset.test.images.shape[1:]
    return build_model(
        name, num_classes=dataset.num_classes, image_shape=(channels, height, width), seed=seed, **settings
    )
