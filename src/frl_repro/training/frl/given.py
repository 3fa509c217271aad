"""Methods as objects: a class or an object of `Method` that no file of this folder holds."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.settings.keys import key
from frl_repro.settings.methods import FRLConfig, MethodSettings, ValidationSettings, is_of_family
from frl_repro.settings.parse import node
from frl_repro.training.frl.method import Method

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig

_OF_EVERY_METHOD = ("shape", "device", "state", "objective", "beta", "class_counts", "settings", "_of_each")


def family_of(method: Any) -> str | None:
    """Return the method of FRL's family that a class derives from, say ``reweight``; None for another method.

    Raises
    ------
    UserError
        An object of such a class: its numbers are settings of a run (alpha, tau), which only the class takes.
    """
    kind = method if inspect.isclass(method) else type(method)
    names = [base.__module__.rpartition(".")[2] for base in kind.__mro__ if is_of_family(_file_of(base))]
    if names and kind is not method:
        raise UserError(f"method: give the class {kind.__name__}: its numbers are alpha=, tau= and frl=")
    return names[0] if names else None


def _file_of(kind: type) -> str:
    package, _, name = kind.__module__.rpartition(".")
    return name if package == __package__ else ""


def settings_of(
    method: type[Method] | Method, values: Mapping[str, Any], *, parsed: MethodSettings | None = None
) -> MethodSettings:
    """Return the settings of a method that is given as an object; `method_of` makes the method from them.

    Parameters
    ----------
    method : type or object
        A subclass of `Method`, whose own keys are those of its dataclass ``Settings`` (an attribute of the class, or
        in its module); or an object of one, made for one run, which holds its settings as attributes.
    values : mapping
        The class's own keys.
    parsed : MethodSettings, optional
        For a class that derives from FRL's family: the settings of the method that it derives from.

    Raises
    ------
    UserError
        No method, or a key that is unknown, missing, of the wrong type or out of range.
    """
    is_class = inspect.isclass(method)
    kind = method if inspect.isclass(method) else type(method)
    if not issubclass(kind, Method):
        raise UserError(f"method: give a method's name, or a subclass or an object of Method, not {kind.__name__}")
    if values and not is_class:
        raise UserError("frl has no effect with a method that is an object: it has its settings itself")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower().strip("_")
    if re.fullmatch(r"[a-z0-9_]+", name) is None:
        raise UserError(f"method: the class needs a name of letters and digits, not {kind.__name__}")
    if family_of(method) is None or parsed is None:
        parsed = node(_declared(kind), {**values, "name": name}, "frl.") if is_class else _configured(method, name)
    if kind.sees_validation is not None and not isinstance(parsed, FRLConfig | ValidationSettings):
        raise UserError(
            f"method: {kind.__name__} looks at validation images: its Settings must derive from "
            "frl_repro.settings.methods.ValidationSettings"
        )
    identity: dict[str, Any] = {"factory": f"{kind.__module__}:{kind.__qualname__}"}
    if not is_class:
        identity["attributes"] = _attributes(method)
    own = dataclasses.make_dataclass(
        "Settings",
        [(item, type(value), key("")) for item, value in identity.items()],
        bases=(type(parsed),),
        namespace={"given": method},
    )
    settings: MethodSettings = own(**{**vars(parsed), "name": name}, **identity)
    return settings


def of_run(method: Method, config: RunConfig, *, class_counts: Tensor, device: torch.device) -> Method:
    """Return a method for one run from an object: a copy of it, at its start.

    Raises
    ------
    UserError
        The object was made for several runs, or for another number of classes.
    """
    num_classes = len(class_counts)
    if tuple(method.shape) != (1, num_classes):
        R, K = method.shape[0], method.shape[-1]
        raise UserError(f"method: made for {R} runs of {K} classes, needed is one for 1 run of {num_classes}")
    own = copy.deepcopy(method)
    own.device = device
    if not hasattr(own, "settings"):
        own.configure([config.frl])
    own.train_with(config, class_counts)
    own.state = {part: tensor.to(device) for part, tensor in (own.start() or own.state).items()}
    return own


def _declared(kind: type[Method]) -> type[MethodSettings]:
    found = getattr(kind, "Settings", None) or getattr(sys.modules.get(kind.__module__), "Settings", None)
    return found if inspect.isclass(found) and issubclass(found, MethodSettings) else MethodSettings


def _configured(method: Any, name: str) -> MethodSettings:
    """Return an object's settings, checked as those of a class are."""
    settings, kind = getattr(method, "settings", None), type(method)
    if isinstance(settings, MethodSettings):
        checked: MethodSettings = node(type(settings), {**vars(settings), "name": name}, "frl.")
        return checked
    own = getattr(kind, "Settings", MethodSettings)  # of a class in the module it is not known whose they are
    missing = [item.name for item in dataclasses.fields(own) if item.name != "name"]
    if missing:
        raise UserError(
            f"method: the {kind.__name__} has no {', '.join(missing)}: give the class and frl={{...}}, or call "
            "configure([Settings(...)]) on the object first"
        )
    return MethodSettings(name=name)


def _attributes(method: Any) -> dict[str, Any]:
    """Return what an object was made with, as far as a record can hold it: numbers, texts, and lists of them."""
    plain = (bool, int, float, str, type(None))
    return {
        name: list(value) if isinstance(value, list | tuple) else value
        for name, value in sorted(vars(method).items())
        if name not in _OF_EVERY_METHOD
        and (isinstance(value, plain) or (isinstance(value, list | tuple) and all(isinstance(v, plain) for v in value)))
    }
