"""Writes that either happen completely or not at all: no reader ever meets half a file."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_PATTERN = ".*.tmp"
"""Glob of the temporary files that a killed process may leave behind; they can be deleted at any time."""

SECONDS_IN_USE = 24 * 3600
"""What is temporary and this old is of a process that was killed."""

# What file systems say that cannot flush files or folders, or let nobody look into a folder: the rename stands.
_NOT_FLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` that takes the place of ``path`` when the block succeeds.

    The caller writes and closes the temporary file inside the block. Missing parent folders are created. When the
    block raises, the temporary file is removed and ``path`` keeps what it held.

    Parameters
    ----------
    path : Path
        The file to create or to replace.

    Yields
    ------
    Path
        ``.<name>.<pid>-<random>.tmp``, not yet existing.

    Raises
    ------
    OSError
        When the folder cannot be created or written to, or the disk is full; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as problem:
        _remove(temporary)
        # People know the file by its own name; a write that finds the disk full has no name at all.
        if problem.filename is None or os.fspath(problem.filename) == str(temporary):
            problem.filename = str(path)
        raise
    except BaseException:
        _remove(temporary)
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened, and the rename is durable enough
        _flush_to_disk(path.parent)
    _remove_leftovers(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    r"""Write ``text`` to ``path`` atomically as UTF-8, newlines as they are (``\n`` on every system)."""
    # Names of files need not be UTF-8: a byte that is none is written as JSON and Python write it, \udce9.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def _remove(temporary: Path) -> None:
    """Remove the file if that is possible; where it is not, what went wrong before is what counts."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed processes left of this very file, judged by the file system's own clock."""
    with suppress(OSError):
        now = path.stat().st_mtime
        with os.scandir(path.parent) as entries:
            names = [e.name for e in entries if e.name.startswith(f".{path.name}.") and e.name.endswith(".tmp")]
        for leftover in (path.with_name(name) for name in names):
            if now - leftover.lstat().st_mtime > SECONDS_IN_USE:
                leftover.unlink()


def _flush_to_disk(path: Path) -> None:
    """Wait until the file (or the folder's list of names) is on disk, so that a power cut cannot undo the rename."""
    # Windows refuses to flush what is open for reading only; folders can be opened for nothing else.
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:
        if problem.errno not in _NOT_FLUSHED:
            raise
