"""What is typed after the program's name: Hydra's flags, of which some are refused, and settings.

Hydra is imported inside functions: ``--help`` and completion must not wait for it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home

_SHELLS = ("bash", "zsh", "fish")
_MODES = ("run", "multirun", "cfg", "info", "shell_completion")
_REFUSED = {
    "config_name": "each program has its settings: train.py, scripts/evaluate.py, scripts/sanity.py",
    "config_path": "settings are those of the folder conf/",
    "experimental_rerun": "it reads a pickle, which may run code; every run's run.json holds the command that made it",
}


@dataclass(frozen=True)
class CommandLine:
    """A command line in which flags and settings were mixed.

    Attributes
    ----------
    flags : list of str
        For Hydra.
    overrides : list of str
        Settings as they were typed: ``key=value``; where help is asked for, the topics.
    is_sweep : bool
    is_answered : bool
        Hydra prints an answer of its own (its help, or tab completion): no settings are read.
    asks_for_help : bool
    config_dir : Path, optional
        A folder of the user's own settings files, beside ``conf/``.
    """

    flags: list[str]
    overrides: list[str]
    is_sweep: bool = False
    is_answered: bool = False
    asks_for_help: bool = False
    config_dir: Path | None = None

    @property
    def search(self) -> list[str]:
        """What makes Hydra look into `config_dir` as well."""
        if self.config_dir is None:
            return []
        return [f"hydra.searchpath=[{_quoted(f'file://{self.config_dir.resolve()}')}]"]


def read_command_line(arguments: Sequence[str], *, path_keys: Collection[str]) -> CommandLine:
    """Return flags and settings of a command line.

    Parameters
    ----------
    arguments : sequence of str
        The command line without the program.
    path_keys : collection of str
        Keys whose values are paths: quoted here, so that every character stands for itself.

    Raises
    ------
    UserError
        A flag that is unknown, without its value, refused, or at odds with another; a setting with spaces in it.
    """
    words = [piece for text in arguments for piece in _help_and_topic(text)]
    given = _flags_of_hydra().parse_intermixed_args(words)
    folder = None if given.config_dir is None else Path(in_home(given.config_dir))
    if folder is not None and not folder.is_dir():
        raise UserError(f"--config-dir={given.config_dir}: no such folder")
    if given.help:
        return CommandLine([], given.overrides, asks_for_help=True, config_dir=folder)
    for name, why in _REFUSED.items():
        if getattr(given, name) is not None:
            raise UserError(f"{_flag(name)} is not supported: {why}")
    if given.hydra_help:
        return CommandLine(["--hydra-help"], [], is_answered=True)
    modes = [name for name in _MODES if getattr(given, name)]
    if len(modes) > 1:
        raise UserError(f"{_flag(modes[0])} and {_flag(modes[1])} cannot go together: leave one out")
    if given.cfg is None and (given.resolve or given.package is not None):
        raise UserError(f"{'--resolve' if given.resolve else '--package'} goes with --cfg alone")
    if given.shell_completion:
        return _completion(given.overrides)
    _refuse_spaces(given.overrides)
    overrides = [_with_path(text, path_keys) for text in given.overrides]
    return CommandLine(_flags(given), overrides, is_sweep=given.multirun, config_dir=folder)


def _help_and_topic(text: str) -> list[str]:
    """Return ``--help=model`` as two words, and any other as it is."""
    flag, equals, topic = text.partition("=")
    return [flag, topic] if flag == "--help" and equals else [text]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; settings are written key=value, e.g. seed=3 (--help says which)")


def _flags_of_hydra() -> argparse.ArgumentParser:
    """Return a parser of the flags that Hydra documents (``--hydra-help``)."""
    # A flag that is cut short is no flag: Hydra would read --multi as a sweep, and --exp as what is refused.
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    for short, name in (
        ("-h", "--help"), ("-r", "--run"), ("-m", "--multirun"), ("-sc", "--shell-completion"), (None, "--hydra-help"),
        (None, "--resolve"),
    ):  # fmt: skip
        parser.add_argument(*filter(None, (name, short)), action="store_true")
    for short, name in (
        ("-p", "--package"), ("-cp", "--config-path"), ("-cn", "--config-name"), ("-cd", "--config-dir"),
        (None, "--experimental-rerun"),
    ):  # fmt: skip
        parser.add_argument(*filter(None, (name, short)))
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    about = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=about)
    return parser


def _refuse_spaces(texts: Sequence[str]) -> None:
    """Refuse a setting that spaces have cut in pieces: ``seed = 3``, ``seed=0, 1, 2``."""
    for place, text in enumerate(texts):
        pieces, whole = [text], text
        for following in texts[place + 1 :]:
            starts = following.startswith(("=", ",", "]")) and following != text
            goes_on = whole.endswith(("=", ",")) or whole.count("[") > whole.count("]")
            if not starts and (not goes_on or "=" in following):
                break
            pieces.append(following)
            in_list = whole.count("[") > whole.count("]")
            whole += "," * (in_list and whole[-1].isalnum() and following[0].isalnum()) + following
        key, equals, value = whole.partition("=")
        if len(pieces) > 1 and key and equals and value:
            raise UserError(f"cannot read {' '.join(pieces)!r}: spaces end a setting, write {whole}")


def _with_path(text: str, path_keys: Collection[str]) -> str:
    """Return a setting; the value of a path key quoted where Hydra would read signs in it, or cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if not equals or key.lstrip("+") not in path_keys:
        return text
    try:
        read = OverridesParser.create().parse_override(text).value()
    except HydraException:
        # A comma is one between values of a sweep, unless there is such a file.
        values = [value] if Path(in_home(value)).exists() else value.split(",")
        return f"{key}={','.join(_quoted(one) for one in values)}"
    return f"{key}={_quoted(read)}" if isinstance(read, str) and read.startswith("~") else text


def _quoted(value: str) -> str:
    if value.startswith(('"', "'")):
        return value
    escaped = in_home(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _completion(overrides: Sequence[str]) -> CommandLine:
    """Return the request that a shell's completion makes, or that of its installation."""
    known = [f"{what}={shell}" for what in ("install", "uninstall", "query") for shell in _SHELLS]
    if len(overrides) != 1 or overrides[0] not in known:
        raise UserError(f"--shell-completion takes one of {', '.join(known)} and nothing else")
    if overrides[0].startswith("query=") and "COMP_LINE" not in os.environ:
        raise UserError(f"--shell-completion {overrides[0]} is for the shell, which says in COMP_LINE what was typed")
    return CommandLine(["--shell-completion"], list(overrides), is_answered=True)


def _flags(given: argparse.Namespace) -> list[str]:
    flags = [_flag(name) for name in ("multirun", "resolve") if getattr(given, name)]
    return [*flags, *(f"{_flag(n)}={v}" for n in ("cfg", "package", "info") if (v := getattr(given, n)) is not None)]
