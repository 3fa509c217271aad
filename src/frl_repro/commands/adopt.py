"""Take the settings of model and data from the checkpoint that is measured, so that nobody types them again.

They become settings of the command line that nobody typed: Hydra composes them, and they are checked, as any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frl_repro.basics.errors import UserError
from frl_repro.models.origin import checkpoint_file, settings_of
from frl_repro.settings.config import EvaluateConfig
from frl_repro.settings.lookup import all_keys
from frl_repro.settings.schema import GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_WORD = re.compile(r"[A-Za-z0-9_.+-]+")
# In quotes; without quotes, backslashes and $, which mean something there.
_QUOTABLE = re.compile(r"[\w/.~ @%+=:,()\[\]{}#&-]+")


def settings_of_checkpoint(typed: Sequence[Override]) -> list[str]:
    """Return the settings of model and data that a job's checkpoint says and that were not typed, ``key=value`` each.

    None for a checkpoint that does not say any.

    Raises
    ------
    UserError
        What the checkpoint says is damaged, or of another version.
    """
    given = {override.key_or_group: override for override in typed}
    if "checkpoint" not in given:
        return []
    try:
        path = checkpoint_file(str(given["checkpoint"].value()), key="checkpoint")
    except UserError:  # it is said where the file is needed, after mistakes in what was typed
        return []
    added: list[str] = []
    for group, settings in settings_of(path).items():
        chosen = str(given[group].value()) if group in given else settings["name"]
        if chosen not in GROUPS[group] and group in given:
            continue  # of the user's own, who says what it is: the checkpoint names no code to call
        if chosen not in GROUPS[group]:
            raise UserError(f"{path} was trained with {group}={chosen}, which this version does not have")
        if chosen != settings["name"]:
            continue  # another one was typed: it brings its own settings
        if group not in given:
            added.append(f"{group}={chosen}")
        for name, value in settings.items():
            key = f"{group}.{name}"
            if name != "name" and key not in given:
                added += _override(
                    path, key, value, readers=all_keys(EvaluateConfig).get(key, []), choice=f"{group}={chosen}"
                )
    return added


def _override(path: Path, key: str, value: Any, *, readers: Sequence[str], choice: str) -> list[str]:
    """Return a setting as it would be typed; none where its value cannot be."""
    if choice not in readers:
        raise UserError(f"{path} was trained with {key}, which {choice} does not have in this version")
    if key == "dataset.root":
        if _QUOTABLE.fullmatch(value) is None:
            return []
        # A recorded place is read; that something is missing there must not make us write there.
        is_fetched = choice in all_keys(EvaluateConfig)["dataset.download"]
        return [f"{key}='{value}'", *(["dataset.download=false"] if is_fetched else [])]
    return [f"{key}={_typed(path, key, value)}"]


def _typed(path: Path, key: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(_typed(path, key, item) for item in value)}]"
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    raise UserError(f"{path} is damaged: its {key} is no setting; get the checkpoint anew")
