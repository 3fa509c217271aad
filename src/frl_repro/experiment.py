"""One run from configuration to tables: wires data, model, attack, trainer and evaluation together.

The order of a run: train an epoch, measure the validation split, write the state; after the last epoch measure the
test split once, write the tables, and ``done.json`` last. Every number depends on the configuration alone, each random
stream on (seed, purpose, epoch): a run that was killed continues from its last finished epoch to the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from frl_repro import checkpoints, records, streams
from frl_repro.atomic import TEMPORARY_PATTERN, replacing
from frl_repro.attacks import Ascend, fgsm, pgd
from frl_repro.backends import Backend, choose_backend
from frl_repro.config import FGSMConfig, PGDConfig, PGDEvaluationConfig, RunConfig, to_dict
from frl_repro.data import Dataset, Split, load_dataset
from frl_repro.errors import UserError
from frl_repro.measure import measure, resolve_device, set_up_machine
from frl_repro.models import build_model
from frl_repro.progress import LOGGER, bar
from frl_repro.provenance import describe
from frl_repro.trainer import TrainingAttack, learning_rate_at, train_epoch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATE_FILE = "state.pt"
DONE_FILE = "done.json"
RUN_FILE = "run.json"
WEIGHTS_FILE = "model.safetensors"
CLASSWISE_FILE = "classwise.csv"
HISTORY_FILE = "history.csv"
SPLIT_FILE = "split.safetensors"
RESULT_FILES = (WEIGHTS_FILE, CLASSWISE_FILE, HISTORY_FILE, RUN_FILE, SPLIT_FILE)

Status = Literal["new", "unfinished", "finished"]

HISTORY_COLUMNS = (
    "run_id", "epoch", "num_steps", "learning_rate", "train_loss", "train_clean_error", "train_attacked_error",
)  # fmt: skip


def run(config: RunConfig, *, command: str = "") -> Path:
    """Do one run, or what is left of it, and return its folder.

    A finished run is skipped unless ``force`` is set; an unfinished one continues from its last finished epoch.

    Parameters
    ----------
    config : RunConfig
    command : str
        The command line, for the record.

    Raises
    ------
    UserError
        The folder holds something else, data or device are missing, or training diverged.
    """
    started = time.perf_counter()
    folder = config.folder
    status = folder_status(folder, config)
    if status == "finished" and not config.keys.force:
        LOGGER.info("finished already: %s (force=true repeats it)", folder)
        show_result(folder)
        return folder

    device = resolve_device(config.keys.device)
    set_up_machine(device, config.keys.num_threads)
    dataset = load_dataset(config.dataset)
    validation = _validation_subset(dataset, config.evaluation)
    model = new_model(config, dataset).to(device)
    backend = choose_backend(config.keys.backend, model, device)

    folder.mkdir(parents=True, exist_ok=True)
    with _only_process(folder):
        return _run_in_folder(config, folder, status, dataset, validation, model, device, backend, command, started)


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

    Raises
    ------
    UserError
        Another process works in the folder.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is working on this run") from None
        except OSError:  # some network file systems cannot lock a folder
            LOGGER.info("%s cannot be locked: do not start the same run twice at once", folder)
        yield
    finally:
        os.close(descriptor)


def _run_in_folder(
    config: RunConfig,
    folder: Path,
    status: Status,
    dataset: Dataset,
    validation: Split | None,
    model: nn.Module,
    device: torch.device,
    backend: Backend,
    command: str,
    started: float,
) -> Path:
    """Do the run in its folder, which this process holds, and return the folder."""
    if status == "finished":
        # In this order, so that a repeated run neither looks finished nor continues from the one before.
        (folder / STATE_FILE).unlink(missing_ok=True)
        (folder / DONE_FILE).unlink()
    for leftover in folder.glob(TEMPORARY_PATTERN):
        leftover.unlink()
    provenance = {
        "run_id": config.run_id,
        "config_hash": config.hash,
        "config": to_dict(config),
        **describe(device=device, backend=backend.name, command=command),
    }
    records.write_json(folder / RUN_FILE, provenance)
    if dataset.validation is not None:
        with replacing(folder / SPLIT_FILE) as temporary:
            save_file({"train": dataset.train_indices, "validation": dataset.validation_indices}, temporary)

    LOGGER.info("%s on %s -> %s", config.run_id, device, folder)
    model, history, rows, seconds = _train(config, dataset, validation, model, folder, device, backend, started)
    rows += _measure(config, model, dataset, dataset.test, "test", config.trainer.num_epochs, device, backend)

    origin = {**_keys(config), "epoch": config.trainer.num_epochs}
    checkpoints.save_weights(folder / WEIGHTS_FILE, model, origin=origin)
    records.write_table(folder / CLASSWISE_FILE, rows, records.CLASSWISE_COLUMNS)
    records.write_table(folder / HISTORY_FILE, history, HISTORY_COLUMNS)
    wall_seconds = round(seconds + time.perf_counter() - started, 1)
    records.write_json(folder / RUN_FILE, {**provenance, "wall_seconds": wall_seconds})
    results = [folder / name for name in RESULT_FILES if (folder / name).exists()]
    checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in results}
    records.write_json(folder / DONE_FILE, {"run_id": config.run_id, "config_hash": config.hash, "sha256": checksums})
    (folder / STATE_FILE).unlink(missing_ok=True)
    LOGGER.info("done in %.0f s: %s", wall_seconds, folder)
    show_result(folder)
    return folder


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
    recorded = records.read_json(folder / RUN_FILE)
    if recorded.get("config_hash") != config.hash:
        raise UserError(
            f"{folder} holds another run ({recorded.get('run_id')}, this is {config.run_id}): choose another run_dir"
        )
    return "finished" if (folder / DONE_FILE).exists() else "unfinished"


def show_result(folder: Path) -> None:
    """Log the class table of a finished run."""
    LOGGER.info("%s", records.class_table(records.read_classwise([folder / CLASSWISE_FILE])))


def new_model(config: RunConfig, dataset: Dataset) -> nn.Module:
    """Return the run's freshly initialised model."""
    channels, height, width = dataset.train.images.shape[1:]
    return build_model(
        config.model.name,
        num_classes=dataset.num_classes,
        image_shape=(channels, height, width),
        seed=streams.derive_seed(config.seed, "initial weights"),
    )


