"""Read and write weights and the state of an unfinished training. Nothing is ever unpickled beyond plain tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frl_repro.atomic import replacing
from frl_repro.errors import UserError

_ORIGIN = "frl_repro"
# Names under which training scripts commonly keep a state_dict inside a larger dictionary.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
# Prefixes that DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_NORMALISATION = "normalise."


def save_weights(path: Path, model: nn.Module, *, origin: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors, atomically, with the run they come from in the header.

    One header entry holds all of it as JSON: safetensors writes several entries in random order, and the same run must
    give the same bytes.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={_ORIGIN: json.dumps(dict(origin), sort_keys=True)})


def read_origin(path: Path) -> dict[str, Any] | None:
    """Return what `save_weights` recorded of the run; None for a file of other code."""
    try:
        with safe_open(path, framework="pt") as opened:
            entry = (opened.metadata() or {}).get(_ORIGIN)
    except SafetensorError:
        return None
    return None if entry is None else dict(json.loads(entry))


def load_weights(path: Path, model: nn.Module) -> str:
    """Load weights into a model from safetensors or from a PyTorch state_dict, of ours or of other code.

    Names may carry a common prefix; when they differ altogether, tensors are matched in order, provided that every
    shape agrees. A checkpoint without mean and standard deviation leaves those of the model as they are.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file, or a file of ``torch.save(model.state_dict(), path)``, saved on any device.
    model : nn.Module
        Receives the weights on its own device and in its own precision.

    Returns
    -------
    str
        ``"by name"`` or ``"in order"``: how tensors were matched.

    Raises
    ------
    UserError
        The file is missing, is not a checkpoint, holds other shapes, or values that are not finite.
    """
    state = _read_state(path)
    own = model.state_dict()
    state = {_strip(name): tensor for name, tensor in state.items()}
    if len(state) < len(own):  # of other code, which normalises outside the network: ours stays as it is set
        own = {name: tensor for name, tensor in own.items() if not name.startswith(_NORMALISATION)}
    by_name = state.keys() == own.keys()
    if not by_name and len(state) != len(own):
        raise UserError(f"{path}: holds {len(state)} tensors, the model has {len(own)}")
    pairs = [(name, name) for name in own] if by_name else list(zip(own, state, strict=True))
    for mine, theirs in pairs:
        if own[mine].shape != state[theirs].shape:
            raise UserError(
                f"{path}: {theirs} has shape {tuple(state[theirs].shape)}, the model's {mine} needs "
                f"{tuple(own[mine].shape)}"
            )
        if not torch.isfinite(state[theirs]).all():
            raise UserError(f"{path}: {theirs} holds values that are not finite")
    model.load_state_dict({**model.state_dict(), **{mine: state[theirs] for mine, theirs in pairs}})
    return "by name" if by_name else "in order"


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        return dict(load_file(path))
    except SafetensorError:
        loaded = _torch_load(path, what="a checkpoint: neither safetensors nor a PyTorch state_dict of plain tensors")
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path}: holds no state_dict; save one with torch.save(model.state_dict(), path)")
    return dict(loaded)


def _torch_load(path: Path, *, what: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception:  # arbitrary bytes make the unpickler fail in many ways: IndexError, struct.error, ...
        raise UserError(f"{path} is not {what}") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of an unfinished training, atomically. Plain containers and tensors only."""
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; UserError when the file is damaged."""
    state = _torch_load(path, what="a readable training state: delete it to train this run from the start")
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a training state: delete it to train this run from the start")
    return state
