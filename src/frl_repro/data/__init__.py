"""Data sets as whole uint8 tensors in memory: load, subset, split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from frl_repro.data.dataset import Dataset, Split, batch_to_float
from frl_repro.data.fashion_mnist import CLASS_NAMES, load_fashion_mnist
from frl_repro.data.splits import split_train_validation, stratified_order, subset
from frl_repro.data.synthetic import load_synthetic
from frl_repro.errors import UserError

__all__ = ["DATASETS", "Dataset", "Split", "batch_to_float", "load_dataset", "stratified_order"]


class NamedConfig(Protocol):
    """What every data set's config has; the rest is for its loader."""

    @property
    def name(self) -> str:
        """A key of ``DATASETS``."""


class FashionMnistConfig(NamedConfig, Protocol):
    """Settings of ``fashion_mnist``; see :func:`load_fashion_mnist` for the first three."""

    @property
    def root(self) -> str | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def cache_dir(self) -> str | None: ...
    @property
    def validation_fraction(self) -> float:
        """Share of the training images held back for validation, 0 <= fraction < 1."""

    @property
    def split_seed(self) -> int:
        """Seed of subsets and of the validation split."""

    @property
    def num_train(self) -> int | None:
        """Training images before the validation split; ``None`` for all."""

    @property
    def num_test(self) -> int | None:
        """Test images; ``None`` for all."""


class SyntheticConfig(NamedConfig, Protocol):
    """Settings of ``synthetic``; see :func:`load_synthetic` for the first three."""

    @property
    def num_classes(self) -> int: ...
    @property
    def num_train(self) -> int: ...
    @property
    def num_test(self) -> int: ...
    @property
    def validation_fraction(self) -> float:
        """Share of the training images held back for validation, 0 <= fraction < 1."""

    @property
    def split_seed(self) -> int:
        """Seed of the images and of the validation split."""


def load_dataset(config: NamedConfig) -> Dataset:
    """Return the data set that ``config`` names, with its subsets and its validation split drawn.

    Parameters
    ----------
    config : FashionMnistConfig or SyntheticConfig
        ``config.name`` is a key of ``DATASETS`` and says which other attributes are read.

    Raises
    ------
    UserError
        When the name is unknown, the files cannot be had, or a split asks for more images than there are.
    """
    if config.name not in DATASETS:
        raise UserError(f"unknown data set {config.name!r}: known are {', '.join(DATASETS)}")
    return DATASETS[config.name](config)


def _fashion_mnist(config: FashionMnistConfig) -> Dataset:
    train, test = load_fashion_mnist(
        root=_as_path(config.root), download=config.download, cache_dir=_as_path(config.cache_dir)
    )
    if config.num_test is not None:
        test = test.select(_subset_of("dataset.num_test", test, config.num_test, config.split_seed))
    return _assemble(config, CLASS_NAMES, train, test, num_train=config.num_train)


def _synthetic(config: SyntheticConfig) -> Dataset:
    train, test = load_synthetic(
        num_classes=config.num_classes, num_train=config.num_train, num_test=config.num_test, seed=config.split_seed
    )
    return _assemble(config, tuple(f"class {k}" for k in range(config.num_classes)), train, test, num_train=None)


def _assemble(
    config: FashionMnistConfig | SyntheticConfig,
    class_names: tuple[str, ...],
    train: Split,
    test: Split,
    *,
    num_train: int | None,
) -> Dataset:
    """Return the data set after taking ``num_train`` training images and holding back the validation images."""
    if num_train is None:
        chosen = torch.arange(len(train))
    else:
        chosen = _subset_of("dataset.num_train", train, num_train, config.split_seed)
    train_part, validation_part = split_train_validation(
        train.labels[chosen], config.validation_fraction, config.split_seed
    )
    train_indices, validation_indices = chosen[train_part], chosen[validation_part]
    return Dataset(
        name=config.name,
        class_names=class_names,
        train=train.select(train_indices),
        validation=train.select(validation_indices) if len(validation_indices) else None,
        test=test,
        train_indices=train_indices,
        validation_indices=validation_indices,
    )


def _subset_of(key: str, split: Split, num: int, seed: int) -> torch.Tensor:
    """Return the subset's indices; name the config key where there are too few images."""
    try:
        return subset(split.labels, num, seed)
    except UserError as error:
        raise UserError(f"{key}={num}: {error}") from error


def _as_path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


DATASETS: dict[str, Callable[[Any], Dataset]] = {"fashion_mnist": _fashion_mnist, "synthetic": _synthetic}
