"""From configurations to tables, each run in its own folder: skip, resume, lock, warm start, provenance.

The order of a run: train an epoch, measure the validation split, write the state; after the last epoch measure the
test split once, write the tables, and ``done.json`` last. Retraining first makes sure of the model it starts from, and
measures it as epoch 0. Every number depends on the configuration alone, each random stream on (seed, purpose, epoch): a
run that was killed continues from its last finished epoch to the same bytes.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from frl_repro.basics.atomic import check_in_place
from frl_repro.basics.errors import UserError
from frl_repro.basics.folder_lock import check_held, remove_leftover
from frl_repro.basics.progress import LOGGER
from frl_repro.basics.run_folder import (
    CLASSWISE_FILE,
    DONE_FILE,
    HISTORY_FILE,
    POLICY_FILE,
    RESULT_FILES,
    RUN_FILE,
    SPLIT_FILE,
    WEIGHTS_FILE,
    check_finished,
    forget_state,
    read_object,
    sha256,
)
from frl_repro.data import Dataset, load_dataset
from frl_repro.evaluation.measure import Measured, resolve_device, set_up_machine
from frl_repro.models import checkpoints
from frl_repro.models.compute import distributed
from frl_repro.models.identity import recorded_start
from frl_repro.results.tables import schema, text_tables, writing
from frl_repro.results.tables.best import BEST, BEST_FILE, BOTH, LAST
from frl_repro.results.tables.outcomes import OUTCOMES_FILE, write_outcomes
from frl_repro.runs.fused import grouped, runs_at_once, share_out
from frl_repro.runs.inputs import Inputs, compare_finished, find_base
from frl_repro.runs.opening import Status, check_validation, folder_status, load_weights, open_run
from frl_repro.settings.config import RunConfig
from frl_repro.training.budget import ImageSteps, image_steps
from frl_repro.training.build import check_network
from frl_repro.training.epochs_left import TrainingProgress
from frl_repro.training.fitting import fit
from frl_repro.training.loggers import LOGGERS
from frl_repro.training.open_run import Fitted, OpenRun

Outcome = Path | Exception
"""What became of a run: its folder, or why it failed."""


def run(config: RunConfig, *, command: str = "", wait: bool = False, inputs: Inputs | None = None) -> Path:
    """Do one run, or what is left of it, and return its folder.

    A finished run is skipped unless ``force`` is set; an unfinished one continues from its last finished epoch.

    Parameters
    ----------
    config : RunConfig
    command : str
        The command line, for the record.
    wait : bool
        Wait for another process that works on the same run, instead of refusing.
    inputs : Inputs, optional
        Where data and networks come from; None: as the settings say.

    Raises
    ------
    UserError
        The folder holds something else, data or device are missing, or training diverged.
    """
    (outcome,) = run_all([config], command=command, wait=wait, inputs=inputs)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_all(
    configs: Sequence[RunConfig], *, command: str = "", wait: bool = False, inputs: Inputs | None = None
) -> list[Outcome]:
    """Do several runs, or what is left of them; those that can be fused are (`RunConfig.shared`).

    Each writes what it would write alone, up to rounding. A run that fails stops no other.

    Parameters
    ----------
    configs : sequence of RunConfig
    command, wait, inputs
        As in `run`.

    Returns
    -------
    list of Path or Exception
        For each run its folder, or why it failed: a `UserError`, a system error, or a mistake in the program.
    """
    progress = TrainingProgress()
    try:
        return _run_all(configs, inputs or Inputs(load_dataset), command, wait=wait, progress=progress)
    finally:
        progress.close()


def _run_all(
    configs: Sequence[RunConfig], data: Inputs, command: str, *, wait: bool, progress: TrainingProgress
) -> list[Outcome]:
    """As `run_all`, with data sets that may be loaded already."""
    by_folder: dict[Path, RunConfig] = {}
    for config in configs:
        by_folder.setdefault(config.folder, config)
    outcomes: dict[Path, Outcome] = {}
    to_do: dict[Path, RunConfig] = {}
    for folder, config in by_folder.items():
        try:
            if _status_of(config) != "finished" or config.keys.force:
                LOGGERS[config.keys.logger].check()
                to_do[folder] = config
                continue
            note, table = distributed.from_writer(functools.partial(_checked_table, config, data))
            LOGGER.info("finished already: %s (force=true repeats it)%s\n%s", folder, note, table)
            outcomes[folder] = folder
        except Exception as problem:
            outcomes[folder] = problem

    progress.plan(to_do.values())
    # Retraining last: its base may be one of the other runs.
    for is_retrained in (False, True):
        configs_of_kind = [config for config in to_do.values() if (config.retrain is not None) is is_retrained]
        starts, failed = _starting_points(configs_of_kind, data, command, progress)
        outcomes |= failed
        for folder in failed:
            progress.drop(to_do[folder])
        for group in grouped([config for config in configs_of_kind if config.folder not in failed]):
            try:
                _run_group(group, data, starts, command, wait=wait, outcomes=outcomes, progress=progress)
            except Exception as problem:
                _note_failure(group, problem, outcomes)
            for config in group:
                progress.drop(config)
    return [
        outcomes[config.folder] if config.hash == by_folder[config.folder].hash else _holds_another(config, by_folder)
        for config in configs
    ]


def _note_failure(configs: Sequence[RunConfig], problem: Exception, outcomes: dict[Path, Outcome]) -> None:
    """Record why runs failed; runs that have finished keep their result."""
    for config in configs:
        outcomes.setdefault(config.folder, problem)


def _holds_another(config: RunConfig, by_folder: Mapping[Path, RunConfig]) -> UserError:
    other = by_folder[config.folder].run_id
    return UserError(f"{config.folder} holds another run ({other}, this is {config.run_id}): choose another run_dir")


def _starting_points(
    configs: Sequence[RunConfig], data: Inputs, command: str, progress: TrainingProgress
) -> tuple[dict[Path, Path | None], dict[Path, Exception]]:
    """Return for each run's folder the weights that its retraining starts from, trained first where need be.

    None for training from scratch and for a network that is given; in the second mapping, why the weights cannot be
    had. The store of starting models is a folder of ordinary runs, named after their settings: whoever needs the same
    model of the same data finds it there, and processes that need it at the same time wait for the one that trains it.
    """
    starts: dict[Path, Path | None] = {}
    failed: dict[Path, Exception] = {}
    bases: dict[Path, RunConfig] = {}
    missing: dict[Path, RunConfig] = {}

    def find(config: RunConfig, base: RunConfig) -> tuple[Path | None, RunConfig]:
        wanted = recorded_start(read_object(config.folder / RUN_FILE)) if (config.folder / RUN_FILE).exists() else None
        return find_base(base, data.content(base.dataset), wanted=wanted, network=data.own_network(base))

    for config in configs:
        given = config.keys.init_from
        if config.retrain is None or data.is_given:
            starts[config.folder] = None
        elif given is not None:
            starts[config.folder] = Path(given)
        else:
            try:
                found, base = distributed.from_writer(functools.partial(find, config, config.base()))
                if found is not None:
                    distributed.from_writer(functools.partial(remove_leftover, found))
                    LOGGER.info("the model that retraining starts from: %s", found)
                    starts[config.folder] = found / WEIGHTS_FILE
                else:
                    # Settings that the data cannot satisfy are refused before the base is trained.
                    dataset = data.load(config.dataset)
                    check_validation(config, dataset)
                    check_network(config, dataset, functools.partial(data.network, config, dataset))
                    bases[config.folder] = missing[base.folder] = base
            except (UserError, OSError) as problem:
                failed[config.folder] = problem
    for folder in missing:
        LOGGER.info("the model that retraining starts from: %s", folder)
    trained = _run_all(list(missing.values()), data, command, wait=True, progress=progress) if missing else []
    outcome_of = dict(zip(missing, trained, strict=True))
    for folder, base in bases.items():
        outcome = outcome_of.get(base.folder)
        if isinstance(outcome, Exception):
            failed[folder] = outcome
        starts[folder] = base.folder / WEIGHTS_FILE
    return starts, failed


def _run_group(
    configs: Sequence[RunConfig],
    data: Inputs,
    starts: Mapping[Path, Path | None],
    command: str,
    *,
    wait: bool,
    outcomes: dict[Path, Outcome],
    progress: TrainingProgress,
) -> None:
    """Train fused runs, as many at once as memory holds, and record how each ends."""
    machine = configs[0].keys
    device = distributed.own_device(resolve_device(machine.device))
    set_up_machine(device, machine.num_threads)
    dataset = data.load(configs[0].dataset)
    if distributed.num_processes() > 1:  # a digest of everything takes a while
        distributed.refuse_unless_alike({"the data's sha256": dataset.digest})
    at_once = 1
    if len(configs) > 1:
        image_shape = dataset.train.images.shape[1:]
        at_once = runs_at_once(data.network(configs[0], dataset).to(device), configs[0], image_shape, device)

    def work(part: Sequence[RunConfig]) -> None:
        try:
            _run_fused(
                part, dataset, data, device, starts, command,
                wait=wait, is_alone=len(configs) == 1, outcomes=outcomes, progress=progress,
            )  # fmt: skip
        except Exception as problem:
            _note_failure(part, problem, outcomes)

    # In order of their names: processes that lock the same runs cannot deadlock.
    share_out(sorted(configs, key=lambda config: config.folder), work, at_once=at_once, device=device)


def _run_fused(
    configs: Sequence[RunConfig],
    dataset: Dataset,
    data: Inputs,
    device: torch.device,
    starts: Mapping[Path, Path | None],
    command: str,
    *,
    wait: bool,
    is_alone: bool,
    outcomes: dict[Path, Outcome],
    progress: TrainingProgress,
) -> None:
    """Do runs that fit into memory together; ``is_alone``: no other run is under way in this process."""
    started = time.perf_counter()
    with ExitStack() as stack:
        opened: list[OpenRun] = []
        for config in configs:
            try:
                run = open_run(
                    config, dataset, data, device, starts[config.folder], command, stack, wait=wait, started=started
                )
            except (UserError, OSError) as problem:
                outcomes[config.folder] = problem
                continue
            if run is None:
                outcomes[config.folder] = config.folder
            else:
                opened.append(run)
        for place, fitted in fit(opened, is_alone=is_alone, progress=progress):
            folder = opened[place].folder
            outcomes[folder] = fitted if isinstance(fitted, Exception) else folder
            if isinstance(fitted, Fitted):
                try:
                    _write_results(opened[place], fitted, num_fused=len(opened))
                except (UserError, OSError) as problem:
                    outcomes[folder] = problem


def _status_of(config: RunConfig) -> Status:
    return distributed.from_writer(functools.partial(folder_status, config.folder, config))


def _write_results(run: OpenRun, fitted: Fitted, *, num_fused: int) -> None:
    """Measure the test split, write the run's tables, and ``done.json`` last."""
    config, folder = run.config, run.folder
    distributed.from_writer(functools.partial(check_in_place, folder))
    measured = _measure_kept(run, fitted)
    if not distributed.is_writer():
        return
    check_held(folder)
    rows = [*fitted.rows, *(row for one in measured for row in one.rows)]
    origin = run.origin(epoch=config.last_epoch, checkpoint=rows[-1]["checkpoint"])
    checkpoints.save_weights(folder / WEIGHTS_FILE, fitted.model, origin=origin)
    writing.write_table(folder / CLASSWISE_FILE, rows, schema.CLASSWISE_HEADER)
    write_outcomes(folder / OUTCOMES_FILE, run.outcomes(measured[-1]))
    writing.write_table(folder / HISTORY_FILE, fitted.history, schema.HISTORY_COLUMNS)
    if config.has_policy:
        columns = list(dict.fromkeys([*schema.POLICY_COLUMNS, *(name for row in fitted.policy_rows for name in row)]))
        writing.write_table(folder / POLICY_FILE, fitted.policy_rows, columns)
    run.logger.update(fitted.history, rows, fitted.policy_rows)
    wall_seconds = round(fitted.earlier_seconds + time.perf_counter() - run.started, 1)
    effort = {
        "wall_seconds": wall_seconds,  # of all the fused runs
        "num_side_by_side": num_fused,
        "image_steps": asdict(_image_steps(run)),
    }
    run.write_record(fitted.segments, **effort)
    checksums = {name: sha256(folder / name) for name in _result_files(run, fitted)}
    inputs = {"data": {"digest": run.dataset.digest}, "start": run.start}
    inputs |= {} if run.network is None else {"network": run.network}
    done = {"run_id": config.run_id, "config_hash": config.hash, **inputs, "sha256": checksums}
    writing.write_json(folder / DONE_FILE, done)
    forget_state(folder)
    LOGGER.info("done in %.0f s: %s\n%s", wall_seconds, folder, text_tables.table_of_run(folder, top=config.keys.top))


