"""The programs ``train.py``, ``scripts/evaluate.py`` and ``scripts/sanity.py``: from what was typed to an exit code.

Help answers at once; every job is checked before anything runs (`jobs`); one line for each mistake. Hydra, OmegaConf
and torch are imported inside functions: ``--help`` and completion must not wait for them.
"""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from frl_repro.basics import paths, process, standard_streams, torchrun
from frl_repro.basics.errors import UserError, one_line, printable, reason
from frl_repro.commands.command_line import CommandLine
from frl_repro.commands.jobs import Job, broken_settings, checked_jobs, read
from frl_repro.commands.messages import fail, speaks
from frl_repro.commands.overrides import parsed
from frl_repro.commands.running import ask_hydra, run_one, run_sweep
from frl_repro.runs import sweeps
from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig


class _Act(Protocol):
    """What the jobs of a program do; returns for each its folder, or why it failed."""

    def __call__(self, configs: Sequence[Any], command: str, *, is_sweep: bool) -> Sequence[Path | Exception]:
        """Take the jobs' settings, the command line for the record, and whether it is a sweep."""


# What processes of one run may have otherwise: where a machine keeps its data, and how fast it is.
_OF_EACH_MACHINE = ("num_threads", "dataset.root", "dataset.cache_dir", "dataset.download")
_SHOWN_VERSIONS = {"PyTorch": "torch", "Hydra": "hydra-core"}
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


def _train(configs: Sequence[RunConfig], command: str, *, is_sweep: bool) -> Sequence[Path | Exception]:
    from frl_repro.runs.experiment import run_all

    # A killed sweep may leave a worker that ends its job: the repeated sweep waits for it instead of failing.
    return run_all(configs, command=command, wait=is_sweep)


def _evaluate(configs: Sequence[EvaluateConfig], command: str, *, is_sweep: bool) -> Sequence[Path | Exception]:
    from frl_repro.evaluation.measure import measure_checkpoint

    del is_sweep  # measurements of one checkpoint write the same bytes: none waits for another
    return _one_by_one(configs, functools.partial(measure_checkpoint, command=command))


def _sanity(configs: Sequence[SanityConfig], command: str, *, is_sweep: bool) -> Sequence[Path | Exception]:
    from frl_repro.evaluation.sanity import check_checkpoint

    del is_sweep  # as with measurements
    return _one_by_one(configs, functools.partial(check_checkpoint, command=command))


def _one_by_one(configs: Sequence[Any], do: Callable[[Any], Path]) -> list[Path | Exception]:
    outcomes: list[Path | Exception] = []
    for config in configs:
        try:
            outcomes.append(do(config))
        except Exception as problem:
            outcomes.append(problem)
    return outcomes


def _main(config_name: str, act: _Act) -> int:
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
        return fail(reason(problem), is_alone=not isinstance(problem, UserError))
    except KeyboardInterrupt:
        if speaks():
            sys.stderr.write(_INTERRUPTED_LINE)
        if threading.active_count() > 1:
            # Those of fused runs: an interpreter that ends while they work aborts. States on disk are whole.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)
        return _INTERRUPTED


