"""Read regular files alone: reading a named pipe or a device could block for ever."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def check_regular(path: Path) -> None:
    """Refuse what exists and is neither a file nor a folder.

    Raises
    ------
    OSError
        It is a named pipe, a device or a socket; or it cannot be looked at.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "is no file but a pipe or a device: remove it", str(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's content.

    Raises
    ------
    OSError
        It cannot be read, or is no file.
    """
    check_regular(path)
    return path.read_bytes()
