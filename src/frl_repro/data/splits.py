"""Stratified subsets and validation splits, each drawn from a generator of its own.

Nothing here reads or changes the global random state, so the split stays the same whatever the training seed is.
"""

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random order of the samples of which every prefix is as stratified as whole samples allow.

    The r-th sample (r = 0, 1, ...) of a class with c samples stands at (r + 1/2) / c of the way. Sorting by this
    position makes each prefix the Webster (Sainte-Lague) apportionment of its length to the class counts: with equal
    class counts, the counts in a prefix differ by at most one.

    Parameters
    ----------
    labels : Tensor, shape (N,), integer
        Class of each sample; any values, any number of classes, any counts.
    generator : torch.Generator
        The only source of randomness, on the CPU. The draw depends on N alone, so that renaming the classes leaves
        the order as it is.

    Returns
    -------
    Tensor, shape (N,), int64
        A permutation of 0..N-1.
    """
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator)
    _, class_ids, counts = torch.unique(labels[shuffled], return_inverse=True, return_counts=True)

    # Sorted by class, the rank within the class is the distance from where the class starts. The sorts are stable,
    # so ranks within a class and ties between classes both follow the shuffled order: random.
    by_class = torch.argsort(class_ids, stable=True)
    class_starts = torch.cumsum(counts, dim=0) - counts
    rank = torch.empty_like(class_ids)
    rank[by_class] = torch.arange(len(labels)) - class_starts[class_ids[by_class]]

    # One correctly rounded division of exact float64 numbers: positions that are equal as fractions stay equal.
    position = (rank.to(torch.float64) + 0.5) / counts[class_ids]
    return shuffled[torch.argsort(position, stable=True)]


def split_train_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split samples into training and validation, stratified by class.

    Parameters
    ----------
    labels : Tensor, shape (N,), integer
        Class of each sample.
    fraction : float
        Share of validation samples, 0 <= fraction < 1; their number is ``round(fraction * N)``.
    seed : int
        Seed of the split alone.

    Returns
    -------
    train_indices : Tensor, int64
        Sorted.
    validation_indices : Tensor, int64
        In stratified order: its first M entries are a stratified sample of M. Empty for fraction 0.

    Raises
    ------
    UserError
        When the fraction is out of range, or leaves a class without a training or a validation sample.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"dataset.validation_fraction={fraction} is out of range: allowed are 0 (no validation) to below 1"
        )
    order = stratified_order(labels, torch.Generator().manual_seed(seed))
    num_validation = round(fraction * len(labels))
    validation_indices, train_indices = order[:num_validation], order[num_validation:].sort().values

    num_classes = _num_distinct(labels)
    parts = {"training": train_indices} | ({"validation": validation_indices} if fraction > 0 else {})
    for part, indices in parts.items():
        if (num_present := _num_distinct(labels[indices])) < num_classes:
            raise UserError(
                f"dataset.validation_fraction={fraction} of {len(labels)} training images leaves "
                f"{num_classes - num_present} of {num_classes} classes without a {part} image: "
                f"use {'a smaller' if part == 'training' else 'a larger'} fraction or more images"
            )
    return train_indices, validation_indices


def split_validation(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split validation images into those that steer a class policy and those that settings are chosen on.

    Parameters
    ----------
    labels : Tensor, shape (N,), integer
        Classes of the validation images in stratified order, as `split_train_validation` gives them.
    fraction : float
        Share of the second part, 0 <= fraction < 1; it holds the last ``round(fraction * N)`` images.

    Returns
    -------
    steering, selection : Tensor, int64
        Positions in ``labels``. Both parts are in stratified order: each prefix of one is, and so is what follows it.

    Raises
    ------
    UserError
        A class would be missing in one of the parts.
    """
    num_steering = len(labels) - round(fraction * len(labels))
    positions = torch.arange(len(labels))
    parts = positions[:num_steering], positions[num_steering:]
    if fraction > 0 and min(_num_distinct(labels[part]) for part in parts) < _num_distinct(labels):
        raise UserError(
            f"selection_fraction={fraction} of {len(labels)} validation images leaves a class without an image on one "
            "side: use a fraction nearer to 0.5 or more validation images"
        )
    return parts


