"""Data sets as whole uint8 tensors in memory: load, subset, split."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from frl_repro.basics.errors import UserError
from frl_repro.basics.plugins import allowed_function
from frl_repro.data import cifar10_jpeg, given, torchvision_sets
from frl_repro.data.augment import AUGMENTATIONS
from frl_repro.data.dataset import Dataset, Split, batch_to_float, in_unit_range
from frl_repro.data.fashion_mnist import CLASS_NAMES, load_fashion_mnist
from frl_repro.data.gaussian_mixture import CENTRE, load_gaussian_mixture
from frl_repro.data.gaussian_mixture import CLASS_NAMES as MIXTURE_CLASS_NAMES
from frl_repro.data.image_folder import holds_splits, load_image_folder
from frl_repro.data.splits import (
    at_most,
    imbalanced,
    split_train_validation,
    split_validation,
    stratified_order,
    subset,
)
from frl_repro.data.synthetic import load_synthetic
from frl_repro.settings.schema import GaussianMixtureConfig, OwnDatasetConfig
from frl_repro.theory.gaussian import Mixture

__all__ = [
    "AUGMENTATIONS", "DATASETS", "Dataset", "Split", "at_most", "batch_to_float", "in_unit_range",
    "load_dataset", "stratified_order",
]  # fmt: skip


class NamedConfig(Protocol):
    """What every data set's config has; the rest is for its loader."""

    @property
    def name(self) -> str:
        """A key of ``DATASETS``."""

    @property
    def imbalance(self) -> str:
        """``none``, ``exponential`` or ``step``: which training images of each class are kept."""

    @property
    def imbalance_ratio(self) -> float | None: ...


Scale = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation of the training images' channels, as commonly published.
_CIFAR10_SCALE = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_SVHN_SCALE = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
_FASHION_MNIST_SCALE = ((0.2860,), (0.3530,))
_USUAL_SCALE = ((0.5,), (0.25,))


class FilesConfig(NamedConfig, Protocol):
    """Settings of every data set that is read from files."""

    @property
    def cache_dir(self) -> str | None: ...
    @property
    def validation_fraction(self) -> float:
        """Share of the training images held back for validation, 0 <= fraction < 1."""

    @property
    def selection_fraction(self) -> float:
        """Share of the validation images that no class policy sees, 0 <= fraction < 1."""

    @property
    def split_seed(self) -> int:
        """Seed of subsets and of the validation split."""

    @property
    def num_train(self) -> int | None:
        """Training images before the validation split; ``None`` for all."""

    @property
    def num_test(self) -> int | None:
        """Test images; ``None`` for all."""


class FashionMnistConfig(FilesConfig, Protocol):
    """Settings of ``fashion_mnist``, ``cifar10`` and ``svhn``; see `load_fashion_mnist` and `load_torchvision`."""

    @property
    def root(self) -> str | None: ...
    @property
    def download(self) -> bool: ...


class CIFAR10JPEGConfig(FilesConfig, Protocol):
    """Settings of ``cifar10_jpeg``; see `load_cifar10_jpeg`."""

    @property
    def root(self) -> str | None: ...


class ImageFolderConfig(FilesConfig, Protocol):
    """Settings of ``image_folder``; see :func:`load_image_folder`."""

    @property
    def root(self) -> str: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def num_channels(self) -> int | None: ...


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
    def selection_fraction(self) -> float:
        """Share of the validation images that no class policy sees, 0 <= fraction < 1."""

    @property
    def split_seed(self) -> int:
        """Seed of the images and of the validation split."""


def load_dataset(config: NamedConfig) -> Dataset:
    """Return the data set that ``config`` names, with its subsets and its validation split drawn.

    Parameters
    ----------
    config : FashionMnistConfig, CIFAR10JPEGConfig, ImageFolderConfig or SyntheticConfig
        ``config.name`` is a key of ``DATASETS`` and says which other attributes are read.

    Raises
    ------
    UserError
        When the name is unknown, the files cannot be had, or a split asks for more images than there are.
    """
    if isinstance(config, OwnDatasetConfig) and config.factory is not None:
        return _own(config, config.factory)
    if config.name not in DATASETS:
        raise UserError(f"unknown data set {config.name!r}: known are {', '.join(DATASETS)}")
    return DATASETS[config.name](config)


def _fashion_mnist(config: FashionMnistConfig) -> Dataset:
    train, test = load_fashion_mnist(
        root=_as_path(config.root), download=config.download, cache_dir=_as_path(config.cache_dir)
    )
    return _from_files(config, CLASS_NAMES, train, test, scale=_FASHION_MNIST_SCALE)


def _torchvision(source: torchvision_sets.Source, scale: Scale, config: FashionMnistConfig) -> Dataset:
    train, test = torchvision_sets.load_torchvision(
        source, root=_as_path(config.root), download=config.download, cache_dir=_as_path(config.cache_dir)
    )
    return _from_files(config, source.class_names, train, test, scale=scale)


def _cifar10_jpeg(config: CIFAR10JPEGConfig) -> Dataset:
    train, test = cifar10_jpeg.load_cifar10_jpeg(root=_as_path(config.root), cache_dir=_as_path(config.cache_dir))
    return _from_files(config, cifar10_jpeg.CLASS_NAMES, train, test, scale=_CIFAR10_SCALE)


