"""What the environment says of the processes that ``torchrun`` starts, read without torch."""

from __future__ import annotations

import os

from frl_repro.basics.errors import UserError


def num_processes() -> int:
    """Return how many processes work on this command: ``WORLD_SIZE``, 1 where it is not set.

    Raises
    ------
    UserError
        It is no whole number from 1.
    """
    return _number("WORLD_SIZE", least=1, default=1)


def rank() -> int:
    """Return this process's number among all: ``RANK``.

    Raises
    ------
    UserError
        It is no whole number below the number of processes.
    """
    return _below("RANK", num_processes())


def rank_on_machine() -> int:
    """Return this process's number among those of its machine: ``LOCAL_RANK``.

    Raises
    ------
    UserError
        It is no whole number below the number of processes of the machine.
    """
    return _below("LOCAL_RANK", num_on_machine())


def num_on_machine() -> int:
    """Return how many of the processes are on this machine: ``LOCAL_WORLD_SIZE``, all where it is not set.

    Raises
    ------
    UserError
        It is no whole number from 1.
    """
    return _number("LOCAL_WORLD_SIZE", least=1, default=num_processes())


def check() -> None:
    """Refuse an environment that no ``torchrun`` sets.

    Raises
    ------
    UserError
        Naming the variable.
    """
    if num_processes() > 1:
        rank()
        rank_on_machine()
        if not 0 <= _number("MASTER_PORT", least=0, default=0) < 2**16:
            raise UserError(f"MASTER_PORT={os.environ['MASTER_PORT']}: a port is a number below {2**16}")


def _below(name: str, limit: int) -> int:
    number = _number(name, least=0, default=0)
    if number >= limit:
        raise UserError(f"{name}={number} in the environment: there are {limit} processes, numbered from 0")
    return number


def _number(name: str, *, least: int, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10) or int(text) < least:
        raise UserError(
            f"{name}={text} in the environment is not a whole number from {least}: torchrun sets it; for one process "
            f"unset it (unset {name})"
        )
    return int(text)
