"""Train a run's model to its last epoch: resume, schedule, policy, validation, running average, state."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from frl_repro import build, checkpoints, streams
from frl_repro.backends import Backend
from frl_repro.config import RunConfig
from frl_repro.data import Dataset, Split
from frl_repro.measure import measure
from frl_repro.models import build_model
from frl_repro.progress import LOGGER, bar
from frl_repro.trainer import learning_rate_at, train_epoch

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class Bench:
    """All that one run works with.

    Attributes
    ----------
    validation : Split or None
        The validation images that are measured for the tables.
    model : nn.Module
        Where training starts, on the device.
    started : float
        ``time.perf_counter()`` when this process began the run.
    """

    config: RunConfig
    dataset: Dataset
    validation: Split | None
    model: nn.Module
    device: torch.device
    backend: Backend
    folder: Path
    started: float

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that name the run in every table."""
        config = self.config
        return {
            "run_id": config.run_id,
            "dataset": config.dataset.name,
            "model": config.model.name,
            "method": config.method,
            "seed": config.seed,
            "recipe": None if config.retrain is None else config.recipe.name,
            **{f"alpha_{name}": value for name, value in vars(config.alpha).items()},
        }

    def measure(self, model: nn.Module, split: Split, split_name: str, epoch: int) -> list[dict[str, Any]]:
        """Return the class rows of a split at every radius; random starts are the same in every epoch."""
        return measure(
            model,
            split,
            self.config.evaluation,
            class_names=self.dataset.class_names,
            seed=streams.derive_seed(self.config.seed, f"measure {split_name}"),
            device=self.device,
            backend=self.backend,
            keys={**self.keys, "split": split_name, "epoch": epoch},
        )


@dataclass(frozen=True)
class Fitted:
    """A trained model and what was recorded on the way.

    Attributes
    ----------
    model : nn.Module
        The one to measure: the running average when there is one.
    history, rows, policy_rows : list of dict
        Rows of ``history.csv``, ``classwise.csv`` (all but the final test) and ``policy.csv``.
    earlier_seconds : float
        Wall seconds of earlier processes.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    policy_rows: list[dict[str, Any]]
    earlier_seconds: float


def new_model(config: RunConfig, dataset: Dataset) -> nn.Module:
    """Return the run's freshly initialised model."""
    channels, height, width = dataset.train.images.shape[1:]
    return build_model(
        config.model.name,
        num_classes=dataset.num_classes,
        image_shape=(channels, height, width),
        seed=streams.derive_seed(config.seed, "initial weights"),
    )


def fit(bench: Bench) -> Fitted:
    """Train to the last epoch, continuing from the folder's state."""
    config, dataset, model, device, backend = bench.config, bench.dataset, bench.model, bench.device, bench.backend
    attack_settings, trainer = config.training
    optimizer = build.optimizer(model, trainer)
    steering = build.steering(config, dataset, backend, device)
    average = None
    if trainer.ema_decay is not None:
        ema = get_ema_multi_avg_fn(trainer.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    measured: nn.Module = model if average is None else average.module
    history: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    policy_rows: list[dict[str, Any]] = []
    num_done, earlier_seconds = 0, 0.0
    machine = f"{device.type}, backend {backend.name}, {torch.get_num_threads()} threads"

    if (bench.folder / STATE_FILE).exists():
        state = checkpoints.load_state(bench.folder / STATE_FILE)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        if steering is not None:
            steering.policy.state = state["policy"]
        if state["machine"] != machine:
            LOGGER.info("begun on %s, continued on %s: numbers may differ by rounding", state["machine"], machine)
        history, rows, policy_rows = state["history"], state["rows"], state["policy_rows"]
        num_done, earlier_seconds = state["epoch"], state["seconds"]
        LOGGER.info("continuing after epoch %d of %d", num_done, trainer.num_epochs)
    elif config.retrain is not None:
        # What retraining starts from, measured as everything after it: before and after are one table.
        for name, split in (("validation", bench.validation), ("test", dataset.test)):
            if split is not None:
                rows += bench.measure(model, split, name, 0)

    train = Split(images=dataset.train.images.to(device), labels=dataset.train.labels.to(device))
    attack = build.training_attack(config, backend.ascend)
    for epoch in range(num_done, trainer.num_epochs):
        learning_rate = learning_rate_at(
            epoch,
            initial=trainer.learning_rate,
            milestones=build.milestones(trainer),
            decay_factor=trainer.lr_decay_factor,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        last_good = bench.folder / STATE_FILE if epoch > 0 else "none yet"
        with bar(f"epoch {epoch + 1}/{trainer.num_epochs}", len(train.labels)) as advance:
            summary = train_epoch(
                model,
                optimizer,
                train,
                objective=build.objective(config, epoch=epoch, device=device),
                attack=attack,
                forward=backend.forward,
                class_terms=(lambda _: None) if steering is None else steering.in_epoch(model, epoch),
                batch_size=trainer.batch_size,
                order_generator=streams.generator(config.seed, "order", epoch),
                attack_generator=streams.generator(config.seed, "training attack", epoch, device=device),
                average=average,
                where=f"epoch {epoch + 1}, step {{step}}; last good state: {last_good}",
                advance=advance,
            )
        entry = {"run_id": config.run_id, "epoch": epoch + 1, "learning_rate": learning_rate, **asdict(summary)}
        entry["train_clean_error"] = entry.pop("clean_error")
        entry["train_attacked_error"] = entry.pop("attacked_error")
        history.append(entry)
        LOGGER.info("%s", _epoch_line(entry, trainer.num_epochs, time.perf_counter() - bench.started))
        if steering is not None:
            epsilon = getattr(attack_settings, "epsilon", 0.0)
            policy_rows += steering.rows({**bench.keys, "epoch": epoch + 1}, dataset.class_names, epsilon=epsilon)
        is_due = (epoch + 1) % config.evaluation.validation_every == 0 or epoch + 1 == trainer.num_epochs
        if bench.validation is not None and is_due:
            rows += bench.measure(measured, bench.validation, "validation", epoch + 1)
        checkpoints.save_state(
            bench.folder / STATE_FILE,
            {
                "epoch": epoch + 1,
                "machine": machine,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": None if average is None else average.state_dict(),
                "policy": None if steering is None else steering.policy.state,
                "history": history,
                "rows": rows,
                "policy_rows": policy_rows,
                "seconds": earlier_seconds + time.perf_counter() - bench.started,
            },
        )
    return Fitted(measured, history, rows, policy_rows, earlier_seconds)


def _epoch_line(entry: dict[str, Any], num_epochs: int, seconds: float) -> str:
    parts = [f"epoch {entry['epoch']}/{num_epochs}", f"loss {entry['train_loss']:.4f}"]
    for name in ("clean", "attacked"):
        if entry[f"train_{name}_error"] is not None:
            parts.append(f"{name} error {entry[f'train_{name}_error']:.3f}")
    return "  ".join([*parts, f"{seconds:.0f} s"])
