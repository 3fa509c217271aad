"""From settings to the objects that train: attack, objective, optimiser, class policy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frl_repro.attacks import evaluation_mode, friendly, pgd
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER
from frl_repro.data import AUGMENTATIONS, Dataset, Split
from frl_repro.evaluation.evaluate import evaluate, start_generator
from frl_repro.models.compute.backends import Backend
from frl_repro.settings.config import RunConfig
from frl_repro.settings.methods import FRLConfig, ValidationSettings
from frl_repro.settings.schema import (
    DatasetConfig,
    FGSMConfig,
    NoAttackConfig,
    PGDConfig,
    SGDConfig,
    SGDOneCycleConfig,
    TradesConfig,
    TrainerConfig,
)
from frl_repro.training import objectives, report_code
from frl_repro.training.frl import ClassStats, ErrorRates, kind_of, method_of
from frl_repro.training.frl.class_stats import Predictions
from frl_repro.training.objectives import Objective
from frl_repro.training.steering import Measure, Steering, ValidationImages
from frl_repro.training.trainer import fewest_images, learning_rate_at, one_cycle_learning_rate

Attack = Callable[..., Tensor]
"""(model, x, y, *, factor, generator) -> attacked images.

``x`` holds equal blocks of images, one for each run; ``generator`` one generator for each. ``factor``, one number per
image or None, scales radius and step.
"""

_WIDEST = 1e30
_POLICY_BATCH_SIZE = 2100  # validation images measured at once for an update


def training_attack(config: RunConfig, backend: Backend) -> Attack:
    """Return the attack of the run's own training; it must not be called in natural training."""
    settings, _ = config.training
    has_fixed_step = bool(config.departures.fixed_step)

    def attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        factor: Tensor | None,
        generator: Sequence[torch.Generator],
        is_step_scaled: bool = True,
    ) -> Tensor:
        assert not isinstance(settings, NoAttackConfig)
        step_size = settings.epsilon if settings.step_size is None else settings.step_size
        radius: float | Tensor = settings.epsilon
        step: float | Tensor = step_size
        if factor is not None:
            # Of margins without bounds some are infinite; the widest finite ball is as good, and 0 times it is 0.
            factor = factor.clamp(max=_WIDEST)
            radius = settings.epsilon * factor
            if is_step_scaled and isinstance(settings, TradesConfig):
                # The paper's authors step by a quarter of the largest radius, whatever the sample's own is.
                by_run = factor.view(len(generator), -1)
                step = step_size * by_run.amax(1, keepdim=True).expand_as(by_run).flatten()
            elif is_step_scaled and not has_fixed_step:
                step = step_size * factor
        # Images are those of `in_unit_range`; margins may widen a radius beyond 1.
        run = friendly if config.objective == "friendly" else functools.partial(pgd, is_checked=True)
        return run(
            model,
            x,
            y,
            epsilon=radius,
            step_size=step,
            generator=generator,
            ascend=backend.ascend,
            logits=backend.logits,
            **attack_budget(settings),
        )

    return attack


def attack_budget(settings: PGDConfig | FGSMConfig | TradesConfig) -> dict[str, Any]:
    """Return what `pgd` needs to know besides radius and step."""
    match settings:
        case PGDConfig():
            restarts = {} if settings.num_restarts == 1 else {"num_restarts": settings.num_restarts}
            return {
                "num_steps": settings.num_steps,
                "use_random_start": settings.random_start,
                "objective": settings.objective,
                **restarts,
            }
        case TradesConfig():
            return {"num_steps": settings.num_steps, "start_sd": settings.start_sd, "objective": "kl"}
        case FGSMConfig():
            return {"num_steps": 1, "use_random_start": settings.random_start}