def training_attack(config: RunConfig, ascend: Ascend) -> tuple[TrainingAttack | None, float]:
    """Return the training attack, None for natural training, and the share of each batch that it gets."""
    settings = config.attack
    if isinstance(settings, PGDConfig):
        attack = functools.partial(
            pgd,
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            num_steps=settings.num_steps,
            use_random_start=settings.random_start,
            num_restarts=settings.num_restarts,
            objective=settings.objective,  # type: ignore[arg-type]
            ascend=ascend,
        )
        return attack, settings.fraction
    if isinstance(settings, FGSMConfig):
        attack = functools.partial(
            fgsm,
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            use_random_start=settings.random_start,
            ascend=ascend,
        )
        return attack, settings.fraction
    return None, 0.0


def _validation_subset(dataset: Dataset, settings: PGDEvaluationConfig) -> Split | None:
    """Return the validation images that are measured: any prefix of the split is stratified."""
    validation, wanted = dataset.validation, settings.num_validation
    if validation is None or wanted is None:
        return validation
    if wanted > len(validation.labels):
        raise UserError(f"evaluation.num_validation={wanted}: the split has {len(validation.labels)} images")
    subset = Split(images=validation.images[:wanted], labels=validation.labels[:wanted])
    if len(set(subset.labels.tolist())) < dataset.num_classes:
        raise UserError(f"evaluation.num_validation={wanted}: too few for one image of each class")
    return subset


