"""Images and labels as objects, from whoever calls: checked, and put together as a `Split` or a `Dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frl_repro.basics.errors import UserError
from frl_repro.data.dataset import Dataset, Split, batch_to_float, in_unit_range
from frl_repro.data.splits import imbalanced, split_train_validation, split_validation, stratified_order

_MAX_NAMED = 5  # wrong labels in a message
_FORMS = "(images, labels), a torch Dataset or a DataLoader of such pairs"


def split_of(data: Any, *, name: str) -> Split:
    """Return images and labels as one split in memory.

    Parameters
    ----------
    data : pair of Tensors or arrays, torch Dataset, or DataLoader
        Images, shape (N, C, H, W), floating in [0, 1] or uint8 in 0..255, and labels, shape (N,), whole numbers. A
        Dataset is taken in the order of its indices, a DataLoader in the order of its batches.
    name : str
        What the data are called in messages.

    Returns
    -------
    Split
        uint8 where every pixel is a grey level k / 255 (which gives the same floats), else float32.

    Raises
    ------
    UserError
        Anything else, named in one line.
    """
    images, labels = _pair_of(data, name)
    if len(images) == 0:
        raise UserError(f"{name}: no images")
    return Split(images=_as_images(images, name), labels=_as_labels(labels, len(images), name))


def _pair_of(data: Any, name: str) -> tuple[Any, Any]:
    if isinstance(data, tuple | list) and len(data) == 2:
        return data[0], data[1]
    if isinstance(data, DataLoader):
        batches = [_of_item(batch, name) for batch in data]
        if not batches:
            raise UserError(f"{name}: no images")
        return torch.cat([x.cpu() for x, _ in batches]), torch.cat([torch.as_tensor(y).cpu() for _, y in batches])
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Tensor | str | dict):
        items = [_of_item(data[index], name) for index in range(len(data))]
        if not items:
            raise UserError(f"{name}: no images")
        shapes = {tuple(x.shape) for x, _ in items}
        if len(shapes) > 1:
            raise UserError(f"{name}: images of several shapes ({_listed(shapes)}): resize them to one")
        return torch.stack([x for x, _ in items]), torch.as_tensor(
            [y.item() if isinstance(y, Tensor) else y for _, y in items]
        )
    raise UserError(f"{name}: give {_FORMS}, not {type(data).__name__}")


def _of_item(item: Any, name: str) -> tuple[Tensor, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"{name}: an item must be a pair (image, label), got {type(item).__name__}")
    if not isinstance(item[0], Tensor):
        raise UserError(
            f"{name}: images must be tensors, got {type(item[0]).__name__}: give the Dataset a transform that makes "
            "them (torchvision.transforms.ToTensor)"
        )
    return item[0], item[1]


def _as_images(given: Any, name: str) -> Tensor:
    images = torch.as_tensor(given).detach().cpu()
    if images.ndim != 4:
        hint = ": grey images need one channel, images.unsqueeze(1)" if images.ndim == 3 else ""
        raise UserError(f"{name}: images must have shape (N, C, H, W), got {tuple(images.shape)}{hint}")
    if images.dtype == torch.uint8:
        return images.contiguous()
    if not images.is_floating_point():
        raise UserError(f"{name}: images must be floats in [0, 1] or uint8 in 0..255, got {images.dtype}")
    low, high = (float(end) for end in images.aminmax())
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"{name}: images must lie in [0, 1], got pixels from {low:g} to {high:g}: divide those of 0..255 by 255, "
            "and let the model do what normalisation it needs"
        )
    images = images.to(torch.float32).contiguous()
    grey_levels = (images * 255).round().to(torch.uint8)
    return grey_levels if torch.equal(batch_to_float(grey_levels), images) else images


def _as_labels(given: Any, num_images: int, name: str) -> Tensor:
    labels = torch.as_tensor(given).detach().cpu()
    if labels.shape != (num_images,):
        raise UserError(
            f"{name}: labels must have shape ({num_images},), one for each image, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"{name}: labels must be whole numbers, the classes' ids, got {labels.dtype}")
    return labels.to(torch.int64)


def check_classes(split: Split, class_names: Sequence[str], *, name: str, needs_all: bool = True) -> None:
    """Refuse labels that are no class, and unless ``needs_all`` is off classes without an image.

    Raises
    ------
    UserError
        Naming the first ones.
    """
    K, labels = len(class_names), split.labels
    wrong = sorted(set(labels[(labels < 0) | (labels >= K)].tolist()))
    if wrong:
        raise UserError(f"{name}: labels must be 0 to {K - 1}, got {_listed(wrong)}")
    empty = (torch.bincount(labels, minlength=K) == 0).nonzero().flatten().tolist()
    if empty and needs_all:
        names = _listed(f"{k} ({class_names[k]})" for k in empty)
        raise UserError(f"{name}: no images of class {names}: class errors need at least one each")


def _listed(values: Iterable[Any]) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts[:_MAX_NAMED]) + (", ..." if len(texts) > _MAX_NAMED else "")


def class_names_of(data: Any, given: Sequence[str] | None, *, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes: those given, else those that a torchvision data set has, else ``class 0`` ...

    Raises
    ------
    UserError
        As many names are not given as there are classes, or one twice.
    """
    if given is None:
        source = data.dataset if isinstance(data, DataLoader) else data
        known = getattr(getattr(source, "dataset", source), "classes", None)  # of a Subset, those of the whole
        found = tuple(map(str, known)) if isinstance(known, list | tuple) else ()
        is_usable = len(found) == num_classes == len(set(found))
        return found if is_usable else tuple(f"class {k}" for k in range(num_classes))
    names = tuple(map(str, given))
    if len(names) != num_classes:
        raise UserError(f"class_names: {len(names)} names for {num_classes} classes")
    if len(set(names)) != len(names):
        raise UserError("class_names: each class needs a name of its own")
    return names


