"""The jobs of a command line: composed by Hydra, each once, and checked before anything is read or written.

A typo in the last job of a sweep stops the first one. Hydra, OmegaConf and torch are imported inside functions:
``--help`` and completion must not wait for them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frl_repro.basics import paths
from frl_repro.basics.errors import UserError
from frl_repro.commands.command_line import CommandLine, read_command_line
from frl_repro.commands.messages import in_one_line
from frl_repro.commands.overrides import (
    SWEEPING_GROUPS,
    check_override,
    groups_typed,
    is_hydras,
    jobs_of,
    missing_choice,
    parsed,
    refuse_ignored,
    refuse_params_of_the_usual_sweeper,
    values_of,
)
from frl_repro.settings.config import Config, EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.lookup import all_keys, list_keys, path_keys

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

KINDS: dict[str, type[Config]] = {
    "config": RunConfig, "evaluate": EvaluateConfig, "sanity": SanityConfig,
}  # fmt: skip
"""What each program's settings are, by the name of its file in ``conf/``."""


@dataclass(frozen=True)
class Job:
    """One job of a command line.

    Attributes
    ----------
    overrides : list of str
        Those that are not Hydra's own.
    added : list of str
        The last of them: what a checkpoint says of itself.
    composed : dict
        Its settings as plain containers.
    kind : type
        `RunConfig`, `EvaluateConfig` or `SanityConfig`.
    hydra : DictConfig, optional
        Hydra's own settings, of a job that is alone.
    """

    overrides: list[str]
    added: list[str]
    composed: dict[str, Any]
    kind: type[Config]
    hydra: DictConfig | None = field(default=None, repr=False)

    @functools.cached_property
    def config(self) -> Config:
        """The settings, typed; raises UserError where they are mistaken."""
        from frl_repro.settings.parse import parse

        return parse(self.composed, self.kind)

    @property
    def shown(self) -> str:
        """The overrides as people typed them."""
        return " ".join(self.overrides)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: plain containers, which it parses with the code that it has."""
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "hydra": None}


def read(arguments: Sequence[str], config_name: str) -> CommandLine:
    """Return the command line with what its program declares as paths quoted."""
    return read_command_line(arguments, path_keys=path_keys(KINDS[config_name]) | {"hydra.launcher.folder"})


def check_command_line(arguments: Sequence[str], config_name: str) -> list[Config]:
    """Compose and check every job of a command line; return them.

    Parameters
    ----------
    arguments : sequence of str
        The command line without the program.
    config_name : str
        ``"config"`` (train), ``"evaluate"`` or ``"sanity"``.

    Raises
    ------
    UserError
        The first mistake: unknown key or choice, wrong type or range, settings that contradict or ignore one another.
    """
    return [job.config for job in checked_jobs(read(arguments, config_name), config_name)]


def configure(*overrides: str) -> RunConfig:
    """Return the settings of one run, checked as a command line's: what `frl_repro.runs.experiment.run` takes.

    Parameters
    ----------
    *overrides : str
        As on the command line of ``train.py``: ``"frl=reweight"``, ``"alpha.nat=5"``.

    Raises
    ------
    UserError
        A flag, several values of a key, or what `check_command_line` refuses.
    """
    config = _configured(overrides, "config")
    assert isinstance(config, RunConfig)
    return config


def configure_evaluation(*overrides: str) -> EvaluateConfig:
    """Return the settings of one measurement, for `frl_repro.evaluation.measure.measure_checkpoint`; see `configure`.

    Parameters
    ----------
    *overrides : str
        As on the command line of ``scripts/evaluate.py``: ``"checkpoint=model.safetensors"``.
    """
    config = _configured(overrides, "evaluate")
    assert isinstance(config, EvaluateConfig)
    return config


def _configured(overrides: Sequence[str], config_name: str) -> Config:
    for override in overrides:
        if override.startswith("-"):
            raise UserError(f"{override!r} is a flag of the command line: only settings key=value configure a run")
    (job,) = checked_jobs(read(overrides, config_name), config_name)
    return job.config


def checked_jobs(line: CommandLine, config_name: str) -> list[Job]:
    """Return the jobs of a command line, composed and checked.

    Raises
    ------
    UserError
        As `check_command_line`.
    """
    from hydra import initialize_config_dir
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    try:
        overrides = parsed(line.overrides)
        for override in overrides:
            typed = functools.partial(_choices_typed, overrides, config_name, line.search)
            check_override(override, KINDS[config_name], typed, own=line.config_dir)
        refuse_params_of_the_usual_sweeper(overrides)
        with initialize_config_dir(str(paths.CONFIG_DIR), version_base="1.3"):
            return list(_jobs(line, overrides, config_name))
    except MissingConfigException as error:
        raise UserError(missing_choice(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(in_one_line(error)) from None
    except UserError:
        raise
    except Exception as problem:  # whatever the parser makes of a file of conf/ that someone has edited
        broken = broken_settings(*filter(None, [line.config_dir]))
        if broken is None and not isinstance(problem, ValueError):
            raise
        raise UserError(broken or f"cannot compose the settings: {in_one_line(problem)}") from None


def _jobs(line: CommandLine, overrides: Sequence[Override], config_name: str) -> Iterator[Job]:
    """Yield the jobs of a command line whose overrides were checked one by one."""
    from hydra.errors import HydraException

    from frl_repro.commands.adopt import settings_of_checkpoint

    kind = KINDS[config_name]
    hydras = [*(override.input_line or "" for override in overrides if is_hydras(override)), *line.search]
    own = [override for override in overrides if not is_hydras(override)]
    swept = _sweep_of_file(overrides, config_name, line.search)
    for typed in jobs_of(own, swept, is_sweep=line.is_sweep, lists=list_keys(kind)):
        added = [] if kind is RunConfig else settings_of_checkpoint(parsed(typed))
        overrides_of_job = [*typed, *added]
        try:
            settings, hydra = _compose(config_name, [*overrides_of_job, *hydras])
        except HydraException:
            # A key that another choice has does not exist here: it is said which.
            refuse_ignored(
                overrides_of_job, kind, functools.partial(_choices, config_name, overrides_of_job, line.search)
            )
            raise
        refuse_ignored(overrides_of_job, kind, functools.partial(hydra.runtime.get, "choices"))
        job = Job(overrides_of_job, added, plain(settings), kind, None if line.is_sweep else hydra)
        _ = job.config  # raises what is wrong with it
        yield job


def _sweep_of_file(overrides: Sequence[Override], config_name: str, search: Sequence[str]) -> list[Override]:
    """Return the sweep of the experiment, or another file, that was chosen; groups decide before keys are set."""
    if not any(override.key_or_group in SWEEPING_GROUPS for override in overrides):
        return []
    _refuse_sweeps_of_sweeps(overrides, config_name, search)
    choosing = [
        override.input_line or ""
        for override in overrides
        if not override.is_sweep_override() and "." not in override.key_or_group
    ]
    _, hydra = _compose(config_name, [*choosing, *search])
    return parsed([f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()])


def _refuse_sweeps_of_sweeps(overrides: Sequence[Override], config_name: str, search: Sequence[str]) -> None:
    """Refuse a sweep over experiments that are sweeps themselves: Hydra would run one job of each."""
    for override in overrides:
        if override.key_or_group in ("experiment", "sweep") and override.is_sweep_override():
            for choice in values_of(override):
                _, hydra = _compose(config_name, [f"{override.key_or_group}={choice}", *search])
                if hydra.sweeper.params:
                    raise UserError(f"{override.input_line}: {choice} is a sweep itself, run it on its own")


def _compose(config_name: str, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """Return the settings of a job, and Hydra's own."""
    from hydra import compose
    from omegaconf import flag_override

    settings = compose(config_name, list(overrides), return_hydra_config=True)
    with flag_override(settings, ["struct", "readonly"], [False, False]):
        hydra: DictConfig = settings.pop("hydra")
    return settings, hydra