def _train(
    config: RunConfig,
    dataset: Dataset,
    validation: Split | None,
    model: nn.Module,
    folder: Path,
    device: torch.device,
    backend: Backend,
    started: float,
) -> tuple[nn.Module, list[dict[str, Any]], list[dict[str, Any]], float]:
    """Train to the last epoch, continuing from the folder's state.

    Returns the model to measure (the running average when there is one), the history, the class rows so far and the
    seconds that earlier sessions took.
    """
    trainer = config.trainer
    optimizer = torch.optim.Adam(model.parameters(), lr=trainer.learning_rate, weight_decay=trainer.weight_decay)
    average = None
    if trainer.ema_decay is not None:
        ema = get_ema_multi_avg_fn(trainer.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    measured: nn.Module = model if average is None else average.module
    history: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    num_done, earlier_seconds = 0, 0.0
    machine = f"{device.type}, backend {backend.name}, {torch.get_num_threads()} threads"

    if (folder / STATE_FILE).exists():
        state = checkpoints.load_state(folder / STATE_FILE)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        if state["machine"] != machine:
            LOGGER.info("begun on %s, continued on %s: numbers may differ by rounding", state["machine"], machine)
        history, rows, num_done, earlier_seconds = state["history"], state["rows"], state["epoch"], state["seconds"]
        LOGGER.info("continuing after epoch %d of %d", num_done, trainer.num_epochs)

    train = Split(images=dataset.train.images.to(device), labels=dataset.train.labels.to(device))
    attack, fraction = training_attack(config, backend.ascend)
    for epoch in range(num_done, trainer.num_epochs):
        learning_rate = learning_rate_at(
            epoch,
            initial=trainer.learning_rate,
            decay_every=trainer.lr_decay_every,
            decay_factor=trainer.lr_decay_factor,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        last_good = folder / STATE_FILE if epoch > 0 else "none yet"
        with bar(f"epoch {epoch + 1}/{trainer.num_epochs}", len(train.labels)) as advance:
            summary = train_epoch(
                model,
                optimizer,
                train,
                attack=attack,
                attacked_fraction=fraction,
                batch_size=trainer.batch_size,
                order_generator=streams.generator(config.seed, "order", epoch),
                attack_generator=streams.generator(config.seed, "training attack", epoch, device=device),
                backward=backend.backward,
                average=average,
                where=f"epoch {epoch + 1}, step {{step}}; last good state: {last_good}",
                advance=advance,
            )
        entry = {"run_id": config.run_id, "epoch": epoch + 1, "learning_rate": learning_rate, **asdict(summary)}
        entry["train_clean_error"] = entry.pop("clean_error")
        entry["train_attacked_error"] = entry.pop("attacked_error")
        history.append(entry)
        LOGGER.info("%s", _epoch_line(entry, trainer.num_epochs, time.perf_counter() - started))
        if validation is not None:
            rows += _measure(config, measured, dataset, validation, "validation", epoch + 1, device, backend)
        checkpoints.save_state(
            folder / STATE_FILE,
            {
                "epoch": epoch + 1,
                "machine": machine,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": None if average is None else average.state_dict(),
                "history": history,
                "rows": rows,
                "seconds": earlier_seconds + time.perf_counter() - started,
            },
        )
    return measured, history, rows, earlier_seconds


def _epoch_line(entry: dict[str, Any], num_epochs: int, seconds: float) -> str:
    parts = [f"epoch {entry['epoch']}/{num_epochs}", f"loss {entry['train_loss']:.4f}"]
    for name in ("clean", "attacked"):
        if entry[f"train_{name}_error"] is not None:
            parts.append(f"{name} error {entry[f'train_{name}_error']:.3f}")
    return "  ".join([*parts, f"{seconds:.0f} s"])


def _measure(
    config: RunConfig,
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    split_name: str,
    epoch: int,
    device: torch.device,
    backend: Backend,
) -> list[dict[str, Any]]:
    """Return the class rows of a split at every radius."""
    return measure(
        model,
        split,
        config.evaluation,
        class_names=dataset.class_names,
        seed=streams.derive_seed(config.seed, f"measure {split_name}", epoch),
        device=device,
        backend=backend,
        keys={**_keys(config), "split": split_name, "epoch": epoch},
    )


def _keys(config: RunConfig) -> dict[str, Any]:
    """Return the columns that name a run in every table."""
    return {
        "run_id": config.run_id,
        "dataset": config.dataset.name,
        "model": config.model.name,
        "method": config.method,
        "seed": config.seed,
    }
