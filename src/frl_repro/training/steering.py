"""A method beside the loop: validation images where it asks for them, and its answers as the loop takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frl_repro.basics import streams
from frl_repro.data import Split, stratified_order
from frl_repro.training.frl.method import ClassStats, ErrorRates, Method, Plan, Weights, When
from frl_repro.training.objectives import Predictions

Measure = Callable[[nn.Module, Split, int], Any]
"""(model, validation images, seed of the random starts) -> `ErrorRates` or `ClassStats`, as the method asks."""


@dataclass(frozen=True)
class RunErrors:
    """Error rates of R runs, as in `frl_repro.training.frl.ErrorRates`: by class (R, K), over all samples (R,)."""

    class_natural_error: Tensor
    class_boundary_error: Tensor
    overall_natural_error: Tensor
    overall_boundary_error: Tensor

    @classmethod
    def of(cls, errors: Sequence[ErrorRates], device: torch.device | str = "cpu") -> RunErrors:
        """Put the runs' error rates side by side."""

        def together(name: str) -> Tensor:
            rates = [torch.as_tensor(getattr(one, name), dtype=torch.float64) for one in errors]
            return torch.stack(rates).to(device)

        return cls(*(together(f.name) for f in fields(cls)))


@dataclass
class ValidationImages:
    """The validation images that a method learns from, drawn anew for each look, and when it looks.

    Attributes
    ----------
    validation : Split
        The whole validation split. There is no way in for test images.
    measure : callable
        See `Measure`.
    update_every : int or None
        Steps between looks, the first before the first step of each epoch; None for that one alone.
    num_images : int
        Images of a look, without repetition until the split is used up.
    seeds : sequence of int, length R
        The runs' seeds.
    """

    validation: Split
    measure: Measure
    update_every: int | None
    num_images: int
    seeds: Sequence[int]

    def begin_epoch(self, epochs: Sequence[int]) -> None:
        """Shuffle the images for an epoch of each run."""
        self._at = list(zip(self.seeds, epochs, strict=True))
        labels = self.validation.labels
        self._orders = [stratified_order(labels, streams.generator(s, "policy sample", e)) for s, e in self._at]

    def is_due(self, step: int) -> bool:
        """Return whether the method looks before this step of the epoch, counted from 0."""
        return step == 0 if self.update_every is None else step % self.update_every == 0

    def look(self, models: Sequence[nn.Module], step: int) -> list[Any]:
        """Measure each run's model on its next images."""
        first = step // (self.update_every or 1) * self.num_images
        chosen = torch.arange(first, first + self.num_images) % len(self.validation.labels)
        measured = []
        for model, order, (seed, epoch) in zip(models, self._orders, self._at, strict=True):
            attack_seed = streams.derive_seed(seed, f"policy attack/{step}", epoch)
            measured.append(self.measure(model, self.validation.select(order[chosen]), attack_seed))
        return measured


@dataclass
class Steering:
    """R runs' method beside their loop. Without a method every class is treated alike, and nothing is measured.

    Attributes
    ----------
    method : Method or None
        Of R runs. Its state changes in place.
    images : ValidationImages or None
        None for a method that looks at none.
    models : sequence of nn.Module, length R
        The runs' models, which are measured.
    num_epochs : sequence of int, length R
    """

    method: Method | None = None
    images: ValidationImages | None = None
    models: Sequence[nn.Module] = ()
    num_epochs: Sequence[int] = ()
    seen: RunErrors | ClassStats | None = field(default=None, init=False)
    """What the last look at validation images showed."""
    _epochs: Tensor = field(default_factory=lambda: torch.tensor([0]), init=False)
    _in_epoch: ClassStats | None = field(default=None, init=False)

    def begin_epoch(self, epochs: Sequence[int]) -> None:
        """Say which epoch each run is in, counted from 0."""
        self._epochs, self._in_epoch = torch.tensor(epochs), None
        if self.images is not None:
            self.images.begin_epoch(epochs)

    def when(self, step: int, num_steps: int) -> When:
        """Return where training is."""
        return When(self._epochs, torch.tensor(self.num_epochs), step, num_steps)

    def see_validation(self, when: When) -> None:
        """Show validation images to the method where that is due."""
        if self.method is None or self.images is None or not self.images.is_due(when.step):
            return
        self.seen = _together(self.images.look(self.models, when.step), self.method)
        self.method.see_validation(self.seen, when)

    def plan(self, when: When) -> Plan:
        """Return radius and sampling of a step; radii as float32."""
        if self.method is None:
            return Plan()
        plan = self.method.plan(when)
        return plan if plan.radius is None else plan._replace(radius=plan.radius.float())

    def see_batch(self, seen: Predictions, when: When) -> None:
        """Show the method what training made of a batch, before the step."""
        method = self.method
        if method is None or not (method.sees_batches or method.sees_epochs):
            return
        stats = seen.stats(true_logit=method.true_logit)
        if method.sees_epochs:
            self._in_epoch = stats if self._in_epoch is None else self._in_epoch + stats
        if method.sees_batches:
            method.see_batch(stats, when)

    def weigh(self, when: When) -> Weights | None:
        """Return the weights of the step's losses, float32, their logarithms float64; None without a method."""
        if self.method is None:
            return None
        weights = self.method.weigh(when)
        pair = None if weights.pair is None else weights.pair.float()
        return weights._replace(nat=weights.nat.float(), bndy=weights.bndy.float(), pair=pair)

    @property
    def scale(self) -> Literal["weights", "images"]:
        """What weighted sums of losses are divided by."""
        return "weights" if self.method is None else self.method.scale

    def end_epoch(self, when: When) -> None:
        """Show the method all that training saw in the epoch."""
        if self.method is not None and self._in_epoch is not None:
            self.method.see_epoch(self._in_epoch, when)

    def rows(
        self, r: int, keys: dict[str, Any], class_names: Sequence[str], when: When, *, epsilon: float
    ) -> list[dict[str, Any]]:
        """Return run r's method as table rows, one a class: its answers, and the errors that they follow from."""
        method, seen = self.method, self.seen
        assert method is not None
        plan, weights, none = method.plan(when), method.weigh(when), [None] * len(class_names)
        radius = method.ones() if plan.radius is None else plan.radius
        errors = (none, none) if seen is None else (seen.class_natural_error[r], seen.class_boundary_error[r])
        columns: dict[str, Sequence[Any] | Tensor] = {
            "weight_nat": weights.nat[r],
            "weight_bndy": weights.bndy[r],
            "margin": epsilon * radius[r],
            "natural_error": errors[0],
            "boundary_error": errors[1],
            **{name: values[r] for name, values in method.columns(when).items()},
        }
        plain = {name: values.tolist() if isinstance(values, Tensor) else values for name, values in columns.items()}
        return [
            {**keys, "class_id": k, "class_name": name, **{column: values[k] for column, values in plain.items()}}
            for k, name in enumerate(class_names)
        ]


def _together(measured: Sequence[Any], method: Method) -> RunErrors | ClassStats:
    if method.sees_validation == "losses":
        return ClassStats(*(torch.stack([getattr(one, f.name) for one in measured]) for f in fields(ClassStats)))
    return RunErrors.of(measured, method.device)
