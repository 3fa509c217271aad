"""The command line: help at once, every override checked before anything runs, one line for each mistake.

Hydra composes and sweeps. Before it starts, `check_command_line` composes every job of the command itself, so that a
typo in the last job of a sweep stops the first one, and nothing is read or written for a command that cannot work.

Hydra, OmegaConf and torch are imported inside functions: ``--help`` and completion must not wait for them.
"""

from __future__ import annotations

import functools
import glob
import itertools
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from frl_repro.basics import process, standard_streams, suggestions, torchrun
from frl_repro.basics.errors import UserError, one_line, reason
from frl_repro.basics.paths import in_home
from frl_repro.commands.command_line import CommandLine, read_command_line
from frl_repro.runs import sweeps

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from hydra.errors import MissingConfigException
    from omegaconf import DictConfig

    from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig

    Kind = type[RunConfig] | type[EvaluateConfig] | type[SanityConfig]

    class Act(Protocol):
        """What the jobs of a command do; returns for each why it failed, or None."""

        def __call__(self, jobs: Sequence[dict[str, Any]], command: str, *, is_sweep: bool) -> list[Exception | None]:
            """Take the jobs' composed settings, the command line for the record, and whether it is a sweep."""


# What people need of Hydra's settings. Others put files where nothing here looks for them, or start what is unchecked.
_HYDRA_KEYS = (
    "hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.", "hydra/hydra_logging", "hydra.verbose",
    "hydra.job.env_set.",
)  # fmt: skip
# What processes of one run may have otherwise: where a machine keeps its data, and how fast it is.
_OF_EACH_MACHINE = ("num_threads", "dataset.root", "dataset.cache_dir", "dataset.download")
_HYDRA_RAISES = "HYDRA_FULL_ERROR"
_SHOWN_VERSIONS = {"PyTorch": "torch", "Hydra": "hydra-core"}
_LONGEST_MESSAGE = 400  # characters of a library's message
_INTERRUPTED = 130  # the shell's convention for a command ended by Ctrl-C
_INTERRUPTED_LINE = "interrupted; the same command continues where this one stopped\n"


def main() -> int:
    """Train: the entry point of ``train.py`` and of the console script ``frl-repro``. Returns the exit code."""
    return _main("config", _train)


def evaluate_main() -> int:
    """Measure a checkpoint: the entry point of ``scripts/evaluate.py`` and ``frl-evaluate``. Returns the exit code."""
    return _main("evaluate", _evaluate)


def sanity_main() -> int:
    """Check a checkpoint's robustness: the entry point of ``scripts/sanity.py`` and ``frl-sanity``.

    Returns the exit code: 0 when every check that was run passes, 1 otherwise.
    """
    return _main("sanity", _sanity)


def _train(jobs: Sequence[dict[str, Any]], command: str, *, is_sweep: bool) -> list[Exception | None]:
    from frl_repro.runs.experiment import run_all
    from frl_repro.settings.config import RunConfig
    from frl_repro.settings.parse import parse

    configs = [parse(composed, RunConfig) for composed in jobs]
    # A killed sweep may leave a worker that ends its job: the repeated sweep waits for it instead of failing.
    outcomes = run_all(configs, command=command, wait=is_sweep)
    return [outcome if isinstance(outcome, Exception) else None for outcome in outcomes]


def _evaluate(jobs: Sequence[dict[str, Any]], command: str, *, is_sweep: bool) -> list[Exception | None]:
    from frl_repro.evaluation.measure import measure_checkpoint
    from frl_repro.settings.config import EvaluateConfig
    from frl_repro.settings.parse import parse

    del is_sweep  # measurements of one checkpoint write the same bytes: none waits for another
    return _one_by_one(jobs, lambda composed: measure_checkpoint(parse(composed, EvaluateConfig), command=command))


def _sanity(jobs: Sequence[dict[str, Any]], command: str, *, is_sweep: bool) -> list[Exception | None]:
    from frl_repro.evaluation.sanity import check_checkpoint
    from frl_repro.settings.config import SanityConfig
    from frl_repro.settings.parse import parse

    del is_sweep  # as with measurements
    return _one_by_one(jobs, lambda composed: check_checkpoint(parse(composed, SanityConfig), command=command))


