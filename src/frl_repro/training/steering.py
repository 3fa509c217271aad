"""When class policies learn: models are measured on fresh validation images before a step, and policies updated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frl_repro.basics import streams
from frl_repro.data import Split, stratified_order
from frl_repro.training.frl import ClassPolicy, ErrorRates
from frl_repro.training.objectives import ClassTerms

Measure = Callable[[nn.Module, Split, int], ErrorRates]
"""(model, validation images, seed of the random starts) -> errors by class."""


@dataclass(frozen=True)
class RunErrors:
    """Error rates of R runs, as in `frl_repro.training.frl.ErrorRates`: by class (R, K), over all samples (R,)."""

    class_natural_error: Tensor
    class_boundary_error: Tensor
    overall_natural_error: Tensor
    overall_boundary_error: Tensor

    @classmethod
    def of(cls, errors: Sequence[ErrorRates]) -> RunErrors:
        """Put the runs' error rates side by side."""
        return cls(
            class_natural_error=torch.stack([e.class_natural_error for e in errors]),
            class_boundary_error=torch.stack([e.class_boundary_error for e in errors]),
            overall_natural_error=torch.tensor([float(e.overall_natural_error) for e in errors], dtype=torch.float64),
            overall_boundary_error=torch.tensor([float(e.overall_boundary_error) for e in errors], dtype=torch.float64),
        )


@dataclass
class Steering:
    """The policy of R runs, the validation images it learns from, and its rhythm.

    Attributes
    ----------
    policy : ClassPolicy
        Of shape (R, K). Updated in place.
    validation : Split
        The whole validation split. There is no way in for test images.
    measure : callable
        See `Measure`; None for a policy that learns nothing.
    update_every : int or None
        Steps between updates, the first before the first step of each epoch; None for that one alone.
    num_images : int
        Validation images of an update, drawn anew each time without repetition until the split is used up.
    seeds : sequence of int, length R
        The runs' seeds.
    device : torch.device
        Where class terms go.
    """

    policy: ClassPolicy
    validation: Split
    measure: Measure | None
    update_every: int | None
    num_images: int
    seeds: Sequence[int]
    device: torch.device

    def __post_init__(self) -> None:
        self.errors: RunErrors | None = None
        """What the last update learnt from."""

    def in_epoch(self, models: Sequence[nn.Module], epochs: Sequence[int]) -> Callable[[int], ClassTerms]:
        """Return the function that training asks for class terms before each step of an epoch (of each run)."""
        labels = self.validation.labels
        at = list(zip(self.seeds, epochs, strict=True))
        orders = [stratified_order(labels, streams.generator(seed, "policy sample", epoch)) for seed, epoch in at]
        terms = self.terms()

        def before_step(step: int) -> ClassTerms:
            nonlocal terms
            is_due = step == 0 if self.update_every is None else step % self.update_every == 0
            if is_due and self.measure is not None:
                first = step // (self.update_every or 1) * self.num_images
                chosen = torch.arange(first, first + self.num_images) % len(labels)
                measured = []
                for model, order, (seed, epoch) in zip(models, orders, at, strict=True):
                    attack_seed = streams.derive_seed(seed, f"policy attack/{step}", epoch)
                    measured.append(self.measure(model, self.validation.select(order[chosen]), attack_seed))
                self.errors = RunErrors.of(measured)
                self.policy.update(self.errors)
                terms = self.terms()
            return terms

        return before_step

    def terms(self) -> ClassTerms:
        """Return the policy's answers on the training device, float32; logarithms float64."""
        policy = self.policy
        answers = (policy.weight_nat(), policy.weight_bndy(), policy.margin_factor())
        logarithms = (policy.log_weight_nat(), policy.log_weight_bndy())
        return ClassTerms(
            *(answer.to(self.device, torch.float32) for answer in answers),
            *(logarithm.to(self.device) for logarithm in logarithms),
        )

    def rows(self, r: int, keys: dict[str, Any], class_names: Sequence[str], *, epsilon: float) -> list[dict[str, Any]]:
        """Return run r's policy as table rows, one a class: its answers, and the errors that they follow from."""
        policy, errors = self.policy, self.errors
        columns: dict[str, list[Any]] = {
            "weight_nat": policy.weight_nat()[r].tolist(),
            "weight_bndy": policy.weight_bndy()[r].tolist(),
            "margin": (epsilon * policy.margin_factor()[r]).tolist(),
            "natural_error": [None] * len(class_names) if errors is None else errors.class_natural_error[r].tolist(),
            "boundary_error": [None] * len(class_names) if errors is None else errors.class_boundary_error[r].tolist(),
        }
        return [
            {**keys, "class_id": k, "class_name": name, **{column: values[k] for column, values in columns.items()}}
            for k, name in enumerate(class_names)
        ]
