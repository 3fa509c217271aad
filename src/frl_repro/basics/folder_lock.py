"""One process at a time works in a folder: a lock for the processes of this machine, a lease for those of others.

While a process works in a folder, ``lock.json`` is there and says who: machine, process, and a count that goes on every
few seconds. The process also holds the system's lock (`flock`) on that file, which goes with it however it ends, so
that the next one on the machine starts at once. Whether other machines see that lock depends on the file system (a
table in ``docs/reliability.md``), and none says so: from another machine, a count that stands still is what tells.

Needs neither torch nor pandas: what only looks at folders answers at once.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from frl_repro.basics.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock.json"
"""There while a process works in the folder; one that was killed leaves it behind."""

RENEWED_EVERY = 10.0
"""Seconds between two renewals of a lease."""

SILENCE = 60.0
"""Seconds without a renewal after which a process of another machine counts as ended."""

_SETTLED_AFTER = 2.0  # seconds in which machines that take over at the same time have seen each other's lease
_SECONDS_BETWEEN_LOOKS = 0.2
# A look at the lock (`is_held`) takes it for microseconds: who is refused asks again this often and this much later.
_NUM_TRIES, _SECONDS_BETWEEN = 5, 0.02
_RECORD_SIZE = 512  # bytes: of one size, a record is replaced by one write

_OURS: set[str] = set()  # ids of this process's leases
_TOLD: dict[str, dict[str, float]] = {}  # what leases of this process say of its work, by folder

_Verdict = Literal["free", "held", "unknown"]


@contextmanager
def held(folder: Path, *, wait: bool, log: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Hold the folder for this process, against others of this machine and of all that see the folder.

    Parameters
    ----------
    folder : Path
    wait : bool
        Wait for another process, instead of refusing.
    log : callable
        Takes a message for people.

    Raises
    ------
    UserError
        Another process works in the folder, and ``wait`` is false.
    """
    if fcntl is None:
        yield
        return
    lease = _take(folder / LOCK_FILE, wait=wait, log=log)
    try:
        yield
    finally:
        lease.release()


def tell(folder: Path, **about: float) -> None:
    """Let the lease of a folder that this process holds say a few numbers about its work, from the next renewal on."""
    _TOLD[str(folder)] = about


def told(folder: Path) -> dict[str, float]:
    """Return the numbers that the process says which works in a folder (`tell`), and how old they are as ``age``."""
    path = folder / LOCK_FILE
    about = (_read(path) or {}).get("about")
    if not isinstance(about, dict) or not all(type(number) in (int, float) for number in about.values()):
        return {}
    try:
        return {**about, "age": max(0.0, time.time() - path.stat().st_mtime)}
    except OSError:  # just released
        return {}


def check_held(folder: Path) -> None:
    """Refuse to write into a folder that another process has taken over since; see `held`.

    It does so where this process stood still for longer than `SILENCE`: its machine slept, or it was stopped.

    Raises
    ------
    UserError
        Naming the other process.
    """
    record = _read(folder / LOCK_FILE)
    if record is not None and record.get("id") not in _OURS:
        raise UserError(
            f"{folder}: {_who(record)} has taken this run over, for nothing was heard of this process for {SILENCE:.0f}"
            " s: it is left to that one"
        )


def is_held(folder: Path) -> bool:
    """Return whether a process holds the folder (`held`); answers at once.

    Of a process of another machine, by the clock: it is wrong where clocks differ by more than `SILENCE`.
    """
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows has no such file: see `held`
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    record = _read(path)
    if record is None or record.get("machine") == _machine():
        return record is not None and _is_alive(record)
    with suppress(OSError):
        return time.time() - path.stat().st_mtime < SILENCE
    return False


def remove_leftover(folder: Path) -> None:
    """Remove the lock file that a killed process of this machine has left behind; do nothing while one works there."""
    record = _read(folder / LOCK_FILE)
    if record is not None and record.get("machine") == _machine() and not _is_alive(record):
        with suppress(UserError, OSError), held(folder, wait=False):
            pass  # taken and given back: the file goes with it


@dataclass
class _Watch:
    """Another process's lease as last read: its record, and since when that is unchanged."""

    record: dict[str, Any] | None = None
    since: float = field(default_factory=time.monotonic)
    has_changed: bool = False

    def verdict(self, record: dict[str, Any] | None, *, is_locked: bool) -> _Verdict:
        """Return whether the folder is free for who has found this record.

        Parameters
        ----------
        record : dict or None
            None: there is none that can be read, as while another process writes its first one.
        is_locked : bool
            Whether the lock is held by who asks.
        """
        if record is not None and record.get("machine") == _machine():
            is_left_by_us = record.get("pid") == os.getpid() and (is_locked or record["id"] not in _OURS)
            return "free" if is_left_by_us or not _is_alive(record) else "held"
        if record != self.record:
            self.has_changed = self.record is not None
            self.record, self.since = record, time.monotonic()
        if time.monotonic() - self.since >= SILENCE:
            return "free"
        return "held" if self.has_changed else "unknown"


