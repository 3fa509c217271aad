"""Mean losses of classes, for methods that weigh by them, and the image weights that stand for a sum of means."""

from __future__ import annotations

from torch import Tensor

from frl_repro.training.frl.method import ClassStats


def class_losses(stats: ClassStats, *, objective: str, beta: float) -> tuple[Tensor, Tensor]:
    """Return each class's mean loss, shape (..., K), 0 for a class without images, and its number of images.

    The loss of an image is what it adds to the loss of a step without weights: CE(x) + beta KL with the loss of TRADES,
    CE(x) + CE(x_adv) with a loss of pairs, and one cross-entropy where a batch is mixed of clean and attacked images.
    The report's loss (``split``) takes CE(x_adv) with the clean prediction; here it is taken with the true class, the
    only one that `ClassStats` sums.
    """
    boundary = beta * stats.kl if objective == "trades" else stats.ce_attacked
    count = stats.num_clean + stats.num_attacked if objective == "mixed" else stats.num_clean
    return (stats.ce_clean + boundary) / count.clamp(min=1), count


def weights_of_means(share: Tensor, count: Tensor) -> Tensor:
    """Return image weights by class, shape (..., K): their weighted mean over all images is ``sum(share * mean loss)``.

    Parameters
    ----------
    share : Tensor, shape (..., K)
        How much the mean loss of each class counts.
    count : Tensor, shape (..., K)
        Images of each class in the batch; a class without any has weight 0, its share is lost.
    """
    return share * count.sum(-1, keepdim=True) / count.clamp(min=1) * (count > 0)
