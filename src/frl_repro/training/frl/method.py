"""What a class-wise method is: what it sees of training, what it answers, and when it is asked.

The loop (`frl_repro.training.trainer`) asks in this order. Before a step: `Method.see_validation` where that is due,
then `Method.plan` (radius by class, sampling). After the forward pass: `Method.see_batch`, then `Method.weigh` (weights
by class). After the last step of an epoch: `Method.see_epoch`. Once, before the finished model is measured:
`Method.finish`. The test split is not among what a method can be given.

Runs that train side by side share one method: every tensor has a leading run axis R, and no run looks at another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from frl_repro.attacks.predictions import is_wrong

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig


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


@dataclass(frozen=True)
class ClassStats:
    """Sums over images by true class: of a batch, of an epoch or of validation images alike; they add with ``+``.

    Attributes
    ----------
    num_clean, num_attacked : Tensor, shape (..., K)
        Images that went through the network clean (attacked). All sums are float64.
    wrong_clean, wrong_attacked : Tensor, shape (..., K)
        How many of them were misclassified.
    wrong_either : Tensor, shape (..., K)
        Images that were misclassified clean or attacked, of those that went through both ways; else 0.
    ce_clean, ce_attacked : Tensor, shape (..., K)
        Cross-entropies, in nats.
    kl : Tensor, shape (..., K)
        Divergences KL(f(x) || f(x_adv)) of images that went through both ways; else 0.
    margin : Tensor, shape (..., K)
        Of attacked images the largest wrong probability less that of the true class, in [-1, 1].
    probability : Tensor, shape (..., K, K)
        Probabilities of attacked images: [true class, class].
    confusion : Tensor, shape (..., K, K)
        Predictions of attacked images, counted: [true class, predicted class].
    """

    num_clean: Tensor
    num_attacked: Tensor
    wrong_clean: Tensor
    wrong_attacked: Tensor
    wrong_either: Tensor
    ce_clean: Tensor
    ce_attacked: Tensor
    kl: Tensor
    margin: Tensor
    probability: Tensor
    confusion: Tensor

    def __add__(self, other: ClassStats) -> ClassStats:
        return ClassStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def class_natural_error(self) -> Tensor:
        """Share of each class that is wrong when clean, shape (..., K)."""
        return self.wrong_clean / self.num_clean

    @property
    def class_boundary_error(self) -> Tensor:
        """Share of each class that is right when clean and wrong when attacked, shape (..., K)."""
        return (self.wrong_either - self.wrong_clean) / self.num_clean

    @property
    def overall_natural_error(self) -> Tensor:
        """Share of all images, shape (...)."""
        return self.wrong_clean.sum(-1) / self.num_clean.sum(-1)

    @property
    def overall_boundary_error(self) -> Tensor:
        """Share of all images, shape (...)."""
        return (self.wrong_either - self.wrong_clean).sum(-1) / self.num_clean.sum(-1)

    @classmethod
    def of(cls, clean: Tensor, y_clean: Tensor, attacked: Tensor, y_attacked: Tensor) -> ClassStats:
        """Return the sums of one batch.

        Parameters
        ----------
        clean, attacked : Tensor, shape (..., N, K) and (..., M, K)
            Logits. The same images in the same order where N equals M and the labels agree; then ``kl`` is taken.
        y_clean, y_attacked : Tensor, shape (..., N) and (..., M), int64
            True classes.
        """
        K = clean.shape[-1]
        clean, attacked = clean.detach().double(), attacked.detach().double()
        of_clean, of_attacked = (torch.nn.functional.one_hot(y, K).double() for y in (y_clean, y_attacked))
        log_clean, log_attacked = clean.log_softmax(-1), attacked.log_softmax(-1)
        probability = log_attacked.exp()
        predicted = torch.nn.functional.one_hot(attacked.argmax(-1), K).double()
        others = probability.masked_fill(of_attacked.bool(), -1.0)
        true = (probability * of_attacked).sum(-1)
        is_pair = clean.shape == attacked.shape and torch.equal(y_clean, y_attacked)
        kl = (log_clean.exp() * (log_clean - log_attacked)).sum(-1) if is_pair else torch.zeros_like(true)

        def by_class(classes: Tensor, values: Tensor) -> Tensor:
            return (classes.transpose(-1, -2) @ values.unsqueeze(-1)).squeeze(-1)

        wrong_clean, wrong_attacked = is_wrong(clean, y_clean).double(), is_wrong(attacked, y_attacked).double()
        either = torch.maximum(wrong_clean, wrong_attacked) if is_pair else torch.zeros_like(true)
        return cls(
            num_clean=of_clean.sum(-2),
            num_attacked=of_attacked.sum(-2),
            wrong_clean=by_class(of_clean, wrong_clean),
            wrong_attacked=by_class(of_attacked, wrong_attacked),
            wrong_either=by_class(of_attacked, either),
            ce_clean=by_class(of_clean, -(log_clean * of_clean).sum(-1)),
            ce_attacked=by_class(of_attacked, -(log_attacked * of_attacked).sum(-1)),
            kl=by_class(of_attacked, kl),
            margin=by_class(of_attacked, others.amax(-1) - true),
            probability=of_attacked.transpose(-1, -2) @ probability,
            confusion=of_attacked.transpose(-1, -2) @ predicted,
        )


class When(NamedTuple):
    """Where training is.

    Attributes
    ----------
    epoch : Tensor, shape (R,), int64
        Each run's epoch, counted from 0: runs side by side need not be at the same one.
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
    """A class-wise method for R runs that train side by side. A subclass overrides what it needs.

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
        self.objective, self.attacked_share = "mixed", 0.5

    @classmethod
    def check_network(cls, network: Callable[[], nn.Module], num_classes: int) -> None:
        """Raise a `UserError` where the method cannot change the network, which ``network`` makes; before training."""

    @classmethod
    def of_runs(cls, configs: Sequence[RunConfig], *, num_classes: int, device: torch.device) -> Method:
        """Return the method of runs that share all settings but those that each run may have for itself."""
        method = cls(num_runs=len(configs), num_classes=num_classes, device=device)
        method.configure([config.frl for config in configs])
        method.learn_training(configs[0])
        method.state = method.start()
        return method

    def learn_training(self, config: RunConfig) -> None:
        """Keep what a method may know of the runs' training."""
        self.objective, self.attacked_share = config.objective, config.attacked_share

    def configure(self, settings: Sequence[Any]) -> None:
        """Keep the runs' settings (``Settings`` of the method's file, one for each run)."""
        self.settings = settings[0]
        self._of_each = settings

    def per_run(self, name: str) -> Tensor:
        """Return a setting that each run has for itself, shape (R, 1), float64."""
        values = [[float(getattr(settings, name))] for settings in self._of_each]
        return torch.tensor(values, dtype=torch.float64, device=self.device)

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
        """Return the weights of the step's losses."""
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