def _one_by_one(jobs: Sequence[dict[str, Any]], do: Callable[[dict[str, Any]], object]) -> list[Exception | None]:
    outcomes: list[Exception | None] = []
    for composed in jobs:
        try:
            do(composed)
            outcomes.append(None)
        except Exception as problem:
            outcomes.append(problem)
    return outcomes


def _main(config_name: str, act: Act) -> int:
    try:
        process.set_up()
        torchrun.check()
    except UserError as mistake:
        sys.stderr.write(f"error: {one_line(str(mistake))}\n")
        return 1
    try:
        with _ends_at_second_interrupt(), _group():
            code = _run_jobs(config_name, act)
        if (why := standard_streams.problem()) is not None:
            sys.stderr.write(f"{why}: not all that was to be said was shown\n")
        return code
    except Exception as problem:  # outside every job: no room for temporary files, say
        return _fail(reason(problem), is_alone=not isinstance(problem, UserError))
    except KeyboardInterrupt:
        if _speaks():
            sys.stderr.write(_INTERRUPTED_LINE)
        if threading.active_count() > 1:
            # Those of a sweep side by side: an interpreter that ends while they work aborts. States on disk are whole.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)
        return _INTERRUPTED


@contextmanager
def _ends_at_second_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C end the command in order, and a second one at once: files on disk are whole at any time."""
    is_ours = threading.current_thread() is threading.main_thread()
    is_ours = is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours:  # someone else has a say, say a launcher's worker or a notebook
        yield
        return

    def second(*_: object) -> None:
        with suppress(OSError):  # nobody reads
            os.write(2, _INTERRUPTED_LINE.encode())
        os._exit(_INTERRUPTED)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, second)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        # After a first interrupt the second one keeps its meaning until the process has ended.
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _speaks() -> bool:
    """Return whether this process reports to people; of several, the first alone does."""
    return torchrun.num_processes() == 1 or torchrun.rank() == 0


@contextmanager
def _group() -> Iterator[None]:
    """Join the other processes of this command."""
    if torchrun.num_processes() == 1:
        yield
        return
    from frl_repro.models.compute import distributed

    with distributed.group():
        yield


def _refuse_several_processes(config_name: str, overrides: Sequence[str]) -> None:
    """Refuse what several processes cannot share."""
    if torchrun.num_processes() == 1:
        return
    if config_name != "config":
        raise UserError("several processes share training alone: measure a checkpoint without torchrun")
    for override in overrides:
        key, _, launcher = override.partition("=")
        if key == "hydra/launcher" and launcher not in ("basic", "serial"):
            raise UserError(f"{override} and several processes cannot go together: leave one out")


def _checked(arguments: Sequence[str], config_name: str) -> tuple[CommandLine, list[_Job]]:
    """Return a command line, and its jobs where it does not just ask for something."""
    line = _read(arguments, config_name)
    if line.asks_for_help or line.is_answered:
        return line, []
    _register_resolvers()
    return line, _checked_jobs(line, config_name)


def _checked_alike(arguments: Sequence[str], config_name: str) -> tuple[CommandLine, list[_Job]]:
    """Return what `_checked` does; of several processes, refuse where one was given another command.

    A mistake in the command of one process alone is such a difference: the others do not wait for it.
    """
    if torchrun.num_processes() == 1:
        return _checked(arguments, config_name)
    from frl_repro.basics import sameness
    from frl_repro.models.compute import distributed

    jobs: list[_Job] = []
    mistake = None
    try:
        line, jobs = _checked(arguments, config_name)
    except UserError as problem:
        mistake = problem
    facts = {"the command": "accepted" if mistake is None else f"refused ({mistake})", "number of jobs": str(len(jobs))}
    for number, job in enumerate(jobs):
        prefix = f"job {number}: " if len(jobs) > 1 else ""
        settings = sameness.flat(job.composed, without=_OF_EACH_MACHINE)
        facts |= {f"{prefix}{key}": value for key, value in settings.items()}
    distributed.refuse_unless_alike(facts)
    if mistake is not None:
        raise mistake
    return line, jobs


def _run_jobs(config_name: str, act: Act) -> int:
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:  # without Hydra, which takes a second to import
        return _print_help(config_name)
    if "--version" in arguments:
        return _print_version()
    command = shlex.join([Path(sys.argv[0]).name, *arguments])
    try:
        line, jobs = _checked_alike(arguments, config_name)
        if line.asks_for_help:
            return _print_help(config_name)
        if line.is_answered:
            sys.argv[1:] = [*line.overrides, *line.flags]
            _run_hydra(config_name, _no_task, line)
            return 0
        _refuse_several_processes(config_name, line.overrides)
        if not line.flags or line.is_sweep:
            _say_whose_settings(line, jobs)
        outcomes = _run_checked(config_name, act, line, jobs, command)
    except UserError as mistake:
        return _fail(str(mistake))
    if line.is_sweep and _speaks():
        _report_failures(outcomes)
    return 1 if any(outcome["reason"] for outcome in outcomes) else 0


def _read(arguments: Sequence[str], config_name: str) -> CommandLine:
    """Return the command line with what its program declares as paths quoted."""
    from frl_repro.settings.lookup import path_keys

    return read_command_line(arguments, path_keys=path_keys(_kind_of(config_name)) | {"hydra.launcher.folder"})


def _kind_of(config_name: str) -> Kind:
    from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig

    kinds: dict[str, Kind] = {"config": RunConfig, "evaluate": EvaluateConfig, "sanity": SanityConfig}
    return kinds[config_name]


def _say_whose_settings(line: CommandLine, jobs: Sequence[_Job]) -> None:
    """Say in a line that attack and trainer, typed beside a class policy, are those of the base model."""
    from frl_repro.basics.progress import LOGGER, set_up_logging

    retrained = [job.config for job in jobs if _is_run(job.config) and job.config.retrain is not None]
    keys = [override.key_or_group for override in _parsed(line.overrides)]
    typed = [key for key in keys if key.split(".")[0] in ("attack", "trainer")]
    if not retrained or not typed or not _speaks():
        return
    whose = "the model that retraining starts from"
    if all(config.keys.init_from is not None for config in retrained):
        whose += ", which init_from brings trained: no effect"
    set_up_logging()
    LOGGER.info("%s with frl=%s: of %s; retraining has retrain.*", ", ".join(typed), retrained[0].frl.name, whose)


def _no_task(_: DictConfig) -> None:
    """Stand for a task where Hydra answers by itself."""


def _run_checked(
    config_name: str, act: Act, line: CommandLine, jobs: Sequence[_Job], command: str
) -> list[dict[str, Any]]:
    """Have Hydra run the jobs of a command line that was checked; return what became of each."""
    act_on = functools.partial(act, command=command, is_sweep=line.is_sweep)
    runs = [(job.config.keys.output_dir, job.config.folder) for job in jobs if _is_run(job.config)]
    with tempfile.TemporaryDirectory() as scratch:
        task = _guarded(act_on, scratch, num_jobs=len(jobs))
        overrides = line.overrides if line.is_sweep else [*line.overrides, *jobs[0].added]
        if line.is_sweep:
            # Hydra notes a sweep's settings in a folder; every run keeps its own record, so this one only carries what
            # became of each job from wherever it ran, and is thrown away.
            overrides = [*_outside_jobs(line, jobs), f"hydra.sweep.dir={scratch}", "hydra.sweep.subdir=."]
            task.jobs = [job.overrides for job in jobs]  # type: ignore[attr-defined]
        if not _speaks() and not any(override.startswith("hydra/hydra_logging=") for override in overrides):
            overrides = [*overrides, "hydra/hydra_logging=disabled"]
        sys.argv[1:] = [*overrides, *line.flags]
        with sweeps.planned(runs if line.is_sweep and _speaks() else [], command=command):
            _run_hydra(config_name, task, line)
        return sweeps.read_outcomes(Path(scratch))


def _outside_jobs(line: CommandLine, jobs: Sequence[_Job]) -> list[str]:
    """Return what Hydra must know of a sweep besides its jobs: its own settings, groups, and where outputs go.

    `hydra/sweeper=checked` takes the jobs as they were checked. Hydra would set keys in the defaults first, where they
    need not exist: ``-m frl=reweight,remargin`` with a key of ``retrain``, which the default ``frl=none`` lacks.
    """
    parsed = _parsed(line.overrides)
    if any(override.key_or_group == "hydra/sweeper" for override in parsed):
        added = jobs[0].added  # another sweeper makes its own jobs
        if any(job.added != added for job in jobs):
            raise UserError("hydra/sweeper=... cannot take jobs whose checkpoints were trained with other settings")
        return [*line.overrides, *added]
    return [
        text
        for text, override in zip(line.overrides, parsed, strict=True)
        if _is_hydras(override) or ("." not in override.key_or_group and not override.is_sweep_override())
    ]


def _report_failures(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """List a sweep's failed jobs, on screen and in ``failed.json`` of its output folder."""
    failed = [outcome for outcome in outcomes if outcome["reason"]]
    if failed:
        lines = [f"  {outcome['job']}: {outcome['reason']}" for outcome in failed]
        sys.stderr.write("\n".join([f"{len(failed)} of {len(outcomes)} jobs failed:", *lines]) + "\n")
    try:
        sweeps.note_failures(outcomes)
    except OSError as problem:
        _fail(reason(problem))


