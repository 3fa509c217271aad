"""A run's folder and what the run needs, before its first step: checks, model, backend, lock, record."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from frl_repro.basics.atomic import TEMPORARY_PATTERN, kept_in_place, write_bytes
from frl_repro.basics.errors import UserError
from frl_repro.basics.folder_lock import LOCK_FILE, held
from frl_repro.basics.progress import LOGGER
from frl_repro.basics.provenance import describe
from frl_repro.basics.run_folder import DONE_FILE, RUN_FILE, SPLIT_FILE, forget_state, read_object
from frl_repro.data import Dataset, Split, at_most
from frl_repro.models import checkpoints
from frl_repro.models.compute import distributed
from frl_repro.models.compute.backends import choose_backend
from frl_repro.models.identity import differences, refuse_changes, weights_record
from frl_repro.models.loading import compare_data, load_weights_and_say
from frl_repro.models.networks import image_shape
from frl_repro.models.origin import checkpoint_file
from frl_repro.runs.inputs import Inputs
from frl_repro.settings.config import RunConfig, to_dict
from frl_repro.training.build import check_network, num_steering_images
from frl_repro.training.loggers import LOGGERS, Logger, forget
from frl_repro.training.open_run import OpenRun

Status = Literal["new", "unfinished", "finished"]


def open_run(
    config: RunConfig,
    dataset: Dataset,
    data: Inputs,
    device: torch.device,
    start: Path | None,
    command: str,
    opened: ExitStack,
    *,
    wait: bool,
    started: float,
) -> OpenRun | None:
    """Lock a run's folder and prepare the rest of the run; None where another process has finished it."""
    folder = config.folder
    validation = _validation_subset(dataset, config)
    model = data.network(config, dataset)
    check_network(config, dataset, lambda: model)
    network = data.record(config, model)
    if start is not None:
        if config.keys.init_from is None:
            load_weights(start, model)
        else:
            start = checkpoint_file(start, key="init_from")
            load_weights(start, model, given=config, dataset=dataset)
    model = distributed.synchronised(model.to(device), device)
    backend = choose_backend(
        config.keys.backend,
        model,
        device,
        image_shape=image_shape(dataset),
        only_torch=_only_torch(config),
        is_ours=network is None,
    )
    distributed.refuse_unless_alike({"backend": backend.name, "device": device.type})
    run = OpenRun(
        config=config,
        dataset=dataset,
        validation=validation,
        model=model,
        device=device,
        backend=distributed.shared(backend),
        folder=folder,
        logger=(LOGGERS[config.keys.logger] if distributed.is_writer() else Logger)(folder, to_dict(config)),
        started=started,
        start=None if start is None else distributed.from_writer(functools.partial(weights_record, start)),
        process={
            **describe(device=device, backend=backend.name, command=command),
            "num_processes": distributed.num_processes(),
        },
        network=network,
    )
    opened.callback(run.logger.close)

    def take_hold() -> bool:
        folder.mkdir(parents=True, exist_ok=True)
        opened.enter_context(held(folder, wait=wait, log=LOGGER.info))
        opened.enter_context(kept_in_place(folder))
        # Checked under the lock: another process may have finished the run meanwhile.
        status = folder_status(folder, config)
        if status != "new" and not config.keys.force:
            recorded = read_object(folder / RUN_FILE)
            changes = differences(recorded, run.made_from)
            refuse_changes(folder, changes, is_finished=status == "finished")
            if status == "finished":
                return False
        _open_folder(run, status)
        return True

    return run if distributed.from_writer(take_hold) else None


def load_weights(
    path: Path, model: nn.Module, *, given: RunConfig | None = None, dataset: Dataset | None = None
) -> None:
    """Load weights into the model, in every process those that the writer reads.

    ``given`` is for a checkpoint that someone gave to start from (``init_from``): what it is, is said.
    """

    def read() -> dict[str, Tensor]:
        if given is None:
            checkpoints.load_weights(path, model)
        else:
            assert dataset is not None
            compare_data(path, dataset, given.dataset, setting="init_from", refuses=False)
            key = given.keys.init_from_key
            load_weights_and_say(path, model, given, key=key, setting="init_from")
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    model.load_state_dict(distributed.from_writer(read))


def _only_torch(config: RunConfig) -> str | None:
    """Return the first setting of the run that PyTorch alone can follow; None where there is none."""
    asked_for = {
        "compile=true": config.keys.compile,
        "precision=bfloat16": config.training[1].precision == "bfloat16",
    }
    return next((setting for setting, is_asked_for in asked_for.items() if is_asked_for), None)


def _open_folder(run: OpenRun, status: Status) -> None:
    """Prepare the locked folder for the rest of the run."""
    config, dataset, folder = run.config, run.dataset, run.folder
    if status != "new" and config.keys.force:
        is_changed = differences(read_object(folder / RUN_FILE), run.made_from)
        if status == "finished" or is_changed:
            # In this order: a repeated run must neither look finished nor resume the earlier one.
            forget_state(folder)
            (folder / DONE_FILE).unlink(missing_ok=True)
            forget(folder)
    for leftover in folder.glob(TEMPORARY_PATTERN):
        leftover.unlink()
    run.write_record([])
    if dataset.validation is not None:
        indices = {"train": dataset.train_indices, "validation": dataset.validation_indices}
        if dataset.selection_indices is not None:
            indices["selection"] = dataset.selection_indices
        write_bytes(folder / SPLIT_FILE, safetensors.torch.save(indices))
    LOGGER.info("%s on %s (backend %s) -> %s", config.run_id, run.device, run.backend.name, folder)
    if dataset.validation is not None:
        for key, settings in (("evaluation", config.evaluation), ("frl", config.frl)):
            at_most(f"{key}.num_validation", getattr(settings, "num_validation", None), len(dataset.validation))


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
        leftovers = {*folder.glob(TEMPORARY_PATTERN), folder / LOCK_FILE}
        if all(path in leftovers for path in folder.iterdir()):
            return "new"
        raise UserError(f"{folder} holds files that are no run of frl_repro: choose another run_dir")
    recorded = read_object(folder / RUN_FILE)
    if recorded.get("config_hash") != config.hash:
        raise UserError(
            f"{folder} holds another run ({recorded.get('run_id')}, this is {config.run_id}): choose another run_dir"
        )
    return "finished" if (folder / DONE_FILE).exists() else "unfinished"


def check_validation(config: RunConfig, dataset: Dataset) -> None:
    """Raise a `UserError` where retraining asks for so few validation images that classes may be missing."""
    _validation_subset(dataset, config)
    if dataset.validation is not None:
        num_steering_images(config, dataset.validation)


def _validation_subset(dataset: Dataset, config: RunConfig) -> Split | None:
    """Return the validation images that are measured, all where fewer are there than are asked for.

    Any prefix of the split is stratified.
    """
    validation, wanted = dataset.validation, config.evaluation.num_validation
    if validation is None or wanted is None or wanted > len(validation):
        return validation
    subset = Split(images=validation.images[:wanted], labels=validation.labels[:wanted])
    if len(set(subset.labels.tolist())) < dataset.num_classes:
        raise UserError(f"evaluation.num_validation={wanted}: too few for one image of each class")
    return subset
