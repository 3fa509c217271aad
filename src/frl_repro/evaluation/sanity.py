"""Measure what the sanity checks of robustness speak of, of any model; and check a checkpoint file.

The rules themselves stand in `frl_repro.results.tables.sanity_rules`, reasons and sources in docs/sanity.md.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pandas import DataFrame
from torch import Tensor, nn

from frl_repro.attacks import check_images, evaluation_mode, fgsm, input_gradient, pgd
from frl_repro.attacks.linf import project, random_start
from frl_repro.attacks.predictions import is_wrong, say_not_finite
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER, bar
from frl_repro.basics.provenance import describe
from frl_repro.data import Dataset, Split, at_most, load_dataset
from frl_repro.data.splits import subset
from frl_repro.evaluation.evaluate import EvaluationAttack, evaluate
from frl_repro.evaluation.measure import (
    USUAL_STEP_SIZE,
    model_and_backend,
    origin_of,
    resolve_device,
    set_up_machine,
)
from frl_repro.models.compute.backends import Backend
from frl_repro.models.loading import refuse_other_model
from frl_repro.models.origin import checkpoint_file
from frl_repro.results.tables import writing
from frl_repro.results.tables.sanity_rules import (
    COLUMNS,
    DIRECTIONS,
    NUM_DRAWS,
    NUM_RESTARTS,
    RULES,
    SANITY_FILE,
    STEPS_FACTOR,
    Evidence,
    failed,
    radii_of_sweep,
    read_sanity,
    rows,
    table_text,
)
from frl_repro.settings.config import SanityConfig, to_dict

_BATCH_SIZE = 500
_NUM_DISTANCES = 16  # points of the losses' curves; the first is a grey level of 8-bit images at 16/255
_REACH = 2.5
"""Length of all steps together in radii: from any start the attack can reach the ball's boundary and move along it.

Source: Madry et al. 2018, section 5, who step by 2.5 epsilon / 100 in 100 steps.
"""


class ChecksFailedError(UserError):
    """Some checks do not pass. Tables and figure are written all the same."""


@dataclass(frozen=True, eq=False)
class Attacker:
    """A model with the backend that computes it."""

    model: nn.Module
    backend: Backend


def gather(
    model: nn.Module,
    split: Split,
    *,
    epsilon: float,
    num_steps: int,
    seed: int,
    device: torch.device,
    backend: Backend,
    other: Attacker | None = None,
) -> Evidence:
    """Return what the checks speak of.

    Parameters
    ----------
    model : nn.Module
        [0, 1] images in, logits out; its mode, gradients and buffers are left as they were.
    split : Split
        Images to check on.
    epsilon : float
        The radius that is checked, in pixel units, below 1.
    num_steps : int
        Steps of the attack that is checked.
    seed : int
        Drives random starts and noise.
    device : torch.device
    backend : Backend
    other : Attacker, optional
        A model of its own training, whose attacked images are tried on this one.

    Raises
    ------
    UserError
        The radius lies outside (0, 1), or the model gets no image right: there is nothing to attack.
    """
    if not 0 < epsilon < 1:
        raise UserError(f"epsilon={epsilon:g} must lie in (0, 1): write 8/255 for eight grey levels of 255")
    radii = radii_of_sweep(epsilon)
    step = functools.partial(_step_size, num_steps=num_steps)

    def white_box(attacker: Attacker, *, times: int = 1, num_restarts: int = 1) -> EvaluationAttack:
        def attack(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
            del model  # the images are those it gets right; who is attacked is the attacker's matter
            return pgd(
                attacker.model,
                x,
                y,
                epsilon=epsilon,
                step_size=step(epsilon),
                num_steps=times * num_steps,
                num_restarts=num_restarts,
                generator=generator,
                ascend=attacker.backend.ascend,
                logits=attacker.backend.logits,
            )

        return attack

    def single_step(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, generator: torch.Generator) -> Tensor:
        del generator  # it starts at the clean image
        return fgsm(model, x, y, epsilon=epsilon, ascend=backend.ascend)

    own = Attacker(model, backend)
    attacks: dict[str, EvaluationAttack] = {
        "pgd": white_box(own),
        "more_steps": white_box(own, times=STEPS_FACTOR),
        "more_restarts": white_box(own, num_restarts=NUM_RESTARTS),
        "single_step": single_step,
        "uniform_noise": functools.partial(strongest_noise, draw=random_start, logits=backend.logits),
        "random_signs": functools.partial(strongest_noise, draw=random_signs, logits=backend.logits),
    }
    if other is not None:
        attacks["transfer"] = white_box(other)

    is_attacked_error = {}
    is_not_finite = torch.zeros(len(split), dtype=torch.bool)
    with bar("sanity checks", len(attacks) * len(split)) as advance:
        for role, attack in attacks.items():
            measured_at = radii if role == "pgd" else [epsilon]
            samples = evaluate(
                model,
                split,
                attack=attack,
                epsilons=measured_at,
                batch_size=_BATCH_SIZE,
                seed=seed,
                device=device,
                logits=backend.logits,
                advance=advance,
            )
            for radius, is_error in zip(measured_at, samples.is_attacked_error, strict=True):
                is_attacked_error[role, radius] = is_error.numpy()
            is_not_finite |= samples.is_not_finite
    say_not_finite(is_not_finite)
    is_natural_error = samples.is_natural_error
    if bool(is_natural_error.all()):
        raise UserError(f"the model gets none of {len(split)} images right: there is nothing to attack")
    right = split.select((~is_natural_error).nonzero().flatten())
    distances = torch.linspace(0, epsilon, _NUM_DISTANCES + 1, dtype=torch.float64)
    gradients, losses = _landscape(own, right, attacks["pgd"], distances, epsilon=epsilon, seed=seed, device=device)
    return Evidence(
        labels=split.labels.cpu().numpy(),
        is_natural_error=is_natural_error.numpy(),
        is_attacked_error=is_attacked_error,
        largest_gradient=gradients,
        distances=distances.numpy(),
        losses=losses,
        epsilon=epsilon,
        num_steps=num_steps,
    )


def _step_size(epsilon: float, *, num_steps: int) -> float:
    """Return the step at a radius: the usual one, or longer where the ball is too wide for it; 1 reaches any point."""
    return min(1.0, max(USUAL_STEP_SIZE, _REACH * epsilon / num_steps))


def random_signs(x: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return a random corner of the ball around each image, clipped to [0, 1]."""
    signs = torch.randint(0, 2, x.shape, generator=generator, device=generator.device).to(x)
    return project(x + epsilon * (2 * signs - 1), x, epsilon)