def _print_help(config_name: str) -> int:
    from frl_repro.commands.helptext import help_text, program_name

    try:
        text = help_text(_config_dir(), config_name, program_name())
    except Exception:  # of a file of conf/ that someone has edited
        broken = _broken_settings()
        if broken is None:
            raise
        return _fail(broken)
    sys.stdout.write(text)
    return 0


def _print_version() -> int:
    from importlib.metadata import version

    import frl_repro

    packages = ", ".join(f"{name} {version(package)}" for name, package in _SHOWN_VERSIONS.items())
    sys.stdout.write(f"frl_repro {frl_repro.__version__} ({packages})\n")
    return 0


def _config_dir() -> Path:
    from frl_repro.basics import paths

    return paths.CONFIG_DIR


def _fail(message: str, *, is_alone: bool = False) -> int:
    """Say what failed, of several processes once; ``is_alone``: it may have failed in this one alone."""
    if is_alone or _speaks():
        sys.stderr.write(f"error: {one_line(message)}\n")
    return 1


def _guarded(
    act: Callable[[Sequence[dict[str, Any]]], list[Exception | None]], scratch: str, *, num_jobs: int
) -> Callable[[DictConfig], None]:
    """Return the task that Hydra runs for each job: a mistake in one job is reported and the others go on.

    The task may run in another process, so it holds only what can be sent there, and leaves what became of a job as a
    file. Its attributes serve launchers of our own: ``together`` takes all jobs of a sweep at once
    (`hydra/launcher=fused`), each with its overrides; ``work`` does jobs anywhere, also on another machine, and returns
    what became of them, and ``note`` takes that down here (`hydra/launcher=ray` and ``slurm``).
    """
    work = functools.partial(_do_jobs, act, os.getpid())
    note = functools.partial(_note_outcomes, scratch, num_jobs, is_elsewhere=True)

    def together(jobs: Sequence[tuple[str, DictConfig]]) -> None:
        _note_outcomes(scratch, num_jobs, work(jobs), is_elsewhere=False)

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        together([(" ".join(HydraConfig.get().overrides.task), cfg)])

    task.together, task.work, task.note = together, work, note  # type: ignore[attr-defined]
    return task


