"""Standard input, output and error that stop no work: closed, with a reader that has gone, or of a narrow encoding.

A shell may start a program without them (``>&-``), a reader may go away in the middle (``| head -1``), a disk that they
are sent to may be full, and their encoding may lack the characters of a path or of a class name. What people see of a
run is worth less than the run: what cannot be written is dropped, and what cannot be encoded is shown by its code.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")  # by descriptor


class _Lasting(io.FileIO):
    """A stream that never fails: after the first failure, further output is dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.problem: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write what the stream takes; return how many bytes that are."""
        if self.problem is None:
            try:
                return super().write(data)
            except OSError as problem:
                self.problem = problem
        return memoryview(data).nbytes


def set_up() -> None:
    """Guard the interpreter's own streams; streams that a caller has put in their place are left alone."""
    if os.name == "posix":
        for descriptor in range(len(_NAMES)):
            _open_where_closed(descriptor)
    for descriptor, name in enumerate(_NAMES):
        stream = getattr(sys, name)
        if name == "stdin":
            continue
        if stream is None:  # closed when the interpreter started
            setattr(sys, name, _text(_Lasting(descriptor)))
        elif type(stream) is io.TextIOWrapper and _is_descriptor(stream, descriptor):
            stream.reconfigure(errors="backslashreplace")
            if os.name == "posix" and not isinstance(_raw(stream), _Lasting):  # Windows' console is no file
                with suppress(OSError):
                    stream.flush()
                setattr(sys, name, _text(_Lasting(descriptor), like=stream))


def problem() -> str | None:
    """Return why standard output failed; None where it works, or where its reader has closed it."""
    raw = _raw(sys.stdout)
    found = raw.problem if isinstance(raw, _Lasting) else None
    if found is None or found.errno == errno.EPIPE:
        return None
    return f"standard output: {found.strerror}"


def reader_has_left() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    with suppress(OSError, ValueError, AttributeError):  # of memory, closed, or on Windows
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    return False


def _open_where_closed(descriptor: int) -> None:
    """Open a closed descriptor on nothing: else the next file that is opened takes it, and what is printed with it."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened == descriptor:
            os.set_inheritable(opened, True)
        else:
            os.dup2(opened, descriptor)
            os.close(opened)


def _is_descriptor(stream: io.TextIOWrapper, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):  # of memory, or closed
        return False


def _raw(stream: object) -> object:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _text(raw: _Lasting, *, like: io.TextIOWrapper | None = None) -> io.TextIOWrapper:
    is_direct = like is not None and like.write_through  # python -u
    return io.TextIOWrapper(
        raw if is_direct else io.BufferedWriter(raw),
        encoding="utf-8" if like is None else like.encoding,
        errors="backslashreplace",
        newline="\n",
        line_buffering=like is not None and like.line_buffering,
        write_through=is_direct,
    )
