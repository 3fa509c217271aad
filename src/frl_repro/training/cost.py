"""What a run costs, whatever machine it runs on: passes of one image through the network, from settings and data sizes.

An image-step is one forward or one backward pass of one image: training on a clean image costs 2, a step of an attack
2. Images that a measurement on the processor need not attack, because they are wrong already, count as attacked, and so
does what an early stop saves: the cost does not depend on outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from frl_repro.data import Dataset
from frl_repro.settings.config import RunConfig
from frl_repro.settings.methods import FRLConfig, ValidationSettings
from frl_repro.settings.schema import AttackConfig, NoAttackConfig, PGDEvaluationConfig
from frl_repro.training.build import attack_budget, num_steering_images
from frl_repro.training.frl import Method, kind_of


def image_steps(
    config: RunConfig, dataset: Dataset, *, num_validation: int, num_kept: int = 1, base: int | None = 0
) -> dict[str, int | None]:
    """Return the image-steps of a run by what they are for, and those that a fair comparison charges it.

    Parameters
    ----------
    config : RunConfig
    dataset : Dataset
    num_validation : int
        Validation images that are measured for the tables.
    num_kept : int
        Checkpoints that are measured in the end.
    base : int or None
        What the starting model cost; 0 from scratch, None where nobody knows.

    Returns
    -------
    dict of str to int or None
        ``training``: attacks and steps. ``steering``: what the method looks at beside them. ``validation``: measured
        for the tables, and for choosing. ``test``: measured at the end, and before retraining; ``selection`` images
        too. ``base``. ``budget``: all but ``test``; None where the base's cost is not known.
    """
    _, trainer = config.training
    due = [e for e in range(1, trainer.num_epochs + 1) if e % config.evaluation.validation_every == 0]
    is_retrained = config.retrain is not None
    num_measured = len({*due, config.last_epoch}) + is_retrained
    num_last = len(dataset.test) + (0 if dataset.selection is None else len(dataset.selection))
    each = _measuring(config.evaluation)
    costs: dict[str, int | None] = {
        "training": trainer.num_epochs * training_epoch(config, len(dataset.train)),
        "steering": _steering(config, dataset, num_validation=num_validation),
        "validation": num_measured * num_validation * each,
        "test": (num_kept + is_retrained) * num_last * each,
        "base": base,
    }
    charged = [cost for name, cost in costs.items() if name != "test" and cost is not None]
    return {**costs, "budget": None if base is None else sum(charged)}


def base_cost(config: RunConfig, dataset: Dataset, recorded: Mapping[str, int | None] | None) -> int | None:
    """Return what the model that a run starts from cost: as its run recorded it, or by its settings.

    None for a model that was given (``init_from``) and has no record; 0 where a run starts from scratch.
    """
    if config.retrain is None:
        return 0
    if recorded is not None:
        return recorded.get("budget")
    if config.keys.init_from is not None:
        return None
    base, held_back = config.base(), 0
    if config.departures.base_saw_validation:
        held_back = sum(len(part) for part in (dataset.validation, dataset.selection) if part is not None)
    num_validation = 0 if held_back or dataset.validation is None else len(dataset.validation)
    epochs = base.trainer.num_epochs * training_epoch(base, len(dataset.train) + held_back)
    return epochs + num_validation * _measuring(base.evaluation)


def training_epoch(config: RunConfig, num_images: int) -> int:
    """Return the image-steps of an epoch of a run's own training: attacks, forward and backward passes."""
    attack, trainer = config.training
    rest = num_images % trainer.batch_size
    batches = [trainer.batch_size] * (num_images // trainer.batch_size) + [rest] * (rest > 0)
    if config.objective not in ("mixed", "natural"):
        num_passes = 3 if config.objective == "friendly" else 2  # images that go through the network for each one
        return num_images * (_attack(attack, is_friendly=num_passes == 3) + 2 * num_passes)
    num_attacked = 0
    for size in batches:
        part = math.ceil(size / trainer.num_accumulation)
        parts = [part] * (size // part) + [size % part] * (size % part > 0)
        num_attacked += sum(round(getattr(attack, "fraction", 0.0) * n) for n in parts)
    return num_attacked * _attack(attack) + 2 * num_images


def _attack(settings: AttackConfig, *, is_friendly: bool = False) -> int:
    """Return the image-steps of a training attack on one image."""
    if isinstance(settings, NoAttackConfig):
        return 0
    budget = attack_budget(settings)
    T: int = budget["num_steps"]
    if is_friendly:  # every iterate is looked at; a clean prediction, and a step more
        return 2 * (T + 1) + (T + 1) + 1
    return _pgd(T, budget.get("num_restarts", 1)) + (budget.get("objective") == "kl")


def _pgd(num_steps: int, num_restarts: int) -> int:
    chosen_among = num_restarts if num_restarts > 1 else 0  # each one's result goes through the network once more
    return 2 * num_steps * num_restarts + chosen_among


def _measuring(settings: PGDEvaluationConfig) -> int:
    """Return the image-steps of one image: clean, and attacked at every radius."""
    return 1 + len(settings.epsilons) * (_pgd(settings.num_steps, settings.num_restarts) + 1)


def _steering(config: RunConfig, dataset: Dataset, *, num_validation: int) -> int:
    """Return the image-steps of what the method looks at beside training."""
    if not config.has_method:
        return 0
    method, frl, (_, trainer) = kind_of(config.frl), config.frl, config.training
    total = 0
    if method.sees_validation is not None and dataset.validation is not None:
        assert isinstance(frl, FRLConfig | ValidationSettings)
        assert frl.num_steps is not None
        num_steps, every = math.ceil(len(dataset.train) / trainer.batch_size), frl.update_every
        num_looks = 1 if every in (None, "epoch") else math.ceil(num_steps / int(every))
        num_images = min(num_steering_images(config, dataset.validation), len(dataset.validation))
        total += trainer.num_epochs * num_looks * num_images * (2 * frl.num_steps + 2)
    if method.averages == "epochs" and trainer.ema_decay is not None:
        total += trainer.num_epochs * num_validation * _measuring(config.evaluation)
    if method.finish is not Method.finish and method.finish_sees is not None:
        is_attacked = method.finish_sees == "attacked"
        attack = _pgd(config.evaluation.num_steps, config.evaluation.num_restarts) if is_attacked else 0
        total += num_validation * (attack + 1)
    return total
