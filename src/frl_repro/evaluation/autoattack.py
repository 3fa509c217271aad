"""AutoAttack, batch by batch: which of its attacks breaks which image. The attacks are those of pyautoattack.

Its own driver is left out: it cannot say which attack broke an image, its resume is broken, it leaves parameter
gradients and a reseeded global generator behind. What it does to one batch is repeated here, to the same result.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from frl_repro.attacks import check_images, check_length, evaluation_mode
from frl_repro.attacks.predictions import NO_CLASS, predicted_class, say_not_finite
from frl_repro.basics.errors import UserError, is_out_of_memory
from frl_repro.basics.progress import LOGGER
from frl_repro.data import Split, in_unit_range
from frl_repro.results.tables.outcomes import NATURAL_ERROR, NOT_ATTACKED, NOT_BROKEN

_FIRST_CODE = NATURAL_ERROR + 1
_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_ROUNDING = 1e-6  # by which an attack's images may leave the ball
_COSTS = {"apgd-ce": 1, "apgd-dlr": 1, "apgd-t": 8, "fab-t": 14, "square": 17}
"""Time of an attack on the same images, as measured with LeNet-5 on a processor: for the progress alone."""
_NUM_TARGETS = 9  # of the two targeted attacks, in the standard version

Forward = Callable[[nn.Module, Tensor], Tensor]


def check() -> None:
    """Raise a `UserError` where the package is missing."""
    try:
        import pyautoattack  # noqa: F401, PLC0415
    except ImportError as problem:
        raise UserError(
            f"evaluation=autoattack needs the package pyautoattack ({problem}): pip install 'pyautoattack>=0.2,<0.3', "
            "or with this project: pip install -e '.[autoattack]'"
        ) from None


def components(num_classes: int) -> tuple[str, ...]:
    """Return the attacks that AutoAttack's standard version consists of, in the order in which they run.

    The targeted DLR loss of ``apgd-t`` compares with the third and fourth largest logit: of three classes, APGD on the
    untargeted DLR loss (``apgd-dlr``) takes its place, of two nothing does, as the only other class is what ``apgd-ce``
    aims at already.

    Raises
    ------
    ValueError
        Fewer than two classes.

    Notes
    -----
    Source: Croce and Hein 2020, section 4 and equation 6 (DLR loss), section 5 (the ensemble).
    """
    if num_classes < 2:
        raise ValueError(f"an attack needs at least 2 classes, got {num_classes}")
    of_few = {2: ("apgd-ce", "fab-t", "square"), 3: ("apgd-ce", "apgd-dlr", "fab-t", "square")}
    return of_few.get(num_classes, _STANDARD)


def attack_batch(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    forward: Forward,
    epsilon: float,
    num_classes: int,
    seed: int,
    num_components: int | None = None,
    is_not_finite: Tensor | None = None,
    advance: Callable[[float], object] = lambda _: None,
) -> Tensor:
    """Return what breaks each image of a batch: AutoAttack in the L-infinity ball, standard version.

    Each attack takes the images that have withstood those before it. What an image meets depends on the others of its
    batch: all draw from one stream of random numbers.

    The model's modes and gradients and the global random states (Python, NumPy, PyTorch) are left as they were.

    Parameters
    ----------
    model : nn.Module
        [0, 1] images in, logits out; attacked in evaluation mode.
    x : Tensor, shape (N, C, H, W)
        Clean images in [0, 1].
    y : Tensor, shape (N,), int64
        True classes.
    forward : callable (model, x) -> Tensor
        Logits that can be differentiated with respect to x: a backend's ``forward_of_images``.
    epsilon : float
        Radius in pixel units, above 0 and at most 1.
    num_classes : int
        K, at least 2. With fewer than ten classes the targeted attacks aim at all K - 1 others, else at nine.
    seed : int
        Every attack starts from it.
    num_components : int, optional
        How many of the attacks run, the first ones; None for all.
    is_not_finite : Tensor, shape (N,), bool, optional
        Set where an image is wrong because its logits are not finite, clean or attacked.
    advance : callable
        Called with the number of images that an attack has dealt with, times its share of the time of all attacks.

    Returns
    -------
    Tensor, shape (N,), uint8
        `Outcomes.broken_by`'s codes for `components`.

    Raises
    ------
    UserError
        Images or the radius lie outside [0, 1].
    """
    check_images(x)
    check_length(epsilon, name="epsilon")
    with (
        _warnings_in_one_line(),
        evaluation_mode(model),
        _frozen(model),
        _random_state_kept(x.device),
        torch.no_grad(),
    ):
        seen = _NotFinite(functools.partial(forward, model), epsilon)
        attacks = _attacks(seen, epsilon, num_classes, seed, x.device)[:num_components]
        costs = [_COSTS[name] for name in components(num_classes)[:num_components]]
        predicted = predicted_class(forward(model, x))
        codes = torch.where(predicted == y, NOT_BROKEN, NATURAL_ERROR).to(torch.uint8)
        not_finite = predicted == NO_CLASS
        for code, (attack, cost) in enumerate(zip(attacks, costs, strict=True), start=_FIRST_CODE):
            standing = (codes == NOT_BROKEN).nonzero().flatten()
            if len(standing) > 0:
                with seen.around(x[standing]) as met:
                    x_adv = attack(x[standing], y[standing])
                predicted = predicted_class(forward(model, x_adv)).masked_fill(met, NO_CLASS)
                codes[standing[predicted != y[standing]]] = code
                not_finite[standing] |= predicted == NO_CLASS
            advance(len(x) * cost / sum(costs))
    if is_not_finite is not None:
        is_not_finite |= not_finite.cpu()
    return codes.cpu()


def attack_split(
    model: nn.Module,
    split: Split,
    *,
    forward: Forward,
    codes: Mapping[float, NDArray[np.uint8]],
    num_classes: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    num_components: int | None = None,
    keep: Callable[[], object],
    advance: Callable[[float], object] = lambda _: None,
) -> None:
    """Attack the images of a split that no earlier process has attacked, radius by radius and batch by batch.

    Parameters
    ----------
    model, forward, num_classes, seed, num_components
        As in `attack_batch`; every batch starts from the same seed.
    split : Split
        uint8 images, shape (N, C, H, W), and labels, shape (N,).
    codes : mapping of float to array, shape (N,), uint8
        By radius what `attack_batch` found; filled in place where it says `NOT_ATTACKED`.
    batch_size : int
        Images per batch, wrong ones included.
    device : torch.device
        Where the model lives.
    keep : callable
        Called after each batch: ``codes`` has grown.
    advance : callable
        Called with the number of images done here, radii counted separately, for a progress bar.

    Raises
    ------
    UserError
        Memory does not hold a batch.
    """
    is_not_finite = torch.zeros(len(split.labels), dtype=torch.bool)
    for epsilon, of_radius in codes.items():
        for first in range(0, len(split.labels), batch_size):
            batch = slice(first, first + batch_size)
            if (of_radius[batch] != NOT_ATTACKED).all():
                continue
            try:
                found = attack_batch(
                    model,
                    in_unit_range(split.images[batch].to(device)),
                    split.labels[batch].to(device),
                    forward=forward,
                    epsilon=epsilon,
                    num_classes=num_classes,
                    seed=seed,
                    num_components=num_components,
                    is_not_finite=is_not_finite[batch],
                    advance=advance,
                )
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
                raise UserError(
                    f"not enough memory for AutoAttack on a batch of {batch_size} images: give a smaller "
                    "evaluation.batch_size (results depend on it), or another device"
                ) from problem
            of_radius[batch] = found.numpy()
            keep()
    say_not_finite(is_not_finite)


class _NotFinite:
    """A model's logits for the library's attacks, and a note of the images that they meet where these are not finite.

    The library takes the first NaN for the largest logit: for an image of that class it goes on, and leaves what it has
    met. Any image of a ball whose logits are not finite breaks the image that the ball is around.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], epsilon: float) -> None:
        self._predict, self._reach = predict, epsilon + _ROUNDING
        self._centres = self._met = torch.empty(0)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        logits = self._predict(images)
        for image in images.detach()[predicted_class(logits.detach()) == NO_CLASS]:
            if self._met.all():
                break
            self._met |= (self._centres - image).abs().flatten(1).amax(1) <= self._reach
        return logits

    @contextmanager
    def around(self, x: Tensor) -> Iterator[Tensor]:
        """Note which of the images, shape (N, C, H, W), have such an image in their ball: a mask (N,), grown inside."""
        self._centres, self._met = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        yield self._met


