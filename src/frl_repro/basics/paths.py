"""Folders of the package: its own files, and its cache."""

import os
from pathlib import Path

from frl_repro.basics.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries the YAML files inside the package; a source checkout reads those at its top level.
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"


def user_cache() -> Path | None:
    """Return ``$XDG_CACHE_HOME``, else ``~/.cache``; None for a user without a home folder."""
    # The XDG base directory specification asks to ignore an empty or relative value.
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if configured.is_absolute():
        return configured
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" if home.is_absolute() else None


def in_home(text: str) -> str:
    """Return a path with a leading ``~`` or ``~user`` replaced by the home folder.

    Raises
    ------
    UserError
        There is no such home folder.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise UserError(f"{text}: this home folder is not known here, write the path in full (or ./{text})") from None
