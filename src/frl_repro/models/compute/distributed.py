"""One run on several processes, as ``torchrun`` starts them: the numbers of one process, each batch shared out.

Every process runs the whole program on the same batches with the same random numbers. Only the arithmetic is shared
out: each process takes its slice of a batch through the network, and all then hold the results of the whole batch. So
losses, class weights and error counts are those of one process, with no further reduction, and gradients are summed by
`torch.nn.parallel.DistributedDataParallel`. The first process alone reads and writes the run's folder, and says what
happens; the others learn from it what it read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from frl_repro.attacks import Ascent
from frl_repro.basics import sameness, torchrun
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import silence
from frl_repro.models.compute.backends import Backend

_TIMEOUT = timedelta(minutes=30)  # of a process that neither ends nor answers; one that ends is noticed at once
_PATIENCE = timedelta(seconds=20)  # processes that fail in the same way do so within this time
_LAST_WORD = 1.0  # seconds in which the first process says why all of them end

T = TypeVar("T")
_store: Store | None = None
_failures = itertools.count()


@contextmanager
def group() -> Iterator[None]:
    """Join the processes that ``torchrun`` started with this one; nothing where it started one, or where they are one.

    Processes other than the first log nothing and draw no bars inside.

    Raises
    ------
    UserError
        The environment speaks of several processes, but not as ``torchrun`` sets it; or they run other code or other
        versions of Python and PyTorch.
    """
    global _store  # noqa: PLW0603 (there is one group in a process)
    if torchrun.num_processes() == 1 or dist.is_initialized():
        yield
        return
    try:
        _store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    except ValueError as problem:
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: several processes need torchrun ({problem})") from None
    except dist.DistNetworkError as problem:
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
        why = "the port is taken" if "EADDRINUSE" in str(problem) else str(problem).splitlines()[0]
        raise UserError(
            f"{where}: the processes cannot meet there ({why}): choose another port (torchrun --master-port=PORT, or "
            "--standalone on one machine)"
        ) from None
    # Before anything is sent that another version could not read.
    _refuse_differences(_through_store(_store, sameness.code(), rank, world_size), rank)
    # NCCL for tensors on GPUs; gloo for those on the processor, and for all that is no tensor.
    names = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(names, store=_store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    try:
        with contextlib.nullcontext() if rank == 0 else silence():
            yield
    finally:
        _leave_after_writer(_store, rank)
        _store = None
        dist.destroy_process_group()


def _leave_after_writer(store: Store, rank: int) -> None:
    """Let the first process say how it went: ``torchrun`` ends it when another one has ended with an error."""
    with contextlib.suppress(RuntimeError):  # the store has ended with its process
        if rank == 0:
            store.set("the first process has spoken", "")
        else:
            store.wait(["the first process has spoken"], _PATIENCE)


def refuse_unless_alike(facts: Mapping[str, str]) -> None:
    """Refuse to go on, in every process, where one of them has other facts than the first.

    Parameters
    ----------
    facts : mapping of str to str
        What must be the same everywhere: settings, a digest of the data, the backend.

    Raises
    ------
    UserError
        Naming the process and the first difference; the same in every process.
    """
    if num_processes() == 1:
        return
    everyone: list[Any] = [None] * num_processes()
    try:
        dist.all_gather_object(everyone, dict(facts))
    except RuntimeError:
        raise UserError("another process of this run has ended: what it said comes first") from None
    _refuse_differences(everyone, dist.get_rank())


def _refuse_differences(everyone: list[dict[str, str]], rank: int) -> None:
    for other, facts in enumerate(everyone):
        found = sameness.difference(everyone[0], facts)
        if found is None:
            continue
        if not dist.is_initialized() and rank != 0:
            time.sleep(_LAST_WORD)
        raise UserError(
            f"process {other} of {len(everyone)} is not like process 0: {found}; start all with the same command, "
            "program, packages and data"
        )


def _through_store(store: Store, facts: Mapping[str, str], rank: int, world_size: int) -> list[dict[str, str]]:
    """Return all processes' facts, before they are a group."""
    told, heard = ([f"{what} of {other}" for other in range(world_size)] for what in ("facts", "facts heard"))
    store.set(told[rank], json.dumps(facts))
    store.wait(told, _TIMEOUT)
    everyone = [json.loads(store.get(key)) for key in told]
    store.set(heard[rank], "")
    if rank == 0:  # the store may end with this process
        store.wait(heard, _TIMEOUT)
    return everyone