def _take(path: Path, *, wait: bool, log: Callable[[str], object]) -> _Lease:
    """Return the lease of a folder, once it is free; see `held`."""
    watch = _Watch()
    told: set[str] = set()

    def tell(message: str) -> None:
        if message not in told:
            log(message)
            told.add(message)

    while True:
        lease, verdict, is_seen = _try(path, watch, tell)
        if lease is not None:
            return lease
        record = _read(path)
        who = _who(record)
        if verdict == "held":
            unseen = "" if is_seen else f"; this file system hides its lock from here, {LOCK_FILE} does not"
            if not wait:
                raise UserError(f"{path.parent}: another process is working on this run ({who}{unseen})")
            tell(f"waiting for another process that trains {path.parent} ({who}{unseen})")
        elif record is not None:
            tell(f"{path.parent}: {who} has worked on this run; waiting up to {SILENCE:.0f} s for a sign of it")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _try(path: Path, watch: _Watch, tell: Callable[[str], None]) -> tuple[_Lease | None, _Verdict, bool]:
    """Return the lease if the folder is free; else what its record says, and whether its lock is visible."""
    lease = _Lease(path)
    is_new = lease.create()
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # just released
        return None, "unknown", True
    is_ours = False
    try:
        try:
            if not _locked(descriptor):
                return None, "held", True
            is_locked = True
        except OSError as problem:
            is_locked = False
            tell(
                f"{path.parent}: this file system has no locks ({problem.strerror}); {LOCK_FILE} keeps other processes "
                f"out. A run that is killed is free for other machines {SILENCE:.0f} s later"
            )
        # Another process has released and created it again: it is not the file that was opened.
        if not _is_at(descriptor, path):
            return None, "unknown", True
        if not is_new:
            found = _read(path)
            verdict = watch.verdict(found, is_locked=is_locked)
            if verdict != "free":
                return None, verdict, False
            lease.write(descriptor)
            is_certain = is_locked and found is not None and found.get("machine") == _machine()
            if not is_certain:  # machines that do not see each other's lock may have come to the same verdict
                time.sleep(_SETTLED_AFTER)
            if not lease.is_current():
                return None, "held", False
        is_ours = True
        lease.keep(descriptor)
        return lease, "free", True
    finally:
        if not is_ours:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    for attempt in range(_NUM_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < _NUM_TRIES - 1:
                time.sleep(_SECONDS_BETWEEN)
        else:
            return True
    return False


class _Lease:
    """This process's lease: its record in the folder's `LOCK_FILE`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._record: dict[str, Any] = {
            "host": platform.node()[:64], "pid": os.getpid(), "started": _start_of(os.getpid()), "machine": _machine(),
            "id": secrets.token_hex(8), "count": 0,
        }  # fmt: skip
        self._ended = threading.Event()
        self._descriptor = -1
        self._renewal = threading.Thread(target=self._renew, name=f"lease of {path.parent.name}", daemon=True)

    def create(self) -> bool:
        """Write the record where there is none yet, which of several processes one can; return whether it was this."""
        if self._path.exists():
            return False
        draft = self._path.with_name(f".{LOCK_FILE}.{self._record['id']}.tmp")
        try:
            draft.write_bytes(self._bytes())
            os.link(draft, self._path)
        except FileExistsError:
            return False
        except OSError:  # no links: then others may see an empty file for a moment
            try:
                with self._path.open("xb") as file:
                    file.write(self._bytes())
            except FileExistsError:
                return False
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        _OURS.add(self._record["id"])
        return True

    def write(self, descriptor: int) -> None:
        """Replace the record, in one write."""
        _OURS.add(self._record["id"])
        os.pwrite(descriptor, self._bytes(), 0)
        os.ftruncate(descriptor, _RECORD_SIZE)  # of a damaged file there may be more
        os.fsync(descriptor)

    def is_current(self) -> bool:
        """Return whether the folder still has this lease."""
        record = _read(self._path)
        return record is not None and record.get("id") == self._record["id"]

    def keep(self, descriptor: int) -> None:
        """Renew it from now on."""
        self._descriptor = descriptor
        self._renewal.start()

    def release(self) -> None:
        """Release the folder."""
        self._ended.set()
        self._renewal.join()
        with suppress(OSError):  # the folder has gone
            if self.is_current():
                self._path.unlink()
        _TOLD.pop(str(self._path.parent), None)
        os.close(self._descriptor)
        _OURS.discard(self._record["id"])

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            with suppress(OSError):  # a file server that is away may come back
                if _read(self._path) is not None and not self.is_current():
                    return  # taken over: `check_held` says so
                self._record["count"] += 1
                self._record["about"] = _TOLD.get(str(self._path.parent), {})
                self.write(self._descriptor)

    def _bytes(self) -> bytes:
        return json.dumps(self._record).encode().ljust(_RECORD_SIZE - 1) + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes()[: 2 * _RECORD_SIZE])
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str) else None


def _who(record: dict[str, Any] | None) -> str:
    return "one that has just begun" if record is None else f"process {record.get('pid')} of {record.get('host')}"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@functools.cache
def _machine() -> str:
    """Return what tells machines apart, and containers of one machine: process numbers mean nothing between them."""
    parts = []
    with suppress(OSError):  # Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts) or platform.node()


def _is_alive(record: dict[str, Any]) -> bool:
    """Return whether the process that wrote a record on this machine still runs."""
    pid = record.get("pid")
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    return _start_of(pid) == record.get("started")  # else its number has been given to another one


def _start_of(pid: int) -> str | None:
    """Return when a process started, in the system's ticks; None where the system does not say."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return None
    return after_name.split()[19]