def _image_steps(run: OpenRun) -> ImageSteps:
    validation = run.dataset.validation
    steps = image_steps(
        run.config,
        num_train=len(run.dataset.train),
        num_validation=0 if validation is None else len(validation),
    )
    is_given = run.config.retrain is not None and run.start is None  # a network given from Python
    return replace(steps, base=None) if is_given else steps


def _result_files(run: OpenRun, fitted: Fitted) -> list[str]:
    """Return the names of a finished run's files; UserError where one was deleted while the run worked."""
    absent = {
        POLICY_FILE: not run.config.has_policy,
        SPLIT_FILE: run.dataset.validation is None,
        BEST_FILE: fitted.best_epoch is None,
    }
    names = [name for name in (*RESULT_FILES, OUTCOMES_FILE, BEST_FILE) if not absent.get(name, False)]
    for name in names:
        if not (run.folder / name).exists():
            raise UserError(f"{run.folder / name} was deleted while the run worked: repeat the command")
    return names


def _measure_kept(run: OpenRun, fitted: Fitted) -> list[Measured]:
    """Measure the kept checkpoints, the best one where it is another one, and the last; the test split comes last."""
    last_epoch = run.config.last_epoch
    splits = {"selection": run.dataset.selection, "test": run.dataset.test}

    def measure(model: nn.Module, epoch: int, checkpoint: str) -> list[Measured]:
        return [
            run.measure(model, split, name, epoch, checkpoint=checkpoint)
            for name, split in splits.items()
            if split is not None
        ]

    if fitted.best_epoch is None or fitted.best_epoch == last_epoch:
        return measure(fitted.model, last_epoch, LAST if fitted.best_epoch is None else BOTH)
    best = copy.deepcopy(fitted.model)
    load_weights(run.folder / BEST_FILE, best)
    return measure(best, fitted.best_epoch, BEST) + measure(fitted.model, last_epoch, LAST)


def _checked_table(config: RunConfig, data: Inputs) -> tuple[str, str]:
    """Return what is said of a finished run whose files and inputs are as they were: a note, and its class table."""
    check_finished(config.folder)
    remove_leftover(config.folder)
    unknown = compare_finished(config, data)
    note = f"; not compared with its data: {unknown}" if unknown else ""
    return note, text_tables.table_of_run(config.folder, top=config.keys.top)
