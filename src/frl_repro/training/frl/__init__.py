"""Class-wise methods: what varies by class in training, and what it follows from. One file a method.

A method's file has a subclass of `Method` and, where it has settings of its own, a dataclass ``Settings``. Its name is
that of the file and of ``conf/frl/<name>.yaml``. See docs/new_method.md.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from frl_repro.basics.errors import UserError
from frl_repro.training.frl import given
from frl_repro.training.frl.method import ClassStats, ErrorRates, Method, Plan, Weights, When
from frl_repro.training.frl.policy import ClassPolicy, Rules

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig
    from frl_repro.settings.methods import MethodSettings

__all__ = [
    "ClassPolicy",
    "ClassStats",
    "ErrorRates",
    "Method",
    "Plan",
    "Rules",
    "Weights",
    "When",
    "method_class",
    "method_kind",
    "method_of",
]


def method_of(configs: Sequence[RunConfig], *, num_classes: int, device: torch.device) -> Method:
    """Return the method of runs that share all settings but those that each run may have for itself.

    Raises
    ------
    UserError
        There is no such method, or it does not fit the runs.
    """
    settings = configs[0].frl
    own: type[Method] | Method | None = getattr(settings, "given", None)  # `given.settings_of`
    if isinstance(own, Method):
        method = given.of_run(own, settings, num_classes=num_classes, device=device)
        method.objective = configs[0].objective
        return method
    return method_kind(settings).of_runs(configs, num_classes=num_classes, device=device)


def method_kind(settings: MethodSettings) -> type[Method]:
    """Return the class of the method that these settings are of: of a file in this folder, or given from Python."""
    own: type[Method] | Method | None = getattr(settings, "given", None)
    if own is None:
        return method_class(settings.name)
    return type(own) if isinstance(own, Method) else own


def method_class(name: str) -> type[Method]:
    """Return the method of a file in this folder.

    Raises
    ------
    UserError
        There is no such file, or it has no method.
    """
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as problem:
        if problem.name != f"{__name__}.{name}":
            raise
        raise UserError(f"unknown method {name!r}: there is no file {name}.py in {__name__}") from None
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if not own:
        raise UserError(f"{module.__name__} has no subclass of Method")
    found: type[Method] = own[-1]
    return found
