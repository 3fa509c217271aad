"""Whether processes that share a run agree: facts about each process, and where two differ.

Needs no torch: the process that hands out the jobs of a sweep asks as well.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import frl_repro

_PACKAGES = ("torch", "numpy")  # those that compute
_CODE = (".py", ".hpp")
_NUM_DIGITS = 12  # of a sha256 that people compare by eye
_LONGEST_VALUE = 200  # characters of a value in a message


def code() -> dict[str, str]:
    """Return what decides which numbers this process computes from given settings and data.

    The program is known by what its files hold. A commit would not tell of files changed since, and would tell
    installations apart that are the same.
    """
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "frl_repro": f"{frl_repro.__version__} ({_digest_of_code()})",
        "python": platform.python_version(),
        **versions,
    }


def flat(settings: Mapping[str, Any], *, without: Sequence[str] = ()) -> dict[str, str]:
    """Return nested settings as text by dotted keys, without some of them."""
    found: dict[str, str] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, Mapping):
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else str(name))
        elif key not in without:
            found[key] = str(node)

    walk(settings, "")
    return found


def difference(first: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """Return where ``other`` differs from ``first``, as text; None where they agree."""
    for name in dict.fromkeys([*first, *other]):
        if first.get(name) != other.get(name):
            there, here = (_short(facts.get(name)) for facts in (other, first))
            return f"{name} is {there} there and {here} here"
    return None


def _short(value: str | None) -> str:
    if value is None:
        return "missing"
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


@functools.cache  # read once: the files of a checkout may change while a long sweep runs
def _digest_of_code() -> str:
    digest = hashlib.sha256()
    package = Path(frl_repro.__file__).parent
    for path in sorted(path for path in package.rglob("*") if path.suffix in _CODE):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:_NUM_DIGITS]