def imbalanced(labels: Tensor, kind: str, ratio: float | None, seed: int) -> Tensor:
    """Return the sorted indices of the images that are left where each class keeps a part of its own.

    Class c of K (0, 1, ...) keeps the share ``ratio ** (-c / (K - 1))`` (``exponential``), or all in the first half of
    the classes and ``1 / ratio`` in the others (``step``; of an odd number of classes the first half is the larger).

    Parameters
    ----------
    labels : Tensor, shape (N,), integer
        Class of each image, 0..K-1; every class has one.
    kind : {"none", "exponential", "step"}
    ratio : float or None
        At least 1; None for ``none``, which keeps all images.
    seed : int
        Seed of the choice alone. For one seed, what a larger ratio keeps is among what a smaller one keeps.

    Raises
    ------
    UserError
        A class would lose all of its images.

    Notes
    -----
    Source: Cui et al. 2019 (exponential), Buda et al. 2018 (step), with equal classes; others keep shares of their own.
    """
    if kind == "none" or ratio is None:
        return torch.arange(len(labels))
    counts = torch.bincount(labels.cpu()).double()
    K = len(counts)
    if kind == "exponential":
        share = ratio ** (-torch.arange(K, dtype=torch.float64) / max(K - 1, 1))
    else:
        share = torch.where(torch.arange(K) < (K + 1) // 2, 1.0, 1 / ratio).double()
    kept = (counts * share).round().long()
    if int(kept.min()) == 0:
        c = int(kept.argmin())
        raise UserError(
            f"dataset.imbalance_ratio={ratio:g} leaves class {c} without a training image, it has {int(counts[c])}: "
            "use a smaller ratio or more images"
        )
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    of_class = labels.cpu()[shuffled]
    parts = [shuffled[of_class == c][: int(kept[c])] for c in range(K)]  # once a data set, not once a batch
    return torch.cat(parts).sort().values


def at_most(key: str, wanted: int | None, available: int) -> int:
    """Return how many images a setting takes of those that there are, and say in a line where it takes fewer.

    Parameters
    ----------
    key : str
        The setting, for the line.
    wanted : int or None
        Its value; None for all.
    available : int
    """
    if wanted is None or wanted <= available:
        return available if wanted is None else wanted
    LOGGER.info("%s=%d: there are %d images, all of them are taken", key, wanted, available)
    return available


def subset(labels: Tensor, num: int, seed: int) -> Tensor:
    """Return the sorted indices of a stratified random subset of ``num`` samples.

    Parameters
    ----------
    labels : Tensor, shape (N,), integer
        Class of each sample.
    num : int
        Size of the subset, at most N and large enough for one sample a class.
    seed : int
        Seed of the choice alone. For one seed, a smaller subset is contained in every larger one.

    Returns
    -------
    Tensor, shape (num,), int64
        All of 0..N-1 when ``num`` is N.

    Raises
    ------
    UserError
        When there are fewer than ``num`` samples, or a class would lose all of its samples.
    """
    if not 1 <= num <= len(labels):
        raise UserError(f"{num} images asked for, but there are {len(labels)}: give a number from 1 to {len(labels)}")
    indices = stratified_order(labels, torch.Generator().manual_seed(seed))[:num].sort().values
    num_classes = _num_distinct(labels)
    if (num_present := _num_distinct(labels[indices])) < num_classes:
        raise UserError(
            f"{num} images leave {num_classes - num_present} of {num_classes} classes without an image: use more images"
        )
    return indices


def _num_distinct(labels: Tensor) -> int:
    return len(torch.unique(labels))
