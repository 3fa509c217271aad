"""Overrides of a command line, checked one by one: keys and choices that exist, and what a mistyped one may have meant.

Hydra is imported inside functions: ``--help`` and completion must not wait for it.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.basics import paths, suggestions
from frl_repro.basics.errors import UserError
from frl_repro.commands.messages import in_one_line
from frl_repro.settings.config import Config
from frl_repro.settings.lookup import all_keys, method_keys, unknown_key
from frl_repro.settings.schema import GROUPS, OWN

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from hydra.errors import MissingConfigException

# Hydra's settings that are allowed. Others move output files, or start jobs that were not checked.
_HYDRA_KEYS = (
    "hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.", "hydra/hydra_logging", "hydra.verbose",
    "hydra.job.env_set.",
)  # fmt: skip
SWEEPING_GROUPS = ("experiment", "sweep", "row", "schedule")
"""Groups of settings of training runs whose files may hold a sweep."""


_MOST_NAMED = 6  # choices that a message lists


def parsed(texts: Sequence[str]) -> list[Override]:
    """Return overrides as Hydra reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    overrides = []
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException:
            hint = "quote values with special characters" if "=" in text else _form_of(text)
            raise UserError(f"cannot read {text!r}: {hint}") from None
        if not override.key_or_group:
            raise UserError(f"cannot read {text!r}: an override has the form key=value")
        overrides.append(override)
    return overrides


def _form_of(text: str) -> str:
    """Return what settings look like, for a word without ``=``: with the key of such a file or choice."""
    form = "an override has the form key=value"
    if text in ("help", "usage"):
        return f"{form}; did you mean --help?"
    if Path(text).suffix in (".pt", ".pth", ".safetensors", ".ckpt"):
        return f"{form}; did you mean checkpoint={text}?"
    readers = [method.split()[0] for method, keys in method_keys().items() if text in keys]
    if readers:
        return f"{form}; {text} is a setting of {_few(list(dict.fromkeys(readers)))}: {text}=value"
    groups = [path.parent.name for path in sorted(paths.CONFIG_DIR.glob(f"[!r]*/{glob.escape(text)}.yaml"))]
    return f"{form}; did you mean {' or '.join(f'{group}={text}' for group in groups)}?" if groups else form


def _few(names: Sequence[str]) -> str:
    return " and ".join([*names[:_MOST_NAMED], *(["others"] if len(names) > _MOST_NAMED else [])])


def missing_choice(error: MissingConfigException) -> str:
    """Return what to choose instead of a file of settings that does not exist."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group or not error.options:
        return in_one_line(error)
    hint = suggestions.choice_hint(choice, error.options)
    return f"{group}={choice}: unknown choice; {hint}known: {', '.join(sorted(error.options))}"


def is_hydras(override: Override) -> bool:
    """Return whether an override sets one of Hydra's own settings."""
    key = override.key_or_group
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def refuse_params_of_the_usual_sweeper(overrides: Sequence[Override]) -> None:
    """Refuse to sweep by Hydra's setting for it: jobs are made, and checked, of what is typed with commas."""
    keys = [override.key_or_group for override in overrides]
    if "hydra/sweeper" not in keys and any(key.startswith("hydra.sweeper.params") for key in keys):
        raise UserError("hydra.sweeper.params is for other sweepers (hydra/sweeper=...): write key=value1,value2")


def groups_typed(kind: type[Config]) -> list[str]:
    """Return the groups that a command line may choose from."""
    groups = [path.name for path in paths.CONFIG_DIR.iterdir() if path.is_dir()]
    known = [group for group in groups if group in kind.__dataclass_fields__]
    # Experiments and sweeps are settings of training runs.
    return [*known, *(SWEEPING_GROUPS if "frl" in known else ())]


def check_override(
    override: Override,
    kind: type[Config],
    choices_typed: Callable[[], Mapping[str, str] | None],
    *,
    own: Path | None = None,
) -> None:
    """Refuse an override whose key or choice does not exist, in ``conf/`` or in the user's ``own`` folder."""
    key = override.key_or_group
    if override.is_delete():
        raise UserError(f"{override.input_line}: keys cannot be removed")
    if is_hydras(override):
        if key not in _HYDRA_KEYS and not key.startswith(tuple(name for name in _HYDRA_KEYS if name.endswith("."))):
            known = ", ".join(f"{name}*" if name.endswith(".") else name for name in _HYDRA_KEYS)
            raise UserError(f"{key} is not a setting of this program; of Hydra's there are {known}")
        return
    known_groups = groups_typed(kind)
    if key in known_groups:
        choices = _choices_in(key, own)
        for choice in values_of(override):
            if choice not in choices:
                hint = suggestions.choice_of_group_hint(key, choice, choices)
                hint = hint or _other_group(key, choice, known_groups)
                raise UserError(f"{key}={choice}: unknown choice; {hint}known: {', '.join(choices)}")
    elif key not in all_keys(kind):
        raise UserError(unknown_key(key, kind, value=values_of(override)[0], choices=choices_typed()))
    if override.is_add() or override.is_force_add():
        raise UserError(f"{override.input_line}: {key} exists already, write it without +")