def dataset_of(
    train: Split,
    test: Split,
    validation: Split | None,
    *,
    name: str,
    class_names: tuple[str, ...],
    validation_fraction: float,
    selection_fraction: float,
    split_seed: int,
    imbalance: str = "none",
    imbalance_ratio: float | None = None,
) -> Dataset:
    """Return a data set of given images; without ``validation`` that share of the training images is held back.

    Parameters
    ----------
    train, test : Split
    validation : Split or None
        In any order: they are put in a stratified one.
    name : str
    class_names : tuple of str, length K
    validation_fraction, selection_fraction, split_seed, imbalance, imbalance_ratio
        As in a data set's settings; the first is not read where ``validation`` is given.
    """
    for part, split in (("validation", validation), ("test", test)):
        if split is not None and split.images.shape[1:] != train.images.shape[1:]:
            shapes = [tuple(one.images.shape[1:]) for one in (split, train)]
            raise UserError(f"{part}: images of shape {shapes[0]}, those of train have {shapes[1]}")
    if validation is None:
        source = train
        kept, held_back = split_train_validation(train.labels, validation_fraction, split_seed)
    else:
        source = _together(train, validation)
        kept = torch.arange(len(train))
        held_back = len(train) + stratified_order(validation.labels, torch.Generator().manual_seed(split_seed))
    kept = kept[imbalanced(source.labels[kept], imbalance, imbalance_ratio, split_seed)]
    steering_part, selection_part = split_validation(source.labels[held_back], selection_fraction)
    steering, selection = held_back[steering_part], held_back[selection_part]
    return Dataset(
        name=name,
        class_names=class_names,
        train=source.select(kept),
        validation=source.select(steering) if len(steering) else None,
        test=test,
        train_indices=kept,
        validation_indices=steering,
        selection=source.select(selection) if len(selection) else None,
        selection_indices=selection if len(selection) else None,
    )


def _together(one: Split, other: Split) -> Split:
    pair = [one.images, other.images]
    if one.images.dtype != other.images.dtype:
        pair = [in_unit_range(images) for images in pair]
    return Split(images=torch.cat(pair), labels=torch.cat([one.labels, other.labels]))
