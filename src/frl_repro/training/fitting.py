"""Train models to their last epoch: resume, schedule, policy, validation, running average, state.

Runs that differ in per-run quantities alone (seed, alphas, learning rate; `RunConfig.shared`) are fused: they train
an epoch at a time. Everything else of a run is its own, and the same as if it trained alone.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from frl_repro.attacks import evaluation_mode
from frl_repro.basics import readback, streams
from frl_repro.basics.errors import UserError, is_out_of_memory
from frl_repro.basics.folder_lock import check_held, tell
from frl_repro.basics.progress import LOGGER
from frl_repro.basics.run_folder import STATE_FILE, has_state
from frl_repro.basics.time_left import duration
from frl_repro.data import Split, in_unit_range
from frl_repro.evaluation.class_errors import ClassErrors
from frl_repro.evaluation.measure import evaluation_attack
from frl_repro.models import checkpoints, fuse
from frl_repro.models.compute import distributed, speed
from frl_repro.results.tables.best import BEST, BEST_FILE, validation_errors
from frl_repro.settings.config import RunConfig
from frl_repro.training import build
from frl_repro.training.epochs_left import TrainingProgress, epoch_line, epochs_text
from frl_repro.training.frl import Method, When, kind_of, method_of
from frl_repro.training.open_run import Fitted, OpenRun
from frl_repro.training.steering import RunErrors
from frl_repro.training.trainer import Diverged, EpochSummary, train_epoch

_BATCH_OF_LOGITS = 1000

_ROWS = readback.items(readback.entries(readback.text(max_length=100), readback.cell))
_STATE_FIELDS = readback.fields(
    {
        "epoch": readback.whole(1),
        "machine": readback.text(),
        "seconds": readback.number(0),
        "history": _ROWS,
        "rows": _ROWS,
        "policy_rows": _ROWS,
    },
    {"best": readback.maybe(readback.fields({"epoch": readback.whole(1), "error": readback.number(0, 1)}))},
)
"""What a state must hold besides tensors, whose shapes the network, the optimiser and the policy check."""


class _Training:
    """One run under way: its model, optimiser and running average, and what it has recorded."""

    def __init__(self, run: OpenRun, before: dict[str, list[dict[str, Any]]]) -> None:
        self.run, self.model = run, run.model
        _, self.trainer = run.config.training
        self.optimizer = build.optimizer(self.model, self.trainer)
        self.average = None
        if self.trainer.ema_decay is not None:
            ema = get_ema_multi_avg_fn(self.trainer.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.model, multi_avg_fn=ema, use_buffers=True)
            if self.trainer.ema_from_start:
                self.average.n_averaged += 1  # of none so far, the next weights would take the place
        self.policy_state: dict[str, Tensor] | None = None  # (K,) each; None: at its start
        self.history: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.policy_rows: list[dict[str, Any]] = []
        self.best: dict[str, float] | None = None  # epoch and validation error of the best so far
        self.num_done, self.earlier_seconds = 0, 0.0
        self.earlier_segments: list[dict[str, Any]] = []  # of the processes before this one
        self.failure: Exception | None = None
        self.is_changed_at_the_end = _is_changed_at_the_end(run.config)
        self.machine = f"{run.device.type}, backend {run.backend.name}, {torch.get_num_threads()} threads"
        if distributed.num_processes() > 1:
            self.machine += f", {distributed.num_processes()} processes"
        if distributed.from_writer(lambda: has_state(run.folder)):
            self._resume()
        elif run.config.retrain is not None:
            self._measure_before(before)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.failure is not None or self.num_done == self.trainer.num_epochs

    @property
    def measured(self) -> nn.Module:
        """The model that is measured: the running average when there is one that has taken weights in."""
        if self.average is None or int(self.average.n_averaged) == 0:
            return self.model
        return self.average.module

    @property
    def segments(self) -> list[dict[str, Any]]:
        """Which process has trained which epochs so far."""
        first = self.earlier_segments[-1]["epochs"][-1] + 1 if self.earlier_segments else 1
        if self.num_done < first:
            return self.earlier_segments
        return [*self.earlier_segments, {"epochs": [first, self.num_done], **self.run.process}]

    def step(self, step: int, num_steps: int, *, is_averaged: bool) -> None:
        """Move the model along its gradients, and the average along: step ``step`` of the epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = build.learning_rate(self.trainer, self.num_done, step=step, num_steps=num_steps)
        self.optimizer.step()
        if self.average is not None and is_averaged:
            self.average.update_parameters(self.model)

    def end_epoch(self, summary: EpochSummary | Diverged, policy_rows: list[dict[str, Any]]) -> None:
        """Record an epoch, measure the validation split where that is due, and save the state."""
        run, num_epochs = self.run, self.trainer.num_epochs
        epoch = self.num_done + 1
        if isinstance(summary, Diverged):
            last_good = run.folder / STATE_FILE if self.num_done > 0 else "none yet"
            where = f"of epoch {epoch}; last good state: {last_good}"
            self.failure = UserError(f"training diverged: {summary.reason} {where}")
            return
        learning_rate = build.learning_rate(self.trainer, self.num_done, step=0, num_steps=summary.num_steps)
        entry = {"run_id": run.config.run_id, "epoch": epoch, "learning_rate": learning_rate, **asdict(summary)}
        entry["train_clean_error"] = entry.pop("clean_error")
        entry["train_attacked_error"] = entry.pop("attacked_error")
        entry |= {"validation_natural_error": None, "validation_robust_error": None}
        self.history.append(entry)
        self.policy_rows += policy_rows
        self.num_done = epoch
        is_due = epoch % run.config.evaluation.validation_every == 0 or epoch == num_epochs
        if is_due and not (epoch == num_epochs and self.is_changed_at_the_end):
            self._measure_validation(epoch)
        if distributed.is_writer():
            self._save_state()
        run.logger.update(self.history, self.rows, self.policy_rows)

    def _measure_validation(self, epoch: int) -> None:
        """Measure the validation split, note it in the tables, and keep the weights where they are the best so far."""
        run = self.run
        if run.validation is None:
            return
        rows = run.measure(self.measured, run.validation, "validation", epoch).rows
        self.rows += rows
        errors = validation_errors(rows)
        if self.history:
            self.history[-1]["validation_natural_error"] = errors["overall_natural"]
            self.history[-1]["validation_robust_error"] = errors["overall_robust"]
        self._keep_if_best(errors)

    def validation_errors(self) -> ClassErrors | None:
        """Return the class errors of all validation images that are measured, at the first radius."""
        run = self.run
        if run.validation is None:
            return None
        measured = run.measure(self.model, run.validation, "validation", self.num_done + 1)
        return measured.samples.by_class(run.dataset.num_classes)[0]

    def validation_logits(self, model: nn.Module, *, is_attacked: bool = False) -> tuple[Tensor, Tensor]:
        """Return logits, shape (N, K), and labels, shape (N,), of all validation images; UserError without any.

        Attacked images are those of a measurement at the first radius, with random starts of their own.
        """
        run, settings = self.run, self.run.config.evaluation
        if run.validation is None:
            raise UserError(f"frl={run.config.frl.name} needs dataset.validation_fraction above 0")
        images, labels = (part.to(run.device) for part in (run.validation.images, run.validation.labels))
        attack, parts = evaluation_attack(settings, run.backend), []
        generator = streams.generator(run.config.seed, "finish", device=run.device)
        with evaluation_mode(model):
            for x, y in zip(images.split(_BATCH_OF_LOGITS), labels.split(_BATCH_OF_LOGITS), strict=True):  # type: ignore[no-untyped-call]
                x = in_unit_range(x)  # noqa: PLW2901
                if is_attacked:
                    x = attack(model, x, y, epsilon=settings.epsilons[0], generator=generator)  # noqa: PLW2901
                parts.append(run.backend.logits(model, x))
        return torch.cat(parts), labels

    def _save_state(self) -> None:
        run = self.run
        check_held(run.folder)
        checkpoints.save_state(
            run.folder / STATE_FILE,
            {
                "epoch": self.num_done,
                "machine": self.machine,
                **run.inputs,
                "segments": self.segments,
                # Cloned: a slice of fused weights would be saved with all of them.
                "model": {name: tensor.clone() for name, tensor in self.model.state_dict().items()},
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "policy": self.policy_state,
                "best": self.best,
                "history": self.history,
                "rows": self.rows,
                "policy_rows": self.policy_rows,
                "seconds": self.earlier_seconds + time.perf_counter() - run.started,
            },
        )

    def _measure_before(self, before: dict[str, list[dict[str, Any]]]) -> None:
        """Measure what retraining starts from as everything after it is, so that before and after are one table.

        ``before`` holds what was measured for other runs: jobs of a grid start from one model.
        """
        run, config = self.run, self.run.config
        of_same = repr((run.inputs, config.seed, config.evaluation))
        if of_same not in before:
            dataset = run.dataset
            splits = [("validation", run.validation), ("selection", dataset.selection), ("test", dataset.test)]
            before[of_same] = [
                row
                for name, split in splits
                if split is not None
                for row in run.measure(self.model, split, name, 0).rows
            ]
        self.rows = [{**row, **run.keys} for row in before[of_same]]

    def _keep_if_best(self, errors: Mapping[str, float]) -> None:
        """Write the weights down where this epoch's validation error is smaller than that of every one before.

        The file is written before the state that names its epoch: a process that is killed between the two repeats the
        epoch and writes the same bytes.
        """
        criterion = self.run.config.evaluation.keep_best_by
        if criterion is None or (self.best is not None and errors[criterion] >= self.best["error"]):
            return
        self.best = {"epoch": self.num_done, "error": errors[criterion]}
        if distributed.is_writer():
            origin = self.run.origin(epoch=self.num_done, checkpoint=BEST)
            checkpoints.save_weights(self.run.folder / BEST_FILE, self.measured, origin=origin)

    def _resume(self) -> None:
        path = self.run.folder / STATE_FILE
        try:
            self._continue_from(distributed.from_writer(lambda: checkpoints.load_state(path)))
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as problem:
            if isinstance(problem, UserError) or is_out_of_memory(problem):
                raise
            raise UserError(f"{path} is the state of another training: delete it to train from the start") from None
        LOGGER.info("continuing after epoch %d of %d", self.num_done, self.trainer.num_epochs)
        if distributed.is_writer():
            self.run.write_record(self.segments)

    def _continue_from(self, state: Mapping[str, Any]) -> None:
        folder = self.run.folder
        path = folder / STATE_FILE
        readback.checked(state, _STATE_FIELDS, source=path, remedy="delete it to train from the start")
        rows = [*state["history"], *state["rows"], *state["policy_rows"]]
        is_ours = all(row.get("run_id") == self.run.config.run_id for row in rows)
        if not is_ours or not state["epoch"] == len(state["history"]) <= self.trainer.num_epochs:
            raise ValueError("another run's")
        for name, digest in self.run.inputs.items():
            if state.get(name, digest) != digest:  # older states do not say
                raise UserError(
                    f"{path} is the state of a training with another {name}: delete the folder {folder} "
                    "and repeat the run"
                )
        if state.get("best") is not None and distributed.from_writer(lambda: not (folder / BEST_FILE).exists()):
            raise UserError(
                f"{folder / BEST_FILE} is missing, though epoch {state['best']['epoch']} was the best so far: delete "
                f"the folder {folder} and repeat the run"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.policy_state = state["policy"]
        if state["machine"] != self.machine:
            LOGGER.info("begun on %s, continued on %s: numbers may differ by rounding", state["machine"], self.machine)
        self.best = state.get("best")
        self.history, self.rows, self.policy_rows = state["history"], state["rows"], state["policy_rows"]
        self.num_done, self.earlier_seconds = state["epoch"], state["seconds"]
        self.earlier_segments = state.get("segments", [{"epochs": [1, self.num_done]}])  # older states do not say more

    def _finish(self) -> None:
        """Let the method change the trained model, before it is measured."""
        config = self.run.config
        if not self.is_changed_at_the_end:
            return
        method = method_of([config], class_counts=self.run.dataset.class_counts, device=self.run.device)
        if self.policy_state is not None:
            method.state = {name: tensor.unsqueeze(0) for name, tensor in self.policy_state.items()}
        logits = functools.partial(self.validation_logits, is_attacked=method.finish_sees == "attacked")
        method.finish(0, self.measured, logits)
        self._measure_validation(config.last_epoch)

    def result(self) -> Fitted | Exception:
        """Return what came of it."""
        if self.failure is not None:
            return self.failure
        self._finish()
        best_epoch = None if self.best is None else int(self.best["epoch"])
        return Fitted(
            self.measured,
            self.history,
            self.rows,
            self.policy_rows,
            self.earlier_seconds,
            best_epoch,
            self.segments,
        )


def _is_changed_at_the_end(config: RunConfig) -> bool:
    return config.has_method and kind_of(config.frl).finish is not Method.finish


def fit(
    runs: Sequence[OpenRun], *, is_alone: bool, progress: TrainingProgress
) -> Iterator[tuple[int, Fitted | Exception]]:
    """Train every run to its last epoch, continuing from the states in their folders; each is handed over as it ends.

    Parameters
    ----------
    runs : sequence of OpenRun
        Runs of one data set, device and backend with the same `RunConfig.shared`. They need not be at the same epoch.
    is_alone : bool
        No other run is under way in this process: messages need not say whose they are.
    progress : TrainingProgress
        Is told what has been trained.

    Yields
    ------
    (int, Fitted or Exception)
        A run's place in ``runs``, and what came of it: the error of a run that diverged, or that could not continue.
    """
    if not runs:
        return
    device, train = runs[0].device, runs[0].dataset.train
    train = Split(images=train.images.to(device), labels=train.labels.to(device))
    under_way: dict[int, _Training] = {}
    before: dict[str, list[dict[str, Any]]] = {}
    for place, run in enumerate(runs):
        try:
            under_way[place] = _Training(run, before)
            progress.had(run.config, under_way[place].num_done)
        except (UserError, OSError) as problem:  # a damaged state is this run's trouble alone
            yield place, problem
    loop: _Loop | None = None
    while True:
        for place, training in list(under_way.items()):
            if training.is_over:
                del under_way[place]
                loop = None
                progress.drop(training.run.config)
                yield place, training.result()
        if not under_way:
            return
        loop = loop or _Loop(list(under_way.values()), train, is_alone=is_alone, progress=progress)
        loop.epoch()


class _Loop:
    """Fused runs: their models as one, their method, and what computes them."""

    def __init__(
        self, trainings: Sequence[_Training], train: Split, *, is_alone: bool, progress: TrainingProgress
    ) -> None:
        self.trainings, self.train, self.is_alone, self.progress = trainings, train, is_alone, progress
        self.started, self.epochs_trained = time.monotonic(), 0.0
        run, self.trainer = trainings[0].run, trainings[0].trainer
        self.config, self.dataset, self.device, backend = run.config, run.dataset, run.device, run.backend
        self.configs, models = [t.run.config for t in trainings], [t.model for t in trainings]
        self.model = fuse(models)
        is_compiled = self.config.keys.compile
        computing = speed.for_training(self.model, precision=self.trainer.precision, is_compiled=is_compiled)
        self.attack = speed.attack_on(computing, build.training_attack(self.config, backend), is_compiled=is_compiled)
        self.forward = lambda _, x: backend.forward(computing, x)
        self.is_joint = not build.has_batch_statistics(self.model)
        self.steering = build.steering(self.configs, self.dataset, backend, self.device, models)
        method = self.steering.method
        if method is not None:
            method.state = {
                name: torch.stack(
                    [
                        own if t.policy_state is None else t.policy_state[name].to(own)
                        for own, t in zip(starts, trainings, strict=True)
                    ]
                )
                for name, starts in method.state.items()
            }

    def epoch(self) -> None:
        """Train each run's next epoch."""
        trainings, trainer, device = self.trainings, self.trainer, self.device
        seeds, epochs = [config.seed for config in self.configs], [t.num_done for t in trainings]
        at = list(zip(seeds, epochs, strict=True))
        num_images, steps = len(self.train.labels), itertools.count()
        num_steps = math.ceil(num_images / trainer.batch_size)
        takes_steps = self.steering.method is None or self.steering.method.averages == "steps"

        def update() -> None:
            step = next(steps)
            for training in trainings:
                training.step(step, num_steps, is_averaged=takes_steps)

        def advance(num: int) -> None:
            self.epochs_trained += num / num_images
            self.progress.trained(self.configs, num / num_images)
            self._tell()

        self.progress.describe(epochs_text([epoch + 1 for epoch in epochs], trainer.num_epochs))
        self.progress.start()
        self.steering.begin_epoch(epochs)
        with self._global_random_numbers(seeds[0], epochs[0]):
            summaries = train_epoch(
                self.model,
                self.train,
                update=update,
                objective=build.objective(
                    self.config, seeds=seeds, epochs=epochs, device=device, is_joint=self.is_joint
                ),
                attack=self.attack,
                forward=self.forward,
                steering=self.steering,
                augment=build.augmentation(self.config.dataset, at, device=device),
                batch_size=trainer.batch_size,
                num_accumulation=trainer.num_accumulation,
                order_generators=[streams.generator(seed, "order", epoch) for seed, epoch in at],
                attack_generators=[
                    streams.generator(seed, "training attack", epoch, device=device) for seed, epoch in at
                ],
                advance=advance,
            )
        self._end_epoch(summaries, self.steering.when(num_steps - 1, num_steps))

    @contextmanager
    def _global_random_numbers(self, seed: int, epoch: int) -> Iterator[None]:
        """Let a network of the user's own, which may hold dropout, draw an epoch's numbers by seed and epoch alone.

        The networks of the package draw none, and the global random state is everyone's: it is put back.
        """
        if self.trainings[0].run.network is None:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(streams.derive_seed(seed, "network", epoch))
            yield

    def _end_epoch(self, summaries: Sequence[EpochSummary | Diverged], when: When) -> None:
        """Record the epoch of each run; what cannot be written is that run's trouble alone."""
        method = self.steering.method
        if method is not None and method.averages == "epochs":
            self._average(method, when)
        epsilon = getattr(self.config.training[0], "epsilon", 0.0)
        epochs = [t.num_done + 1 for t in self.trainings]
        for r, (training, summary) in enumerate(zip(self.trainings, summaries, strict=True)):
            rows: list[dict[str, Any]] = []
            if method is not None:
                training.policy_state = {name: state[r].clone() for name, state in method.state.items()}
                keys = {**training.run.keys, "epoch": training.num_done + 1}
                rows = self.steering.rows(r, keys, self.dataset.class_names, when, epsilon=epsilon)
            try:
                training.end_epoch(summary, rows)
            except (OSError, UserError) as problem:
                training.failure = problem
        self._say(epochs, [summary for summary in summaries if isinstance(summary, EpochSummary)])

    def _say(self, epochs: Sequence[int], summaries: Sequence[EpochSummary]) -> None:
        """Show an epoch in a line, of all fused runs together: each one's numbers are in its tables."""
        if not summaries:  # the run has diverged
            return
        line = epoch_line(epochs, self.trainer.num_epochs, summaries)
        if len(self.trainings) == 1 and not self.is_alone:
            line = f"{self.config.run_id}  {line}"
        parts = [line, duration(time.perf_counter() - self.trainings[0].run.started)]
        LOGGER.info("%s", "  ".join(filter(None, [*parts, self.progress.left()])))
        self.progress.said()

    def _tell(self) -> None:
        """Let the folder of each run say how far it is, for whoever looks (`scripts/status.py`)."""
        seconds = (time.monotonic() - self.started) / self.epochs_trained
        for training in self.trainings:
            epochs = training.num_done + self.epochs_trained % 1
            left = max(0.0, seconds * (self.trainer.num_epochs - epochs))
            tell(training.run.folder, epochs=round(epochs, 3), left=round(left, 1))

    def _average(self, method: Method, when: When) -> None:
        """Take the weights of the runs that the method accepts into their running averages."""
        if all(t.average is None for t in self.trainings):
            return
        errors = [t.validation_errors() for t in self.trainings]
        known = [e for e in errors if e is not None]
        seen = RunErrors.of(known, method.device) if len(known) == len(errors) else None
        for training, is_accepted in zip(self.trainings, method.accepts(seen, when).tolist(), strict=True):
            if is_accepted and training.average is not None:
                training.average.update_parameters(training.model)
