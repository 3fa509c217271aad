"""A few images of the class a model does worst and best, clean and attacked: the file that a figure reads. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from frl_repro.atomic import write_bytes
from frl_repro.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

EXAMPLES_FILE = "examples.safetensors"
_TENSORS = ("clean", "attacked", "labels", "clean_predictions", "attacked_predictions")
_ABOUT = "about"


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
    # One entry: the format keeps several in no particular order.
    metadata = {_ABOUT: json.dumps(dict(examples.about), sort_keys=True)}
    write_bytes(path, save({name: getattr(examples, name) for name in _TENSORS}, metadata=metadata))


def read_examples(path: Path) -> Examples:
    """Return the examples of a file.

    Raises
    ------
    UserError
        The file cannot be read, or is none of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if set(file.keys()) != set(_TENSORS):
                raise UserError(f"{path} holds no examples: {', '.join(_TENSORS)} are expected")
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
            about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as problem:
        raise UserError(f"cannot read {path}: {problem}") from problem
    return Examples(**tensors, about=about)
