"""Compile a C++ file with the machine's own compiler and keep the library in the user's cache folder."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


class NativeUnavailable(RuntimeError):  # noqa: N818 - a state of the machine rather than a mistake
    """The native backend cannot be used on this machine; the message says why in one line."""


def cache_folder() -> Path:
    """Return the folder of compiled libraries: `$XDG_CACHE_HOME` or `~/.cache`, then `frl_repro/native`."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "frl_repro" / "native"
    except RuntimeError as error:  # no home folder
        raise NativeUnavailable(f"no cache folder for the compiled library: {error}") from error


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: `$CXX` if set, else the first of g++, clang++ and c++ that is there.

    Raises
    ------
    NativeUnavailable
        If there is none.
    """
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]) is None:
            raise NativeUnavailable(f"the C++ compiler named by CXX was not found: {chosen}")
        return command
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise NativeUnavailable(f"no C++ compiler found (looked for $CXX, {', '.join(COMPILERS)})")


def load(source: Path, *, extra_flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Return the library compiled from `source`, from the cache when an intact copy is there.

    The file's name holds a key (source, compiler, flags, processor, torch) and the digest of its own content, so a
    damaged copy is recognised and replaced, and processes that build at the same time never overwrite each other's
    file with a different one.

    Parameters
    ----------
    source
        C++ file without dependencies beyond the standard library.
    extra_flags
        Flags after the usual ones (used by tests to build for other processors).

    Raises
    ------
    NativeUnavailable
        If there is no compiler, the build fails, or the result cannot be stored or loaded.
    """
    compiler = find_compiler()
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{source.stem}-{_key(source, compiler, extra_flags)}"
        path = _intact_copy(folder, stem) or _compile(source, compiler, extra_flags, folder, stem)
        return ctypes.CDLL(str(path))
    except OSError as error:
        reason = _first_line(str(error))
        raise NativeUnavailable(f"the compiled library cannot be stored or loaded: {reason}") from error


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
        if path.stem.removeprefix(f"{stem}-") == _digest(path):
            return path
        path.unlink(missing_ok=True)
    return None


def _compile(source: Path, compiler: list[str], extra_flags: Sequence[str], folder: Path, stem: str) -> Path:
    reason = ""
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as temporary:
        output = Path(temporary) / "library.so"
        for processor_flags in PROCESSOR_FLAGS:
            flags = (*COMMON_FLAGS, *processor_flags, *extra_flags)
            result = _run([*compiler, *flags, str(source), "-o", str(output)])
            if result.returncode == 0 and output.is_file():
                final = folder / f"{stem}-{_digest(output)}.so"
                os.replace(output, final)  # noqa: PTH105 - atomic by contract, also over an existing file
                return final
            reason = reason or _first_error(result.stderr) or f"exit status {result.returncode}"
    raise NativeUnavailable(f"the build with {' '.join(compiler)} failed: {reason}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
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