def num_processes() -> int:
    """Return how many processes share this run: 1 outside `group`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_writer() -> bool:
    """Return whether this process is the one that writes."""
    return num_processes() == 1 or dist.get_rank() == 0


def from_writer(read: Callable[[], T]) -> T:
    """Return what ``read`` returns in the writer, in every process; no other process calls it.

    Raises
    ------
    UserError, OSError
        What the writer raised, in every process.
    """
    if num_processes() == 1:
        return read()
    answer: list[Any] = [None, None]
    if is_writer():
        try:
            answer[0] = read()
        except (UserError, OSError) as problem:
            answer[1] = problem
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    value: T = answer[0]
    return value


@contextmanager
def first_on_machine_first() -> Iterator[None]:
    """Let the first process of each machine through, then the others: they find in the cache what it put there."""
    is_first = torchrun.rank_on_machine() == 0
    if not is_first:
        _wait_for_all()
    try:
        yield
    finally:
        if is_first:
            _wait_for_all()


def _wait_for_all() -> None:
    if num_processes() > 1:
        dist.all_gather_object([None] * num_processes(), None)  # of no device, unlike a barrier


def own_device(device: torch.device) -> torch.device:
    """Return this process's device: of the GPUs of a machine its own one.

    Raises
    ------
    UserError
        One GPU is named for several processes, or there are fewer GPUs than processes.
    """
    if num_processes() == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(f"device={device}: each of {num_processes()} processes takes a GPU of its own; use device=cuda")
    num_here = torchrun.num_on_machine()
    if num_here > torch.cuda.device_count():
        raise UserError(
            f"{num_here} processes for {torch.cuda.device_count()} GPUs: give torchrun one process a GPU, or use "
            "device=cpu"
        )
    return torch.device("cuda", torchrun.rank_on_machine())


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model whose batch norm, if it has any, takes its statistics from the whole batch.

    Raises
    ------
    UserError
        The model has batch norm and is on the processor, where PyTorch does not synchronise it.
    """
    if num_processes() == 1 or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return model
    if device.type != "cuda":
        raise UserError(
            "batch norm over several processes needs GPUs: PyTorch's SyncBatchNorm does not run on a processor, and "
            "statistics of parts of a batch would give another model; use one process"
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def shared(backend: Backend) -> Backend:
    """Return a backend that gives the same answers, each process doing its share; itself where there is one process."""
    if num_processes() == 1:
        return backend
    parallel = _Parallel(backend.forward)

    def logits(model: nn.Module, x: Tensor) -> Tensor:
        return _whole(backend.logits(model, _own(x)), len(x))

    def ascend(model: nn.Module, ascent: Ascent) -> Tensor:
        own = ascent.of(_share(len(ascent)))
        return _whole(backend.ascend(model, own) if len(own) else own.x, len(ascent))

    return dataclasses.replace(backend, logits=logits, forward=parallel.forward, ascend=ascend)


class _Computed(nn.Module):
    """A model as its backend computes it, for `DistributedDataParallel` to call."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self._forward(self.model, x)


class _Parallel:
    """The differentiable forward pass of a batch that is shared out."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        self._forward = forward
        self._model: nn.Module | None = None
        self._parallel: nn.Module | None = None

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the logits of all images; a loss of them leaves its whole gradient in every process's parameters."""
        if self._parallel is None or self._model is not model:
            # Buffers are the same everywhere without being sent: batch norm is synchronised, the rest is constant.
            # Sent in each forward pass, they would also forbid a second one before the backward pass.
            self._parallel = DistributedDataParallel(_Computed(model, self._forward), broadcast_buffers=False)
            self._model = model
        own: Tensor = self._parallel(_own(x))
        if own.requires_grad:
            # Every process differentiates the loss of the whole batch by its own logits. The sum of these gradients is
            # the gradient; DistributedDataParallel takes their mean.
            own.register_hook(lambda gradient: gradient * num_processes())  # type: ignore[no-untyped-call]
        return _whole(own, len(x))


def _bounds(total: int) -> list[int]:
    """Return where the processes' slices of ``total`` images begin, and the end: sizes differ by one at most."""
    return [total * rank // num_processes() for rank in range(num_processes() + 1)]


def _share(total: int) -> slice:
    """Return the places of this process's slice of ``total`` images."""
    bounds, rank = _bounds(total), dist.get_rank()
    return slice(bounds[rank], bounds[rank + 1])


def _own(whole: Tensor) -> Tensor:
    return whole[_share(len(whole))]


def _whole(own: Tensor, total: int) -> Tensor:
    """Return all processes' slices as one tensor of ``total`` rows; this process's own can be differentiated."""
    bounds, rank = _bounds(total), dist.get_rank()
    sizes = [after - before for before, after in itertools.pairwise(bounds)]
    padded = own.new_zeros(max(sizes), *own.shape[1:])  # slices of one size, as the operation wants them
    padded[: len(own)] = own.detach()
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    slices = [part[:size] for part, size in zip(gathered, sizes, strict=True)]
    slices[rank] = own
    return torch.cat(slices)


def end_unless_all_failed(reason: str) -> None:
    """Return where every process failed for this reason; else end this one, and with it all of them.

    A process that fails alone cannot go on: the others wait for its share. When it ends, ``torchrun`` ends them.
    """
    if num_processes() == 1 or _store is None:
        return
    number, rank = next(_failures), dist.get_rank()
    keys = [f"failure {number} of {other}" for other in range(num_processes())]
    # The first to fail is the cause; the others then fail for want of it.
    is_cause = _store.add(f"failures {number}", 1) == 1
    _store.set(keys[rank], reason)
    with contextlib.suppress(RuntimeError):  # they did not fail, or the store has ended with its process
        _store.wait(keys, _PATIENCE)
        if {_store.get(key).decode() for key in keys} == {reason}:
            return
    if is_cause:
        sys.stderr.write(f"error: process {rank} of {num_processes()}, which ends them all: {reason}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # an orderly end would wait for the others