def _do_jobs(
    act: Callable[[Sequence[dict[str, Any]]], list[Exception | None]],
    commander: int,
    jobs: Sequence[tuple[str, DictConfig]],
) -> list[dict[str, Any]]:
    """Do jobs, say why one fails, and return what became of each; ``commander``: the process of the command itself."""
    from omegaconf import OmegaConf

    from frl_repro.basics.progress import set_up_logging

    if os.getpid() != commander:
        process.set_up()
        if os.getppid() == commander:  # of joblib; those of Ray and SLURM have keepers of their own
            process.end_with_parent()
    set_up_logging()
    _register_resolvers()
    composed = [_plain(OmegaConf.to_container(cfg, resolve=True)) for _, cfg in jobs]
    try:
        problems = act(composed)
    except Exception as problem:
        problems = [problem] * len(jobs)
    reasons = ["" if problem is None else reason(problem) for problem in problems]
    for why in dict.fromkeys(filter(None, reasons)):
        if torchrun.num_processes() > 1:
            from frl_repro.models.compute.distributed import end_unless_all_failed

            end_unless_all_failed(why)
        _fail(why)
    return [
        {"job": job, "output_dir": in_home(str(settings["output_dir"])), "reason": why, "run": _run_of(settings)}
        for (job, _), settings, why in zip(jobs, composed, reasons, strict=True)
    ]


