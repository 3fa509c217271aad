"""From configurations to tables, each run in its own folder: skip, resume, lock, warm start, provenance.

The order of a run: train an epoch, measure the validation split, write the state; after the last epoch measure the
test split once, write the tables, and ``done.json`` last. Retraining first makes sure of the model it starts from, and
measures it as epoch 0. Every number depends on the configuration alone, each random stream on (seed, purpose, epoch): a
run that was killed continues from its last finished epoch to the same bytes.
"""

from __future__ import annotations

import copy
import functools
import glob
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from frl_repro import checkpoints, distributed, records, text_tables
from frl_repro.atomic import TEMPORARY_PATTERN, write_bytes
from frl_repro.backends import choose_backend
from frl_repro.best import BEST, BEST_FILE, BOTH, LAST
from frl_repro.build import num_steering_images
from frl_repro.config import RunConfig, to_dict
from frl_repro.data import Dataset, Split, load_dataset
from frl_repro.errors import UserError
from frl_repro.fitting import Bench, Fitted, fit, new_model
from frl_repro.lockstep import grouped, runs_at_once, share_out
from frl_repro.loggers import LOGGERS, Logger, forget
from frl_repro.measure import Measured, resolve_device, set_up_machine
from frl_repro.networks import image_shape
from frl_repro.outcomes import OUTCOMES_FILE, write_outcomes
from frl_repro.progress import LOGGER
from frl_repro.provenance import describe
from frl_repro.run_folder import (
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
    held,
    read_object,
    sha256,
)

Status = Literal["new", "unfinished", "finished"]
Outcome = Path | Exception
"""What became of a run: its folder, or why it failed."""


def run(config: RunConfig, *, command: str = "", wait: bool = False) -> Path:
    """Do one run, or what is left of it, and return its folder.

    A finished run is skipped unless ``force`` is set; an unfinished one continues from its last finished epoch.

    Parameters
    ----------
    config : RunConfig
    command : str
        The command line, for the record.
    wait : bool
        Wait for another process that works on the same run, instead of refusing.

    Raises
    ------
    UserError
        The folder holds something else, data or device are missing, or training diverged.
    """
    (outcome,) = run_all([config], command=command, wait=wait)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_all(configs: Sequence[RunConfig], *, command: str = "", wait: bool = False) -> list[Outcome]:
    """Do several runs, or what is left of them; those that can train side by side do (`RunConfig.shared`).

    Each writes what it would write alone, up to rounding. A run that fails stops no other.

    Parameters
    ----------
    configs : sequence of RunConfig
    command, wait
        As in `run`.

    Returns
    -------
    list of Path or Exception
        For each run its folder, or why it failed: a `UserError`, a system error, or a mistake in the program.
    """
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
            table = distributed.from_writer(functools.partial(_checked_table, folder))
            LOGGER.info("finished already: %s (force=true repeats it)\n%s", folder, table)
            outcomes[folder] = folder
        except Exception as problem:
            outcomes[folder] = problem

    # Retraining last: what it starts from may be one of the other runs.
    for is_retrained in (False, True):
        configs_of_kind = [config for config in to_do.values() if (config.retrain is not None) is is_retrained]
        starts, failed = _starting_points(configs_of_kind, command)
        outcomes |= failed
        for group in grouped([config for config in configs_of_kind if config.folder not in failed]):
            try:
                _run_group(group, starts, command, wait=wait, outcomes=outcomes)
            except Exception as problem:
                _note_failure(group, problem, outcomes)
    return [
        outcomes[config.folder] if config.hash == by_folder[config.folder].hash else _holds_another(config, by_folder)
        for config in configs
    ]


def _note_failure(configs: Sequence[RunConfig], problem: Exception, outcomes: dict[Path, Outcome]) -> None:
    """Note why runs failed; what has come to its end by then stays as it is."""
    for config in configs:
        outcomes.setdefault(config.folder, problem)


def _holds_another(config: RunConfig, by_folder: Mapping[Path, RunConfig]) -> UserError:
    other = by_folder[config.folder].run_id
    return UserError(f"{config.folder} holds another run ({other}, this is {config.run_id}): choose another run_dir")


