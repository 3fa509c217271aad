"""An attack's steps as a CUDA graph: recorded once for a model and a shape, then replayed with one launch.

A step of a small network is dozens of kernels that each run for microseconds; starting them one by one from Python
takes several times as long as running them.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frl_repro.attacks import Ascent, ascend
from frl_repro.basics.progress import LOGGER

_CALLS_BEFORE = 2  # a shape that comes once more than this is worth recording
_NUM_KEPT = 512  # recorded attacks: a few shapes for each of the fused runs


@dataclass(frozen=True)
class _Recorded:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    ascent: Ascent
    result: Tensor


class GraphedAscend:
    """`frl_repro.attacks.ascend` for CUDA; takes the same arguments and gives the same numbers."""

    def __init__(self) -> None:
        self._calls: Counter[Hashable] = Counter()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._pool: Any = None
        self._is_off = False

    def __call__(self, model: nn.Module, ascent: Ascent) -> Tensor:
        """Return the attacked images; see `frl_repro.attacks.ascend`."""
        if ascent.early_stop or self._is_off:  # early stop looks at its own results: no fixed sequence of kernels
            return ascend(model, ascent)
        given, x = ascent, ascent.x
        ascent = replace(ascent, epsilon=_on_device(ascent.epsilon, x), step_size=_on_device(ascent.step_size, x))
        tensors = ascent.tensors
        # A graph holds addresses: of the weights too, which move when runs are fused anew.
        held = itertools.chain(model.parameters(), model.buffers())
        weights = tuple((tensor.data_ptr(), tensor.shape) for tensor in held)
        # The same weights may be computed in bfloat16 in training and in float32 when they are measured.
        key = (type(model), weights, ascent.num_steps, *((tensor.shape, tensor.dtype) for tensor in tensors.values()))
        if key not in self._recorded:
            self._calls[key] += 1
            if self._calls[key] <= _CALLS_BEFORE:
                return ascend(model, given)
            stream = None
            try:
                stream = torch.cuda.current_stream(x.device)
                # One pool for all: each result is copied before the next graph runs, so they may share their memory.
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._recorded[key] = _record(model, ascent, self._pool)
            except RuntimeError as problem:  # an operation that cannot be recorded
                LOGGER.info("attacks run without CUDA graphs: %s", str(problem).splitlines()[0])
                self._is_off = True
                if stream is not None:  # a recording that failed may have left its own
                    torch.cuda.set_stream(stream)
                return ascend(model, given)
            if len(self._recorded) > _NUM_KEPT:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        recorded = self._recorded[key]
        for name, kept in recorded.ascent.tensors.items():
            kept.copy_(tensors[name])
        recorded.graph.replay()
        return recorded.result.clone()


def _on_device(value: float | Tensor, x: Tensor) -> Tensor:
    """Return the value as a tensor, filled on the device: copying a number there would wait."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)


def _record(model: nn.Module, ascent: Ascent, pool: Any) -> _Recorded:
    kept = ascent.changed(torch.clone)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their kernels and set up before recording, off the main stream
        ascend(model, replace(kept, num_steps=1))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = ascend(model, kept)
    return _Recorded(graph, kept, result)
