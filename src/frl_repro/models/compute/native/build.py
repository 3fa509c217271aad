"""Compile a C++ file with the machine's own compiler and keep the library in the user's cache folder.

A library runs as the user who loads it: it is kept in, and loaded from, no folder that someone else may write to.
"""

import ctypes
import errno
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from frl_repro.basics.atomic import SECONDS_IN_USE
from frl_repro.basics.paths import user_cache
from frl_repro.basics.progress import LOGGER

COMMON_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-ffp-contract=fast",  # a*b+c in one rounding
    "-fno-math-errno",
    "-fno-trapping-math",  # NaN and infinity keep their meaning: no -ffast-math
    "-Wno-psabi",  # vectors wider than the processor's are never passed between translation units
)
# Tried in this order: x86 and GCC everywhere; Clang on ARM; any compiler, plain SIMD.
PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())
COMPILERS = ("g++", "clang++", "c++")
BUILD_TIMEOUT = 300  # seconds
ROOM_FOR_A_BUILD = 8 * 2**20  # bytes that must be free for it: several times what library and temporary files take
_BUILD_PREFIX = "build-"
_UNMAPPED_USER = 65534  # whom a container shows as the owner of its machine's folders, root among them


class NativeUnavailable(RuntimeError):  # noqa: N818 - a state of the machine rather than a mistake
    """The native backend cannot be used on this machine; the message says why in one line."""


def cache_folder() -> Path:
    """Return the folder of compiled libraries: `$XDG_CACHE_HOME` or `~/.cache`, then `frl_repro/native`.

    Raises
    ------
    NativeUnavailable
        The user has no home folder.
    """
    base = user_cache()
    if base is None:
        raise NativeUnavailable("no home folder to keep the compiled library in: give XDG_CACHE_HOME=FOLDER")
    return base / "frl_repro" / "native"


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: `$CXX` if set, else the first of g++, clang++ and c++ that is there.

    Raises
    ------
    NativeUnavailable
        If there is none.
    """
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        try:
            command = shlex.split(chosen)
        except ValueError as error:
            raise NativeUnavailable(f"CXX={chosen} cannot be read as a command ({error})") from error
        if not command or shutil.which(command[0]) is None:
            raise NativeUnavailable(f"the C++ compiler named by CXX was not found: {chosen}")
        return command
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise NativeUnavailable(f"no C++ compiler found (looked for $CXX, {', '.join(COMPILERS)})")


def load(source: Path, *, extra_flags: Sequence[str] = (), before_build: str | None = None) -> ctypes.CDLL:
    """Return the library compiled from `source`, from the cache when an intact copy of the user's own is there.

    The file's name holds a key (source, compiler, flags, processor, torch) and the digest of its own content, so a
    damaged copy is recognised and replaced, and processes that build at the same time never overwrite each other's
    file with a different one. Where others may write to the cache folder, one logged line says so and the library is
    built in a folder of this process alone.

    Parameters
    ----------
    source
        C++ file without dependencies beyond the standard library.
    extra_flags
        Flags after the usual ones (used by tests to build for other processors).
    before_build
        What is said in one logged line where the library is not there and is built: that takes seconds.

    Raises
    ------
    NativeUnavailable
        If there is no compiler, the build fails, or the result cannot be stored or loaded.
    """
    compiler = find_compiler()
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stem = f"{source.stem}-{_key(source, compiler, extra_flags)}"
        found = _open_to_others(folder)
        if found is not None:
            LOGGER.info(
                "%s may be written to by others: the compiled library is neither kept nor loaded there, which costs a "
                "build at each start (chmod go-w %s, or give XDG_CACHE_HOME=FOLDER)", found, found,
            )  # fmt: skip
            with tempfile.TemporaryDirectory(prefix="frl_repro-") as private:  # what is loaded needs no file any more
                _say(before_build)
                return ctypes.CDLL(str(_compile(source, compiler, extra_flags, Path(private), stem)))
        path = _intact_copy(folder, stem)
        if path is None:
            _say(before_build)
            path = _compile(source, compiler, extra_flags, folder, stem)
        return ctypes.CDLL(str(path))
    except OSError as error:
        reason = _first_line(str(error))
        raise NativeUnavailable(f"the compiled library cannot be stored or loaded: {reason}") from error


def _say(message: str | None) -> None:
    if message is not None:
        LOGGER.info("%s", message)


def _key(source: Path, compiler: list[str], extra_flags: Sequence[str]) -> str:
    try:
        torch_version = version("torch")
    except PackageNotFoundError:  # a torch that was not installed as a package
        torch_version = "unknown"
    answer = _run([*compiler, "--version"]).stdout
    parts = (
        source.read_text(encoding="utf-8"),
        " ".join(compiler),
        _first_line(answer),
        repr((COMMON_FLAGS, PROCESSOR_FLAGS, tuple(extra_flags))),
        _processor(),
        torch_version,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return model and instruction sets of the processor: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    found = {line.split(":")[0].strip(): line for line in reversed(lines) if line.startswith(wanted)}
    return "\n".join(found[name] for name in sorted(found)) or f"{platform.machine()} {platform.processor()}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _intact_copy(folder: Path, stem: str) -> Path | None:
    for path in sorted(folder.glob(f"{stem}-*.so")):
        is_own = stat.S_ISREG(path.lstat().st_mode) and not _others_may_write(path)
        if is_own and path.stem.removeprefix(f"{stem}-") == _digest(path):
            return path
        path.unlink(missing_ok=True)
    return None


def _open_to_others(folder: Path) -> Path | None:
    """Return the first of a folder and those it lies in that other users may change; None where there is none."""
    resolved = folder.resolve()
    return next((path for path in (resolved, *resolved.parents) if _others_may_write(path)), None)


def _others_may_write(path: Path) -> bool:
    """Return whether users besides this one and root may put something in the place of a file, or of a folder's."""
    if os.name != "posix":
        return False
    status = path.stat()
    is_folder = stat.S_ISDIR(status.st_mode)
    if status.st_uid not in (os.getuid(), 0, *((_UNMAPPED_USER,) if is_folder else ())):
        return True
    if is_folder and status.st_mode & stat.S_ISVTX:  # as /tmp: each file is its owner's alone
        return False
    # Where every user has a group of his own, as on most systems, its members are no others.
    is_groups = bool(status.st_mode & stat.S_IWGRP) and status.st_gid not in (os.getgid(), 0)
    return is_groups or bool(status.st_mode & stat.S_IWOTH)


