"""Keyword arguments as the settings of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from frl_repro.api.models import device_of
from frl_repro.basics.errors import UserError
from frl_repro.models.identity import network_record
from frl_repro.settings.checks import check
from frl_repro.settings.config import RunConfig
from frl_repro.settings.schema import GROUPS, OwnDatasetConfig, OwnModelConfig
from frl_repro.training.frl import given as given_methods

_SAID_OTHERWISE = {
    "model": "give the model itself",
    "frl": "give method=",
    "dataset": "give the data themselves",
    "init_from": "training starts from the model that is given",
    "init_from_key": "training starts from the model that is given",
    "output_dir": "give folder=",
    "run_dir": "give folder=",
    "base_dir": "training starts from the model that is given",
    "experiment": "give its settings",
    "row": "give its settings",
    "sweep": "call train for each setting",
    "schedule": "give its settings",
}


def configured(model: nn.Module, method: Any, share: float | None, settings: Mapping[str, Any]) -> RunConfig:
    """Return the run's settings, checked as those of a command line are; the data's digest is still to come."""
    from frl_repro.commands.jobs import configure  # noqa: PLC0415 (Hydra is slow to import)

    leaves = leaves_of(settings)
    for key in leaves:
        if key in _SAID_OTHERWISE:
            raise UserError(f"{key}= has no effect in frl_repro.train: {_SAID_OTHERWISE[key]}")
    if share is not None:
        if "dataset.validation_fraction" in leaves:
            raise UserError("give validation= or dataset.validation_fraction, not both")
        leaves["dataset.validation_fraction"] = share
    leaves.setdefault("device", device_of(model).type if device_of(model).index is None else str(device_of(model)))
    is_object = not isinstance(method, str)
    # A method of one's own takes the loss, the attack and the steps of the control, as one in a file does; a variant of
    # one of FRL's family takes all of that one's settings.
    chosen = (given_methods.family_of(method) or "finetune") if is_object else method
    has_keys = is_object and chosen == "finetune"
    own = {key.removeprefix("frl."): leaves.pop(key) for key in list(leaves) if key.startswith("frl.") and has_keys}
    if not is_object and method not in GROUPS["frl"]:
        raise UserError(f"method={method}: unknown; known: {', '.join(GROUPS['frl'])}, or a subclass of Method")
    config = configure(f"frl={chosen}", *(f"{key}={_typed(value)}" for key, value in leaves.items()))
    if config.retrain is not None:
        for key in leaves:
            if key.split(".")[0] in ("trainer", "attack"):
                raise UserError(f"{key}= has no effect when a model is retrained: give retrain.{key}")
    shared = {f.name for f in fields(OwnDatasetConfig)} & vars(config.dataset).keys()
    data = {key: value for key, value in vars(config.dataset).items() if key in shared}
    kind = type(model)
    config = replace(
        config,
        model=OwnModelConfig(
            name=_word(kind.__name__),
            factory=f"{kind.__module__}:{kind.__qualname__}",
            settings={},
            digest=network_record(model)["sha256"],
        ),
        dataset=OwnDatasetConfig(**{**data, "name": "own", "num_train": None, "num_test": None, "settings": {}}),
        frl=given_methods.settings_of(method, own, parsed=config.frl) if is_object else config.frl,
    )
    check(config)
    return config


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", text)[:40]


def leaves_of(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted key, choices of groups first: ``{"attack": {"name": "fgsm"}}`` chooses attack=fgsm."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            inner = dict(value)
            if "name" in inner:
                found[key] = inner.pop("name")
            found |= leaves_of(inner, f"{key}.")
        else:
            found[key] = value
    return dict(sorted(found.items(), key=lambda item: "." in item[0]))


def _typed(value: Any) -> str:
    """Return a value as it would be typed on a command line."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    text = str(value)
    if re.fullmatch(r"[\w/.-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