def _attacks(
    predict: Callable[[Tensor], Tensor], epsilon: float, num_classes: int, seed: int, device: torch.device
) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """Return the attacks named by `components` as functions (x, y) -> x_adv."""
    from pyautoattack import AutoAttack  # noqa: PLC0415

    ensemble = AutoAttack(predict, eps=epsilon, norm="Linf", seed=seed, version="standard", device=device)
    num_targets = min(_NUM_TARGETS, num_classes - 1)
    ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = num_targets
    ensemble.fab.targeted = True

    def apgd(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, y: Tensor) -> Any:
            ensemble.apgd.loss = loss
            return ensemble.apgd.perturb(x, y)

        return run

    by_name = {
        "apgd-ce": apgd("ce"),
        "apgd-dlr": apgd("dlr"),
        "apgd-t": ensemble.apgd_targeted.perturb,
        "fab-t": ensemble.fab.perturb,
        "square": ensemble.square.perturb,
    }
    return [by_name[name] for name in components(num_classes)]


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let nothing differentiate with respect to parameters: the attacks would add to their gradients."""
    requiring = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in requiring:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in requiring:
            parameter.requires_grad_(True)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore the global generators of Python, NumPy and PyTorch, also after an exception."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Say once what the package warns of for each target class, such as gradients that are zero."""
    warned: list[str] = []

    def catch(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            warned.append(record.getMessage())
        return False

    package = logging.getLogger("auto-attack")
    package.addFilter(catch)
    try:
        yield
    finally:
        package.removeFilter(catch)
    if warned:
        LOGGER.info("AutoAttack warned %d times, at first: %s", len(warned), warned[0])
