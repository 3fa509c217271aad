"""What training saw of a batch, and its sums by true class, each computed when it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from frl_repro.attacks.predictions import is_wrong
from frl_repro.evaluation.class_errors import count_by_class


@dataclass(frozen=True)
class Predictions:
    """Logits of a batch as training saw it, before the step.

    Attributes
    ----------
    clean, attacked : Tensor, shape (..., N, K) and (..., M, K)
        Of images that were taken clean (attacked): the same images, or two parts of the batch.
    y_clean, y_attacked : Tensor, shape (..., N) and (..., M), int64
        True classes.
    is_paired : bool
        Clean and attacked are the same images in the same order.
    friendly : Tensor, shape (..., N, K), optional
        Of the clean images moved by an attack as far as they stay right (`objectives.Friendly`).
    """

    clean: Tensor
    y_clean: Tensor
    attacked: Tensor
    y_attacked: Tensor
    is_paired: bool
    friendly: Tensor | None = None

    @property
    def is_wrong_clean(self) -> Tensor:
        """Which clean images are wrong, shape (..., N), bool."""
        return is_wrong(self.clean.detach(), self.y_clean)

    @property
    def is_wrong_attacked(self) -> Tensor:
        """Which attacked images are wrong, shape (..., M), bool."""
        return is_wrong(self.attacked.detach(), self.y_attacked)

    def detached(self) -> Predictions:
        """Return the same without gradients."""
        return Predictions(
            self.clean.detach(), self.y_clean, self.attacked.detach(), self.y_attacked, is_paired=self.is_paired
        )


class ClassStats:
    """Sums over images by true class: of a batch, of an epoch or of validation images alike; they add with ``+``.

    It holds logits. A sum is computed when it is first read, so that a method pays for what it uses.

    Parameters
    ----------
    batches : sequence of Predictions
        At least one. Their gradients are left behind.

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

    def __init__(self, batches: Sequence[Predictions]) -> None:
        self._batches = tuple(batch.detached() for batch in batches)

    @classmethod
    def of(
        cls, clean: Tensor, y_clean: Tensor, attacked: Tensor, y_attacked: Tensor, *, is_paired: bool = True
    ) -> ClassStats:
        """Return the sums of one batch; the arguments are those of `Predictions`."""
        return cls([Predictions(clean, y_clean, attacked, y_attacked, is_paired=is_paired)])

    @classmethod
    def of_runs(cls, runs: Sequence[ClassStats]) -> ClassStats:
        """Stack R runs' sums, shapes (R, ...); each has as many images."""
        batches = []
        for of_batch in zip(*(run._batches for run in runs), strict=True):
            tensors = [(b.clean, b.y_clean, b.attacked, b.y_attacked) for b in of_batch]
            clean, y_clean, attacked, y_attacked = (torch.stack(parts) for parts in zip(*tensors, strict=True))
            batches.append(
                Predictions(clean, y_clean, attacked, y_attacked, is_paired=all(b.is_paired for b in of_batch))
            )
        return cls(batches)

    def __add__(self, other: ClassStats) -> ClassStats:
        return ClassStats((*self._batches, *other._batches))

    def _total(self, of_batch: Callable[[Predictions], Tensor]) -> Tensor:
        total = of_batch(self._batches[0])
        for batch in self._batches[1:]:
            total = total + of_batch(batch)
        return total

    @cached_property
    def num_clean(self) -> Tensor:
        """Clean images, shape (..., K)."""
        return self._total(lambda b: _count(torch.ones_like(b.y_clean), b.y_clean, b.clean))

    @cached_property
    def num_attacked(self) -> Tensor:
        """Attacked images, shape (..., K)."""
        return self._total(lambda b: _count(torch.ones_like(b.y_attacked), b.y_attacked, b.attacked))

    @cached_property
    def wrong_clean(self) -> Tensor:
        """Clean images that are wrong, shape (..., K)."""
        return self._total(lambda b: _count(b.is_wrong_clean, b.y_clean, b.clean))

    @cached_property
    def wrong_attacked(self) -> Tensor:
        """Attacked images that are wrong, shape (..., K)."""
        return self._total(lambda b: _count(b.is_wrong_attacked, b.y_attacked, b.attacked))

    @cached_property
    def wrong_either(self) -> Tensor:
        """Images that are wrong clean or attacked, shape (..., K)."""

        def of_batch(b: Predictions) -> Tensor:
            is_either = b.is_wrong_clean | b.is_wrong_attacked if b.is_paired else torch.zeros_like(b.y_attacked)
            return _count(is_either, b.y_attacked, b.attacked)

        return self._total(of_batch)

    @cached_property
    def ce_clean(self) -> Tensor:
        """Cross-entropies of clean images, shape (..., K)."""
        return self._total(lambda b: _cross_entropy(b.clean, b.y_clean))

    @cached_property
    def ce_attacked(self) -> Tensor:
        """Cross-entropies of attacked images, shape (..., K)."""
        return self._total(lambda b: _cross_entropy(b.attacked, b.y_attacked))

    @cached_property
    def kl(self) -> Tensor:
        """Divergences of attacked from clean predictions, shape (..., K)."""

        def of_batch(b: Predictions) -> Tensor:
            classes = _classes(b.y_attacked, b.attacked)
            if not b.is_paired:
                return torch.zeros_like(classes.sum(-2))
            log_clean, log_attacked = _log_probability(b.clean), _log_probability(b.attacked)
            return _by_class((log_clean.exp() * (log_clean - log_attacked)).sum(-1), classes)

        return self._total(of_batch)

    @cached_property
    def margin(self) -> Tensor:
        """Largest wrong probabilities less true ones, shape (..., K)."""

        def of_batch(b: Predictions) -> Tensor:
            classes, probability = _classes(b.y_attacked, b.attacked), _log_probability(b.attacked).exp()
            others = probability.masked_fill(classes.bool(), -1.0)
            return _by_class(others.amax(-1) - (probability * classes).sum(-1), classes)

        return self._total(of_batch)

    @cached_property
    def probability(self) -> Tensor:
        """Probabilities of attacked images, shape (..., K, K)."""
        return self._total(
            lambda b: _classes(b.y_attacked, b.attacked).transpose(-1, -2) @ _log_probability(b.attacked).exp()
        )

    @cached_property
    def confusion(self) -> Tensor:
        """Predictions of attacked images, shape (..., K, K)."""
        return self.confusion_at(1.0)

    def confusion_at(self, true_logit: float) -> Tensor:
        """Return `confusion` where each image's true logit counts ``true_logit`` times, shape (..., K, K)."""

        def of_batch(b: Predictions) -> Tensor:
            classes, counted = _classes(b.y_attacked, b.attacked), b.attacked
            if true_logit != 1:
                counted = torch.where(classes.bool(), true_logit * counted, counted)
            return classes.transpose(-1, -2) @ _classes(counted.argmax(-1), counted)

        return self._total(of_batch)

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


def _count(is_counted: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    return count_by_class(y, is_counted, logits.shape[-1]).double()


def _classes(y: Tensor, logits: Tensor) -> Tensor:
    """Return the classes as rows of 0 and 1, shape (..., N, K), float64."""
    return one_hot(y, logits.shape[-1]).double()


def _log_probability(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _by_class(values: Tensor, classes: Tensor) -> Tensor:
    """Return the sums of values, shape (..., N), by class, shape (..., K)."""
    return (classes.transpose(-1, -2) @ values.unsqueeze(-1)).squeeze(-1)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    classes = _classes(y, logits)
    return _by_class(-(_log_probability(logits) * classes).sum(-1), classes)
