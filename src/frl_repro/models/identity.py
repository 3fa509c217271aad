"""Whether a run was made from what there is now: its data set and the weights it starts from, known by content.

Settings name both by paths, and what lies at a path changes. ``run.json`` records the data set's digest and the sha256
of the starting weights. Records of older versions lack the digest: what they do not say is not compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frl_repro.basics.errors import UserError
from frl_repro.basics.run_folder import sha256

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in this process
_NUM_NAMED = 5  # class names in a message
_WEIGHTS = {
    "start": "the weights in {} that it starts from",
    "checkpoint": "the weights in {}",
    "network": "the network {} that it starts with",
}


def weights_record(path: Path) -> dict[str, str]:
    """Return what is recorded of a file of weights."""
    return {"file": str(path), "sha256": sha256(path)}


def network_record(network: nn.Module) -> dict[str, str]:
    """Return what is recorded of a network of the user's own: its class, and the sha256 of its layers and tensors.

    Layers are known by what the network says of itself (``repr``): an activation function has no tensors.
    """
    digest = hashlib.sha256(_ADDRESS.sub("", repr(network)).encode())
    for name, tensor in network.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    kind = type(network)
    return {"name": f"{kind.__module__}:{kind.__qualname__}", "sha256": digest.hexdigest()}


def differences(recorded: Mapping[str, Any], now: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Return in words what has changed since something was recorded; empty where nothing has.

    Parameters
    ----------
    recorded : mapping
        A ``run.json``.
    now : mapping
        What its entries would be now: ``data`` (`Dataset.content`), ``start`` or ``checkpoint`` (`weights_record`),
        ``network`` (`network_record`).
        What is None, there or here, is not compared.
    """
    found = []
    for name, entry in now.items():
        before = recorded.get(name)
        key = "digest" if name == "data" else "sha256"
        if entry is None or not isinstance(before, Mapping) or before.get(key) == entry[key]:
            continue
        if name == "data":
            found.append(_data_changes(before, entry))
        else:
            changed = _WEIGHTS[name].format(entry.get("file") or entry["name"])
            found.append(f"{changed} (sha256 {entry[key][:12]}, was {str(before.get(key))[:12]})")
    return found


def _data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    try:
        changes = []
        if before["class_names"] != now["class_names"]:
            were, are = (_listed(one["class_names"]) for one in (before, now))
            changes.append(f"classes {are}, were {were}")
        for name in dict.fromkeys([*now["splits"], *before["splits"]]):
            old, new = (one["splits"].get(name, {"num_images": 0}) for one in (before, now))
            if old["num_images"] != new["num_images"]:
                changes.append(f"{new['num_images']} {name} images, were {old['num_images']}")
            elif old != new:
                parts = {"images": "pixels", "labels": "labels"}
                which = [word for key, word in parts.items() if old.get(key) != new.get(key)]
                changes.append(f"{' and '.join(which)} of {name} images")
    except (KeyError, TypeError, AttributeError):  # of a version to come
        changes = []
    return "the data" + (f" ({'; '.join(changes)})" if changes else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (", ..." if len(names) > _NUM_NAMED else "")


def refuse_changes(folder: Path, changes: Sequence[str], *, is_finished: bool) -> None:
    """Refuse a run that was made, or begun, from something else than what there is now.

    Raises
    ------
    UserError
        There are ``changes`` (`differences`); it names them.
    """
    if changes:
        raise UserError(
            f"{folder} was {'made' if is_finished else 'begun'} before a change of {' and of '.join(changes)}: "
            f"force=true {'repeats it' if is_finished else 'begins it anew'} with what is there now, "
            "another output_dir or run_dir keeps both"
        )


def recorded_start(recorded: Mapping[str, Any]) -> str | None:
    """Return the sha256 of the weights that a run began with, as its ``run.json`` has it."""
    start = recorded.get("start")
    return str(start.get("sha256")) if isinstance(start, Mapping) else None
