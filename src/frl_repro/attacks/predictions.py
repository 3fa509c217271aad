"""What logits say: the predicted class, and whether that is wrong. The one place where this is decided."""

from __future__ import annotations

from torch import Tensor

from frl_repro.basics.progress import LOGGER

NO_CLASS = -1
"""What is predicted where a logit is NaN or infinite: no class, so never the right one."""


def predicted_class(logits: Tensor) -> Tensor:
    """Return the class of the largest logit, the first of equal ones, or `NO_CLASS` where not all are finite.

    Parameters
    ----------
    logits : Tensor, shape (..., N, K)

    Returns
    -------
    Tensor, shape (..., N), int64
    """
    is_finite = logits.abs().amax(-1) < float("inf")  # a NaN among them is their maximum
    return logits.argmax(-1).where(is_finite, NO_CLASS)


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Return which samples are misclassified, shape (..., N), bool; one whose logits are not all finite is.

    Parameters
    ----------
    logits : Tensor, shape (..., N, K)
    y : Tensor, shape (..., N), int64
        True classes.
    """
    return predicted_class(logits) != y


def say_not_finite(is_not_finite: Tensor) -> None:
    """Say in one line how many of the images have logits that are not finite; nothing where all are.

    ``is_not_finite`` has shape (N,), bool.
    """
    if num := int(is_not_finite.sum()):
        LOGGER.info(
            "%d of %d images have logits that are not finite (NaN or infinite), clean or attacked: they count as wrong",
            num,
            len(is_not_finite),
        )