def _starting_points(
    configs: Sequence[RunConfig], command: str
) -> tuple[dict[Path, Path | None], dict[Path, Exception]]:
    """Return for each run's folder the weights that its retraining starts from, trained first where need be.

    None for training from scratch; in the second mapping, why the weights cannot be had. The store of starting models
    is a folder of ordinary runs, named after their settings: whoever needs the same model finds it there, and processes
    that need it at the same time wait for the one that trains it.
    """
    starts: dict[Path, Path | None] = {}
    failed: dict[Path, Exception] = {}
    bases: dict[Path, RunConfig] = {}
    missing: dict[Path, RunConfig] = {}
    loaded: tuple[RunConfig, Dataset] | None = None
    for config in configs:
        given = config.keys.init_from
        if config.retrain is None:
            starts[config.folder] = None
        elif given is not None:
            starts[config.folder] = Path(given)
        else:
            base = bases[config.folder] = config.base()
            try:
                same = distributed.from_writer(functools.partial(_trained_alike, base))
                if same is not None:
                    distributed.from_writer(functools.partial(check_finished, same))
                    LOGGER.info("the model that retraining starts from: %s", same)
                    starts[config.folder] = same / WEIGHTS_FILE
                    del bases[config.folder]
                elif _status_of(base) == "finished":
                    distributed.from_writer(functools.partial(check_finished, base.folder))
                else:
                    # What the data cannot give is said before the starting model is trained, not after.
                    if loaded is None or loaded[0].dataset != config.dataset:
                        loaded = config, _load_dataset(config)
                    _check_validation(config, loaded[1])
                    missing[base.folder] = base
            except (UserError, OSError) as problem:
                failed[config.folder] = problem
    for folder in missing:
        LOGGER.info("the model that retraining starts from: %s", folder)
    trained = run_all(list(missing.values()), command=command, wait=True) if missing else []
    outcome_of = dict(zip(missing, trained, strict=True))
    for folder, base in bases.items():
        outcome = outcome_of.get(base.folder)
        if isinstance(outcome, Exception):
            failed[folder] = outcome
        starts[folder] = base.folder / WEIGHTS_FILE
    return starts, failed


def _trained_alike(base: RunConfig) -> Path | None:
    """Return the folder of a finished run that trained the very model, however it was measured; None if there is none.

    Looked for beside the store of starting models: a sweep that trains a robust model as a row of its table need not
    train it again for the rows that start from it. The store itself goes first.
    """
    if (base.folder / DONE_FILE).exists():
        return None
    beside = base.folder.parent.parent
    named_alike = base.run_id.removesuffix(base.hash)
    for done in sorted(beside.glob(f"{glob.escape(named_alike)}*/{DONE_FILE}")):
        try:
            recorded = read_object(done.with_name(RUN_FILE))["config"]
        except (UserError, OSError, KeyError):
            continue  # of no use, and nobody asked for this run
        if base.is_trained_like(recorded) and (done.with_name(WEIGHTS_FILE)).exists():
            return done.parent
    return None


@dataclass(frozen=True)
class _Opened:
    """A run whose folder this process holds.

    Attributes
    ----------
    provenance : dict
        What ``run.json`` says until the run ends.
    """

    bench: Bench
    provenance: dict[str, Any]


def _run_group(
    configs: Sequence[RunConfig],
    starts: Mapping[Path, Path | None],
    command: str,
    *,
    wait: bool,
    outcomes: dict[Path, Outcome],
) -> None:
    """Do runs that can train side by side, as many at once as memory holds, and note what becomes of each."""
    machine = configs[0].keys
    device = distributed.own_device(resolve_device(machine.device))
    set_up_machine(device, machine.num_threads)
    dataset = _load_dataset(configs[0])
    at_once = 1
    if len(configs) > 1:
        at_once = runs_at_once(new_model(configs[0], dataset).to(device), configs[0], image_shape(dataset), device)

    def work(part: Sequence[RunConfig]) -> None:
        try:
            _run_side_by_side(
                part, dataset, device, starts, command, wait=wait, is_alone=len(configs) == 1, outcomes=outcomes
            )
        except Exception as problem:
            _note_failure(part, problem, outcomes)

    # In order of their names: processes that need the same runs then never wait for one another in a circle.
    share_out(sorted(configs, key=lambda config: config.folder), work, at_once=at_once, device=device)


def _run_side_by_side(
    configs: Sequence[RunConfig],
    dataset: Dataset,
    device: torch.device,
    starts: Mapping[Path, Path | None],
    command: str,
    *,
    wait: bool,
    is_alone: bool,
    outcomes: dict[Path, Outcome],
) -> None:
    """Do runs that fit into memory together; ``is_alone``: no other run is under way in this process."""
    started = time.perf_counter()
    with ExitStack() as stack:
        opened: list[_Opened] = []
        for config in configs:
            try:
                run_ = _open(config, dataset, device, starts[config.folder], command, stack, wait=wait, started=started)
            except (UserError, OSError) as problem:
                outcomes[config.folder] = problem
                continue
            if run_ is None:
                outcomes[config.folder] = config.folder
            else:
                opened.append(run_)
        for place, fitted in fit([run_.bench for run_ in opened], is_alone=is_alone):
            folder = opened[place].bench.folder
            outcomes[folder] = fitted if isinstance(fitted, Exception) else folder
            if isinstance(fitted, Fitted):
                try:
                    _write_results(opened[place], fitted, num_side_by_side=len(opened))
                except (UserError, OSError) as problem:
                    outcomes[folder] = problem