def _choices(config_name: str, job: Sequence[str], search: Sequence[str]) -> Mapping[str, str]:
    """Return the choice of every group of a job, whatever keys it sets."""
    keys = all_keys(KINDS[config_name])
    choosing = [text for text in job if "." not in text.split("=", 1)[0] and text.split("=", 1)[0] not in keys]
    _, hydra = _compose(config_name, [*choosing, *search])
    choices: Mapping[str, str] = hydra.runtime.choices
    return choices


def _choices_typed(overrides: Sequence[Override], config_name: str, search: Sequence[str]) -> Mapping[str, str] | None:
    """Return the choice of every group in the first job, for messages; None where what was typed cannot be composed."""
    from hydra import initialize_config_dir

    groups = groups_typed(KINDS[config_name])
    choosing = [
        f"{override.key_or_group}={values_of(override)[0]}" for override in overrides if override.key_or_group in groups
    ]
    try:
        with initialize_config_dir(str(paths.CONFIG_DIR), version_base="1.3"):
            return _choices(config_name, choosing, search)
    except Exception:  # a choice that does not exist: it has a message of its own
        return None


def plain(settings: DictConfig) -> dict[str, Any]:
    """Return settings as plain containers, interpolations resolved."""
    from omegaconf import OmegaConf

    container = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def register_resolvers() -> None:
    """Make ``${px:8}`` stand for 8/255."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("px", lambda grey_levels: float(grey_levels) / 255, replace=True)


def broken_settings(*more: Path) -> str | None:
    """Return the error of the first settings file that cannot be read, here or in folders; None where all can."""
    import yaml
    from omegaconf import OmegaConf

    for path in (path for folder in (paths.CONFIG_DIR, *more) for path in sorted(folder.rglob("*.yaml"))):
        try:
            OmegaConf.load(path)  # it refuses more than YAML does: keys given twice, say
        except UnicodeDecodeError:
            return f"{path} is not UTF-8 text"
        except yaml.YAMLError as problem:
            mark = getattr(problem, "problem_mark", None)
            where = "" if mark is None else f", line {mark.line + 1}"
            return f"{path}{where} is no valid YAML: {getattr(problem, 'problem', None) or in_one_line(problem)}"
        except Exception as problem:  # the parser itself fails at some texts
            return f"{path} is no valid YAML ({type(problem).__name__})"
    return None
