"""What makes a run the run it is: settings that count, the hash over them, and what runs share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from frl_repro.settings.keys import IN_EVERY_HASH, about

if TYPE_CHECKING:
    from frl_repro.settings.config import Config, RunConfig

_PER_RUN = re.compile(
    r"seed|init_from(_key)?|evaluation\..*|(retrain\.)?trainer\.(?!(batch_size|num_accumulation|precision)$).*"
)
_SHARED_MACHINE = ("device", "backend", "num_threads", "compile")


def digest(config: Config) -> str:
    """Return eight hexadecimal digits of the sha256 of every setting that is not a machine setting.

    Settings that came later count only where they differ from what was done before there were them.
    """
    canonical = json.dumps(science(config), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def science(node: Any) -> dict[str, Any]:
    """Return the settings that are not machine settings, as plain containers.

    Settings that came later are left out where they say what was done before there were them.
    """
    values = {
        f.name: getattr(node, f.name)
        for f in dataclasses.fields(node)
        if not about(f).is_machine and getattr(node, f.name) != about(f).added_as
    }
    return {name: science(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()}


def added_values(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return by dotted key the values of the settings that came later, but for how a model is measured."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(node):
        value, name = getattr(node, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value) and item.name != "evaluation":
            values |= added_values(value, f"{name}.")
        elif about(item).added_as is not IN_EVERY_HASH:
            values[name] = value
    return values


def dotted(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        leaves |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def shared(config: RunConfig) -> dict[str, str]:
    """Return what runs must have in common to be fused: settings by dotted key, as text.

    Left out are settings that each run can have for itself: seed, learning rate, numbers of methods (``is_per_run``),
    how its result is measured. Of
    alphas and taus only their being there counts.
    """
    settings = science(config)
    settings |= settings.pop("keys")
    own = {f"frl.{f.name}" for f in dataclasses.fields(config.frl) if about(f).is_per_run}
    settings |= {name: vars(config.keys)[name] for name in _SHARED_MACHINE}
    return {
        key: str(value is not None if key.startswith(("alpha.", "tau.")) else value)
        for key, value in dotted(settings).items()
        if _PER_RUN.fullmatch(key) is None and key not in own
    }


def is_trained_like(config: RunConfig, recorded: Mapping[str, Any]) -> bool:
    """Return whether a recorded configuration (``run.json``) trains the same model; how it is measured may differ.

    Settings that the record lacks came later: it stands for what was done before there were them.
    """
    own = dotted(science(config))
    theirs = dotted({**recorded, "keys": recorded})
    return all(
        key in theirs and theirs[key] == value for key, value in own.items() if not key.startswith("evaluation.")
    ) and all(theirs.get(key, value) == value for key, value in added_values(config).items())
