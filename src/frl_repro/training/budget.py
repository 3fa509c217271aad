"""What a run costs in image-steps, known before it runs: the unit in which methods are given equal budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from frl_repro.settings.config import RunConfig
from frl_repro.settings.methods import FRLConfig, ValidationSettings
from frl_repro.settings.schema import AttackConfig, FGSMConfig, NoAttackConfig, PGDConfig, TradesConfig
from frl_repro.training import build
from frl_repro.training.frl import kind_of

_FORWARD = 0.5
"""What a pass forward without one backward counts."""


@dataclass(frozen=True)
class ImageSteps:
    """Passes of one image forward and backward through the network; a pass forward alone counts half.

    Attributes
    ----------
    training : float
        Of the optimiser's steps.
    attack : float
        Of the training attack.
    steering : float
        Of validation images that the method, its average or the choice of a checkpoint looks at, at most: those that
        are wrong when clean are not attacked. Measurements for the tables alone are left out.
    base : float or None
        Of the model that retraining starts from; 0 from scratch, None where ``init_from`` gives one.
    """

    training: float
    attack: float
    steering: float
    base: float | None = 0.0

    @property
    def total(self) -> float:
        """All of them; the base is charged to whoever starts from it."""
        return self.training + self.attack + self.steering + (self.base or 0.0)


def image_steps(config: RunConfig, *, num_train: int, num_validation: int) -> ImageSteps:
    """Return what a run costs.

    Parameters
    ----------
    config : RunConfig
    num_train, num_validation : int
        Images of the two splits; ``num_validation`` without those that choose settings.
    """
    attack, trainer = config.training
    objective = build.objective(config, seeds=[0], epochs=[0], device=torch.device("cpu"))
    images = num_train * trainer.num_epochs
    base: float | None = 0.0
    if config.retrain is not None:
        base = None
        if config.keys.init_from is None:
            own = config.base()
            seen = num_train + (num_validation if config.departures.base_saw_validation else 0)
            base = image_steps(own, num_train=seen, num_validation=num_validation).total
    return ImageSteps(
        training=float(objective.num_passes * images),
        attack=images * objective.num_attack_passes(_steps_of(attack)),
        steering=float(_steering(config, num_train=num_train, num_validation=num_validation)),
        base=base,
    )


def epochs_within(budget: float, config: RunConfig, *, num_train: int, num_validation: int) -> int:
    """Return how many epochs of the run's own training cost at most ``budget`` image-steps; below 1 where none does."""
    sizes = {"num_train": num_train, "num_validation": num_validation}
    one, two = (image_steps(_with_epochs(config, number), **sizes).total for number in (1, 2))
    return 1 + int((budget - one) // (two - one))


def _with_epochs(config: RunConfig, num_epochs: int) -> RunConfig:
    retrain = config.retrain
    if retrain is None:
        return replace(config, trainer=replace(config.trainer, num_epochs=num_epochs))
    return replace(config, retrain=replace(retrain, trainer=replace(retrain.trainer, num_epochs=num_epochs)))


def _steps_of(attack: AttackConfig) -> float:
    """Return the passes of an attack of one image: its gradient steps and, where it needs one, the clean prediction."""
    if isinstance(attack, NoAttackConfig):
        return 0.0
    if isinstance(attack, FGSMConfig):
        return 1.0
    if isinstance(attack, TradesConfig):
        return attack.num_steps + _FORWARD
    assert isinstance(attack, PGDConfig)
    choosing = _FORWARD * attack.num_restarts if attack.num_restarts > 1 else 0.0
    return attack.num_steps * attack.num_restarts + choosing + (_FORWARD if attack.objective == "kl" else 0.0)


def _steering(config: RunConfig, *, num_train: int, num_validation: int) -> float:
    """Return the passes of validation images that training depends on."""
    trainer, evaluation = config.training[1], config.evaluation
    passes = 0.0
    whole = num_validation if evaluation.num_validation is None else min(evaluation.num_validation, num_validation)
    attacks = len([epsilon for epsilon in evaluation.epsilons if epsilon > 0])
    of_evaluation = _FORWARD + attacks * (evaluation.num_steps * evaluation.num_restarts + _FORWARD)
    if config.has_method:
        kind, looks = kind_of(config.frl), config.frl
        if kind.sees_validation is not None:
            assert isinstance(looks, FRLConfig | ValidationSettings)
            assert looks.num_steps is not None
            num_batches = math.ceil(num_train / trainer.batch_size)
            each_epoch = looks.update_every in (None, "epoch")
            num_looks = 1 if each_epoch else math.ceil(num_batches / int(str(looks.update_every)))
            images = num_validation if looks.num_validation is None else min(looks.num_validation, num_validation)
            passes += trainer.num_epochs * num_looks * images * (looks.num_steps + 2 * _FORWARD)
        if kind.averages == "epochs" and trainer.ema_decay is not None:
            passes += trainer.num_epochs * whole * of_evaluation
        if kind.finish_sees is not None:
            attack = evaluation.num_steps * evaluation.num_restarts if kind.finish_sees == "attacked" else 0
            passes += whole * (attack + _FORWARD)
    if evaluation.keep_best_by is not None:
        passes += math.ceil(trainer.num_epochs / evaluation.validation_every) * whole * of_evaluation
    return passes