def objective(
    config: RunConfig, *, seeds: Sequence[int], epochs: Sequence[int], device: torch.device, is_joint: bool = True
) -> Objective:
    """Return the loss of a step of runs that share these settings, in each one's epoch of its own training.

    ``is_joint`` is for the losses that take a pair of clean and attacked images; see `frl_repro.training.objectives`.
    """
    name, (attack, _), departures = config.objective, config.training, config.departures
    if isinstance(attack, NoAttackConfig):
        return objectives.Mixed(0)
    if name in ("trades", "friendly"):
        kind = objectives.Trades if name == "trades" else objectives.Friendly
        beta: float = config.trades_beta if name == "trades" else config.frl.beta  # type: ignore[attr-defined, assignment]
        return kind(beta=beta, is_joint=is_joint)
    if name == "mixed":
        return objectives.Mixed(attack.fraction)
    if name == "paired" and departures.scrambled_labels:
        at = zip(seeds, epochs, strict=True)
        generators = [streams.generator(seed, "scrambled labels", epoch, device=device) for seed, epoch in at]
        return report_code.ScrambledPaired(generators=generators)
    if name == "split" and departures.weight_by_prediction:
        return report_code.SplitByPrediction()
    return objectives.Paired(is_joint) if name == "paired" else objectives.SplitLoss(is_joint)