def _choices_in(group: str, own: Path | None = None) -> list[str]:
    folders = [paths.CONFIG_DIR] if own is None else [paths.CONFIG_DIR, own]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _other_group(group: str, choice: str, groups: Sequence[str]) -> str:
    """Return the hint for a choice of another group: ``attack=trades`` where ``frl=trades`` was typed."""
    others = [other for other in groups if other != group and choice in _choices_in(other)]
    return f"did you mean {' or '.join(f'{other}={choice}' for other in others)}? " if others else ""


def refuse_ignored(job: Sequence[str], kind: type[Config], choices_of: Callable[[], Mapping[str, str]]) -> None:
    """Refuse a key that exists but that the job's choice of its group, or its method, does not read.

    Parameters
    ----------
    job : sequence of str
        Its overrides.
    kind : type
        `RunConfig`, `EvaluateConfig` or `SanityConfig`.
    choices_of : callable
        Returns the choice of every group; asked where a key is in a group.
    """
    given = [text.split("=", 1)[0].lstrip("+") for text in job]
    dotted = [key for key in given if "." in key and not key.startswith("hydra.")]
    if not dotted:
        return
    choices = choices_of()
    methods = method_keys() if "frl" in choices else {}
    for key in dotted:
        if any(key in keys for keys in methods.values()):
            chosen = f"frl={choices['frl']} recipe={choices['recipe']}"
            readers = [method for method, keys in methods.items() if key in keys]
            # Methods of this recipe; else recipes of this method; else all that read the key.
            method, recipe = f"frl={choices['frl']}", f"recipe={choices['recipe']}"
            of_recipe = [reader for reader in readers if reader.endswith(f" {recipe}")]
            of_method = [reader for reader in readers if reader.startswith(f"{method} ")]
            known = of_recipe or of_method or readers
            if recipe == "recipe=scratch" and key.startswith(("retrain.trainer.", "retrain.attack.")) and of_method:
                hint = f"{key.removeprefix('retrain.')} is what it trains with; retraining has {method} recipe=report"
                raise UserError(f"{key} has no effect with {chosen}: {hint}")
            own = f"frl.{key.rpartition('.')[2]}"
            if chosen not in known and own in methods.get(chosen, ()):
                raise UserError(f"{key} has no effect with {chosen}: its own is {own}")
        else:
            group = key.split(".", 1)[0]
            if group in OWN and choices.get(group) not in GROUPS[group]:
                continue  # of the user's own: Hydra says whether its file has the key
            chosen, known = f"{group}={choices.get(group)}", all_keys(kind)[key]
        if known and chosen not in known:
            raise UserError(f"{key} has no effect with {chosen}; it belongs to {_few(known)}")


def values_of(override: Override) -> list[str]:
    """Return the values of an override as they are written: those of a sweep, or one."""
    from hydra.core.override_parser.types import Glob

    if isinstance(override.value(), Glob):
        raise UserError(f"{override.input_line}: list the choices instead of glob()")
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def jobs_of(
    overrides: Sequence[Override], swept: Sequence[Override], *, is_sweep: bool, lists: Collection[str]
) -> list[tuple[str, ...]]:
    """Return the overrides of each job: the product of all swept values, as Hydra's basic sweeper builds it."""
    given = {override.key_or_group for override in overrides}
    missing = [override for override in swept if override.key_or_group not in given]
    if not is_sweep:
        for override in overrides:
            if override.is_sweep_override() and override.key_or_group in lists:
                written = f"{override.key_or_group}=[{','.join(values_of(override))}]"
                raise UserError(f"{override.input_line}: it takes a list, write {written}")
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: add -m to sweep over several values")
        if missing:
            lines = " ".join(override.input_line or "" for override in missing)
            raise UserError(f"this experiment is a sweep over {lines}: add -m, or choose one value")
    axes: dict[str, list[str]] = {}
    for override in [*missing, *overrides]:
        key = override.get_key_element()
        axes[key] = [f"{key}={value}" for value in values_of(override)]
    return list(itertools.product(*axes.values()))