def _open(
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    start: Path | None,
    command: str,
    opened: ExitStack,
    *,
    wait: bool,
    started: float,
) -> _Opened | None:
    """Take hold of a run's folder and prepare what is left of the run; None where another process has finished it."""
    folder = config.folder
    model = new_model(config, dataset)
    if start is not None:
        _load_weights(start, model)
    model = distributed.synchronised(model.to(device), device)
    backend = choose_backend(
        config.keys.backend, model, device, image_shape=image_shape(dataset), only_torch=_only_torch(config)
    )
    bench = Bench(
        config=config,
        dataset=dataset,
        validation=_validation_subset(dataset, config),
        model=model,
        device=device,
        backend=distributed.shared(backend),
        folder=folder,
        logger=(LOGGERS[config.keys.logger] if distributed.is_writer() else Logger)(folder, to_dict(config)),
        started=started,
    )
    opened.callback(bench.logger.close)

    def take_hold() -> dict[str, Any] | None:
        folder.mkdir(parents=True, exist_ok=True)
        opened.enter_context(held(folder, wait=wait, log=LOGGER.info))
        # Asked only now: another process may have finished the run since `run_all` looked.
        status = folder_status(folder, config)
        if status == "finished" and not config.keys.force:
            return None
        return _open_folder(bench, status, start, command)

    provenance = distributed.from_writer(take_hold)
    return None if provenance is None else _Opened(bench, provenance)


def _status_of(config: RunConfig) -> Status:
    return distributed.from_writer(functools.partial(folder_status, config.folder, config))


def _load_dataset(config: RunConfig) -> Dataset:
    with distributed.first_on_machine_first():
        return load_dataset(config.dataset)


def _load_weights(path: Path, model: nn.Module) -> None:
    """Load weights into the model, in every process those that the writer reads."""

    def read() -> dict[str, Tensor]:
        checkpoints.load_weights(path, model)
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    model.load_state_dict(distributed.from_writer(read))


def _only_torch(config: RunConfig) -> str | None:
    """Return the first setting of the run that PyTorch alone can follow; None where there is none."""
    asked_for = {
        "compile=true": config.keys.compile,
        "precision=bfloat16": config.training[1].precision == "bfloat16",
    }
    return next((setting for setting, is_asked_for in asked_for.items() if is_asked_for), None)


def _open_folder(bench: Bench, status: Status, start: Path | None, command: str) -> dict[str, Any]:
    """Prepare the folder, which this process holds, for what is left of the run; return the run's provenance."""
    config, dataset, folder = bench.config, bench.dataset, bench.folder
    if status == "finished":
        # In this order, so that a repeated run neither looks finished nor continues from the one before.
        forget_state(folder)
        (folder / DONE_FILE).unlink()
        forget(folder)
    for leftover in folder.glob(TEMPORARY_PATTERN):
        leftover.unlink()
    provenance = {
        "run_id": config.run_id,
        "config_hash": config.hash,
        "config": to_dict(config),
        "start": None if start is None else {"file": str(start), "sha256": sha256(start)},
        **describe(device=bench.device, backend=bench.backend.name, command=command),
        "num_processes": distributed.num_processes(),
    }
    records.write_json(folder / RUN_FILE, provenance)
    if dataset.validation is not None:
        indices = {"train": dataset.train_indices, "validation": dataset.validation_indices}
        if dataset.selection_indices is not None:
            indices["selection"] = dataset.selection_indices
        write_bytes(folder / SPLIT_FILE, safetensors.torch.save(indices))
    LOGGER.info("%s on %s (backend %s) -> %s", config.run_id, bench.device, bench.backend.name, folder)
    return provenance


