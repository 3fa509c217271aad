"""When a class policy learns: it is measured on fresh validation images before a step, and updated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from frl_repro import streams
from frl_repro.data import Split, stratified_order
from frl_repro.frl import ClassPolicy, ErrorRates
from frl_repro.objectives import ClassTerms

Measure = Callable[[nn.Module, Split, int], ErrorRates]
"""(model, validation images, seed of the random starts) -> errors by class."""


@dataclass
class Steering:
    """A policy, the validation images it learns from, and its rhythm.

    Attributes
    ----------
    policy : ClassPolicy
        Updated in place.
    validation : Split
        The whole validation split. There is no way in for test images.
    measure : callable
        See `Measure`; None for a policy that learns nothing.
    update_every : int or None
        Steps between updates, the first before the first step of each epoch; None for that one alone.
    num_images : int
        Validation images of an update, drawn anew each time without repetition until the split is used up.
    seed : int
        The run's seed.
    device : torch.device
        Where class terms go.
    """

    policy: ClassPolicy
    validation: Split
    measure: Measure | None
    update_every: int | None
    num_images: int
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        self.errors: ErrorRates | None = None
        """What the last update learnt from."""

    def in_epoch(self, model: nn.Module, epoch: int) -> Callable[[int], ClassTerms]:
        """Return the function that training asks for class terms before each step of an epoch."""
        order = stratified_order(self.validation.labels, streams.generator(self.seed, "policy sample", epoch))
        terms = self.terms()

        def before_step(step: int) -> ClassTerms:
            nonlocal terms
            is_due = step == 0 if self.update_every is None else step % self.update_every == 0
            if is_due and self.measure is not None:
                first = step // (self.update_every or 1) * self.num_images
                chosen = order[torch.arange(first, first + self.num_images) % len(order)]
                seed = streams.derive_seed(self.seed, f"policy attack/{step}", epoch)
                self.errors = self.measure(model, self.validation.select(chosen), seed)
                self.policy.update(self.errors)
                terms = self.terms()
            return terms

        return before_step

    def terms(self) -> ClassTerms:
        """Return the policy's answers on the training device, float32."""
        policy = self.policy
        answers = (policy.weight_nat(), policy.weight_bndy(), policy.margin_factor())
        return ClassTerms(*(answer.to(self.device, torch.float32) for answer in answers))

    def rows(self, keys: dict[str, Any], class_names: Sequence[str], *, epsilon: float) -> list[dict[str, Any]]:
        """Return the policy as table rows, one a class: its answers, and the errors that they follow from."""
        policy, errors = self.policy, self.errors
        columns: dict[str, list[Any]] = {
            "weight_nat": policy.weight_nat().tolist(),
            "weight_bndy": policy.weight_bndy().tolist(),
            "margin": (epsilon * policy.margin_factor()).tolist(),
        }
        for name in ("class_natural_error", "class_boundary_error"):
            measured = getattr(errors, name, None)
            columns[name.removeprefix("class_")] = (
                [None] * policy.num_classes if measured is None else measured.tolist()
            )
        return [
            {**keys, "class_id": k, "class_name": name, **{column: values[k] for column, values in columns.items()}}
            for k, name in enumerate(class_names)
        ]
