"""Value types of the data: images and labels as whole tensors in memory, and the splits of one data set."""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SPLIT_NAMES = ("train", "validation", "selection", "test")
"""Attributes of a `Dataset` that hold images."""


@dataclass(frozen=True, eq=False)  # eq would compare tensors to one boolean, which raises
class Split:
    """Images and labels of one split.

    Attributes
    ----------
    images : Tensor, shape (N, C, H, W), uint8 or float32
        Pixels in 0..255, or in [0, 1] where they lie between grey levels; `in_unit_range` takes both to [0, 1].
    labels : Tensor, shape (N,), int64
        Class ids in 0..K-1.

    Raises
    ------
    ValueError
        When dtypes, dimensions, lengths or the range of float32 images differ from the above.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32) or self.images.ndim != 4:
            raise ValueError(
                "images must be uint8 or float32 of shape (N, C, H, W), got "
                f"{self.images.dtype} {tuple(self.images.shape)}"
            )
        is_float = self.images.dtype == torch.float32 and self.images.numel() > 0
        if is_float and not (self.images.amin() >= 0 and self.images.amax() <= 1):
            raise ValueError("float32 images must lie in [0, 1]: divide grey levels by 255")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Split":
        """Return the images and labels at ``indices`` (Tensor, shape (M,), int64), in that order."""
        return Split(images=self.images[indices], labels=self.labels[indices])

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the places of each ``size`` images, the images in [0, 1] and their labels, both on the device."""
        for first in range(0, len(self), size):
            places = slice(first, first + size)
            yield places, in_unit_range(self.images[places].to(device)), self.labels[places].to(device)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set with its splits.

    Attributes
    ----------
    name : str
        The name under which the config asked for it.
    class_names : tuple of str, length K
        Name of each class id.
    train, test : Split
        What the training may and may not see.
    validation : Split or None
        Part of the training files held back, which class policies learn from; ``None`` when the validation fraction is
        0.
    train_indices, validation_indices : Tensor, shape (N_train,) and (N_validation,), int64
        Positions of the two splits' images in the source's training files, disjoint.
    selection, selection_indices : Split or None, Tensor or None
        Images held back from training and from class policies, on which settings are chosen; ``None`` when the
        selection fraction is 0.
    channel_mean, channel_std : tuple of float, length C or 1
        What networks that normalise subtract from each channel and divide by, in units of [0, 1].
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    train_indices: Tensor
    validation_indices: Tensor
    selection: Split | None = None
    selection_indices: Tensor | None = None
    channel_mean: tuple[float, ...] = (0.5,)
    channel_std: tuple[float, ...] = (0.25,)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @functools.cached_property
    def class_counts(self) -> Tensor:
        """Training images of each class, shape (K,), int64."""
        return torch.bincount(self.train.labels, minlength=self.num_classes)

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """What the data set holds, as plain containers for the record of a run.

        It does not depend on where the files lie or how they are named, apart from class names.

        Returns
        -------
        dict
            ``class_names``; ``splits``: of each split that there is ``num_images`` and the sha256 of its pixels
            (``images``) and of its ``labels``, both in order; ``digest``: the sha256 of all that.
        """
        splits = {name: getattr(self, name) for name in SPLIT_NAMES}
        content = {
            # Folder names may be no text in any encoding; a record is.
            "class_names": [name.encode(errors="backslashreplace").decode() for name in self.class_names],
            "splits": {name: _content_of(split) for name, split in splits.items() if split is not None},
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return {"digest": digest, **content}

    @property
    def digest(self) -> str:
        """Sha256 (hexadecimal) of what the data set holds: class names, and each split's pixels and labels in order."""
        return str(self.content["digest"])

    def split_digest(self, name: str) -> str:
        """Sha256 (hexadecimal) of the class names and of one split, one of ``SPLIT_NAMES``: of what is measured on."""
        of = {"class_names": self.content["class_names"], "split": self.content["splits"][name]}
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def _content_of(split: Split) -> dict[str, Any]:
    kind = "" if split.images.dtype == torch.uint8 else " float32"
    images = hashlib.sha256(f"{tuple(split.images.shape)}{kind}\n".encode())
    images.update(split.images.contiguous().numpy().data)
    labels = hashlib.sha256(split.labels.contiguous().numpy().data)
    return {"num_images": len(split), "images": images.hexdigest(), "labels": labels.hexdigest()}


def batch_to_float(images: Tensor) -> Tensor:
    """Return images in [0, 1]: exactly ``images / 255`` in float32, on every device.

    Parameters
    ----------
    images : Tensor, uint8
        Pixels in 0..255, any shape.

    Returns
    -------
    Tensor, float32
        Same shape and device.

    Raises
    ------
    TypeError
        When ``images`` is not uint8: scaled twice, images would be almost black without any error.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"batch_to_float takes uint8 pixels in 0..255, got {images.dtype}")
    # By a Python number, torch's CUDA kernel multiplies with the rounded reciprocal, which is off in the last bit.
    divisor = torch.full((), 255.0, device=images.device)
    return images.to(torch.float32) / divisor


def in_unit_range(images: Tensor) -> Tensor:
    """Return a split's images in [0, 1], float32: uint8 pixels by `batch_to_float`, float32 ones as they are."""
    return images if images.dtype == torch.float32 else batch_to_float(images)