def augmentation(
    dataset: DatasetConfig, at: Sequence[tuple[int, int]], *, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return what an epoch's training images pass; ``at`` has seed and epoch of each run."""
    generators = [streams.generator(seed, "augmentation", epoch, device=device) for seed, epoch in at]
    augment = AUGMENTATIONS[dataset.augmentation]
    return lambda images: augment(images, generators)


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether a layer of the model normalises by the batch that it is in."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def check_network(config: RunConfig, dataset: Dataset, network: Callable[[], nn.Module]) -> None:
    """Raise a `UserError` where the run's network, which ``network`` makes, cannot take its batches or its method."""
    check_batches(config, dataset, network)
    if config.has_method:
        config.frl.check_classes(dataset.num_classes)
        kind_of(config.frl).check_network(network, dataset.num_classes)


def check_batches(config: RunConfig, dataset: Dataset, network: Callable[[], nn.Module]) -> None:
    """Raise a `UserError` where training computes one image by itself of which batch norm can take no statistics.

    One image is enough where every such layer sees it as more than one pixel. ``network`` returns the run's network.
    """
    departures, (_, trainer) = config.departures, config.training
    num_images = len(dataset.train)
    fewest = functools.partial(fewest_images, num_images, num_accumulation=trainer.num_accumulation)
    if fewest(batch_size=trainer.batch_size) > 1:
        return
    if departures.scrambled_labels or departures.weight_by_prediction:
        return  # these take clean and attacked images through the network together
    if not _needs_two_images(network(), dataset.train.images.shape[1:]):
        return
    name = "trainer" if config.retrain is None else "retrain.trainer"
    # A batch cannot be split into more parts than it has images, and one of all images is the largest there is.
    sizes_to_try = range(max(2, trainer.num_accumulation), num_images + 1)
    near = sorted(sizes_to_try, key=lambda size: abs(size - trainer.batch_size))
    fits = (size for size in near if fewest(batch_size=size) > 1)
    better = next((f"give {name}.batch_size={size}" for size in fits), "give more training images")
    height, width = dataset.train.images.shape[2:]
    raise UserError(
        f"{name}.batch_size={trainer.batch_size} of {num_images} training images leaves one image by itself, and batch "
        f"norm takes no statistics of one image of {height}x{width} pixels: {better}"
    )


def _needs_two_images(model: nn.Module, image_shape: Sequence[int]) -> bool:
    """Return whether some batch norm of the model sees one pixel alone of an image."""
    sizes = []

    def note(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        sizes.append(inputs[0][:, 0].numel())

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [module.register_forward_pre_hook(note) for module in norms]
    with evaluation_mode(model), torch.no_grad():
        model(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return 1 in sizes


def optimizer(model: nn.Module, settings: TrainerConfig) -> torch.optim.Optimizer:
    """Return the optimiser."""
    if isinstance(settings, SGDConfig | SGDOneCycleConfig):
        return torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    # Fused: one pass over all parameters, three times as fast on a processor and one launch on a GPU.
    return torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def learning_rate(settings: TrainerConfig, epoch: int, *, step: int, num_steps: int) -> float:
    """Return the learning rate of a step of an epoch of ``num_steps`` steps, both counted from 0."""
    if isinstance(settings, SGDOneCycleConfig):
        return one_cycle_learning_rate(
            epoch * num_steps + step,
            num_steps=settings.num_epochs * num_steps,
            peak=settings.learning_rate,
            warmup_share=settings.warmup_share,
        )
    milestones: Sequence[int]
    if isinstance(settings, SGDConfig):
        milestones = settings.lr_milestones
    else:
        milestones = range(settings.lr_decay_every, settings.num_epochs, settings.lr_decay_every)
    return learning_rate_at(
        epoch, initial=settings.learning_rate, milestones=milestones, decay_factor=settings.lr_decay_factor
    )


def steering(
    configs: Sequence[RunConfig],
    dataset: Dataset,
    backend: Backend,
    device: torch.device,
    models: Sequence[nn.Module],
) -> Steering:
    """Return the method of runs that share all settings but those that each run has for itself, and what it looks at.

    ``models``, length R, are measured where the method looks at validation images.
    """
    config, num_epochs = configs[0], [config.training[1].num_epochs for config in configs]
    if not config.has_method:
        return Steering(num_epochs=num_epochs)
    method = method_of(configs, class_counts=dataset.class_counts, device=device)
    if remark := config.frl.remark(min(num_epochs), averages=config.training[1].ema_decay is not None):
        LOGGER.info("%s", remark)
    images = None
    if method.sees_validation is not None:
        validation, looks = dataset.validation, config.frl
        assert validation is not None
        assert isinstance(looks, FRLConfig | ValidationSettings)
        every = looks.update_every
        images = ValidationImages(
            validation=validation,
            measure=_measurement(config, dataset, backend, device, what=method.sees_validation),
            update_every=None if every in (None, "epoch") else int(every),
            num_images=min(num_steering_images(config, validation), len(validation)),
            seeds=[config.seed for config in configs],
        )
    return Steering(method, images, models, num_epochs)


def num_steering_images(config: RunConfig, validation: Split) -> int:
    """Return how many validation images a method asks for at a time; there may be fewer, then it takes all.

    Raises
    ------
    UserError
        So few are asked for that a class may be missing.
    """
    wanted: int | None = getattr(config.frl, "num_validation", None)  # of methods that look at validation images
    if wanted is None or wanted >= len(validation):
        return wanted or len(validation)
    # In a stratified order of n images in K classes, two of a class of c stand at most n / c + K places apart.
    enough = math.ceil(2 * len(validation) / int(torch.bincount(validation.labels).min()))
    if wanted < enough:
        raise UserError(f"frl.num_validation={wanted}: too few for images of each class; at least {enough} are needed")
    return wanted


def _measurement(
    config: RunConfig,
    dataset: Dataset,
    backend: Backend,
    device: torch.device,
    *,
    what: Literal["errors", "losses"],
) -> Measure:
    """Return how a method's validation images are measured: their class errors, or their `ClassStats`."""
    frl, departures = config.frl, config.departures
    assert isinstance(frl, FRLConfig | ValidationSettings)
    attack = _policy_attack(frl, backend)
    epsilon = getattr(config.training[0], "epsilon", None) if frl.epsilon is None else frl.epsilon
    assert epsilon is not None

    def measure_losses(model: nn.Module, images: Split, seed: int) -> ClassStats:
        generator = start_generator(seed, epsilon, device)
        seen: list[Predictions] = []
        with evaluation_mode(model):
            for _, x, y in images.batches(_POLICY_BATCH_SIZE, device):
                x_adv = attack(model, x, y, epsilon=epsilon, generator=generator)
                logits, attacked = backend.logits(model, x), backend.logits(model, x_adv)
                seen.append(Predictions(logits, y, attacked, y, is_paired=True))
        return ClassStats(seen)

    def measure(model: nn.Module, images: Split, seed: int) -> ErrorRates:
        if departures.flipped_boundary or departures.overall_over_22:
            return report_code.measure_published(
                model,
                images,
                attack=attack,
                epsilon=epsilon,
                logits=backend.logits,
                num_classes=dataset.num_classes,
                generator=streams.generator(seed, "published", device=device),
                device=device,
                flipped_boundary=bool(departures.flipped_boundary),
                overall_over_22=bool(departures.overall_over_22),
            )
        errors = evaluate(
            model,
            images,
            attack=attack,
            epsilons=[epsilon],
            batch_size=_POLICY_BATCH_SIZE,
            seed=seed,
            device=device,
            logits=backend.logits,
        )
        return errors.by_class(dataset.num_classes)[0]

    return measure if what == "errors" else measure_losses


def _policy_attack(frl: FRLConfig | ValidationSettings, backend: Backend) -> Callable[..., Tensor]:
    return functools.partial(pgd, step_size=frl.step_size, num_steps=frl.num_steps, ascend=backend.ascend)  # type: ignore[arg-type]
