"""Train a model on, with or without a class-wise method."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file
from torch import nn

from frl_repro.api.keywords import configured, leaves_of
from frl_repro.api.models import check_model, copy_of, device_of, machine_kept, num_classes_of
from frl_repro.attacks import evaluation_mode
from frl_repro.basics import torchrun
from frl_repro.basics.errors import UserError
from frl_repro.basics.run_folder import (
    CLASSWISE_FILE,
    HISTORY_FILE,
    POLICY_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    check_file,
    read_object,
)
from frl_repro.data.dataset import Dataset, Split
from frl_repro.data.given import check_classes, class_names_of, dataset_of, split_of
from frl_repro.evaluation.measure import resolve_device
from frl_repro.models.identity import differences, network_record
from frl_repro.results.tables import reading
from frl_repro.results.tables.variants import read_runs
from frl_repro.runs.experiment import run
from frl_repro.runs.inputs import Given
from frl_repro.settings.config import RunConfig
from frl_repro.settings.keys import about
from frl_repro.settings.schema import OwnDatasetConfig
from frl_repro.training.frl import Method


@dataclass(frozen=True, repr=False)
class Trained:
    """The result of a training.

    Attributes
    ----------
    model : nn.Module
        The trained model in evaluation mode. With ``trainer.ema_decay`` it has the running average of the weights.
    classwise : DataFrame
        Errors by class (``classwise.csv``) at every radius: of test images after the last epoch, of validation images
        during training, and of both at epoch 0 where a method retrains.
    history : DataFrame
        A row for each epoch: learning rate, loss, errors (``history.csv``).
    policy : DataFrame or None
        A row for each epoch and class: weights, radii and the errors they follow (``policy.csv``). None without a
        method.
    folder : Path or None
        The folder with the run's files; None without ``folder``.
    run_id : str
    """

    model: nn.Module
    classwise: pd.DataFrame
    history: pd.DataFrame
    policy: pd.DataFrame | None
    folder: Path | None
    run_id: str

    def __repr__(self) -> str:
        where = "without files" if self.folder is None else f"in {self.folder}"
        return f"<Trained {self.run_id} {where}, {len(self.history)} epochs>"


def train(
    model: nn.Module,
    data: Any,
    *,
    test: Any,
    validation: Any = None,
    method: str | type[Method] | Method = "none",
    folder: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    **settings: Any,
) -> Trained:
    """Train a copy of a model, starting from its weights; with a class-wise method, this is called retraining.

    The given model stays as it is. Every number depends on model, data and settings alone: the same call gives the same
    bytes. With a folder, the same call continues an interrupted training, to the same bytes.

    Parameters
    ----------
    model : nn.Module
        As in `evaluate`, with weights to train. FRL's methods expect a model that is robust already.
    data, test : pair of Tensors, torch Dataset, or DataLoader
        Images to train on, and images to measure at the end. Test images never steer. As in `evaluate`.
    validation : pair of Tensors, torch Dataset, DataLoader, or float, optional
        Images that steer methods, or the share of ``data`` that is held back for that, stratified by class.
        None: what the method's recipe says (0.2 with FRL's methods, 0 without a method).
    method : str, subclass of Method, or object of one
        ``none``, or a file of ``conf/frl``: ``reweight``, ``remargin``, ``combined``, ``finetune``, ``dafa`` ...
        Of a class, ``frl={...}`` gives the settings. An object is made for one run and has its settings.
    folder : path, optional
        Receives the files of a run: tables, weights, ``run.json``, and after every epoch the state that the same call
        continues from. None leaves no files.
    class_names : sequence of str, length K, optional
        As in `evaluate`.
    **settings
        Keys of ``train.py``, as in YAML: ``seed=3``, ``recipe="paper"``, ``attack="trades"``,
        ``attack={"name": "pgd", "epsilon": 8 / 255}``, ``alpha={"nat": 5}``. Dotted keys work as well:
        ``**{"retrain.trainer.num_epochs": 3}``. ``trainer`` and ``attack`` are for training without a method and from
        scratch, ``retrain`` is for retraining.

    Returns
    -------
    Trained

    Raises
    ------
    UserError
        What `evaluate` refuses; an unknown or ignored setting; a folder that holds another run, or one with another
        model, other data or other settings; training that diverged.
    """
    if torchrun.num_processes() > 1:
        raise UserError("several processes share training on the command line alone: torchrun train.py")
    check_model(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"the model ({type(model).__name__}) has no weights to train")
    model = copy_of(model)
    splits = {"data": split_of(data, name="data"), "test": split_of(test, name="test")}
    if not isinstance(validation, Real | None):
        splits["validation"] = split_of(validation, name="validation")
    with evaluation_mode(model):
        K = num_classes_of(model, splits["data"].images, device_of(model))
    names = class_names_of(data, class_names, num_classes=K)
    for part, split in splits.items():
        check_classes(split, names, name=part)
    share = validation
    if "validation" in splits:
        share = len(splits["validation"]) / (len(splits["validation"]) + len(splits["data"]))
    config = configured(model, method, share, settings)
    assert isinstance(config.dataset, OwnDatasetConfig)
    dataset = _dataset(splits, names, config.dataset)
    with ExitStack() as stack:
        place = Path(folder if folder is not None else stack.enter_context(tempfile.TemporaryDirectory()))
        config = replace(
            config,
            dataset=replace(config.dataset, digest=dataset.digest),
            keys=replace(config.keys, run_dir=str(place)),
        )
        _refuse_other(place, config, model, dataset)
        stack.enter_context(machine_kept())
        run(config, command="frl_repro.train", inputs=Given(model, dataset))
        return _trained(place, model, config, is_kept=folder is not None)


def _dataset(splits: Mapping[str, Split], class_names: tuple[str, ...], settings: OwnDatasetConfig) -> Dataset:
    return dataset_of(
        splits["data"],
        splits["test"],
        splits.get("validation"),
        name="own",
        class_names=class_names,
        validation_fraction=settings.validation_fraction,
        selection_fraction=settings.selection_fraction,
        split_seed=settings.split_seed,
        imbalance=settings.imbalance,
        imbalance_ratio=settings.imbalance_ratio,
    )


def _refuse_other(folder: Path, config: RunConfig, model: nn.Module, dataset: Dataset) -> None:
    """Refuse a folder that holds a run of another model, other data or other settings."""
    if not (folder / RUN_FILE).is_file():
        return
    recorded = read_object(folder / RUN_FILE)
    if recorded.get("config_hash") == config.hash or config.keys.force:
        return
    changes = differences(recorded, {"data": dataset.content, "network": network_record(model)})
    if not changes:
        before, now = (leaves_of(one) for one in (recorded.get("config", {}), json.loads(json.dumps(asdict(config)))))
        now |= {key.removeprefix("keys."): value for key, value in now.items()}
        differing = [key for key in before if key in now and before[key] != now[key] and "digest" not in key]
        changes = [f"settings ({', '.join(key for key in differing if key != 'run_dir') or 'others'})"]
    raise UserError(f"{folder} holds a training with other {' and '.join(changes)}: give another folder")


def _trained(folder: Path, model: nn.Module, config: RunConfig, *, is_kept: bool) -> Trained:
    """Read a finished run back: the same whether it was trained just now or earlier."""
    weights = folder / WEIGHTS_FILE
    check_file(weights)
    own = copy_of(model).to(resolve_device(config.keys.device)).eval()
    own.load_state_dict(load_file(weights))
    classwise = read_runs([folder / CLASSWISE_FILE])
    policy = reading.read_policy([folder / POLICY_FILE]) if config.has_policy else None
    # Runs are named by what they differ in, and this one does not know its neighbours: its method's own numbers.
    numbers = [f.name for f in fields(config.frl) if about(f).is_per_run]
    variant = " ".join(f"{name}={getattr(config.frl, name):g}" for name in numbers)
    return Trained(
        model=own,
        classwise=classwise.assign(variant=variant) if variant else classwise,
        history=pd.read_csv(folder / HISTORY_FILE),
        policy=policy.assign(variant=variant) if variant and policy is not None else policy,
        folder=folder if is_kept else None,
        run_id=config.run_id,
    )