def _note_outcomes(scratch: str, num_jobs: int, outcomes: Sequence[Mapping[str, Any]], *, is_elsewhere: bool) -> None:
    """Leave what became of jobs as files, and show how far the sweep is; of jobs ``elsewhere`` their tables too."""
    from frl_repro.basics.progress import LOGGER, set_up_logging

    set_up_logging()
    for outcome in outcomes:
        if is_elsewhere:
            LOGGER.info("%s", _what_became_of(outcome))
        sweeps.note_outcome(Path(scratch), outcome)
    if num_jobs > 1:
        LOGGER.info("%s", sweeps.progress_line(Path(scratch), num_jobs=num_jobs))


def _what_became_of(outcome: Mapping[str, Any]) -> str:
    """Return what a job that another process did would have shown here at its end."""
    from frl_repro.results.tables.text_tables import table_of_run

    if outcome["reason"]:
        return f"failed: {outcome['job']}: {one_line(outcome['reason'])}"
    if outcome["run"] is None:  # of a measurement
        return f"done: {outcome['job']} -> {outcome['output_dir']}"
    folder = Path(outcome["output_dir"]) / outcome["run"]
    try:
        return f"done: {folder}\n{table_of_run(folder)}"
    except (UserError, OSError) as problem:  # a file system that shows late what others have written
        return f"done: {folder} (its table: {reason(problem)})"


def _run_of(settings: Mapping[str, Any]) -> str | None:
    """Return the folder of a training run, relative to its output folder; None for a measurement."""
    from frl_repro.settings.config import RunConfig
    from frl_repro.settings.parse import parse

    try:
        config = parse(settings, RunConfig)
    except UserError:  # of a measurement
        return None
    return sweeps.relative(config.folder, config.keys.output_dir)


def _is_run(config: RunConfig | EvaluateConfig | SanityConfig) -> TypeGuard[RunConfig]:
    from frl_repro.settings.config import RunConfig

    return isinstance(config, RunConfig)


