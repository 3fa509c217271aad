"""Read and write weights and the state of an unfinished training. Nothing is ever unpickled beyond plain tensors."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frl_repro.atomic import replacing, write_bytes
from frl_repro.errors import UserError, is_out_of_memory
from frl_repro.run_folder import PREVIOUS_STATE_FILE, check_file

logger = logging.getLogger(__name__)

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
    # As bytes: the library's own writer reports a full disk as a damaged file.
    write_bytes(path, safetensors.torch.save(state, metadata={_ORIGIN: json.dumps(dict(origin), sort_keys=True)}))


def read_origin(path: Path) -> dict[str, Any] | None:
    """Return what `save_weights` recorded of the run; None for a file of other code.

    Raises
    ------
    UserError
        The record is damaged.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            entry = (opened.metadata() or {}).get(_ORIGIN)
    except SafetensorError:
        return None
    if entry is None:
        return None
    try:
        origin = json.loads(entry)
    except (ValueError, RecursionError):
        origin = None
    if not isinstance(origin, dict):
        raise UserError(f"{path}: what its header says of the run it comes from is damaged")
    return origin


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
        The file is missing, is not a checkpoint, holds other shapes, or values that are not finite, negative variances
        or standard deviations that are not above 0; or it belongs to a finished run and is no longer as it was
        written.
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
        state[theirs] = _checked(state[theirs], own[mine].dtype, f"{path}: {theirs}", is_of=mine)
    model.load_state_dict({**model.state_dict(), **{mine: state[theirs] for mine, theirs in pairs}})
    return "by name" if by_name else "in order"


def _checked(tensor: Tensor, kind: torch.dtype, where: str, *, is_of: str) -> Tensor:
    """Return a tensor in the model's precision, where it is ``is_of``; UserError where its values are of no use."""
    if tensor.is_complex():
        raise UserError(f"{where} holds {tensor.dtype}, the model's {is_of} needs {kind}")
    try:
        values = tensor.to(kind)
        is_finite = bool(torch.isfinite(values).all())
    except RuntimeError as problem:  # a kind of numbers that PyTorch cannot convert
        if is_out_of_memory(problem):
            raise
        raise UserError(f"{where} holds {tensor.dtype}, which cannot be converted to {kind}") from None
    if not is_finite:
        raise UserError(f"{where} holds values that are not finite")
    if is_of.endswith("running_var") and bool((values < 0).any()):
        raise UserError(f"{where} holds negative variances: they belong to no trained network")
    if is_of == f"{_NORMALISATION}std" and bool((values <= 0).any()):
        raise UserError(f"{where} holds a standard deviation that is not above 0")
    return values


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    check_file(path)
    try:
        return dict(safetensors.torch.load_file(path))
    except SafetensorError:
        loaded = _torch_load(
            path, name=path, what="a checkpoint: neither safetensors nor a PyTorch state_dict of plain tensors"
        )
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path}: holds no state_dict; save one with torch.save(model.state_dict(), path)")
    return dict(loaded)


def _torch_load(source: Path | io.BytesIO, *, name: Path, what: str) -> Any:
    """Read PyTorch's format. Plain containers and tensors only: a pickle that calls a function is refused unread."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how unusual a file is that is refused in a moment
            return torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # arbitrary bytes make the unpickler fail in many ways: IndexError, struct.error, ...
        if is_out_of_memory(problem):
            raise
        raise UserError(f"{name} is not {what}") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of an unfinished training, atomically, with a checksum; the one before stays beside it.

    Plain containers and tensors only. A kill between the two renames leaves the one before alone, which serves.
    """
    content = io.BytesIO()
    torch.save(dict(state), content)
    epoch = state.get("epoch")
    header = {"epoch": epoch, "sha256": _digest(epoch, content.getbuffer())}
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(content.getbuffer())
        if path.exists():
            path.replace(path.with_name(PREVIOUS_STATE_FILE))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote: the newest state, or with a logged line the one before when that is damaged.

    The damaged one is removed, so that it never takes the place of the good one.

    Raises
    ------
    UserError
        Neither can be read.
    """
    previous = path.with_name(PREVIOUS_STATE_FILE)
    if not path.exists():  # killed between the two renames
        return _read_one_state(previous)
    try:
        return _read_one_state(path)
    except UserError:
        if not previous.exists():
            raise
    state = _read_one_state(previous)
    logger.warning("%s is damaged (wrong sha256): continuing from the state of the epoch before it", path)
    path.unlink()
    return state


def _read_one_state(path: Path) -> dict[str, Any]:
    what = "a readable training state: delete it to train this run from the start"
    content = path.read_bytes()
    if not content.startswith(b"PK"):  # those of version 0.1 are PyTorch's format alone
        line, _, content = content.partition(b"\n")
        try:
            header = json.loads(line)
            epoch, expected = header["epoch"], header["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{path} is not {what}") from None
        if _digest(epoch, content) != expected:
            raise UserError(f"{path} is not {what} (its sha256 is wrong)")
    state = _torch_load(io.BytesIO(content), name=path, what=what)
    if not isinstance(state, dict):
        raise UserError(f"{path} is not {what}")
    return state


def _digest(epoch: object, content: bytes | memoryview) -> str:
    """Return the sha256 of a state, with the epoch that its header names."""
    digest = hashlib.sha256(f"{epoch}\n".encode())
    digest.update(content)
    return digest.hexdigest()
