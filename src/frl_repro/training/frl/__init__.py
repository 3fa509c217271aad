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
from torch import Tensor

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
    "kind_of",
    "method_class",
    "method_of",
]


def method_of(configs: Sequence[RunConfig], *, class_counts: Tensor, device: torch.device) -> Method:
    """Return the method of runs that share all settings but those that each run may have for itself.

    ``class_counts``, shape (K,), are the training images of each class.

    Raises
    ------
    UserError
        There is no such method, or it does not fit the runs.
    """
    settings = configs[0].frl
    own: type[Method] | Method | None = getattr(settings, "given", None)  # `given.settings_of`
    if isinstance(own, Method):
        return given.of_run(own, configs[0], class_counts=class_counts, device=device)
    return kind_of(settings).of_runs(configs, class_counts=class_counts, device=device)


def kind_of(settings: MethodSettings) -> type[Method]:
    """Return the class of the method that has these settings."""
    own: type[Method] | Method | None = getattr(settings, "given", None)
    if own is None:
        return method_class(settings.name)
    return own if isinstance(own, type) else type(own)


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
