"""The caller's model: its classes, its device, and its state, which stays unchanged."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from frl_repro.attacks import evaluation_mode
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import set_up_for_import
from frl_repro.data import in_unit_range
from frl_repro.evaluation.measure import resolve_device
from frl_repro.models.compute.backends import Backend, choose_backend, say_once


@contextmanager
def measurable(
    model: nn.Module, images: Tensor, device: str | None, backend: str
) -> Iterator[tuple[nn.Module, torch.device, Backend, int]]:
    """Yield the model in evaluation mode, or a copy of it on another device, the device, what computes it, and K."""
    check_model(model)
    if backend not in ("auto", "torch", "native"):
        raise UserError(f"backend={backend}: unknown choice; known: auto, torch, native")
    here = device_of(model)
    place = here if device is None else _named_device(device)
    is_elsewhere = place.type != here.type or place.index not in (None, here.index)
    own = copy_of(model).to(place) if is_elsewhere else model
    with machine_kept(), evaluation_mode(own):
        if place.type == "cuda":
            torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
        K = num_classes_of(own, images, place)  # images that the model cannot take are refused before native code runs
        set_up_for_import()
        computing = choose_backend(backend, own, place, image_shape=images.shape[1:], is_ours=False)
        if computing.name == "native":
            say_once(f"attacks on {type(model).__name__} run on native code")
        yield own, place, computing, K


def check_model(model: nn.Module) -> None:
    """Raise a `UserError` unless a model is a module whose state is tensors."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model: give a torch.nn.Module, not {type(model).__name__}")
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"model: its state_dict() must hold tensors alone, {name} is {type(value).__name__}")


def device_of(model: nn.Module) -> torch.device:
    """Return where a model is; the processor for one without tensors."""
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def _named_device(name: str) -> torch.device:
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is None:
        raise UserError(f"device={name}: unknown choice; known: auto, cpu, cuda, cuda:N")
    return resolve_device(name)


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model; UserError where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as problem:
        raise UserError(f"the model ({type(model).__name__}) cannot be copied: {_first_line(problem)}") from problem


@contextmanager
def machine_kept() -> Iterator[None]:
    """Restore process-wide settings of PyTorch: threads, and precision and determinism on a GPU."""
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    kept = cudnn.deterministic, cudnn.allow_tf32
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.allow_tf32 = kept
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def num_classes_of(model: nn.Module, images: Tensor, device: torch.device) -> int:
    """Return K of a model in evaluation mode; UserError where it returns no logits of these images."""
    kind, x = type(model).__name__, in_unit_range(images[:2]).to(device)
    try:
        with torch.no_grad():
            logits = model(x)
    except Exception as problem:
        shape, why = tuple(images.shape[1:]), _first_line(problem)
        raise UserError(f"the model ({kind}) cannot take float32 images of shape {shape}: {why}") from problem
    expected = f"logits of shape ({len(x)}, K) of {len(x)} images"
    if not isinstance(logits, Tensor):
        raise UserError(f"the model ({kind}) must return {expected}, not {type(logits).__name__}")
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2 or not logits.is_floating_point():
        raise UserError(f"the model ({kind}) must return {expected}, got {tuple(logits.shape)} of {logits.dtype}")
    return logits.shape[1]


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
