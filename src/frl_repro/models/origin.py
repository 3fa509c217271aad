"""What a checkpoint says of the run that it comes from: its name, its settings, and the data that it was trained on.

It stands in the header of ``model.safetensors`` as one entry of JSON. Whoever hands a checkpoint on can write there
what they like: every field is checked before it is used. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError
from frl_repro.basics.run_folder import RUN_FILE, WEIGHTS_FILE, read_object
from frl_repro.settings.methods import ALPHA_COLUMNS

HEADER_ENTRY = "frl_repro"
_REMEDY = "what its header says of its run cannot be trusted: get the checkpoint anew"

_NAME = readback.text(r"[A-Za-z0-9_.+-]+", max_length=100, what="letters, digits and _ . + -")
_SETTING = readback.maybe(readback.number())
_CLASS_NAMES = readback.items(readback.text(r"(?s).*", max_length=255, what="a text"), min_length=1, max_length=100_000)

ORIGIN_FIELDS: Mapping[str, readback.Check] = {
    "run_id": readback.file_name(),
    "dataset": _NAME,
    "model": _NAME,
    "method": _NAME,
    "seed": readback.whole(),
    "epoch": readback.whole(),
    "checkpoint": readback.maybe(readback.one_of("last", "best", "best+last")),
    "recipe": readback.maybe(_NAME),
    **dict.fromkeys(ALPHA_COLUMNS, _SETTING),
    "settings": readback.fields({}, {"model": readback.SETTINGS, "dataset": readback.SETTINGS}),
    "data": readback.fields(
        {
            "digest": readback.SHA256,
            "class_names": _CLASS_NAMES,
            "image_shape": readback.items(readback.whole(1, 100_000), min_length=3, max_length=3),
        }
    ),
}
"""The fields of a header. ``settings`` has those of model and data set that are needed to rebuild both; ``data`` what
the data set held. Checkpoints of version 0.1 lack these two."""


def header_of(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return a checkpoint's header: one entry, for safetensors writes several in random order."""
    return {HEADER_ENTRY: json.dumps(dict(origin), sort_keys=True)}


def data_facts(*, digest: str, class_names: Sequence[str], image_shape: Sequence[int]) -> dict[str, Any]:
    """Return field ``data`` of a header; ``image_shape`` is (C, H, W)."""
    return {"digest": digest, "class_names": list(class_names), "image_shape": list(image_shape)}


def read_origin(path: Path) -> dict[str, Any] | None:
    """Return what a checkpoint says of its run, checked; None for a file of other code.

    Raises
    ------
    UserError
        The record is damaged, or a field is not what it must be.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            entry = (opened.metadata() or {}).get(HEADER_ENTRY)
    except (SafetensorError, OSError):  # of another format; what cannot be opened, the reader of weights names
        return None
    if entry is None:
        return None
    origin = readback.parse_json(entry, source=path, remedy=_REMEDY)
    readback.checked(origin, readback.fields({}, ORIGIN_FIELDS), source=path, remedy=_REMEDY)
    return {name: value for name, value in origin.items() if name in ORIGIN_FIELDS}


def settings_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of model and data set that a checkpoint of ours was trained with, as far as they are known.

    They stand in the header, else in the ``run.json`` beside when that is of the same run. Where the data lie on this
    machine stands in ``run.json`` alone.

    Returns
    -------
    dict
        ``model`` and ``dataset``, each with ``name`` and other settings; without one of them, or empty, where nothing
        is known. In ``dataset``, ``root`` is there when ``run.json`` names a folder that exists.
    """
    origin = read_origin(path)
    if origin is None:
        return {}
    recorded = _recorded_beside(path, origin)
    found = {}
    for group in ("model", "dataset"):
        of_run = recorded.get(group)
        known = origin.get("settings", {}).get(group) or of_run or {"name": origin.get(group)}
        if not isinstance(known, Mapping) or not isinstance(known.get("name"), str):
            continue
        found[group] = {name: value for name, value in known.items() if name not in _OF_THE_MACHINE}
        root = of_run.get("root") if isinstance(of_run, Mapping) else None
        if group == "dataset" and isinstance(root, str) and Path(root).expanduser().exists():
            found[group]["root"] = root
    return found


_OF_THE_MACHINE = ("root", "download", "cache_dir")


def _recorded_beside(path: Path, origin: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings in the ``run.json`` of the checkpoint's run; empty where there is none."""
    note = path.with_name(RUN_FILE)
    if not note.is_file() or "run_id" not in origin:
        return {}
    try:
        recorded = read_object(note)
    except (UserError, OSError):  # a note that nobody asked for
        return {}
    config = recorded.get("config")
    return config if recorded.get("run_id") == origin["run_id"] and isinstance(config, Mapping) else {}


def checkpoint_file(given: str | Path, *, key: str) -> Path:
    """Return the checkpoint that a setting names: a file, or the last weights in a run's folder.

    Parameters
    ----------
    given : str or Path
    key : str
        The setting, for messages.

    Raises
    ------
    UserError
        There is no such file, or the folder holds no weights.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        inside = path / WEIGHTS_FILE
        if not inside.is_file():
            why = "the run is not finished" if (path / RUN_FILE).exists() else "give a checkpoint, or a run's folder"
            raise UserError(f"{key}={given}: no {WEIGHTS_FILE} in this folder ({why})")
        return inside
    if not path.is_file():
        raise UserError(f"{key}={given}: no such file")
    return path