def _remove_leftovers(new: Path) -> None:
    """Remove what killed builds have left beside a new one, judged by the file system's own clock."""
    for path in new.parent.glob(f"{_BUILD_PREFIX}*"):
        with suppress(OSError):  # another process removes it
            if new.stat().st_mtime - path.lstat().st_mtime > SECONDS_IN_USE:
                shutil.rmtree(path)


def _compile(source: Path, compiler: list[str], extra_flags: Sequence[str], folder: Path, stem: str) -> Path:
    reason = ""
    with tempfile.TemporaryDirectory(dir=folder, prefix=_BUILD_PREFIX) as temporary:
        _remove_leftovers(Path(temporary))
        output = Path(temporary) / "library.so"
        output.write_bytes(bytes(ROOM_FOR_A_BUILD))  # a full disk is told here, not by each of three compilations
        output.unlink()
        for processor_flags in PROCESSOR_FLAGS:
            flags = (*COMMON_FLAGS, *processor_flags, *extra_flags)
            result = _run([*compiler, *flags, str(source), "-o", str(output)], temporary=temporary)
            if result.returncode == 0 and output.is_file():
                final = folder / f"{stem}-{_digest(output)}.so"
                os.replace(output, final)  # noqa: PTH105 - atomic by contract, also over an existing file
                return final
            reason = reason or _first_error(result.stderr) or f"exit status {result.returncode}"
            if os.strerror(errno.ENOSPC) in result.stderr:
                break
    raise NativeUnavailable(f"the build with {' '.join(compiler)} failed: {reason}")


def _run(command: list[str], *, temporary: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"} | ({} if temporary is None else {"TMPDIR": temporary})
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{command[0]} did not finish within {BUILD_TIMEOUT} s") from error


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _first_error(stderr: str) -> str:
    lines = stderr.splitlines()
    return _first_line("\n".join(line for line in lines if "error" in line.lower())) or _first_line(stderr)