@contextmanager
def _ends_at_second_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C end the command in order, and a second one at once: files on disk are whole at any time."""
    is_ours = threading.current_thread() is threading.main_thread()
    is_ours = is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours:  # a launcher's worker or a notebook handles interrupts itself
        yield
        return

    def second(*_: object) -> None:
        with suppress(OSError):  # standard output is closed
            os.write(2, _INTERRUPTED_LINE.encode())
        os._exit(_INTERRUPTED)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, second)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        # After a first interrupt a second one ends the process until it has exited.
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


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


def _checked(arguments: Sequence[str], config_name: str) -> tuple[CommandLine, list[Job]]:
    """Return a command line, and its jobs where it does not just ask for something."""
    line = read(arguments, config_name)
    if line.asks_for_help or line.is_answered:
        return line, []
    return line, checked_jobs(line, config_name)


def _checked_alike(arguments: Sequence[str], config_name: str) -> tuple[CommandLine, list[Job]]:
    """Return what `_checked` does; of several processes, refuse where one was given another command.

    A mistake in the command of one process alone is such a difference: the others do not wait for it.
    """
    if torchrun.num_processes() == 1:
        return _checked(arguments, config_name)
    from frl_repro.basics import sameness
    from frl_repro.models.compute import distributed

    jobs: list[Job] = []
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


def _run_jobs(config_name: str, act: _Act) -> int:
    arguments = sys.argv[1:]
    if "--version" in arguments:
        return _print_version()
    command = shlex.join([Path(sys.argv[0]).name, *arguments])
    try:
        line, jobs = _checked_alike(arguments, config_name)
        if line.asks_for_help:
            return _print_help(config_name, line)
        if line.is_answered or (line.flags and not line.is_sweep):
            ask_hydra(config_name, [*line.overrides, *(jobs[0].added if jobs else []), *line.flags], line)
            return 0
        _refuse_several_processes(config_name, line.overrides)
        _say_whose_settings(line, jobs)
        act_on = functools.partial(act, command=command, is_sweep=line.is_sweep)
        if line.is_sweep:
            outcomes = run_sweep(act_on, jobs, line, config_name, command=command)
        else:
            outcomes = run_one(act_on, jobs[0], line)
    except UserError as mistake:
        return fail(str(mistake))
    if line.is_sweep and speaks():
        _report_failures(outcomes)
    if speaks():
        _say_what_next(jobs, outcomes)
    return 1 if any(outcome["reason"] for outcome in outcomes) else 0


def _say_whose_settings(line: CommandLine, jobs: Sequence[Job]) -> None:
    """Say in a line that attack and trainer, typed beside a class policy, are those of the base model."""
    from frl_repro.basics.progress import LOGGER, set_up_logging

    configs = [job.config for job in jobs]
    retrained = [config for config in configs if isinstance(config, RunConfig) and config.retrain is not None]
    keys = [override.key_or_group for override in parsed(line.overrides)]
    typed = [key for key in keys if key.split(".")[0] in ("attack", "trainer")]
    if not retrained or not typed or not speaks():
        return
    whose = "the model that retraining starts from"
    if all(config.keys.init_from is not None for config in retrained):
        whose += ", which init_from brings trained: no effect"
    set_up_logging()
    LOGGER.info("%s with frl=%s: of %s; retraining has retrain.*", ", ".join(typed), retrained[0].frl.name, whose)


def _say_what_next(jobs: Sequence[Job], outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Say which commands come next, where every job has come to its end."""
    from frl_repro.basics.progress import LOGGER
    from frl_repro.commands.next_steps import next_lines

    configs = {job.shown: job.config for job in jobs}
    folders = {outcome["job"]: outcome.get("folder") for outcome in outcomes}
    if not all(folders.values()) or not folders.keys() <= configs.keys():  # another sweeper has made the jobs
        return
    by_folder = {Path(folder): configs[job] for job, folder in folders.items() if folder}
    for text in next_lines(list(by_folder.values()), list(by_folder)):
        LOGGER.info("%s", text)


def _report_failures(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """List a sweep's failed jobs, on screen and in ``failed.json`` of its output folder."""
    failed = [outcome for outcome in outcomes if outcome["reason"]]
    if failed:
        lines = [f"  {outcome['job']}: {outcome['reason']}" for outcome in failed]
        sys.stderr.write("\n".join([f"{len(failed)} of {len(outcomes)} jobs failed:", *lines]) + "\n")
    try:
        sweeps.note_failures(outcomes)
    except OSError as problem:
        fail(reason(problem))


def _print_help(config_name: str, line: CommandLine) -> int:
    """Print one screen, or what is said of each topic that was typed."""
    from frl_repro.commands.helptext import front_page, program_name
    from frl_repro.commands.helptopics import Topics

    program = program_name()
    try:
        if line.overrides:
            topics = Topics(paths.CONFIG_DIR, config_name, program, line.config_dir)
            text = "\n".join(topics.text(topic) for topic in dict.fromkeys(line.overrides))
        else:
            text = front_page(paths.CONFIG_DIR, config_name, program)
    except UserError as mistake:
        return fail(str(mistake))
    except Exception:  # of a file of conf/ that someone has edited
        broken = broken_settings(*filter(None, [line.config_dir]))
        if broken is None:
            raise
        return fail(broken)
    sys.stdout.write(printable(text))
    return 0


def _print_version() -> int:
    from importlib.metadata import version

    import frl_repro

    packages = ", ".join(f"{name} {version(package)}" for name, package in _SHOWN_VERSIONS.items())
    sys.stdout.write(f"frl_repro {frl_repro.__version__} ({packages})\n")
    return 0
