"""Checks across settings: what contradicts or ignores one another is refused in one line."""

from __future__ import annotations

import itertools
import re

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.basics.radii import format_epsilon, is_same_radius
from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.methods import DeparturesConfig, FRLConfig, TauConfig, ValidationSettings, is_of_family
from frl_repro.settings.schema import (
    AttackConfig,
    AutoAttackEvaluationConfig,
    DatasetConfig,
    EvaluationConfig,
    FGSMConfig,
    GaussianMixtureConfig,
    ImageFolderConfig,
    NoAttackConfig,
    PGDConfig,
    PGDEvaluationConfig,
    SyntheticConfig,
    TradesTrainingConfig,
    TrainerConfig,
)

_OBJECTIVES_OF_METHODS = ("friendly",)  # losses that belong to one method each


def check(config: RunConfig | EvaluateConfig | SanityConfig) -> None:
    """Refuse settings of which one has no effect beside another, or that cannot go together.

    Raises
    ------
    UserError
        Names the setting and what to do.
    """
    _check_dataset(config.dataset, None if isinstance(config, SanityConfig) else config.evaluation)
    if not isinstance(config, SanityConfig):
        check_evaluation(config.evaluation)
    if isinstance(config, EvaluateConfig) and config.keys.num_examples and config.evaluation.name == "autoattack":
        raise UserError("num_examples has no effect with evaluation=autoattack: it keeps images attacked by PGD")
    if isinstance(config, RunConfig):
        _check_trainer("trainer", config.trainer)
        _check_attack("attack", config.attack, config.trainer)
        if config.evaluation.keep_best_by is not None and config.dataset.validation_fraction == 0:
            raise UserError(
                "evaluation.keep_best_by chooses on validation images: dataset.validation_fraction must not be 0"
            )
        _check_retraining(config)
        if config.keys.init_from_key is not None and config.keys.init_from is None:
            raise UserError("init_from_key has no effect without init_from: it names a state_dict in that checkpoint")
    elif config.keys.checkpoint in ("", "???"):
        raise UserError("checkpoint is missing: give checkpoint=FILE")
    elif (
        isinstance(config, EvaluateConfig)
        and isinstance(config.evaluation, PGDEvaluationConfig)
        and config.evaluation.keep_best_by is not None
    ):
        raise UserError("evaluation.keep_best_by has no effect here: a checkpoint is measured as it is")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.keys.device):
        hint = "did you mean cuda? " if re.match("gpu|cuda", config.keys.device) else ""
        raise UserError(f"device={config.keys.device}: unknown choice; {hint}known: auto, cpu, cuda, cuda:N")


def _check_dataset(dataset: DatasetConfig, evaluation: EvaluationConfig | None) -> None:
    if isinstance(dataset, ImageFolderConfig):
        if dataset.root in ("", "???"):
            raise UserError(
                "dataset.root is missing: give dataset.root=FOLDER with FOLDER/train/<class>/*, test alike, or class "
                "folders alone"
            )
        if dataset.num_channels == 2:
            raise UserError("dataset.num_channels=2: give 1 (grey) or 3 (colour), or null for images as they are")
    if dataset.validation_fraction == 0 and dataset.selection_fraction != 0:
        raise UserError(
            "dataset.selection_fraction has no effect with dataset.validation_fraction=0: it is a share of these images"
        )
    if dataset.imbalance == "none" and dataset.imbalance_ratio is not None:
        raise UserError("dataset.imbalance_ratio has no effect with dataset.imbalance=none: give exponential or step")
    if dataset.imbalance != "none" and dataset.imbalance_ratio is None:
        raise UserError(f"dataset.imbalance={dataset.imbalance} needs dataset.imbalance_ratio, e.g. 50")
    asks_for_validation = isinstance(evaluation, PGDEvaluationConfig) and evaluation.num_validation is not None
    if dataset.validation_fraction == 0 and asks_for_validation:
        raise UserError("evaluation.num_validation has no effect with dataset.validation_fraction=0")
    # Of images in folders the loader knows: where there are class folders alone, it draws the test images.
    if not isinstance(dataset, SyntheticConfig | GaussianMixtureConfig | ImageFolderConfig) and dataset.split_seed != 0:
        chosen = (dataset.validation_fraction, dataset.num_train, dataset.num_test, dataset.imbalance)
        if chosen == (0, None, None, "none"):
            raise UserError("dataset.split_seed has no effect: all images are used and none is kept for validation")


def _check_trainer(name: str, trainer: TrainerConfig, *, may_train_nothing: bool = False) -> None:
    if trainer.num_epochs == 0 and not may_train_nothing:
        raise UserError(f"{name}.num_epochs=0 trains nothing: give at least 1")
    if trainer.ema_from_start and trainer.ema_decay is None:
        raise UserError(f"{name}.ema_from_start has no effect with {name}.ema_decay=null: there is no average")
    if trainer.num_accumulation > trainer.batch_size:
        raise UserError(
            f"{name}.num_accumulation={trainer.num_accumulation}: a batch of {trainer.batch_size} images "
            f"({name}.batch_size) cannot be split into more parts than it has images"
        )


