"""A batch that the device's memory cannot hold is worked through in parts: the same results, more slowly.

Attacks and measurements treat every image by itself, so a part of a batch gives what it gives in the whole. A training
step does not: its batch is never split.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frl_repro.attacks import Ascend, Ascent
from frl_repro.basics.errors import is_out_of_memory
from frl_repro.basics.progress import LOGGER
from frl_repro.models import FusedModel


class Parts:
    """How many images at a time a device holds: all of a batch, until it has once been too many."""

    def __init__(self) -> None:
        self._most: int | None = None  # images of each run
        self._lock = threading.Lock()

    def work(self, function: Callable[[Tensor | None], Tensor], *, num_images: int, num_runs: int) -> Tensor:
        """Return ``function`` of a batch, from as few parts as the device's memory allows.

        Parameters
        ----------
        function : callable
            Takes the places of the images to work on, None for all; returns a row for each.
        num_images : int
            Of the whole batch, which is ``num_runs`` equal blocks. A part is as many images of each block.
        num_runs : int

        Raises
        ------
        RuntimeError, MemoryError
            One image of each run is too many (`is_out_of_memory`), or the function failed for another reason.
        """
        block = num_images // num_runs
        while True:
            most = block if self._most is None else min(block, self._most)
            try:
                if most >= block:
                    return function(None)
                places = torch.arange(num_images).view(num_runs, block)
                parts = [places[:, first : first + most].flatten() for first in range(0, block, most)]
                rows = [function(part) for part in parts]
                result = rows[0].new_empty(num_images, *rows[0].shape[1:])
                for part, found in zip(parts, rows, strict=True):
                    result[part.to(result.device)] = found
                return result
            except (RuntimeError, MemoryError) as problem:
                if most <= 1 or not is_out_of_memory(problem):
                    raise
                self._shrink(most)
            if torch.cuda.is_available():  # outside the handler: the exception holds the tensors of its frames
                torch.cuda.empty_cache()

    def _shrink(self, tried: int) -> None:
        with self._lock:
            smaller = (tried + 1) // 2
            if self._most is None or smaller < self._most:
                self._most = smaller
                LOGGER.info(
                    "out of memory: attacks and measurements go on with %d images at a time; the results are the same",
                    smaller,
                )


def _num_runs(model: nn.Module) -> int:
    return model.num_runs if isinstance(model, FusedModel) else 1


def logits_in_parts(logits: Callable[[nn.Module, Tensor], Tensor], parts: Parts) -> Any:
    """Return a backend's ``logits`` that splits what does not fit."""

    def split(model: nn.Module, x: Tensor) -> Tensor:
        def of(part: Tensor | None) -> Tensor:
            return logits(model, x if part is None else x[part.to(x.device)])

        return parts.work(of, num_images=len(x), num_runs=_num_runs(model))

    return split


def ascend_in_parts(ascend: Ascend, parts: Parts) -> Ascend:
    """Return a backend's ``ascend`` that splits what does not fit."""

    def split(model: nn.Module, ascent: Ascent) -> Tensor:
        def of(part: Tensor | None) -> Tensor:
            return ascend(model, ascent if part is None else ascent.of(part.to(ascent.x.device)))

        return parts.work(of, num_images=len(ascent), num_runs=_num_runs(model))

    return split
