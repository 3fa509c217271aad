"""Tensors kept on disk with a checksum, so that work done once is not done again and damage is never believed."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frl_repro.atomic import write_bytes
from frl_repro.errors import is_out_of_memory

logger = logging.getLogger(__name__)


def cache_folder(cache_dir: Path | None) -> Path:
    """Return the package's folder in ``cache_dir``, else in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    if cache_dir is None:
        configured = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG base directory specification asks to ignore an empty or relative value.
        cache_dir = Path(configured) if Path(configured).is_absolute() else Path("~/.cache")
    return cache_dir.expanduser() / "frl_repro"


def load_tensors(path: Path, *, identity: str) -> dict[str, Tensor] | None:
    """Return the tensors stored at ``path``, or ``None`` when they must be made again.

    Parameters
    ----------
    path : Path
        File written by :func:`store_tensors`.
    identity : str
        What the tensors were made from and how; a file of another identity is outdated.

    Returns
    -------
    dict of str to Tensor, or None
        ``None`` when there is no such file, and, with a logged warning, when it is unreadable, damaged or outdated.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, for the tensors of safe_open stay tied to the file, which another program may cut short.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        logger.warning("cache %s cannot be read (%s) and is made again", path, error)
        return None
    if metadata.get("sha256") != _sha256(tensors, identity):
        logger.warning("cache %s is damaged or outdated (wrong sha256) and is made again", path)
        return None
    return tensors


def store_tensors(path: Path, tensors: Mapping[str, Tensor], *, identity: str) -> None:
    """Write ``tensors`` to ``path`` atomically, with a checksum; a folder that cannot be written to is only logged."""
    metadata = {"sha256": _sha256(tensors, identity)}  # one entry only: safetensors writes several in random order
    try:
        write_bytes(path, safetensors.torch.save(dict(tensors), metadata=metadata))
    except OSError as error:
        logger.warning("cache %s cannot be written (%s): the next run prepares the data again", path, error)


def _sha256(tensors: Mapping[str, Tensor], identity: str) -> str:
    """Return the sha256 (hex) over the identity and each tensor's name, dtype, shape and values."""
    digest = hashlib.sha256(f"{identity}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
