"""Which runs are fused, that is trained side by side in the same tensors: those that share every setting that shapes a
step, as many as memory holds.

A GPU trains them all in one batched computation. On the processor each thread trains some of the runs by itself:
threads that share every step wait for one another at its end, and where other programs take cores away, they wait long.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from frl_repro.basics.progress import LOGGER
from frl_repro.settings.config import RunConfig
from frl_repro.settings.schema import OwnModelConfig

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_NUM_NAMED = 3  # settings named where runs cannot be fused
_COPIES = 4  # copies of each activation: value, gradient, and what both passes keep for the backward pass
_MEMORY_UNKNOWN = 2 * 2**30  # assumed where the system does not say
_FILES_OF_A_RUN = 4  # open at once: lock, logger, what is being written, and its folder
_SPARE_FILES = 32  # for the process itself: libraries that are loaded, the compiler, tables
_MEMORY_SHARE = 0.5  # of what is free now; the rest is for measuring, and for errors of the estimate


def grouped(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Return the runs in groups that can be fused, in the order of their first runs; logs why not all can."""
    groups: dict[tuple[tuple[str, str], ...], list[RunConfig]] = {}
    for config in configs:
        groups.setdefault(tuple(config.shared.items()), []).append(config)
    if len(groups) > 1:
        first, *others = (dict(key) for key in groups)
        keys = {*first, *(key for other in others for key in other)}
        differing = sorted(key for key in keys if any(other.get(key) != first.get(key) for other in others))
        named = ", ".join(differing[:_NUM_NAMED]) + (", ..." if len(differing) > _NUM_NAMED else "")
        LOGGER.info("%d runs in %d groups, one after the other: they differ in %s", len(configs), len(groups), named)
    return list(groups.values())


def runs_at_once(model: nn.Module, config: RunConfig, image_shape: tuple[int, ...], device: torch.device) -> int:
    """Return how many runs may be fused: 1 for models that cannot be fused, else what the machine holds.

    Parameters
    ----------
    model : nn.Module
        One run's model.
    config : RunConfig
        One run's settings.
    image_shape : tuple of int
        (C, H, W).
    device : torch.device
    """
    if isinstance(config.model, OwnModelConfig):
        LOGGER.info("model=%s is not of this package: runs train one after the other", config.model.name)
        return 1
    if next(model.buffers(), None) is not None or any(isinstance(m, _DropoutNd) for m in model.modules()):
        LOGGER.info("model=%s has buffers or dropout: runs train one after the other", config.model.name)
        return 1
    _, trainer = config.training
    num_images = trainer.batch_size * (1 if config.retrain is None else 2)  # clean and attacked ones
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = _COPIES * (num_images * _bytes_per_image(model, image_shape) + weights)
    in_memory = int(_MEMORY_SHARE * _free_memory(device)) // needed
    return max(1, int(min(in_memory, _free_files() // _FILES_OF_A_RUN)))


def share_out(
    configs: Sequence[RunConfig], work: Callable[[Sequence[RunConfig]], None], *, at_once: int, device: torch.device
) -> None:
    """Train all runs, at most ``at_once`` at a time, in this thread or in one thread a core.

    Parameters
    ----------
    configs : sequence of RunConfig
    work : callable
        Takes runs to fuse; raises nothing. The threads that it may use are PyTorch's of the thread that
        it is called in.
    at_once : int
        At least 1.
    device : torch.device
    """
    num_threads = torch.get_num_threads()
    num_workers = min(num_threads, len(configs), at_once) if device.type == "cpu" else 1
    num_rounds = math.ceil(len(configs) / (num_workers * (at_once // num_workers)))
    size = math.ceil(len(configs) / (num_workers * num_rounds))
    parts = [configs[first : first + size] for first in range(0, len(configs), size)]
    num_workers = min(num_workers, len(parts))
    if at_once > 1:
        at_a_time = "" if len(parts) == 1 else f", {size} at a time"
        per_thread = "" if num_workers == 1 else f" on each of {num_workers} threads"
        LOGGER.info("%d fused runs%s%s", len(configs), at_a_time, per_thread)
    if num_workers == 1:
        for part in parts:
            work(part)
        return
    waiting: SimpleQueue[Sequence[RunConfig]] = SimpleQueue()
    for part in parts:
        waiting.put(part)

    def worker() -> None:
        torch.set_num_threads(num_threads // num_workers)
        while True:
            try:
                part = waiting.get_nowait()
            except Empty:
                return
            work(part)

    # Daemon threads: an interrupt need not wait for the end of an epoch; states on disk are complete.
    workers = [threading.Thread(target=worker, daemon=True) for _ in range(num_workers)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()


def _bytes_per_image(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Return the size of the activations of one image."""
    sizes = [4 * torch.Size(image_shape).numel()]

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        sizes.append(output.numel() * output.element_size())

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def _free_files() -> float:
    """Return how many more files this process may open."""
    if resource is None:
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    try:
        num_open = len(os.listdir("/dev/fd"))  # noqa: PTH208 (names are numbers, not paths)
    except OSError:
        num_open = _SPARE_FILES
    return max(0, limit - num_open - _SPARE_FILES)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return _MEMORY_UNKNOWN