def _image_folder(config: ImageFolderConfig) -> Dataset:
    root = Path(config.root).expanduser()
    chosen = (config.validation_fraction, config.num_train, config.num_test, config.imbalance)
    takes_all = chosen == (0, None, None, "none")
    if takes_all and holds_splits(root) and config.split_seed != 0:
        raise UserError("dataset.split_seed has no effect: all images are used and none is kept for validation")
    class_names, train, test = load_image_folder(
        root,
        image_size=config.image_size,
        num_channels=config.num_channels,
        cache_dir=_as_path(config.cache_dir),
        split_seed=config.split_seed,
    )
    return _from_files(config, class_names, train, test, scale=_USUAL_SCALE)


def _synthetic(config: SyntheticConfig) -> Dataset:
    train, test = load_synthetic(
        num_classes=config.num_classes, num_train=config.num_train, num_test=config.num_test, seed=config.split_seed
    )
    class_names = tuple(f"class {k}" for k in range(config.num_classes))
    return _assemble(config, class_names, train, test, num_train=None, scale=_USUAL_SCALE)


def _gaussian_mixture(config: GaussianMixtureConfig) -> Dataset:
    mixture = Mixture(config.num_features, config.eta, config.sigma, config.deviation_ratio, config.prior_ratio)
    train, test = load_gaussian_mixture(
        mixture, num_train=config.num_train, num_test=config.num_test, seed=config.split_seed
    )
    scale = ((CENTRE,), (config.sigma * config.deviation_ratio,))
    return _assemble(config, MIXTURE_CLASS_NAMES, train, test, num_train=None, scale=scale)


def _own(config: OwnDatasetConfig, factory: str) -> Dataset:
    """Return the data set that a function of the user's loads."""
    key = "dataset.factory"
    loaded = allowed_function(factory, key=key)(**config.settings)
    if not isinstance(loaded, Mapping) or not {"train", "test"} <= loaded.keys() <= {"train", "test", "class_names"}:
        raise UserError(f"{key}={factory} must return a mapping of train, test and, if it likes, class_names")
    train, test = (given.split_of(loaded[part], name=f"{key}={factory}: {part}") for part in ("train", "test"))
    num_classes = int(train.labels.max()) + 1
    class_names = given.class_names_of(loaded["train"], loaded.get("class_names"), num_classes=num_classes)
    for part, split in (("train", train), ("test", test)):
        given.check_classes(split, class_names, name=f"{key}={factory}: {part}")
    return _from_files(config, class_names, train, test, scale=_USUAL_SCALE)


def _from_files(
    config: FilesConfig | OwnDatasetConfig, class_names: tuple[str, ...], train: Split, test: Split, *, scale: Scale
) -> Dataset:
    """Return the data set after taking the test images, and `_assemble`."""
    if config.num_test is not None:
        test = test.select(_subset_of("dataset.num_test", test, config.num_test, config.split_seed))
    return _assemble(config, class_names, train, test, num_train=config.num_train, scale=scale)


def _assemble(
    config: FilesConfig | SyntheticConfig | GaussianMixtureConfig | OwnDatasetConfig,
    class_names: tuple[str, ...],
    train: Split,
    test: Split,
    *,
    num_train: int | None,
    scale: Scale,
) -> Dataset:
    """Return the data set after taking ``num_train`` training images and holding back the validation images."""
    if num_train is None:
        chosen = torch.arange(len(train))
    else:
        chosen = _subset_of("dataset.num_train", train, num_train, config.split_seed)
    train_part, validation_part = split_train_validation(
        train.labels[chosen], config.validation_fraction, config.split_seed
    )
    train_indices, held_back = chosen[train_part], chosen[validation_part]
    kept = imbalanced(train.labels[train_indices], config.imbalance, config.imbalance_ratio, config.split_seed)
    train_indices = train_indices[kept]
    steering_part, selection_part = split_validation(train.labels[held_back], config.selection_fraction)
    validation_indices, selection_indices = held_back[steering_part], held_back[selection_part]
    return Dataset(
        name=config.name,
        class_names=class_names,
        train=train.select(train_indices),
        validation=train.select(validation_indices) if len(validation_indices) else None,
        test=test,
        train_indices=train_indices,
        validation_indices=validation_indices,
        selection=train.select(selection_indices) if len(selection_indices) else None,
        selection_indices=selection_indices if len(selection_indices) else None,
        channel_mean=scale[0],
        channel_std=scale[1],
    )


def _subset_of(key: str, split: Split, num: int, seed: int) -> torch.Tensor:
    """Return the subset's indices; name the config key where there are too few images."""
    try:
        return subset(split.labels, num, seed)
    except UserError as error:
        raise UserError(f"{key}={num}: {error}") from error


def _as_path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


DATASETS: dict[str, Callable[[Any], Dataset]] = {
    "fashion_mnist": _fashion_mnist,
    "cifar10": functools.partial(_torchvision, torchvision_sets.CIFAR10, _CIFAR10_SCALE),
    "cifar10_jpeg": _cifar10_jpeg,
    "svhn": functools.partial(_torchvision, torchvision_sets.SVHN, _SVHN_SCALE),
    "image_folder": _image_folder,
    "synthetic": _synthetic,
    "gaussian_mixture": _gaussian_mixture,
}
