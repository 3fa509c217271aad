"""Class-wise methods: what varies by class in training, and what it follows from. One file a method.

A method's file has a subclass of `Method` and, where it has settings of its own, a dataclass ``Settings``. Its name is
that of the file and of ``conf/frl/<name>.yaml``. See docs/new_method.md.
"""

from __future__ import annotations

import importlib
import inspect

from frl_repro.basics.errors import UserError
from frl_repro.training.frl.method import ClassStats, ErrorRates, Method, Plan, Weights, When
from frl_repro.training.frl.policy import ClassPolicy, Rules

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
]


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
