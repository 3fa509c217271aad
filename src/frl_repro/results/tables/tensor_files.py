"""Files of tensors with a record beside them: one entry ``about`` in the header of a safetensors file. No torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from frl_repro.basics import readback
from frl_repro.basics.atomic import write_bytes
from frl_repro.basics.errors import UserError
from frl_repro.basics.regular_files import check_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_ABOUT = "about"


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write tensors and their record, atomically; equal ones give equal bytes."""
    # One entry: the format keeps several in no particular order.
    write_bytes(path, save(dict(tensors), metadata={_ABOUT: json.dumps(dict(about), sort_keys=True)}))


def read_tensors(path: Path, *, remedy: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors of a file, by name, and its record, which is still to be checked.

    Raises
    ------
    UserError
        The file cannot be read. ``remedy`` ends the message where the record is damaged.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            about = readback.parse_json((file.metadata() or {}).get(_ABOUT, "{}"), source=path, remedy=remedy)
    except (SafetensorError, OSError, TypeError) as problem:  # a TypeError: numbers that NumPy does not have
        raise UserError(f"cannot read {path}: {problem}") from problem
    return tensors, about
