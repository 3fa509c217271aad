"""Read and write weights and the state of an unfinished training. Nothing is ever unpickled beyond plain tensors."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from frl_repro.basics.atomic import replacing, write_bytes
from frl_repro.basics.errors import UserError
from frl_repro.basics.regular_files import read_bytes
from frl_repro.basics.run_folder import PREVIOUS_STATE_FILE, check_file, parse_state_header
from frl_repro.models.origin import header_of
from frl_repro.models.state_dicts import NORMALISATION, match, read_state, torch_load

logger = logging.getLogger(__name__)


def save_weights(path: Path, model: nn.Module, *, origin: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors, atomically, with the run they come from in the header.

    One header entry holds all of it as JSON: safetensors writes several entries in random order, and the same run must
    give the same bytes.
    """
    state: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in model.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        # Tensors that a network of someone's own shares under two names: the format takes each by itself.
        state[name] = values.clone() if values.data_ptr() in places and values.numel() else values
        places.add(values.data_ptr())
    # As bytes: the library's own writer reports a full disk as a damaged file.
    write_bytes(path, safetensors.torch.save(state, metadata=header_of(origin)))


def load_weights(path: Path, model: nn.Module, *, key: str | None = None, setting: str = "checkpoint_key") -> str:
    """Load weights into a model from safetensors or from a PyTorch state_dict, of ours or of other code.

    How tensors find their places, `frl_repro.models.state_dicts.match` says. A checkpoint without mean and standard
    deviation leaves those of the model as they are.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file, or a file of ``torch.save(model.state_dict(), path)``, saved on any device.
    model : nn.Module
        Receives the weights on its own device and in its own precision.
    key : str, optional
        Where the state_dict lies in the file (``"ema_state_dict"``, ``"model.state_dict"``); None: the usual one, and
        a line says so where there are others.
    setting : str
        What people choose ``key`` by, for messages.

    Returns
    -------
    str
        ``"by name"``, ``"in order"`` or ``"by shape"``: how tensors were matched.

    Raises
    ------
    UserError
        The file is missing, is not a checkpoint, holds other shapes, whole numbers or booleans in place of weights, or
        values that are not finite, negative variances or standard deviations that are not above 0; or it belongs to a
        finished run and is no longer as it was written.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    check_file(path)
    state = read_state(path, key, setting=setting)
    if state.others:
        others = ", ".join(map(ascii, state.others))
        logger.info("%s: takes the weights of %a; it also holds %s (%s= chooses)", path, state.name, others, setting)
    how, pairs = match(state, model, path, setting=setting)
    own, values = model.state_dict(), {}
    for mine, theirs in pairs:
        values[mine] = _checked(state.tensors[theirs], own[mine].dtype, f"{path}: {theirs}", is_of=mine)
    model.load_state_dict({**own, **values})
    return how


def _checked(tensor: Tensor, kind: torch.dtype, where: str, *, is_of: str) -> Tensor:
    """Return a tensor in the model's precision, where it is ``is_of``; UserError where it cannot be that."""
    # Mean and standard deviation of images may well be whole numbers; weights are only when something was done to them.
    if kind.is_floating_point and not tensor.is_floating_point() and not is_of.startswith(NORMALISATION):
        raise UserError(f"{where} holds no weights but values of type {str(tensor.dtype).removeprefix('torch.')}")
    values = tensor.to(kind)
    if not torch.isfinite(values).all():
        raise UserError(f"{where} holds values that are not finite")
    if is_of.endswith("running_var") and bool((values < 0).any()):
        raise UserError(f"{where} holds negative variances: they belong to no trained network")
    if is_of == f"{NORMALISATION}std" and bool((values <= 0).any()):
        raise UserError(f"{where} holds a standard deviation that is not above 0")
    return values


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
    content = read_bytes(path)
    if not content.startswith(b"PK"):  # those of version 0.1 are PyTorch's format alone
        line, _, content = content.partition(b"\n")
        try:
            header = parse_state_header(line, path)
        except UserError:
            raise UserError(f"{path} is not {what}") from None
        epoch, expected = header["epoch"], header["sha256"]
        if _digest(epoch, content) != expected:
            raise UserError(f"{path} is not {what} (its sha256 is wrong)")
    state = torch_load(io.BytesIO(content), name=path, what=what)
    if not isinstance(state, dict):
        raise UserError(f"{path} is not {what}")
    return state


def _digest(epoch: object, content: bytes | memoryview) -> str:
    """Return the sha256 of a state, with the epoch that its header names."""
    digest = hashlib.sha256(f"{epoch}\n".encode())
    digest.update(content)
    return digest.hexdigest()