def strongest_noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    generator: torch.Generator,
    draw: Callable[[Tensor, float, torch.Generator], Tensor],
    logits: Callable[[nn.Module, Tensor], Tensor],
    num_draws: int = NUM_DRAWS,
) -> Tensor:
    """Return noisy images: of several draws the last one that is misclassified, where there is one.

    Parameters
    ----------
    model, x, y, epsilon, generator
        As `evaluate.EvaluationAttack` has them.
    draw : callable (x, epsilon, generator) -> Tensor
        One draw of noise, inside the ball and [0, 1].
    logits : callable (model, x) -> Tensor
    num_draws : int
    """
    check_images(x)
    result = x
    with evaluation_mode(model):
        for _ in range(num_draws):
            noisy = draw(x, epsilon, generator)
            wrong = is_wrong(logits(model, noisy), y)
            result = torch.where(wrong.view(-1, *[1] * (x.ndim - 1)), noisy, result)
    return result


def loss_along(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    direction: Tensor,
    distances: Tensor,
    *,
    logits: Callable[[nn.Module, Tensor], Tensor],
) -> Tensor:
    """Return the cross-entropy of each image moved along a direction, clipped to [0, 1].

    Parameters
    ----------
    model : nn.Module
    x, direction : Tensor, shape (N, C, H, W)
    y : Tensor, shape (N,), int64
    distances : Tensor, shape (S,)
        How far to move, in units of the direction.
    logits : callable (model, x) -> Tensor

    Returns
    -------
    Tensor, shape (S, N), float64
        From logits of the model's precision; the logarithm is taken in double precision, so that small losses differ.
    """
    losses = []
    with evaluation_mode(model):
        for distance in distances.tolist():
            moved = (x + distance * direction).clamp(0, 1)
            loss = nn.functional.cross_entropy(logits(model, moved).double(), y, reduction="none")
            losses.append(loss)
    return torch.stack(losses)


