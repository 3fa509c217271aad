"""What a class-wise method is: what it sees of training, what it answers, and when it is asked.

The loop (`frl_repro.training.trainer`) asks in this order. Before a step: `Method.see_validation` where that is due,
then `Method.plan` (radius by class, sampling). After the forward pass: `Method.see_batch`, then `Method.weigh` (weights
by class). After the last step of an epoch: `Method.see_epoch`. Once, before the finished model is measured:
`Method.finish`. The test split is not among what a method can be given.

Fused runs, which take their steps in the same tensors, share one method: every tensor has a leading run axis R, and no
run looks at another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from frl_repro.training.frl.class_stats import ClassStats

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig

__all__ = ["ClassStats", "ErrorRates", "Method", "Plan", "Weights", "When"]


class ErrorRates(Protocol):
    """Error rates by class, shape (..., K), and over all samples, shape (...), in [0, 1]."""

    @property
    def class_natural_error(self) -> Tensor:
        """Share of each class that is wrong when clean."""

    @property
    def class_boundary_error(self) -> Tensor:
        """Share of each class that is right when clean and wrong when attacked."""

    @property
    def overall_natural_error(self) -> Tensor | float:
        """Share of all samples."""

    @property
    def overall_boundary_error(self) -> Tensor | float:
        """Share of all samples."""


class When(NamedTuple):
    """Where training is.

    Attributes
    ----------
    epoch : Tensor, shape (R,), int64
        Each run's epoch, counted from 0: fused runs need not be at the same one. On the method's device.
    num_epochs : Tensor, shape (R,), int64
        How many each run has.
    step, num_steps : int
        Step of the epoch, counted from 0, and how many an epoch has.
    """

    epoch: Tensor
    num_epochs: Tensor
    step: int
    num_steps: int


class Plan(NamedTuple):
    """What a method decides before images are drawn and attacked; None leaves a thing as it is without a method.

    Attributes
    ----------
    radius : Tensor, shape (R, K), optional
        What each class's training radius is multiplied with.
    is_step_scaled : bool
        Whether the attack's step grows and shrinks with the radius.
    draw : Tensor, shape (R, K), optional
        Share of each class in the batch: images are then drawn with repetition, a class first. None takes every
        image once an epoch.
    """

    radius: Tensor | None = None
    is_step_scaled: bool = True
    draw: Tensor | None = None


class Weights(NamedTuple):
    """How much the losses of each class count.

    Attributes
    ----------
    nat, bndy : Tensor, shape (..., K)
        Weights of the natural and of the boundary (or adversarial) loss.
    log_nat, log_bndy : Tensor, shape (..., K), optional
        Their logarithms, which tell apart weights that are too small for numbers.
    pair : Tensor, shape (..., K, K), optional
        Adds ``pair[true class, class predicted under attack]`` times the cross-entropy of the attacked image.
    """

    nat: Tensor
    bndy: Tensor
    log_nat: Tensor | None = None
    log_bndy: Tensor | None = None
    pair: Tensor | None = None


class Method:
    """A class-wise method for R fused runs. A subclass overrides what it needs.

    Parameters
    ----------
    num_runs, num_classes : int
        R and K.
    device : torch.device
        Where state and answers live.

    Attributes
    ----------
    state : dict of str to Tensor
        All that has to be saved, each tensor with a leading run axis.
    objective : str
        The loss of a step (`RunConfig.objective`).
    beta : float
        Weight of the divergence where that loss is the one of TRADES.
    class_counts : Tensor, shape (K,), float64
        Training images of each class. Known in `start`.
    attacked_share : float
        Share of the attacked images' loss in it (`RunConfig.attacked_share`).
    """

    sees_validation: ClassVar[Literal["errors", "losses"] | None] = None
    """What `see_validation` takes: `ErrorRates`, or the `ClassStats` of the validation images drawn. None: nothing."""
    sees_batches: ClassVar[bool] = False
    """Whether `see_batch` is called."""
    sees_epochs: ClassVar[bool] = False
    """Whether `see_epoch` is called."""
    scale: ClassVar[Literal["weights", "images"]] = "weights"
    """What a weighted sum of losses is divided by: the sum of the weights, or the number of images."""
    averages: ClassVar[Literal["steps", "epochs"]] = "steps"
    """When the weights are taken into the running average (``trainer.ema_decay``), if there is one."""
    finish_sees: ClassVar[Literal["clean", "attacked"] | None] = None
    """Whether `finish` takes logits of validation images as they are, attacked as they are measured, or None."""

    def __init__(self, *, num_runs: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.shape: tuple[int, ...] = (num_runs, num_classes)
        self.device = torch.device(device)
        self.state: dict[str, Tensor] = {}
        self._numbers: dict[tuple[str, torch.device], Tensor] = {}
        self.objective, self.beta, self.attacked_share = "mixed", 1.0, 0.5
        self.class_counts = torch.ones(num_classes, dtype=torch.float64, device=self.device)

    @classmethod
    def check_network(cls, network: Callable[[], nn.Module], num_classes: int) -> None:
        """Raise a `UserError` where the method cannot change the network, which ``network`` makes; before training."""

    @classmethod
    def of_runs(cls, configs: Sequence[RunConfig], *, class_counts: Tensor, device: torch.device) -> Method:
        """Return the method of runs that share all settings but those that each run may have for itself.

        ``class_counts``, shape (K,), are the training images of each class.
        """
        method = cls(num_runs=len(configs), num_classes=len(class_counts), device=device)
        method.configure([config.frl for config in configs])
        method.train_with(configs[0], class_counts)
        method.state = method.start()
        return method

    def train_with(self, config: RunConfig, class_counts: Tensor) -> None:
        """Keep what the method may know of its training: the loss of a step, and the images of each class."""
        self.objective = config.objective
        self.beta = 1.0 if config.trades_beta is None else config.trades_beta
        self.attacked_share = config.attacked_share
        self.class_counts = class_counts.to(self.device, torch.float64)

    def configure(self, settings: Sequence[Any]) -> None:
        """Keep the runs' settings (``Settings`` of the method's file, one for each run)."""
        self.settings = settings[0]
        self._of_each = settings
        self._numbers.clear()

    def per_run(self, name: str) -> Tensor:
        """Return a setting that each run has for itself, shape (R, 1), float64; not to be changed in place."""
        key = name, self.device
        if key not in self._numbers:
            values = [[float(getattr(settings, name))] for settings in self._of_each]
            self._numbers[key] = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self._numbers[key]

    def start(self) -> dict[str, Tensor]:
        """Return the state before the first step."""
        return {}

    def see_validation(self, seen: Any, when: When) -> None:
        """Learn from validation images: `ErrorRates` or `ClassStats`, as ``sees_validation`` says; shapes (R, K)."""

    def plan(self, when: When) -> Plan:
        """Return radius and sampling of the next step."""
        return Plan()

    def see_batch(self, stats: ClassStats, when: When) -> None:
        """Learn from the training images of a step, after their forward pass and before their loss; shapes (R, K)."""

    def weigh(self, when: When) -> Weights:
        """Return the weights of the step's losses.

        Asked once a step; with ``sees_batches`` once after each `see_batch`, of which a step that is computed in parts
        (``num_accumulation``) has several.
        """
        ones = self.ones()
        return Weights(ones, ones)

    def see_epoch(self, stats: ClassStats, when: When) -> None:
        """Learn from all training images of the epoch that has ended, as they were seen in its steps."""

    def accepts(self, errors: ErrorRates | None, when: When) -> Tensor:
        """Return for each run whether its average takes the weights in at the epoch's end, shape (R,), bool.

        ``errors`` are those of all validation images at the first radius of ``evaluation.epsilons``; None where there
        are none. Asked where ``averages`` is "epochs" and there is an average.
        """
        return torch.ones(self.shape[0], dtype=torch.bool)

    def finish(self, r: int, model: nn.Module, logits: Callable[[nn.Module], tuple[Tensor, Tensor]]) -> None:
        """Change run r's finished model in place before it is measured.

        ``logits`` returns of a model the logits, shape (N, K), and labels, shape (N,), of the validation images, clean
        or attacked as ``finish_sees`` says.
        """

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return the method's own columns of ``policy.csv``, each of shape (R, K)."""
        return {}

    def ones(self) -> Tensor:
        """Return 1 for every run and class, shape (R, K), float64."""
        return torch.ones(self.shape, dtype=torch.float64, device=self.device)
