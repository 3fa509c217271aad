"""What a model made of each image of a split: the file that paired comparisons read. Needs no torch.

Tables hold counts; whether two models fail on the same images is in none of them. ``outcomes.safetensors`` keeps a byte
for each image and fact: its class, whether its clean prediction is wrong, and for each radius whether it is a robust
error. An attack of several parts adds which of them broke the image, a measurement of part of a split which images it
took.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon, parse_fraction
from frl_repro.results.tables.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

OUTCOMES_FILE = "outcomes.safetensors"
SPLIT_DIGEST = "split_digest"
"""Key of `Outcomes.about`: sha256 of the images and classes that were measured on; files of older versions lack it."""

_LABELS, _NATURAL, _ROBUST = "labels", "natural", "robust "
_BROKEN, _COMPONENTS, _IMAGES = "broken by ", "broken by", "images"

_REMEDY = "delete it and measure again"
_ABOUT_FIELDS = readback.fields(
    {},
    {
        **dict.fromkeys(("run_id", "dataset", "model", "split", "attack", "backend", "weights"), readback.text()),
        **dict.fromkeys(("method", "recipe", "checkpoint"), readback.maybe(readback.text())),
        **dict.fromkeys(("seed", "attack_seed", "epoch", "batch_size"), readback.maybe(readback.whole())),
        "wall_seconds": readback.number(0),
        _COMPONENTS: readback.items(readback.text(), max_length=100),
    },
)

NOT_BROKEN, NATURAL_ERROR = 0, 1
"""Codes of `Outcomes.broken_by`: right under every part of the attack, and wrong already when clean. Code 2 and those
above stand for the parts in their order."""

NOT_ATTACKED = 255
"""Code of an image whose batch is still to come, in the record of an unfinished measurement."""

UNBROKEN_NAMES = ("none", "clean")
"""Names of these two codes in the file."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One model's result on each of N images.

    Attributes
    ----------
    labels : array, shape (N,), int64
        Classes.
    is_natural_error : array, shape (N,), bool
        Whether the clean image is misclassified.
    is_robust_error : mapping of float to array, shape (N,), bool
        By radius in pixel units: misclassified clean or attacked.
    about : mapping of str to value
        Names the model, the split and the attack.
    components : tuple of str
        Parts of the attack in the order in which they ran; empty for an attack of one part.
    broken_by : mapping of float to array, shape (N,), uint8
        By radius: `NOT_BROKEN`, `NATURAL_ERROR`, or 2 + the place in ``components`` of the first part that broke the
        image. Empty without components.
    images : array, shape (N,), int64, optional
        Places of the images in the split; None: all of it, in order.
    """

    labels: NDArray[np.int64]
    is_natural_error: NDArray[np.bool_]
    is_robust_error: Mapping[float, NDArray[np.bool_]]
    about: Mapping[str, Any]
    components: tuple[str, ...] = ()
    broken_by: Mapping[float, NDArray[np.uint8]] = field(default_factory=dict)
    images: NDArray[np.int64] | None = None

    def count_by_class(self, is_counted: NDArray[np.bool_], num_classes: int) -> NDArray[np.int64]:
        """Return how many images of each class are counted, shape (K,); ``is_counted`` has shape (N,)."""
        counts: NDArray[np.int64] = np.bincount(self.labels[is_counted], minlength=num_classes)
        return counts

    def class_counts(self, is_robust_error: NDArray[np.bool_], num_classes: int) -> NDArray[np.int64]:
        """Return images, natural and boundary errors of each class, shape (K, 3)."""
        masks = (np.ones_like(is_robust_error), self.is_natural_error, is_robust_error & ~self.is_natural_error)
        return np.stack([self.count_by_class(mask, num_classes) for mask in masks], axis=1)


def are_of_same_images(one: Outcomes, other: Outcomes) -> bool:
    """Return whether two outcomes can be of the same split: both say which images it holds, and it is these."""
    digests = [of.about.get(SPLIT_DIGEST) for of in (one, other)]
    return None in digests or digests[0] == digests[1]


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write outcomes, atomically; equal outcomes give equal bytes."""
    # One byte a class, where that is enough.
    kind = np.uint8 if outcomes.labels.max(initial=0) <= np.iinfo(np.uint8).max else np.int32
    tensors = {_LABELS: outcomes.labels.astype(kind), _NATURAL: outcomes.is_natural_error.astype(np.uint8)}
    for epsilon, is_error in outcomes.is_robust_error.items():
        tensors[_ROBUST + format_epsilon(epsilon)] = is_error.astype(np.uint8)
    for epsilon, codes in outcomes.broken_by.items():
        tensors[_BROKEN + format_epsilon(epsilon)] = codes.astype(np.uint8)
    if outcomes.images is not None:
        tensors[_IMAGES] = outcomes.images.astype(np.int32)
    about = dict(outcomes.about)
    if outcomes.components:
        about[_COMPONENTS] = [*UNBROKEN_NAMES, *outcomes.components]
    write_tensors(path, tensors, about)


def read_outcomes(path: Path) -> Outcomes:
    """Return the outcomes of a file.

    Raises
    ------
    UserError
        The file cannot be read, or is none of ours.
    """
    tensors, about = read_tensors(path, remedy=_REMEDY)
    shapes = {tensor.shape for tensor in tensors.values()}
    if not {_LABELS, _NATURAL} <= tensors.keys() or len(shapes) != 1 or len(shapes.pop()) != 1:
        raise UserError(f"{path} holds no outcomes: {_LABELS!r} and {_NATURAL!r} of one length are expected")
    readback.checked(about, _ABOUT_FIELDS, source=path, remedy=_REMEDY)
    components = about.pop(_COMPONENTS, [])[len(UNBROKEN_NAMES) :]
    last_code = NATURAL_ERROR + len(components)
    for name, tensor in tensors.items():
        # Labels of more than 256 classes take four bytes.
        kinds = {_IMAGES: (np.int32,), _LABELS: (np.uint8, np.int32)}.get(name, (np.uint8,))
        is_wrong = tensor.dtype not in kinds or tensor.min(initial=0) < 0
        is_code = name.startswith(_BROKEN)
        if is_wrong or (is_code and tensor[tensor != NOT_ATTACKED].max(initial=0) > last_code):
            raise UserError(f"{path} is damaged: {readback.shown(name)} holds what it cannot; {_REMEDY}")
    return Outcomes(
        labels=tensors[_LABELS].astype(np.int64),
        is_natural_error=tensors[_NATURAL] != 0,
        is_robust_error={epsilon: codes != 0 for epsilon, codes in _by_radius(tensors, _ROBUST).items()},
        about=about,
        components=tuple(components),
        broken_by=_by_radius(tensors, _BROKEN),
        images=tensors[_IMAGES].astype(np.int64) if _IMAGES in tensors else None,
    )


def _by_radius(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[float, NDArray[Any]]:
    return {
        parse_fraction(name.removeprefix(prefix)): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