def _landscape(
    own: Attacker,
    split: Split,
    attack: EvaluationAttack,
    distances: Tensor,
    *,
    epsilon: float,
    seed: int,
    device: torch.device,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return the largest entry of each image's input gradient, shape (M,), and its losses by direction, (S, M)."""
    starts = streams.generator(seed, "sanity attack direction", device=device)
    signs = streams.generator(seed, "sanity random direction", device=device)
    largest: list[Tensor] = []
    losses: dict[str, list[Tensor]] = {name: [] for name in DIRECTIONS}
    for _, x, y in split.batches(_BATCH_SIZE, device):
        with evaluation_mode(own.model):
            _, gradient = input_gradient(own.model, x, y)
            attacked = attack(own.model, x, y, epsilon=epsilon, generator=starts)
        largest.append(gradient.abs().flatten(1).amax(1).double().cpu())
        corners = 2 * torch.randint(0, 2, x.shape, generator=signs, device=device).to(x) - 1
        directions = {"gradient": gradient.sign(), "attack": (attacked - x) / epsilon, "random": corners}
        for name, direction in directions.items():
            along = loss_along(own.model, x, y, direction, distances, logits=own.backend.logits)
            losses[name].append(along.cpu())
    return torch.cat(largest).numpy(), {name: torch.cat(parts, dim=1).numpy() for name, parts in losses.items()}


def check_checkpoint(config: SanityConfig, *, command: str = "") -> Path:
    """Check a checkpoint on test images, write table and figure, show the checks and return the folder.

    Repeating the command writes the same table and figure, byte for byte.

    Raises
    ------
    ChecksFailedError
        Everything is written and some checks do not pass; the message names them.
    UserError
        A file is no checkpoint of this architecture, both are the same, or data, images or device are missing.
    """
    keys = config.keys
    path = checkpoint_file(keys.checkpoint, key="checkpoint")
    other_path = None if keys.other is None else checkpoint_file(keys.other, key="other")
    # A run's folder and the file in it are one check.
    keys = dataclasses.replace(keys, checkpoint=str(path), other=None if other_path is None else str(other_path))
    config = dataclasses.replace(config, keys=keys)
    refuse_other_model(path, config.model)
    origin = origin_of(path)
    device = resolve_device(keys.device)
    set_up_machine(device, keys.num_threads)
    dataset = load_dataset(config.dataset)
    own = _load(path, config, dataset, device, key=keys.checkpoint_key)
    other = None if other_path is None else _load(other_path, config, dataset, device, setting="other")
    if other is not None and _same_weights(own.model, other.model):
        raise UserError(f"other={other_path} holds the weights of checkpoint={path}: transfer needs another model")

    seed = int(origin["seed"]) if keys.seed is None else keys.seed
    evidence = gather(
        own.model,
        _images(dataset.test, keys.num_images, seed),
        epsilon=keys.epsilon,
        num_steps=keys.num_steps,
        seed=streams.derive_seed(seed, "sanity"),
        device=device,
        backend=own.backend,
        other=other,
    )
    run_keys = {name: origin[name] for name in ("run_id", "method", "seed")}
    run_keys |= {"dataset": config.dataset.name, "model": config.model.name}
    folder = Path(keys.output_dir) / f"{origin['run_id']}-{config.hash}" if keys.run_dir is None else Path(keys.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    writing.write_table(folder / SANITY_FILE, rows(evidence, run_keys, dataset.class_names), COLUMNS)
    checkpoints_used = {str(used): _digest(used) for used in (path, other_path) if used is not None}
    writing.write_json(
        folder / "run.json",
        {
            "config": to_dict(config),
            "data": dataset.content,
            "checkpoints": checkpoints_used,
            **describe(device=device, backend=own.backend.name, command=command),
        },
    )
    table = read_sanity(folder / SANITY_FILE)
    _draw(table, folder)
    LOGGER.info("%s", table_text(table))
    LOGGER.info("table and figure: %s", folder)
    if rules := failed(table):
        names = ", ".join(f"{rule.check} ({rule.quantity})" for rule in rules)
        raise ChecksFailedError(f"{path} fails {len(rules)} of {len(RULES)} checks: {names}; see docs/sanity.md")
    return folder


def _load(
    path: Path,
    config: SanityConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    key: str | None = None,
    setting: str = "checkpoint",
) -> Attacker:
    return Attacker(*model_and_backend(path, config, dataset, device, key=key, setting=setting))


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def _images(split: Split, num_images: int | None, seed: int) -> Split:
    num_images = at_most("num_images", num_images, len(split))
    if num_images == len(split):
        return split
    try:
        return split.select(subset(split.labels, num_images, streams.derive_seed(seed, "sanity images")))
    except UserError as problem:
        raise UserError(f"num_images={num_images}: {problem}") from problem


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _draw(table: DataFrame, folder: Path) -> None:
    from frl_repro.results.figures.sanity import sanity_figure  # noqa: PLC0415 (matplotlib is slow to import)
    from frl_repro.results.figures.style import save  # noqa: PLC0415

    # Hydra shows every library's messages, and those of the PDF writer are hundreds.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    save(sanity_figure(table), folder, "sanity")
