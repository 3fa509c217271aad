"""Atomic writes: a reader sees the old file or the new one, never part of it."""

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
_kept: dict[Path, int | None] = {}
"""Folders of `kept_in_place`, open; None where the system opens no folder."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` that takes the place of ``path`` when the block succeeds.

    The caller writes and closes the temporary file inside the block. Missing parent folders are created, except that of
    :func:`kept_in_place`. When the block raises, the temporary file is removed and ``path`` keeps what it held.

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
    if path.parent in _kept:
        check_in_place(path.parent)  # and never create the folder again
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as problem:
        _remove(temporary)
        if path.parent in _kept:
            check_in_place(path.parent)
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


@contextmanager
def kept_in_place(folder: Path) -> Iterator[None]:
    """Let files be written into a folder for only as long as it is the one that it is now.

    What writes into a folder for hours may find it moved, deleted, or another one in its place. Inside, writes by
    :func:`replacing` then raise an error that says so, and the folder is not made anew.

    Raises
    ------
    OSError
        There is no such folder.
    """
    # Kept open: the inode number of an open folder is not reused, also on file systems in user space.
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    _kept[folder] = descriptor
    try:
        yield
    finally:
        del _kept[folder]
        if descriptor is not None:
            os.close(descriptor)


def check_in_place(folder: Path) -> None:
    """Raise a FileNotFoundError where a folder of `kept_in_place` is no longer the one that it was."""
    descriptor = _kept[folder]
    try:
        is_in_place = descriptor is None or os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        is_in_place = False
    if not is_in_place:
        raise FileNotFoundError(
            errno.ENOENT,
            "the folder was moved, deleted or replaced while the run worked in it: nothing more is written; repeat the "
            "command, with run_dir=FOLDER where the folder has moved to",
            str(folder),
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    r"""Write ``text`` to ``path`` atomically as UTF-8, newlines as they are (``\n`` on every system)."""
    # Names of files need not be UTF-8: a byte that is none is written as JSON and Python write it, \udce9.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def _remove(temporary: Path) -> None:
    """Remove the file if possible; a failure here must not hide the error before it."""
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
