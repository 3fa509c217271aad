"""A few images of the class a model does worst and best, clean and attacked: the file that a figure reads. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError
from frl_repro.results.tables.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

EXAMPLES_FILE = "examples.safetensors"
_TENSORS = ("clean", "attacked", "labels", "clean_predictions", "attacked_predictions")
_REMEDY = "delete it and measure again"
_ABOUT_FIELDS = readback.fields(
    {
        "class_names": readback.items(readback.ANY_TEXT, min_length=1),
        **dict.fromkeys(("worst", "best"), readback.ANY_TEXT),
        **dict.fromkeys(("run_id", "attack"), readback.text()),
        "epsilon": readback.number(0, 1),
    },
    {"method": readback.maybe(readback.text())},
)


@dataclass(frozen=True, eq=False)
class Examples:
    """Images that a model gets right before the attack.

    Attributes
    ----------
    clean, attacked : array, shape (N, C, H, W), float32
        Images in [0, 1].
    labels, clean_predictions, attacked_predictions : array, shape (N,), int64
        Classes, 0 to K - 1; a prediction of -1 is none: logits that are not finite.
    about : mapping of str to value
        ``run_id``, ``attack``, ``epsilon`` and ``class_names``; ``worst`` and ``best`` name classes.
    """

    clean: NDArray[np.float32]
    attacked: NDArray[np.float32]
    labels: NDArray[np.int64]
    clean_predictions: NDArray[np.int64]
    attacked_predictions: NDArray[np.int64]
    about: Mapping[str, Any]


def write_examples(path: Path, examples: Examples) -> None:
    """Write examples, atomically; equal examples give equal bytes."""
    write_tensors(path, {name: getattr(examples, name) for name in _TENSORS}, examples.about)


def read_examples(path: Path) -> Examples:
    """Return the examples of a file.

    Raises
    ------
    UserError
        The file cannot be read, or is none of ours.
    """
    tensors, about = read_tensors(path, remedy=_REMEDY)
    if set(tensors) != set(_TENSORS):
        raise UserError(f"{path} holds no examples: {', '.join(_TENSORS)} are expected")
    readback.checked(about, _ABOUT_FIELDS, source=path, remedy=_REMEDY)
    _check_tensors(path, tensors, about["class_names"])
    return Examples(**tensors, about=about)


def _check_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], class_names: Sequence[str]) -> None:
    """Refuse images that are none, and classes that there are not."""
    num = len(tensors["labels"]) if tensors["labels"].ndim == 1 else -1
    for name, tensor in tensors.items():
        if name in ("clean", "attacked"):
            is_right = tensor.ndim == 4 and tensor.shape == tensors["clean"].shape and len(tensor) == num
            is_right = is_right and tensor.dtype == np.float32 and bool((tensor >= 0).all() and (tensor <= 1).all())
        else:
            is_right = tensor.shape == (num,) and tensor.dtype == np.int64
            is_right = is_right and tensor.min(initial=0) >= 0 and tensor.max(initial=0) < len(class_names)
        if not is_right:
            raise UserError(f"{path} is damaged: {name} holds what it cannot; {_REMEDY}")