def _write_results(opened: _Opened, fitted: Fitted, *, num_side_by_side: int) -> None:
    """Measure the test split, write the run's tables, and ``done.json`` last."""
    bench, config, folder = opened.bench, opened.bench.config, opened.bench.folder
    num_epochs = config.training[1].num_epochs
    measured = _measure_kept(bench, fitted)
    if not distributed.is_writer():
        return
    rows = [*fitted.rows, *(row for one in measured for row in one.rows)]
    origin = {**bench.keys, "epoch": num_epochs, "checkpoint": rows[-1]["checkpoint"]}
    checkpoints.save_weights(folder / WEIGHTS_FILE, fitted.model, origin=origin)
    records.write_table(folder / CLASSWISE_FILE, rows, records.CLASSWISE_HEADER)
    write_outcomes(folder / OUTCOMES_FILE, bench.outcomes(measured[-1]))
    records.write_table(folder / HISTORY_FILE, fitted.history, records.HISTORY_COLUMNS)
    if config.retrain is not None:
        records.write_table(folder / POLICY_FILE, fitted.policy_rows, records.POLICY_COLUMNS)
    bench.logger.update(fitted.history, rows, fitted.policy_rows)
    wall_seconds = round(fitted.earlier_seconds + time.perf_counter() - bench.started, 1)
    effort = {"wall_seconds": wall_seconds, "num_side_by_side": num_side_by_side}  # seconds of all those runs
    records.write_json(folder / RUN_FILE, {**opened.provenance, **effort})
    results = [folder / name for name in (*RESULT_FILES, OUTCOMES_FILE, BEST_FILE) if (folder / name).exists()]
    checksums = {path.name: sha256(path) for path in results}
    records.write_json(folder / DONE_FILE, {"run_id": config.run_id, "config_hash": config.hash, "sha256": checksums})
    forget_state(folder)
    LOGGER.info("done in %.0f s: %s\n%s", wall_seconds, folder, _result_table(folder))


def _measure_kept(bench: Bench, fitted: Fitted) -> list[Measured]:
    """Measure the kept checkpoints, the best one where it is another one, and the last; the test split comes last."""
    num_epochs = bench.config.training[1].num_epochs
    splits = {"selection": bench.dataset.selection, "test": bench.dataset.test}

    def measure(model: nn.Module, epoch: int, checkpoint: str) -> list[Measured]:
        return [
            bench.measure(model, split, name, epoch, checkpoint=checkpoint)
            for name, split in splits.items()
            if split is not None
        ]

    if fitted.best_epoch is None or fitted.best_epoch == num_epochs:
        return measure(fitted.model, num_epochs, LAST if fitted.best_epoch is None else BOTH)
    best = copy.deepcopy(fitted.model)
    _load_weights(bench.folder / BEST_FILE, best)
    return measure(best, fitted.best_epoch, BEST) + measure(fitted.model, num_epochs, LAST)


def folder_status(folder: Path, config: RunConfig) -> Status:
    """Return what a folder holds of this run.

    Raises
    ------
    UserError
        The folder holds another run, or files that are no run at all.
    """
    if not folder.exists():
        return "new"
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder for a run")
    if not (folder / RUN_FILE).exists():
        leftovers = set(folder.glob(TEMPORARY_PATTERN))
        if all(path in leftovers for path in folder.iterdir()):
            return "new"
        raise UserError(f"{folder} holds files that are no run of frl_repro: choose another run_dir")
    recorded = read_object(folder / RUN_FILE)
    if recorded.get("config_hash") != config.hash:
        raise UserError(
            f"{folder} holds another run ({recorded.get('run_id')}, this is {config.run_id}): choose another run_dir"
        )
    return "finished" if (folder / DONE_FILE).exists() else "unfinished"


def _checked_table(folder: Path) -> str:
    """Return the class table of a finished run whose files are as they were written."""
    check_finished(folder)
    return _result_table(folder)


def _result_table(folder: Path) -> str:
    """Return the class table of a finished run as text; before and after for retraining."""
    table = records.read_classwise([folder / CLASSWISE_FILE])
    return text_tables.before_after_table(table) if (table["epoch"] == 0).any() else text_tables.class_table(table)


def _check_validation(config: RunConfig, dataset: Dataset) -> None:
    """Raise a `UserError` where retraining asks for more validation images than there are."""
    _validation_subset(dataset, config)
    if dataset.validation is not None:
        num_steering_images(config, dataset.validation)


def _validation_subset(dataset: Dataset, config: RunConfig) -> Split | None:
    """Return the validation images that are measured: any prefix of the split is stratified."""
    validation, wanted = dataset.validation, config.evaluation.num_validation
    if validation is None or wanted is None:
        return validation
    if wanted > len(validation):
        raise UserError(f"evaluation.num_validation={wanted}: the split has {len(validation)} images")
    subset = Split(images=validation.images[:wanted], labels=validation.labels[:wanted])
    if len(set(subset.labels.tolist())) < dataset.num_classes:
        raise UserError(f"evaluation.num_validation={wanted}: too few for one image of each class")
    return subset