def _plain(container: Any) -> dict[str, Any]:
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _run_hydra(config_name: str, task: Callable[[DictConfig], None], line: CommandLine) -> None:
    """Have Hydra do what ``sys.argv`` says; ``line``: what was typed of it, for messages."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    before = os.environ.get(_HYDRA_RAISES)
    os.environ[_HYDRA_RAISES] = "1"  # else it prints a traceback of its own and exits
    try:
        hydra.main(version_base="1.3", config_path=str(_config_dir()), config_name=config_name)(task)()
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(_in_one_line(problem)) from None
    except UserError:
        raise
    except Exception as problem:  # of the launcher: jobs report their own
        hydras = [text for text in line.overrides if text.lstrip("+").startswith("hydra.")]
        if hydras and isinstance(problem, TypeError | ValueError | LookupError | AttributeError | AssertionError):
            what = f"{type(problem).__name__}: {_in_one_line(problem)}"
            raise UserError(f"Hydra cannot work with {' '.join(hydras)} ({what})") from None
        if not line.is_sweep:
            raise
        raise UserError(f"the launcher gave up: {reason(problem)}; the same command takes up what is left") from None
    finally:
        if before is None:
            del os.environ[_HYDRA_RAISES]
        else:
            os.environ[_HYDRA_RAISES] = before


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("px", lambda grey_levels: float(grey_levels) / 255, replace=True)


@dataclass(frozen=True)
class _Job:
    """One job of a command line, composed and checked.

    ``overrides`` are those that are not Hydra's own; ``added``, the last of them, are what a checkpoint says of itself.
    """

    overrides: list[str]
    added: list[str]
    composed: dict[str, Any]
    config: RunConfig | EvaluateConfig | SanityConfig


def check_command_line(arguments: Sequence[str], config_name: str) -> list[RunConfig | EvaluateConfig | SanityConfig]:
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
    return [job.config for job in _checked_jobs(_read(arguments, config_name), config_name)]


def _checked_jobs(line: CommandLine, config_name: str) -> list[_Job]:
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from frl_repro.commands.adopt import settings_of_checkpoint
    from frl_repro.settings.config import RunConfig
    from frl_repro.settings.lookup import list_keys
    from frl_repro.settings.parse import parse

    kind = _kind_of(config_name)
    try:
        overrides = _parsed(line.overrides)
        for override in overrides:
            _check_override(override, kind, functools.partial(_choices_typed, overrides, config_name, kind))
        _refuse_params_of_the_usual_sweeper(overrides)
        with initialize_config_dir(str(_config_dir()), version_base="1.3"):
            # Groups decide which keys exist; an experiment's sweep is read before keys are set.
            fixed = [
                override.input_line or ""
                for override in overrides
                if not override.is_sweep_override() and "." not in override.key_or_group
            ]
            _refuse_sweeps_of_sweeps(overrides, config_name)
            hydra_settings = compose(config_name, fixed, return_hydra_config=True).hydra
            params = [f"{k}={v}" for k, v in (hydra_settings.sweeper.params or {}).items()]
            swept = OverridesParser.create().parse_overrides(params)
            own = [override for override in overrides if not _is_hydras(override)]
            choices_of = functools.cache(functools.partial(_choices, config_name))
            jobs = []
            for typed in _jobs(own, swept, is_sweep=line.is_sweep, lists=list_keys(kind)):
                added = [] if kind is RunConfig else settings_of_checkpoint(_parsed(typed))
                job = [*typed, *added]
                _refuse_ignored(job, choices_of, kind)
                composed = _plain(OmegaConf.to_container(compose(config_name, job), resolve=True))
                jobs.append(_Job(job, added, composed, parse(composed, kind)))
            return jobs
    except MissingConfigException as error:
        raise UserError(_missing_choice(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_in_one_line(error)) from None
    except UserError:
        raise
    except Exception as problem:  # whatever the parser makes of a file of conf/ that someone has edited
        broken = _broken_settings()
        if broken is None and not isinstance(problem, ValueError):
            raise
        raise UserError(broken or f"cannot compose the settings: {_in_one_line(problem)}") from None


def _broken_settings() -> str | None:
    """Return what is wrong with the first settings file that cannot be read; None where all can."""
    import yaml
    from omegaconf import OmegaConf

    for path in sorted(_config_dir().rglob("*.yaml")):
        try:
            OmegaConf.load(path)  # it refuses more than YAML does: keys given twice, say
        except UnicodeDecodeError:
            return f"{path} is not UTF-8 text"
        except yaml.YAMLError as problem:
            mark = getattr(problem, "problem_mark", None)
            where = "" if mark is None else f", line {mark.line + 1}"
            return f"{path}{where} is no valid YAML: {getattr(problem, 'problem', None) or _in_one_line(problem)}"
        except Exception as problem:  # the parser itself breaks at some
            return f"{path} is no valid YAML ({type(problem).__name__})"
    return None


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
    from frl_repro.settings.config import RunConfig
    from frl_repro.settings.parse import parse

    return parse(_composed(overrides, "config"), RunConfig)


def configure_evaluation(*overrides: str) -> EvaluateConfig:
    """Return the settings of one measurement, for `frl_repro.evaluation.measure.measure_checkpoint`; see `configure`.

    Parameters
    ----------
    *overrides : str
        As on the command line of ``scripts/evaluate.py``: ``"checkpoint=model.safetensors"``.
    """
    from frl_repro.settings.config import EvaluateConfig
    from frl_repro.settings.parse import parse

    return parse(_composed(overrides, "evaluate"), EvaluateConfig)


def _composed(overrides: Sequence[str], config_name: str) -> dict[str, Any]:
    """Return the checked settings of one job as plain containers."""
    for override in overrides:
        if override.startswith("-"):
            raise UserError(f"{override!r} is a flag of the command line: only settings key=value configure a run")
    _register_resolvers()
    (job,) = _checked_jobs(_read(overrides, config_name), config_name)
    return job.composed


def _parsed(texts: Sequence[str]) -> list[Override]:
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
    if Path(text).suffix in (".pt", ".pth", ".safetensors", ".ckpt"):
        return f"{form}; did you mean checkpoint={text}?"
    groups = [path.parent.name for path in sorted(_config_dir().glob(f"[!r]*/{glob.escape(text)}.yaml"))]
    return f"{form}; did you mean {' or '.join(f'{group}={text}' for group in groups)}?" if groups else form


def _missing_choice(error: MissingConfigException) -> str:
    """Return what to choose instead of a file of settings that does not exist."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    place, _, recipe = group.rpartition("/")
    if place == "retrain":
        recipes = [path.parent.name for path in sorted((_config_dir() / place).glob(f"*/{choice}.yaml"))]
        return f"frl={choice} has no recipe={recipe}; it has {' and '.join(f'recipe={name}' for name in recipes)}"
    if not group or not error.options:
        return _in_one_line(error)
    hint = suggestions.choice_hint(choice, error.options)
    return f"{group}={choice}: unknown choice; {hint}known: {', '.join(sorted(error.options))}"


