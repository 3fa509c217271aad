"""An attack's steps as a CUDA graph: recorded once for a model and a shape, then replayed with one launch.

A step of a small network is dozens of kernels that each run for microseconds; starting them one by one from Python
takes several times as long as running them.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frl_repro.attacks import ascend
from frl_repro.basics.progress import LOGGER

_CALLS_BEFORE = 2  # a shape that comes once more than this is worth recording
_NUM_KEPT = 512  # recorded attacks: a few shapes for each of the runs that train side by side


@dataclass(frozen=True)
class _Recorded:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    result: Tensor


class GraphedAscend:
    """`frl_repro.attacks.ascend` for CUDA; takes the same arguments and gives the same numbers."""

    def __init__(self) -> None:
        self._calls: Counter[Hashable] = Counter()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._pool: Any = None
        self._is_off = False

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        target: Tensor,
        start: Tensor,
        epsilon: float | Tensor,
        step_size: float | Tensor,
        *,
        num_steps: int,
        early_stop: bool,
    ) -> Tensor:
        """Return the attacked images; see `frl_repro.attacks.ascend`."""

        def eager() -> Tensor:
            return ascend(model, x, y, target, start, epsilon, step_size, num_steps=num_steps, early_stop=early_stop)

        if early_stop or self._is_off:  # early stop looks at its own results: no fixed sequence of kernels
            return eager()
        inputs = [x, y, target, start, _on_device(epsilon, x), _on_device(step_size, x)]
        # A graph holds addresses: of the weights too, which move when runs are stacked anew.
        held = itertools.chain(model.parameters(), model.buffers())
        weights = tuple((tensor.data_ptr(), tensor.shape) for tensor in held)
        # The same weights may be computed in bfloat16 in training and in float32 when they are measured.
        key = (type(model), weights, num_steps, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._recorded:
            self._calls[key] += 1
            if self._calls[key] <= _CALLS_BEFORE:
                return eager()
            stream = None
            try:
                stream = torch.cuda.current_stream(x.device)
                # One pool for all: each result is copied before the next graph runs, so they may share their memory.
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._recorded[key] = _record(model, inputs, num_steps, self._pool)
            except RuntimeError as problem:  # an operation that cannot be recorded
                LOGGER.info("attacks run without CUDA graphs: %s", str(problem).splitlines()[0])
                self._is_off = True
                if stream is not None:  # a recording that failed may have left its own
                    torch.cuda.set_stream(stream)
                return eager()
            if len(self._recorded) > _NUM_KEPT:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        recorded = self._recorded[key]
        for kept, given in zip(recorded.inputs, inputs, strict=True):
            kept.copy_(given)
        recorded.graph.replay()
        return recorded.result.clone()


def _on_device(value: float | Tensor, x: Tensor) -> Tensor:
    """Return the value as a tensor, filled on the device: copying a number there would wait."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)


def _record(model: nn.Module, inputs: list[Tensor], num_steps: int, pool: Any) -> _Recorded:
    kept = [tensor.clone() for tensor in inputs]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their kernels and set up before recording, off the main stream
        ascend(model, *kept, num_steps=1, early_stop=False)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = ascend(model, *kept, num_steps=num_steps, early_stop=False)
    return _Recorded(graph, kept, result)
