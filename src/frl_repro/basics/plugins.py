"""Functions of other packages that a settings file names: called only where the user has allowed it.

Allowed is what the environment variable ``FRL_REPRO_PLUGINS`` lists, modules (``mypackage.nets``) or functions
(``mypackage.nets:make``) with commas between, and what installed packages declare as entry points of the group
``frl_repro.plugins``. A checkpoint's header is never asked.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from frl_repro.basics.errors import UserError

VARIABLE = "FRL_REPRO_PLUGINS"
_GROUP = "frl_repro.plugins"
_FORM = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")


def allowed_function(named: str, *, key: str) -> Callable[..., Any]:
    """Return the function ``module:function``; its module is imported only where it is allowed.

    Parameters
    ----------
    named : str
    key : str
        The setting that names it, for messages.

    Raises
    ------
    UserError
        It is no such name, not allowed, or not there.
    """
    if _FORM.fullmatch(named) is None:
        raise UserError(f"{key}={named}: expected module:function, e.g. mypackage.nets:make")
    module, _, name = named.partition(":")
    listed = [part.strip() for part in os.environ.get(VARIABLE, "").split(",")]
    if not {module, named} & set(listed) and named not in {point.value for point in entry_points(group=_GROUP)}:
        raise UserError(
            f"{key}={named}: other people's code is called only where you allow it: set {VARIABLE}={module} in the "
            "environment (or the function; several with commas between)"
        )
    try:
        found = importlib.import_module(module)
    except ImportError as problem:
        raise UserError(
            f"{key}={named}: cannot import {module} ({problem}): is it installed, or on PYTHONPATH?"
        ) from None
    function = vars(found).get(name)
    if not callable(function):
        raise UserError(f"{key}={named}: {module} has no function {name}")
    result: Callable[..., Any] = function
    return result