def _is_hydras(override: Override) -> bool:
    key = override.key_or_group
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def _refuse_params_of_the_usual_sweeper(overrides: Sequence[Override]) -> None:
    """Refuse to sweep by Hydra's setting for it: jobs are made, and checked, of what is typed with commas."""
    keys = [override.key_or_group for override in overrides]
    if "hydra/sweeper" not in keys and any(key.startswith("hydra.sweeper.params") for key in keys):
        raise UserError("hydra.sweeper.params is for other sweepers (hydra/sweeper=...): write key=value1,value2")


def _choices_typed(overrides: Sequence[Override], config_name: str, kind: Kind) -> dict[str, str] | None:
    """Return the choice of every group in the first job, for messages; None where what was typed cannot be composed."""
    from hydra import initialize_config_dir

    groups = [path.name for path in _config_dir().iterdir() if path.is_dir() and path.name in _groups_typed(kind)]
    choosing = [
        f"{override.key_or_group}={_values(override)[0]}" for override in overrides if override.key_or_group in groups
    ]
    try:
        with initialize_config_dir(str(_config_dir()), version_base="1.3"):
            return _choices(config_name, tuple(choosing))
    except Exception:  # a choice that does not exist: it has a message of its own
        return None


def _groups_typed(kind: Kind) -> list[str]:
    """Return the groups that a command line may choose from."""
    groups = [path.name for path in _config_dir().iterdir() if path.is_dir()]
    known = [group for group in groups if group in kind.__dataclass_fields__]
    # Experiments and sweeps are settings of training runs.
    return [*known, *(("experiment", "sweep", "row", "schedule") if "frl" in known else ())]


def _check_override(override: Override, kind: Kind, choices_typed: Callable[[], dict[str, str] | None]) -> None:
    """Refuse an override whose key or choice does not exist."""
    from frl_repro.settings.lookup import all_keys, unknown_key

    key = override.key_or_group
    if override.is_delete():
        raise UserError(f"{override.input_line}: keys cannot be removed")
    if _is_hydras(override):
        if key not in _HYDRA_KEYS and not key.startswith(tuple(name for name in _HYDRA_KEYS if name.endswith("."))):
            known = ", ".join(f"{name}*" if name.endswith(".") else name for name in _HYDRA_KEYS)
            raise UserError(f"{key} is not a setting of this program; of Hydra's there are {known}")
        return
    known_groups = _groups_typed(kind)
    if key in known_groups:
        choices = _choices_in(key)
        for choice in _values(override):
            if choice not in choices:
                hint = suggestions.choice_hint(choice, choices) or _other_group(key, choice, known_groups)
                raise UserError(f"{key}={choice}: unknown choice; {hint}known: {', '.join(choices)}")
    elif key not in all_keys(kind):
        raise UserError(unknown_key(key, kind, value=_values(override)[0], choices=choices_typed()))
    if override.is_add() or override.is_force_add():
        raise UserError(f"{override.input_line}: {key} exists already, write it without +")


