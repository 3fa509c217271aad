"""Tensors cached on disk with a checksum: a damaged file counts as missing."""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frl_repro.basics.atomic import write_bytes
from frl_repro.basics.errors import is_out_of_memory
from frl_repro.basics.paths import user_cache
from frl_repro.basics.regular_files import check_regular

logger = logging.getLogger(__name__)

_NOWHERE = Path(os.devnull)
_CHECKSUMS = "sha256"
"""The entry of a file's header: sha256 of identity and tensors, a space, sha256 of the identity alone."""


def cache_folder(cache_dir: Path | None) -> Path:
    """Return the package's folder in ``cache_dir``, else in ``$XDG_CACHE_HOME``, else in ``~/.cache``.

    For a user without a home folder it is one in which nothing is found and nothing is kept.
    """
    base = user_cache() if cache_dir is None else cache_dir.expanduser()
    if base is None:
        logger.warning("no home folder: what is prepared is not kept; XDG_CACHE_HOME=FOLDER says where to keep it")
        base = _NOWHERE
    return base / "frl_repro"


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
        ``None`` when there is no such file, and, with a logged line, when it is unreadable, damaged or of another
        identity.
    """
    if not path.exists():
        return None
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(_CHECKSUMS, "")
            # Cloned, for the tensors of safe_open stay tied to the file, which another program may cut short.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        logger.warning("cache %s cannot be read (%s) and is made again", path, error)
        return None
    checksum, _, made_from = stored.partition(" ")  # a file of older versions does not say what it was made from
    if made_from not in ("", _sha256_of(identity)):
        logger.info("cache %s is of other files or settings and is made anew", path)
        return None
    if checksum != _sha256(tensors, identity):
        logger.warning("cache %s is damaged%s (wrong sha256) and is made again", path, "" if made_from else " or old")
        return None
    return tensors


def store_tensors(path: Path, tensors: Mapping[str, Tensor], *, identity: str) -> None:
    """Write ``tensors`` to ``path`` atomically, with a checksum; a folder that cannot be written to is only logged."""
    if path.is_relative_to(_NOWHERE):
        return
    # One entry only: safetensors writes several in random order.
    metadata = {_CHECKSUMS: f"{_sha256(tensors, identity)} {_sha256_of(identity)}"}
    try:
        write_bytes(path, safetensors.torch.save(dict(tensors), metadata=metadata))
    except OSError as error:
        logger.warning("cache %s cannot be written (%s): the next run prepares the data again", path, error)


def _sha256_of(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def _sha256(tensors: Mapping[str, Tensor], identity: str) -> str:
    """Return the sha256 (hex) over the identity and each tensor's name, dtype, shape and values."""
    digest = hashlib.sha256(f"{identity}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
