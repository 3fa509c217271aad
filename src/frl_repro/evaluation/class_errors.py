"""Class-wise natural, boundary and robust error as one value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def count_by_class(labels: Tensor, is_counted: Tensor, num_classes: int) -> Tensor:
    """Return how many images of each class are counted, shape (..., K), int64; a GPU does not wait for it.

    Parameters
    ----------
    labels : Tensor, shape (..., N), int64
        True classes, 0 to K - 1.
    is_counted : Tensor, shape (..., N), bool
    num_classes : int
        K.
    """
    counts = torch.zeros(*labels.shape[:-1], num_classes, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(-1, labels, is_counted.long())


@dataclass(frozen=True, eq=False)
class SampleErrors:
    """Which of N images a model gets wrong, clean and attacked at several radii.

    Parameters
    ----------
    labels : Tensor, shape (N,), int64
        True classes, 0 to K - 1.
    is_natural_error : Tensor, shape (N,), bool
        Whether the clean image is misclassified.
    is_attacked_error : Tensor, shape (E, N), bool
        For each radius whether the attacked image is misclassified; without meaning where the clean image already is.
    is_not_finite : Tensor, shape (N,), bool
        Whether the image is wrong because its logits are not finite: clean, or right clean and attacked at some radius.
    """

    labels: Tensor
    is_natural_error: Tensor
    is_attacked_error: Tensor
    is_not_finite: Tensor

    @property
    def is_robust_error(self) -> Tensor:
        """Wrong clean or wrong attacked, shape (E, N), bool."""
        return self.is_natural_error | self.is_attacked_error

    def by_class(self, num_classes: int) -> list[ClassErrors]:
        """Return the class errors at each radius."""
        return [
            ClassErrors.from_samples(
                self.labels,
                is_natural_error=self.is_natural_error,
                is_attacked_error=is_attacked_error,
                num_classes=num_classes,
            )
            for is_attacked_error in self.is_attacked_error
        ]


@dataclass(frozen=True, eq=False)
class ClassErrors:
    """Counts of wrong predictions by class; every rate is derived from them.

    A sample is a *natural* error when its clean image is misclassified, a *boundary* error when the clean image is
    right and the attacked one wrong, and a *robust* error when it is either. Hence robust = natural + boundary holds
    sample by sample and the counts add up exactly.

    Parameters
    ----------
    count : Tensor, shape (K,), int64
        Samples of each class.
    num_natural_errors, num_boundary_errors : Tensor, shape (K,), int64
        Samples of each class that are natural (boundary) errors.

    Raises
    ------
    ValueError
        When the shapes differ, or when a class has no samples: its error would be 0/0.

    Notes
    -----
    Source: Xu et al. 2021, section 2 (natural and boundary error); the reproduction report, section 3.
    """

    count: Tensor
    num_natural_errors: Tensor
    num_boundary_errors: Tensor

    def __post_init__(self) -> None:
        if not self.count.shape == self.num_natural_errors.shape == self.num_boundary_errors.shape:
            raise ValueError("count, num_natural_errors and num_boundary_errors must have one shape (K,)")
        empty = (self.count == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"no samples of class {', '.join(map(str, empty))}: class errors need at least one each")

    @classmethod
    def from_samples(
        cls, labels: Tensor, *, is_natural_error: Tensor, is_attacked_error: Tensor, num_classes: int
    ) -> ClassErrors:
        """Count errors from per-sample outcomes.

        Parameters
        ----------
        labels : Tensor, shape (N,), int64
            True classes, 0 to K - 1.
        is_natural_error : Tensor, shape (N,), bool
            Whether the clean image is misclassified.
        is_attacked_error : Tensor, shape (N,), bool
            Whether the attacked image is misclassified; ignored where the clean image already is.
        num_classes : int
            K.
        """
        counted = (torch.ones_like(is_natural_error), is_natural_error, is_attacked_error & ~is_natural_error)
        return cls(*(count_by_class(labels, mask, num_classes).cpu() for mask in counted))

    @property
    def num_robust_errors(self) -> Tensor:
        """Wrong clean or wrong attacked, shape (K,), int64."""
        return self.num_natural_errors + self.num_boundary_errors

    @property
    def class_natural_error(self) -> Tensor:
        """Natural error of each class, shape (K,), in [0, 1]."""
        return self.num_natural_errors.double() / self.count

    @property
    def class_boundary_error(self) -> Tensor:
        """Boundary error of each class, shape (K,), in [0, 1]."""
        return self.num_boundary_errors.double() / self.count

    @property
    def class_robust_error(self) -> Tensor:
        """Robust error of each class, shape (K,), in [0, 1]."""
        return self.num_robust_errors.double() / self.count

    @property
    def overall_natural_error(self) -> float:
        """Natural error over all samples, in [0, 1]."""
        return int(self.num_natural_errors.sum()) / int(self.count.sum())

    @property
    def overall_boundary_error(self) -> float:
        """Boundary error over all samples, in [0, 1]."""
        return int(self.num_boundary_errors.sum()) / int(self.count.sum())

    @property
    def overall_robust_error(self) -> float:
        """Robust error over all samples, in [0, 1]."""
        return int(self.num_robust_errors.sum()) / int(self.count.sum())