def _check_attack(name: str, attack: AttackConfig, trainer: TrainerConfig) -> None:
    batch_size = trainer.batch_size // trainer.num_accumulation
    if not isinstance(attack, NoAttackConfig) and round(attack.fraction * batch_size) == 0:
        raise UserError(
            f"{name}.fraction={attack.fraction:g} of a batch of {batch_size} is no image at all: "
            "nothing would be attacked; use attack=none for natural training"
        )
    if isinstance(attack, PGDConfig) and not attack.random_start:
        if attack.num_restarts > 1:
            raise UserError(f"{name}.num_restarts > 1 needs {name}.random_start=true: without it all are the same")
        if attack.objective == "kl":
            raise UserError(
                f"{name}.objective=kl needs {name}.random_start=true: it has no gradient at the clean image"
            )
    if isinstance(attack, TradesTrainingConfig) and attack.beta is not None and attack.fraction != 1:
        raise UserError(
            f"{name}.beta={attack.beta:g}: the loss of TRADES attacks every image: {name}.fraction must be 1"
        )
    if isinstance(attack, FGSMConfig) and attack.random_start and attack.step_size is None:
        raise UserError(f"{name}.random_start=true needs {name}.step_size with attack=fgsm, e.g. 10/255 for 8/255")


def _check_retraining(config: RunConfig) -> None:
    retrain, frl = config.retrain, config.frl
    if not config.has_method and config.recipe.name != "report":
        raise UserError(f"recipe={config.recipe.name} has no effect with frl=none: choose a class policy")
    if config.has_method:
        _check_method(config)
    if retrain is None:
        if config.keys.init_from is not None:
            what = "frl=none" if not config.has_method else f"recipe={config.recipe.name}"
            raise UserError(f"init_from has no effect with {what}: only retraining starts from another model")
        return
    _check_trainer("retrain.trainer", retrain.trainer, may_train_nothing=frl.may_train_nothing)
    _check_attack("retrain.attack", retrain.attack, retrain.trainer)
    if isinstance(config.attack, NoAttackConfig) and config.keys.init_from is None:
        raise UserError(f"frl={frl.name} starts from an adversarially trained model: attack=none trains none")
    if retrain.objective != "mixed" and retrain.attack.fraction != 1:
        raise UserError(f"retrain.objective={retrain.objective} attacks every image: retrain.attack.fraction must be 1")
    if retrain.objective == "trades" and retrain.beta is None:
        raise UserError("retrain.objective=trades needs retrain.beta")
    if retrain.objective != "trades" and retrain.beta is not None:
        raise UserError(f"retrain.beta has no effect with retrain.objective={retrain.objective}")
    _check_departures(config.departures, config.tau, retrain.objective)


def _check_method(config: RunConfig) -> None:
    frl, recipe = config.frl, config.recipe.name
    if is_of_family(frl.name) and recipe not in (known := _recipes_of(frl.name)):
        has = " and ".join(f"recipe={name}" for name in known)
        raise UserError(f"frl={frl.name} has no recipe={recipe}; it has {has}")
    own, chosen = frl.objective, None if config.retrain is None else config.retrain.objective
    if chosen is not None and chosen != own and {chosen, own} & set(_OBJECTIVES_OF_METHODS):
        needed = "another loss" if own is None else f"retrain.objective={own}"
        raise UserError(f"retrain.objective={chosen} does not go with frl={frl.name}, which has {needed}")
    frl.check(config)
    if not isinstance(frl, FRLConfig | ValidationSettings):
        return
    if config.dataset.validation_fraction == 0:
        raise UserError(f"frl={frl.name} is steered by validation images: dataset.validation_fraction must not be 0")
    every = frl.update_every
    if every not in (None, "epoch") and not re.fullmatch(r"0*[1-9][0-9]{0,8}", every):
        raise UserError(f"frl.update_every={every}: expected a whole number of steps from 1, below 10^9, or epoch")
    if isinstance(frl, FRLConfig) and frl.margin_bounds is not None:
        bounds = frl.margin_bounds
        if len(bounds) != 2 or not bounds[0] <= 1 <= bounds[1]:
            raise UserError("frl.margin_bounds must be two factors, one at most and one at least 1, e.g. [0.5,2]")


def _recipes_of(method: str) -> list[str]:
    """Return the recipes that a method of FRL's family has a file for."""
    return sorted(path.parent.name for path in (CONFIG_DIR / "retrain").glob(f"*/{method}.yaml"))


def _check_departures(departures: DeparturesConfig, tau: TauConfig, objective: str) -> None:
    needed = {"scrambled_labels": "paired", "weight_by_prediction": "split"}
    for name, other in needed.items():
        if vars(departures)[name] and objective != other:
            raise UserError(
                f"departures.{name}=true has no effect with retrain.objective={objective}, only with {other}"
            )
    if departures.ignored_tau_nat and tau.nat not in (None, tau.bndy):
        raise UserError("tau.nat has no effect with departures.ignored_tau_nat=true: tau.bndy stands in for it")


def check_evaluation(evaluation: EvaluationConfig) -> None:
    """Refuse settings of a measurement that contradict one another, and radii that tables cannot tell apart.

    Raises
    ------
    UserError
        Names the setting and what to do.
    """
    if isinstance(evaluation, AutoAttackEvaluationConfig):
        if evaluation.num_images is None and evaluation.subset_seed != 0:
            raise UserError("evaluation.subset_seed has no effect with evaluation.num_images=null: all are taken")
        if evaluation.num_images is None and evaluation.whole_classes:
            raise UserError("evaluation.whole_classes has no effect with evaluation.num_images=null: all are taken")
    elif not evaluation.random_start and evaluation.num_restarts > 1:
        raise UserError("evaluation.num_restarts > 1 needs evaluation.random_start=true: without it all are the same")

    if not evaluation.epsilons:
        raise UserError("evaluation.epsilons must name at least one radius, and each once")
    for one, other in itertools.pairwise(sorted(evaluation.epsilons)):
        if is_same_radius(one, other):
            raise UserError(
                f"evaluation.epsilons must name each radius once: {one!r} and {other!r} are both {format_epsilon(one)} "
                "in tables and files, where radii count as equal up to 1e-6"
            )