def _choices_in(group: str) -> list[str]:
    return sorted(path.stem for path in (_config_dir() / group).glob("*.yaml"))


def _other_group(group: str, choice: str, groups: Sequence[str]) -> str:
    """Return the hint for a choice of another group: ``attack=trades`` where ``frl=trades`` was typed."""
    others = [other for other in groups if other != group and choice in _choices_in(other)]
    return f"did you mean {' or '.join(f'{other}={choice}' for other in others)}? " if others else ""


def _choices(config_name: str, choosing: tuple[str, ...]) -> dict[str, str]:
    """Return the choice of every group under overrides that choose groups."""
    from hydra import compose

    return dict(compose(config_name, list(choosing), return_hydra_config=True).hydra.runtime.choices)


def _refuse_ignored(job: Sequence[str], choices_of: Callable[[tuple[str, ...]], dict[str, str]], kind: Kind) -> None:
    """Refuse a key that exists but that the job's choice of its group, or its method, does not read."""
    from frl_repro.settings.lookup import all_keys, method_keys

    given = [text.split("=", 1)[0].lstrip("+") for text in job]
    dotted = [key for key in given if "." in key and not key.startswith("hydra.")]
    if not dotted:
        return
    # Seeds and the like choose no group: jobs that differ in them share one answer.
    choosing = [
        text for text in job if "." not in text.split("=", 1)[0] and text.split("=", 1)[0] not in all_keys(kind)
    ]
    choices = choices_of(tuple(choosing))
    methods = method_keys() if "frl" in choices else {}
    for key in dotted:
        if any(key in keys for keys in methods.values()):
            chosen = f"frl={choices['frl']} recipe={choices['recipe']}"
            readers = [method for method, keys in methods.items() if key in keys]
            # The other methods of this recipe say enough; where there are none, all that read the key.
            recipe = f"recipe={choices['recipe']}"
            known = [method for method in readers if method.endswith(f" {recipe}")] or readers
        else:
            group = key.split(".", 1)[0]
            chosen, known = f"{group}={choices.get(group)}", all_keys(kind)[key]
        if known and chosen not in known:
            raise UserError(f"{key} has no effect with {chosen}; it belongs to {' and '.join(known)}")


def _refuse_sweeps_of_sweeps(overrides: Sequence[Override], config_name: str) -> None:
    """Refuse a sweep over experiments that are sweeps themselves: Hydra would run one job of each."""
    from hydra import compose

    for override in overrides:
        if override.key_or_group in ("experiment", "sweep") and override.is_sweep_override():
            for choice in _values(override):
                settings = compose(config_name, [f"{override.key_or_group}={choice}"], return_hydra_config=True).hydra
                if settings.sweeper.params:
                    raise UserError(f"{override.input_line}: {choice} is a sweep itself, run it on its own")


def _values(override: Override) -> list[str]:
    from hydra.core.override_parser.types import Glob

    if isinstance(override.value(), Glob):
        raise UserError(f"{override.input_line}: list the choices instead of glob()")
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _jobs(
    overrides: Sequence[Override], swept: Sequence[Override], *, is_sweep: bool, lists: Collection[str]
) -> list[tuple[str, ...]]:
    """Return the overrides of each job: the product of all swept values, as Hydra's basic sweeper builds it."""
    given = {override.key_or_group for override in overrides}
    missing = [override for override in swept if override.key_or_group not in given]
    if not is_sweep:
        for override in overrides:
            if override.is_sweep_override() and override.key_or_group in lists:
                written = f"{override.key_or_group}=[{','.join(_values(override))}]"
                raise UserError(f"{override.input_line}: it takes a list, write {written}")
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: add -m to sweep over several values")
        if missing:
            lines = " ".join(override.input_line or "" for override in missing)
            raise UserError(f"this experiment is a sweep over {lines}: add -m, or choose one value")
    axes: dict[str, list[str]] = {}
    for override in [*missing, *overrides]:
        key = override.get_key_element()
        axes[key] = [f"{key}={value}" for value in _values(override)]
    return list(itertools.product(*axes.values()))


def _in_one_line(error: BaseException) -> str:
    """Return a library's message without its line breaks, and without the lines in which OmegaConf names its types."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    text = " ".join(kept) or type(error).__name__
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."
