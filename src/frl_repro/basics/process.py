"""Preparation of a process: standard streams, a user's name, a working folder, a parent that is watched."""

from __future__ import annotations

import getpass
import os
import threading
import time
from pathlib import Path

from frl_repro.basics import standard_streams
from frl_repro.basics.errors import UserError

_SECONDS_BETWEEN = 1.0  # two looks at whether the parent still lives
_watching = threading.Lock()


def set_up() -> None:
    """Prepare this process; may be called again.

    Raises
    ------
    UserError
        The folder that the command was started in does not exist any more.
    """
    standard_streams.set_up()
    _name_the_user()
    try:
        Path.cwd()
    except OSError:
        raise UserError("the folder that this command was started in has been deleted: go to another one") from None


def end_with_parent() -> None:
    """End this process when its parent ends: a worker must not outlive a killed command.

    States and results on disk are whole at any moment.
    """
    if os.name != "posix" or not _watching.acquire(blocking=False):  # is watched already
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _name_the_user() -> None:
    """Name a user whom the system does not know, as in a container: PyTorch names folders after users."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"uid{os.getuid()}"
