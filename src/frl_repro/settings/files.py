"""What the files of ``conf/`` say, read without Hydra: for help and messages, not for runs. Imports nothing slow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_PLACED = re.compile(r"/(?P<file>[\w/]+)(@(?P<place>[\w.]+))?")


def settings_in(path: Path, config_dir: Path) -> dict[str, str]:
    """Return the settings of a file and of those that its defaults list takes in: dotted key to value as it is written.

    Parameters
    ----------
    path : Path
    config_dir : Path
        The folder ``conf``.

    Returns
    -------
    dict of str to str
        Later ones count, as in Hydra. Nothing of a file that is no YAML: whoever uses it says what is wrong with it.
    """
    try:
        node = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # every value as a text
    except yaml.YAMLError:
        return {}
    if not isinstance(node, dict):
        return {}
    defaults = node.pop("defaults", [])
    found: dict[str, str] = {}
    for file, place in _taken_in(defaults):
        inner = settings_in(config_dir / f"{file}.yaml", config_dir)
        found |= {f"{place}{key}": value for key, value in inner.items()}
    return found | {key: _text(value) for key, value in _leaves(node)}


def _taken_in(defaults: Any) -> Iterator[tuple[str, str]]:
    """Yield files, without suffix, and the places that a defaults list puts their settings in."""
    for entry in defaults:
        named = entry if isinstance(entry, str) else next(iter(entry))
        placed = _PLACED.fullmatch(named)
        # Others are choices of groups, which have settings of their own, or what a method trains like.
        if placed is not None and placed["place"] != "_global_":
            file = placed["file"] if isinstance(entry, str) else f"{placed['file']}/{entry[named]}"
            yield file, f"{placed['place']}." if placed["place"] else ""


def trained_like(path: Path) -> list[str]:
    """Return whose settings of each recipe a method's file of ``conf/frl`` takes in: ``finetune`` for most."""
    return re.findall(r"^ *- /retrain@_global_: *\$\{recipe\}/(\w+)", path.read_text(encoding="utf-8"), flags=re.M)


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def headline(path: Path) -> str:
    """Return the first comment of a file; empty where someone's own file has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and "@package" not in line), "")
