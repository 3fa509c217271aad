"""Small generated images for tests and first trials. Numbers measured on them are no evidence of anything."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from frl_repro.basics.errors import UserError
from frl_repro.data.dataset import Split

IMAGE_SIDE = 32
PATTERN_SIDE = 4  # patterns are drawn on a 4x4 grid and enlarged, so that they survive convolutions and pooling
CONTRAST = 60.0  # grey levels per standard deviation of a pattern
PATTERN_NOISE = 0.4  # standard deviation of the grid noise, of which class errors come, relative to a pattern's
PIXEL_NOISE = 8.0  # standard deviation in grey levels
MOST_SHARED = 0.7  # share of the pattern that the two most alike classes have in common


def load_synthetic(*, num_classes: int, num_train: int, num_test: int, seed: int) -> tuple[Split, Split]:
    """Generate training and test images of classes that are unequally hard to tell apart.

    Each class has a smooth random pattern. Classes come in pairs (0 and 1, 2 and 3, ...) whose patterns are alike, the
    first pair most and the last pair least, so that errors differ between classes. Each image is its class pattern
    plus smooth noise plus pixel noise.

    Parameters
    ----------
    num_classes : int
        K, at least 2.
    num_train, num_test : int
        Images in each split, at least K; classes are balanced to within one image and shuffled. The test images do
        not depend on ``num_train``, nor the training images on ``num_test``.
    seed : int
        Seed of everything generated; the global random state is neither read nor changed.

    Returns
    -------
    tuple of Split
        Training and test images, uint8 of shape (N, 1, 32, 32), with labels in 0..K-1.

    Raises
    ------
    UserError
        When there are fewer than two classes or fewer images than classes.
    """
    if num_classes < 2:
        raise UserError(f"num_classes={num_classes} is out of range: at least 2 classes are needed")
    for name, num in (("num_train", num_train), ("num_test", num_test)):
        if num < num_classes:
            raise UserError(f"{name}={num} leaves some of {num_classes} classes empty: give at least {num_classes}")
    generator = torch.Generator().manual_seed(seed)
    patterns = _class_patterns(num_classes, generator)
    train_seed, test_seed = torch.randint(2**62, (2,), generator=generator).tolist()
    return _generate(patterns, num_train, train_seed), _generate(patterns, num_test, test_seed)


def _class_patterns(num_classes: int, generator: torch.Generator) -> Tensor:
    """Return one pattern a class, shape (K, 1, 4, 4), each of mean 0 and standard deviation 1."""
    drawn = _standardised(torch.randn(num_classes, 1, PATTERN_SIDE, PATTERN_SIDE, generator=generator))
    num_pairs = num_classes // 2
    shared = torch.linspace(MOST_SHARED, 0.0, num_pairs).view(-1, 1, 1, 1)
    first, second = drawn[0 : 2 * num_pairs : 2], drawn[1 : 2 * num_pairs : 2]
    patterns = drawn.clone()
    patterns[1 : 2 * num_pairs : 2] = shared * first + (1 - shared) * second
    return _standardised(patterns)


def _standardised(patterns: Tensor) -> Tensor:
    centred = patterns - patterns.mean(dim=(-2, -1), keepdim=True)
    return centred / centred.square().mean(dim=(-2, -1), keepdim=True).sqrt()


def _generate(patterns: Tensor, num: int, seed: int) -> Split:
    """Return ``num`` images of the classes that ``patterns`` (shape (K, 1, 4, 4)) stand for."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num)[torch.randperm(num, generator=generator)] % len(patterns)
    grid = patterns[labels]
    grid = grid + PATTERN_NOISE * torch.randn(grid.shape, generator=generator)
    smooth = interpolate(grid, size=(IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", align_corners=False)
    pixels = 127.5 + CONTRAST * smooth + PIXEL_NOISE * torch.randn(smooth.shape, generator=generator)
    return Split(images=pixels.round().clamp(0, 255).to(torch.uint8), labels=labels)
