"""The typed configuration: what each choice reads, allowed ranges, cross-field checks, the run's hash.

The YAML files of ``conf/`` hold values and documentation; the dataclasses below hold types and ranges. A composed
configuration is merged onto a fresh structured one, so that a key that nothing reads cannot slip through.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frl_repro.basics import suggestions
from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import CONFIG_DIR, in_home

_IN_EVERY_HASH = object()


def _key(
    bounds: str | None = None,
    *,
    one_of: Sequence[str] | None = None,
    is_machine: bool = False,
    is_path: bool = False,
    added_as: Any = _IN_EVERY_HASH,
) -> Any:
    """Declare a key: its range in interval notation, or its choices, whether it is a machine setting, and a path.

    ``added_as`` is for keys that came later: with this value a run does what it did before there was the key, and keeps
    the hash and the folder that it had.
    """
    metadata = {
        "bounds": bounds, "one_of": one_of, "is_machine": is_machine, "is_path": is_path, "added_as": added_as,
    }  # fmt: skip
    return field(default="???", metadata=metadata)


def _own(bounds: str | None = None, *, one_of: Sequence[str] | None = None, added_as: Any = _IN_EVERY_HASH) -> Any:
    """Declare a key that a method's file in conf/retrain has or has not; None in methods that do not read it."""
    metadata = {"bounds": bounds, "one_of": one_of, "is_machine": False, "is_optional": True, "added_as": added_as}
    return field(default=None, metadata=metadata)


# Whole numbers have an end: seeds are kept as 64-bit integers in tables, counts as C integers in native code.
_SEED, _COUNT = "[0, 2^63)", "[1, 2^31)"


@dataclass
class LeNet5Config:
    """conf/model/lenet5.yaml."""

    name: str = _key()


@dataclass
class PreActResNet18Config:
    """conf/model/preact_resnet18.yaml."""

    name: str = _key()
    width: int = _key("[1, 2^16)")
    mean: list[float] | None = _key("[0, 1]")
    std: list[float] | None = _key("(0, 1]")


@dataclass
class WRN28x10Config:
    """conf/model/wrn28_10.yaml."""

    name: str = _key()
    width: int = _key("[1, 2^16)")
    mean: list[float] | None = _key("[0, 1]")
    std: list[float] | None = _key("(0, 1]")


ModelConfig = LeNet5Config | PreActResNet18Config | WRN28x10Config

_AUGMENTATIONS = ("none", "crop", "crop_flip")


@dataclass
class FashionMNISTConfig:
    """conf/dataset/fashion_mnist.yaml."""

    name: str = _key()
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key(_SEED)
    num_train: int | None = _key(_COUNT)
    num_test: int | None = _key(_COUNT)
    augmentation: str = _key(one_of=_AUGMENTATIONS, added_as="none")
    root: str | None = _key(is_machine=True, is_path=True)
    download: bool = _key(is_machine=True)
    cache_dir: str | None = _key(is_machine=True, is_path=True)


@dataclass
class TorchvisionConfig:
    """conf/dataset/cifar10.yaml and svhn.yaml."""

    name: str = _key()
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key(_SEED)
    num_train: int | None = _key(_COUNT)
    num_test: int | None = _key(_COUNT)
    augmentation: str = _key(one_of=_AUGMENTATIONS)
    root: str | None = _key(is_machine=True, is_path=True)
    download: bool = _key(is_machine=True)
    cache_dir: str | None = _key(is_machine=True, is_path=True)


@dataclass
class CIFAR10JPEGConfig:
    """conf/dataset/cifar10_jpeg.yaml."""

    name: str = _key()
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key(_SEED)
    num_train: int | None = _key(_COUNT)
    num_test: int | None = _key(_COUNT)
    augmentation: str = _key(one_of=_AUGMENTATIONS)
    root: str | None = _key(is_machine=True, is_path=True)
    cache_dir: str | None = _key(is_machine=True, is_path=True)


@dataclass
class ImageFolderConfig:
    """conf/dataset/image_folder.yaml."""

    name: str = _key()
    root: str = _key(is_path=True)  # no machine setting: another folder is another data set
    image_size: int | None = _key("[8, 2^16)")
    num_channels: int | None = _key("[1, 3]")
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key(_SEED)
    num_train: int | None = _key(_COUNT)
    num_test: int | None = _key(_COUNT)
    augmentation: str = _key(one_of=_AUGMENTATIONS)
    cache_dir: str | None = _key(is_machine=True, is_path=True)


@dataclass
class SyntheticConfig:
    """conf/dataset/synthetic.yaml."""

    name: str = _key()
    num_classes: int = _key("[2, 2^16)")
    num_train: int = _key(_COUNT)
    num_test: int = _key(_COUNT)
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key(_SEED)
    augmentation: str = _key(one_of=_AUGMENTATIONS, added_as="none")


DatasetConfig = FashionMNISTConfig | TorchvisionConfig | CIFAR10JPEGConfig | ImageFolderConfig | SyntheticConfig


@dataclass
class NoAttackConfig:
    """conf/attack/none.yaml."""

    name: str = _key()


@dataclass
class PGDConfig:
    """conf/attack/pgd.yaml."""

    name: str = _key()
    epsilon: float = _key("(0, 1]")
    step_size: float = _key("(0, 1]")
    num_steps: int = _key(_COUNT)
    random_start: bool = _key()
    num_restarts: int = _key(_COUNT)
    objective: str = _key(one_of=("cross_entropy", "kl"))
    fraction: float = _key("(0, 1]")


@dataclass
class FGSMConfig:
    """conf/attack/fgsm.yaml."""

    name: str = _key()
    epsilon: float = _key("(0, 1]")
    step_size: float | None = _key("(0, 1]")
    random_start: bool = _key()
    fraction: float = _key("(0, 1]")


@dataclass
class TradesConfig:
    """conf/attack/trades.yaml."""

    name: str = _key()
    epsilon: float = _key("(0, 1]")
    step_size: float = _key("(0, 1]")
    num_steps: int = _key(_COUNT)
    start_sd: float = _key("(0, 1]")
    fraction: float = _key("(0, 1]")


@dataclass
class TradesTrainingConfig(TradesConfig):
    """conf/attack/trades.yaml: the inner maximisation, and with ``beta`` the loss of TRADES as well."""

    beta: float | None = _key("(0, inf)", added_as=None)


_PRECISIONS = ("float32", "bfloat16")


@dataclass
class AdamConfig:
    """conf/trainer/adam.yaml."""

    name: str = _key()
    num_epochs: int = _key(_COUNT)
    batch_size: int = _key(_COUNT)
    learning_rate: float = _key("(0, inf)")
    lr_decay_every: int = _key(_COUNT)
    lr_decay_factor: float = _key("(0, 1]")
    weight_decay: float = _key("[0, inf)")
    ema_decay: float | None = _key("(0, 1)")
    num_accumulation: int = _key(_COUNT, added_as=1)
    precision: str = _key(one_of=_PRECISIONS, added_as="float32")


@dataclass
class SGDConfig:
    """conf/trainer/sgd.yaml."""

    name: str = _key()
    num_epochs: int = _key(_COUNT)
    batch_size: int = _key(_COUNT)
    learning_rate: float = _key("(0, inf)")
    lr_milestones: list[int] = _key(_COUNT)
    lr_decay_factor: float = _key("(0, 1]")
    momentum: float = _key("[0, 1)")
    weight_decay: float = _key("[0, inf)")
    ema_decay: float | None = _key("(0, 1)")
    num_accumulation: int = _key(_COUNT, added_as=1)
    precision: str = _key(one_of=_PRECISIONS, added_as="float32")


@dataclass
class SGDOneCycleConfig:
    """conf/trainer/sgd_one_cycle.yaml."""

    name: str = _key()
    num_epochs: int = _key(_COUNT)
    batch_size: int = _key(_COUNT)
    learning_rate: float = _key("(0, inf)")
    warmup_share: float = _key("(0, 1)")
    momentum: float = _key("[0, 1)")
    weight_decay: float = _key("[0, inf)")
    ema_decay: float | None = _key("(0, 1)")
    num_accumulation: int = _key(_COUNT, added_as=1)
    precision: str = _key(one_of=_PRECISIONS, added_as="float32")


@dataclass
class RecipeConfig:
    """conf/recipe."""

    name: str = _key()


@dataclass
class FRLConfig:
    """conf/frl, and what conf/retrain adds: how the class policy is steered."""

    name: str = _key()
    accumulate: bool | None = _own()
    update_every: str | None = _own()
    num_validation: int | None = _own(_COUNT)
    epsilon: float | None = _own("(0, 1]")
    step_size: float | None = _own("(0, 1]")
    num_steps: int | None = _own(_COUNT)
    weight_rule: str | None = _own(one_of=("softmax", "simplex"))
    margin_centred: bool | None = _own()
    margin_bounds: list[float] | None = _own("[0, inf)")


@dataclass
class AlphaConfig:
    """Step lengths of the multipliers; None where the method has no such multiplier."""

    nat: float | None = _own("[0, inf)")
    bndy: float | None = _own("[0, inf)")
    margin: float | None = _own("[0, inf)")
    rob: float | None = _own("[0, inf)", added_as=None)


@dataclass
class TauConfig:
    """Tolerated gaps to the overall error; None where the method does not read it."""

    nat: float | None = _own("[0, 1]")
    bndy: float | None = _own("[0, 1]")
    rob: float | None = _own("[0, 1]", added_as=None)


@dataclass
class DeparturesConfig:
    """Departures of the report's public code from its text; all off unless its recipe turns them on."""

    scrambled_labels: bool | None = _own()
    flipped_boundary: bool | None = _own()
    overall_over_22: bool | None = _own()
    ignored_tau_nat: bool | None = _own()
    weight_by_prediction: bool | None = _own()
    fixed_step: bool | None = _own()
    base_saw_validation: bool | None = _own()


@dataclass
class PGDEvaluationConfig:
    """conf/evaluation/pgd.yaml."""

    name: str = _key()
    epsilons: list[float] = _key("[0, 1]")
    step_size: float = _key("(0, 1]")
    num_steps: int = _key(_COUNT)
    random_start: bool = _key()
    num_restarts: int = _key(_COUNT)
    early_stop: bool = _key()
    batch_size: int = _key(_COUNT)
    validation_every: int = _key(_COUNT)
    num_validation: int | None = _key(_COUNT)
    keep_best_by: str | None = _key(one_of=("overall_robust", "worst_class_robust"), added_as=None)


@dataclass
class AutoAttackEvaluationConfig:
    """conf/evaluation/autoattack.yaml."""

    name: str = _key()
    epsilons: list[float] = _key("(0, 1]")
    batch_size: int = _key(_COUNT)
    num_images: int | None = _key(_COUNT)
    subset_seed: int = _key(_SEED)


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


AttackConfig = NoAttackConfig | PGDConfig | FGSMConfig | TradesConfig
TrainerConfig = AdamConfig | SGDConfig | SGDOneCycleConfig

_ATTACKS: dict[str, type] = {
    "none": NoAttackConfig, "pgd": PGDConfig, "fgsm": FGSMConfig, "trades": TradesTrainingConfig,
}  # fmt: skip
_TRAINERS: dict[str, type] = {"adam": AdamConfig, "sgd": SGDConfig, "sgd_one_cycle": SGDOneCycleConfig}


@dataclass
class RetrainConfig:
    """conf/retrain: the training that starts from a robust model."""

    objective: str = _key(one_of=("split", "paired", "mixed", "trades"))
    beta: float | None = _own("(0, inf)")
    attack: PGDConfig | FGSMConfig | TradesConfig = field(
        default="???",  # type: ignore[assignment]
        metadata={"choices": {"pgd": PGDConfig, "fgsm": FGSMConfig, "trades": TradesConfig}},  # beta: retrain.beta
    )
    trainer: AdamConfig | SGDConfig = field(
        default="???",  # type: ignore[assignment]
        metadata={"choices": {name: kind for name, kind in _TRAINERS.items() if name != "sgd_one_cycle"}},
    )


GROUPS: dict[str, dict[str, type]] = {
    "model": {"lenet5": LeNet5Config, "preact_resnet18": PreActResNet18Config, "wrn28_10": WRN28x10Config},
    "dataset": {
        "fashion_mnist": FashionMNISTConfig,
        "cifar10": TorchvisionConfig,
        "cifar10_jpeg": CIFAR10JPEGConfig,
        "svhn": TorchvisionConfig,
        "image_folder": ImageFolderConfig,
        "synthetic": SyntheticConfig,
    },
    "attack": _ATTACKS,
    "trainer": _TRAINERS,
    "evaluation": {"pgd": PGDEvaluationConfig, "autoattack": AutoAttackEvaluationConfig},
    # A new class policy is a file: its keys are those of its files in conf/retrain.
    "frl": dict.fromkeys(_choices("frl"), FRLConfig),
    "recipe": dict.fromkeys(_choices("recipe"), RecipeConfig),
}
_NOT_IN_TRAINING = {"evaluation": "autoattack"}
"""Choices that only measure finished models, by group."""

_SECTIONS: dict[str, type] = {
    "alpha": AlphaConfig, "tau": TauConfig, "retrain": RetrainConfig, "departures": DeparturesConfig,
}  # fmt: skip
"""Parts of a run's configuration that exist with some methods only: conf/retrain/<recipe>/<frl>.yaml says which."""


_BASE_EVALUATION = PGDEvaluationConfig(
    name="pgd",
    epsilons=[8 / 255, 16 / 255],
    step_size=2 / 255,
    num_steps=20,
    random_start=True,
    num_restarts=1,
    early_stop=False,
    batch_size=500,
    validation_every=1,
    num_validation=None,
    keep_best_by=None,
)


@dataclass
class _Machine:
    """Keys of conf/config.yaml and conf/evaluate.yaml that say how to compute, not what."""

    output_dir: str = _key(is_machine=True, is_path=True)
    device: str = _key(is_machine=True)
    backend: str = _key(one_of=("auto", "torch", "native"), is_machine=True)
    num_threads: int | None = _key("[1, 1024]", is_machine=True)


@dataclass
class _RunKeys(_Machine):
    """Keys of conf/config.yaml outside every group."""

    seed: int = _key(_SEED)
    init_from: str | None = _key(is_path=True)
    init_from_key: str | None = _own(added_as=None)
    run_dir: str | None = _key(is_machine=True, is_path=True)
    base_dir: str | None = _key(is_machine=True, is_path=True)
    logger: str = _key(one_of=("none", "tensorboard"), is_machine=True)
    compile: bool = _key(is_machine=True)
    force: bool = _key(is_machine=True)
    top: int = _key(_COUNT, is_machine=True)


@dataclass
class _EvaluateKeys(_Machine):
    """Keys of conf/evaluate.yaml outside every group."""

    seed: int | None = _key(_SEED)
    checkpoint: str = _key(is_path=True)
    checkpoint_key: str | None = _own(added_as=None)
    num_examples: int = _key("[0, 2^31)", is_machine=True)  # adds a file, changes no number
    top: int = _key(_COUNT, is_machine=True)


@dataclass
class _SanityKeys(_Machine):
    """Keys of conf/sanity.yaml outside every group."""

    checkpoint: str = _key(is_path=True)
    checkpoint_key: str | None = _own(added_as=None)
    other: str | None = _key(is_path=True)
    seed: int | None = _key(_SEED)
    num_images: int | None = _key(_COUNT)
    epsilon: float = _key("(0, 1)")
    num_steps: int = _key("[1, 2^28)")  # one check takes several times as many
    run_dir: str | None = _key(is_machine=True, is_path=True)


@dataclass(frozen=True)
class RunConfig:
    """A checked configuration of one training run; see the YAML files for the meaning of the keys."""

    model: ModelConfig
    dataset: DatasetConfig
    attack: AttackConfig
    trainer: TrainerConfig
    evaluation: PGDEvaluationConfig
    frl: FRLConfig
    recipe: RecipeConfig
    alpha: AlphaConfig
    tau: TauConfig
    retrain: RetrainConfig | None
    departures: DeparturesConfig
    keys: _RunKeys

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.keys.seed

    @property
    def has_method(self) -> bool:
        """Whether something varies by class in the run's own training: in retraining, or from scratch."""
        return self.frl.name != "none"

    @property
    def method(self) -> str:
        """What the run stands for in tables: the class policy, else ``natural``, ``trades`` (its loss) or
        ``adversarial[_<attack>]``.
        """
        if self.retrain is not None:
            return self.frl.name
        if isinstance(self.attack, NoAttackConfig):
            return "natural"
        if self.trades_beta is not None:
            return "trades"
        return "adversarial" if isinstance(self.attack, PGDConfig) else f"adversarial_{self.attack.name}"

    @property
    def trades_beta(self) -> float | None:
        """Weight of the boundary loss in the run's own training with the loss of TRADES; None for other losses."""
        if self.retrain is not None:
            return self.retrain.beta
        return self.attack.beta if isinstance(self.attack, TradesTrainingConfig) else None

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the sha256 of every setting that is not a machine setting.

        Settings that came later count only where they differ from what was done before there were them.
        """
        return _hash(self)

    @property
    def run_id(self) -> str:
        """Readable name plus hash; names the run's folder."""
        parts = [self.dataset.name, self.model.name]
        if self.retrain is None:
            parts += [self.attack.name, self.frl.name]
        else:
            parts += [self.frl.name, self.recipe.name]
            parts += [f"{name}{value:g}" for name, value in vars(self.alpha).items() if value is not None]
        return "-".join([*parts, f"seed{self.seed}", self.hash])

    @property
    def training(self) -> tuple[AttackConfig, TrainerConfig]:
        """Attack and trainer of what this run itself trains: the retraining where there is one."""
        chosen = self if self.retrain is None else self.retrain
        return chosen.attack, chosen.trainer

    @property
    def shared(self) -> dict[str, str]:
        """What runs must have in common to train side by side: settings by dotted key, as text.

        Left out are settings that each run can have for itself: seed, learning rate, how its result is measured. Of
        alphas and taus only their being there counts.
        """
        settings = _science(self)
        settings |= settings.pop("keys")
        settings |= {name: vars(self.keys)[name] for name in _SHARED_MACHINE}
        return {
            key: str(value is not None if key.startswith(("alpha.", "tau.")) else value)
            for key, value in _dotted(settings).items()
            if _PER_RUN.fullmatch(key) is None
        }

    def base(self) -> RunConfig:
        """Return the run whose model a retraining starts from: the same settings without the class policy."""
        dataset = self.dataset
        if self.departures.base_saw_validation:
            dataset = dataclasses.replace(dataset, validation_fraction=0.0)
        output_dir = self.keys.base_dir or str(Path(self.keys.output_dir) / "bases")
        return dataclasses.replace(
            self,
            dataset=dataset,
            frl=FRLConfig(name="none"),
            recipe=RecipeConfig(name="report"),
            alpha=AlphaConfig(),
            tau=TauConfig(),
            retrain=None,
            departures=DeparturesConfig(),
            # How the retrained model is measured must not change which base it starts from.
            evaluation=dataclasses.replace(_BASE_EVALUATION, validation_every=self.trainer.num_epochs),
            keys=dataclasses.replace(
                self.keys,
                init_from=None,
                init_from_key=None,
                run_dir=None,
                base_dir=None,
                output_dir=output_dir,
                force=False,
            ),
        )

    def is_trained_like(self, recorded: Mapping[str, Any]) -> bool:
        """Return whether a recorded configuration (``run.json``) trains the same model; how it is measured may differ.

        Settings that the record lacks came later: it stands for what was done before there were them.
        """
        own = _dotted(_science(self))
        theirs = _dotted({**recorded, "keys": recorded})
        return all(
            key in theirs and theirs[key] == value for key, value in own.items() if not key.startswith("evaluation.")
        ) and all(theirs.get(key, value) == value for key, value in _added_values(self).items())

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        if self.keys.run_dir is not None:
            return Path(self.keys.run_dir)
        return Path(self.keys.output_dir) / self.run_id


@dataclass(frozen=True)
class EvaluateConfig:
    """A checked configuration of one measurement of a checkpoint."""

    model: ModelConfig
    dataset: DatasetConfig
    evaluation: PGDEvaluationConfig | AutoAttackEvaluationConfig
    keys: _EvaluateKeys

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the sha256 of every setting that is not a machine setting."""
        return _hash(self)


@dataclass(frozen=True)
class SanityConfig:
    """A checked configuration of the sanity checks of a checkpoint."""

    model: ModelConfig
    dataset: DatasetConfig
    keys: _SanityKeys

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the sha256 of every setting that is not a machine setting."""
        return _hash(self)


Config = RunConfig | EvaluateConfig | SanityConfig
C = TypeVar("C", bound=Config)


def to_dict(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain nested containers, as it would be written in YAML."""
    nested = dataclasses.asdict(config)
    return {**nested.pop("keys"), **nested}


def rebuilding_settings(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the settings that a model and its data are made from, for a checkpoint's header.

    Where the data lie is no part of them: the same data elsewhere give the same checkpoint.
    """
    return {
        group: {
            f.name: getattr(part, f.name)
            for f in dataclasses.fields(part)
            if not f.metadata["is_machine"] and f.name != "root"
        }
        for group, part in (("model", config.model), ("dataset", config.dataset))
    }


def model_settings(settings: Mapping[str, Any]) -> ModelConfig:
    """Return the settings of a model that a checkpoint holds, checked.

    Raises
    ------
    UserError
        An unknown model or key, or a value of the wrong type or out of range.
    """
    parsed: ModelConfig = _parse_group("model", GROUPS["model"], settings)
    return parsed


def _hash(config: Config) -> str:
    canonical = json.dumps(_science(config), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _science(node: Any) -> dict[str, Any]:
    """Return the settings that are not machine settings, as plain containers."""
    values = {
        f.name: getattr(node, f.name)
        for f in dataclasses.fields(node)
        if not f.metadata.get("is_machine") and getattr(node, f.name) != f.metadata.get("added_as", _IN_EVERY_HASH)
    }
    return {name: _science(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()}


def _added_values(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return by dotted key the values of the settings that came later, but for how a model is measured."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(node):
        value, name = getattr(node, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value) and item.name != "evaluation":
            values |= _added_values(value, f"{name}.")
        elif item.metadata.get("added_as", _IN_EVERY_HASH) is not _IN_EVERY_HASH:
            values[name] = value
    return values


def _dotted(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        leaves |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


_PER_RUN = re.compile(
    r"seed|init_from(_key)?|evaluation\..*|(retrain\.)?trainer\.(?!(batch_size|num_accumulation|precision)$).*"
)
_SHARED_MACHINE = ("device", "backend", "num_threads", "compile")


def _groups_of(kind: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.name in GROUPS]


def _sections_of(kind: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.name in _SECTIONS]


def _choices_of(kind: type[Any], group: str) -> dict[str, type]:
    """Return the choices of a group that a command has."""
    left_out = _NOT_IN_TRAINING.get(group) if kind is RunConfig else None
    return {choice: schema for choice, schema in GROUPS[group].items() if choice != left_out}


def _top_level_of(kind: type[Any]) -> type:
    return {RunConfig: _RunKeys, EvaluateConfig: _EvaluateKeys, SanityConfig: _SanityKeys}[kind]


def parse(composed: Mapping[str, Any], kind: type[C]) -> C:
    """Check a composed configuration and return it typed.

    Parameters
    ----------
    composed : mapping
        Plain nested containers, interpolations resolved.
    kind : type
        `RunConfig`, `EvaluateConfig` or `SanityConfig`.

    Raises
    ------
    UserError
        Unknown key or choice, wrong type, value out of range, or settings that contradict or ignore one another.
    """
    groups, sections = _groups_of(kind), _sections_of(kind)
    if kind is RunConfig:
        _refuse_what_only_measures(composed)
    parts = {group: _parse_group(group, _choices_of(kind, group), composed.get(group)) for group in groups}
    for name in sections:
        # A file that serves several methods may say how long one retrains; the command line may not (`cli`).
        is_absent = name == "retrain" and (name not in composed or parts["frl"].name == "none")
        parts[name] = None if is_absent else _parse_node(_SECTIONS[name], composed.get(name, {}), f"{name}.")
    top_values = {name: value for name, value in composed.items() if name not in (*groups, *sections)}
    config = kind(**parts, keys=_parse_node(_top_level_of(kind), top_values, ""))
    _check_dataset(config.dataset, None if isinstance(config, SanityConfig) else config.evaluation)
    if not isinstance(config, SanityConfig):
        _check_evaluation(config.evaluation)
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
    return config


def _refuse_what_only_measures(composed: Mapping[str, Any]) -> None:
    for group, choice in _NOT_IN_TRAINING.items():
        node = composed.get(group)
        if isinstance(node, Mapping) and node.get("name") == choice:
            raise UserError(
                f"{group}={choice} measures finished models, it is too slow for training, which measures after epochs: "
                f"train without it, then python scripts/evaluate.py {group}={choice} checkpoint=<run>/model.safetensors"
            )


def _parse_group(group: str, choices: Mapping[str, type], node: Any) -> Any:
    name = str(node.get("name")) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or name is None or name not in choices:
        raise UserError(f"{group}={name if name is not None else node}: unknown choice; known: {', '.join(choices)}")
    return _parse_node(choices[name], node, f"{group}.")


def _parse_node(schema: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = _hints(schema)
    known = {f.name: f for f in dataclasses.fields(schema)}
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.')}={_shown(values)}: expected keys with values, not a value")
    for name in values:
        if name not in known:
            close = suggestions.keys_named(name, list(known)) or suggestions.keys_near(name, list(known))
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"unknown key {prefix}{name}; {hint}")
    result = {}
    for name, item in known.items():
        full = f"{prefix}{name}"
        if name not in values:
            if item.metadata.get("is_optional"):
                continue
            raise UserError(f"{full} is missing")
        if "choices" in item.metadata:
            result[name] = _parse_group(full, item.metadata["choices"], values[name])
            continue
        value = _as_numbers(values[name]) if "float" in str(hints[name]) else values[name]
        # One key at a time, so that the message can name the key and show the value as it was typed.
        try:
            merged = OmegaConf.merge(_typed_key(schema, name), {name: value})
            result[name] = OmegaConf.to_container(merged)[name]  # type: ignore[index, call-overload]
        except OmegaConfBaseException:
            raise UserError(f"{full}={_shown(values[name])}: expected {_type_name(hints[name])}") from None
        if item.metadata.get("is_path") and result[name] is not None:
            result[name] = in_home(result[name])
        _check_value(full, result[name], item.metadata, shown=_shown(values[name]))
    return schema(**result)


# Both are asked for every key of every job of a sweep, and slow to make.
_hints = functools.cache(get_type_hints)


@functools.cache
def _typed_key(schema: type, name: str) -> DictConfig:
    """Return a configuration of one key, typed as in the schema, without a value."""
    single = dataclasses.make_dataclass("Single", [(name, _hints(schema)[name], dataclasses.field(default=MISSING))])
    typed: DictConfig = OmegaConf.structured(single)
    return typed


def _check_value(key: str, value: Any, metadata: Mapping[str, Any], *, shown: str) -> None:
    if value is None:
        return
    if metadata.get("one_of") is not None and value not in metadata["one_of"]:
        hint = suggestions.choice_hint(shown, metadata["one_of"])
        raise UserError(f"{key}={shown}: unknown choice; {hint}known: {', '.join(metadata['one_of'])}")
    if metadata.get("bounds") is not None:
        numbers = value if isinstance(value, list) else [value]
        if not all(within(number, metadata["bounds"]) for number in numbers):
            hint = suggestions.number_hint(key, numbers)
            raise UserError(f"{key}={shown}: must lie in {metadata['bounds']}{hint}")


def within(number: float, bounds: str) -> bool:
    """Return whether a number lies in an interval such as ``"(0, 1]"``, ``"(0, inf)"`` or ``"[1, 2^31)"``."""
    low, high = map(_end, bounds[1:-1].split(","))
    above = number > low if bounds[0] == "(" else number >= low
    below = number < high if bounds[-1] == ")" else number <= high
    return above and below


def _end(text: str) -> float:
    base, _, exponent = text.partition("^")
    return float(base) ** int(exponent or 1)


_FRACTION = re.compile(r"\s*([-+]?[0-9.eE+-]+?)\s*/\s*([0-9.eE+-]+)\s*")


def _as_numbers(value: Any) -> Any:
    """Return the value with fractions such as ``"8/255"`` worked out; anything else is left for the type check."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_numbers(v) for v in value]
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    try:
        quotient = float(match[1]) / float(match[2])
    except (ValueError, ZeroDivisionError):
        return value
    return quotient if math.isfinite(quotient) else value


def _type_name(hint: Any) -> str:
    names = {
        "int": "a whole number",
        "float": "a number or a fraction such as 8/255",
        "bool": "true or false",
        "str": "a text",
        "list[float]": "a list of numbers such as [8/255,16/255]",
    }
    text = hint.__name__ if isinstance(hint, type) and "[" not in str(hint) else str(hint)
    parts = [part.strip() for part in text.split("|")]
    return " or ".join(names.get(part, "null" if part == "None" else part) for part in parts)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def all_keys(kind: type[Config]) -> dict[str, list[str]]:
    """Return every key of every choice, with the choices (``"attack=pgd"``) that read it."""
    keys: dict[str, list[str]] = {f.name: [] for f in dataclasses.fields(_top_level_of(kind))}
    for group in _groups_of(kind):
        for choice, schema in _choices_of(kind, group).items():
            for item in dataclasses.fields(schema):
                if item.name != "name":
                    keys.setdefault(f"{group}.{item.name}", []).append(f"{group}={choice}")
    for section in _sections_of(kind):
        for item in dataclasses.fields(_SECTIONS[section]):
            for inner in item.metadata.get("choices", {}).values():
                keys.update(
                    {f"{section}.{item.name}.{f.name}": [] for f in dataclasses.fields(inner) if f.name != "name"}
                )
            if "choices" not in item.metadata:
                keys[f"{section}.{item.name}"] = []
    return keys


def path_keys(kind: type[Config]) -> set[str]:
    """Return the keys that take a path: a leading ``~`` stands for the home folder, and every character for itself."""
    return {key for key, _, item in _declared(kind) if item.metadata.get("is_path")}


def list_keys(kind: type[Config]) -> set[str]:
    """Return the keys that take a list."""
    return {key for key, schema, item in _declared(kind) if "list[" in str(_hints(schema)[item.name])}


def _declared(kind: type[Config]) -> Iterator[tuple[str, type, dataclasses.Field[Any]]]:
    """Yield every key with the dataclass that declares it, and how; one of several choices once for each."""
    schemas = [("", _top_level_of(kind)), *((f"{name}.", _SECTIONS[name]) for name in _sections_of(kind))]
    schemas += [(f"{group}.", s) for group in _groups_of(kind) for s in _choices_of(kind, group).values()]
    for prefix, schema in schemas:
        for item in dataclasses.fields(schema):
            inner = item.metadata.get("choices", {})
            for choice in inner.values():
                yield from ((f"{prefix}{item.name}.{f.name}", choice, f) for f in dataclasses.fields(choice))
            if not inner:
                yield f"{prefix}{item.name}", schema, item


@functools.cache
def method_keys() -> dict[str, set[str]]:
    """Return the keys that each method has under each recipe, ``"frl=reweight recipe=report"`` to dotted keys."""
    methods = {}
    for path in sorted((CONFIG_DIR / "retrain").glob("*/*.yaml")):
        settings = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(settings, dict)
        own = {name: node for name, node in settings.items() if name in (*_SECTIONS, "frl")}
        methods[f"frl={path.stem} recipe={path.parent.name}"] = set(_dotted(own))
    return methods


def unknown_key(key: str, kind: type[Config], *, value: str = "", choices: Mapping[str, str] | None = None) -> str:
    """Return the message for a key that no choice reads, with what it may have meant.

    Parameters
    ----------
    key : str
        As it was typed.
    kind : type
        What the command reads: `RunConfig`, `EvaluateConfig` or `SanityConfig`.
    value : str
        As it was typed, for groups.
    choices : mapping, optional
        Group to choice of the command's first job; None where that is not known.
    """
    keys = all_keys(kind)
    groups = [*_groups_of(kind), *(["experiment", "row", "schedule"] if kind is RunConfig else [])]
    belongs = {name: _belongs_to(name, readers, choices) for name, readers in keys.items()}
    readable = [name for name, condition in belongs.items() if condition is None] + groups
    others = [name for name, condition in belongs.items() if condition]
    elsewhere = _commands_with(key, kind)

    if key in suggestions.ADVICE and kind is RunConfig:
        return f"unknown key {key}: {suggestions.ADVICE[key]}"
    group, _, inner = key.partition(".")
    is_choosing = group in groups and inner in ("name", "type", "kind")
    meant = [group] if is_choosing else _keys_meant(key, readable, others, kind)
    if not meant and not elsewhere:
        near = suggestions.keys_near(key, readable)
        # A place that was named counts more than whether its key is read.
        meant = near if near and "." not in key else suggestions.keys_near(key, [*readable, *others]) or near
    ours = f"{key} is a key of {' and '.join(elsewhere)}"
    if meant:
        is_retraining = choices is not None and choices.get("frl", "none") != "none"
        shown = {_with_value(name, value, kind): belongs.get(name) for name in meant}
        hint = suggestions.offered(shown, is_retraining=is_retraining)
        is_ours = elsewhere and not any(name.rpartition(".")[2] == key for name in meant)
        return f"unknown key {key}; {hint}{f' ({ours})' if is_ours else ''}"
    if elsewhere:
        return f"unknown key {key} here: {ours}"
    inside = sorted(name.split(".", 1)[1] for name in keys if name.startswith(f"{group}."))
    if inside:
        return f"unknown key {key}; {group} has {', '.join(inside)}"
    return (
        f"unknown key {key}; known are {', '.join([*_groups_of(kind), *_sections_of(kind)])} (--help lists every key)"
    )


def _keys_meant(key: str, readable: Sequence[str], others: Sequence[str], kind: type[Config]) -> list[str]:
    """Return the keys that a word names: those that are read, or else those that other choices read."""
    read, rest = suggestions.keys_named(key, readable), suggestions.keys_named(key, others)
    head, _, tail = key.rpartition(".")
    if head and any(name.startswith(f"{head}.") for name in rest) and not any(n.startswith(f"{head}.") for n in read):
        return rest
    if key in suggestions.SECTIONS and not any(name.startswith(f"{key}.") for name in read):
        return [*read, *(name for name in rest if name.startswith(f"{key}."))]
    if kind is not RunConfig:  # it measures in several ways, and has few keys
        return [*(name for name in rest if name.rpartition(".")[2] == tail), *read]
    outside_methods = [name for name in rest if name.split(".")[0] not in (*_SECTIONS, "frl")]
    return read or outside_methods or rest


def _belongs_to(key: str, readers: Sequence[str], choices: Mapping[str, str] | None) -> str | None:
    """Return what must be chosen for a key to be read; None where it is, and an empty text where nothing reads it."""
    methods = method_keys() if key.split(".", maxsplit=1)[0] in (*_SECTIONS, "frl") else {}
    if choices is None:
        return None
    if methods:
        chosen = f"frl={choices.get('frl')} recipe={choices.get('recipe')}"
        own = [method for method, names in methods.items() if key in names]
        if chosen in own:
            return None
        recipe = f" recipe={choices.get('recipe')}"
        usual = [method.removesuffix(" recipe=report") for method in own if method.endswith(recipe)] or own
        return next((method for method in usual if method.startswith("frl=reweight")), usual[0] if usual else "")
    group = key.split(".", maxsplit=1)[0]
    return None if not readers or f"{group}={choices.get(group)}" in readers else " or ".join(readers)


def _commands_with(key: str, kind: type[Config]) -> list[str]:
    """Return the other commands that have such a key or group."""
    commands: dict[type[Config], str] = {
        RunConfig: "train.py", EvaluateConfig: "scripts/evaluate.py", SanityConfig: "scripts/sanity.py",
    }  # fmt: skip
    return [
        command
        for other, command in commands.items()
        if other is not kind and (key in all_keys(other) or key in _groups_of(other))
    ]


def _with_value(name: str, value: str, kind: type[Config]) -> str:
    """Return a group with the choice that a value stands for; any other key as it is."""
    close = suggestions.nearest(value, _choices_of(kind, name)) if value and name in _groups_of(kind) else None
    return f"{name}={close}" if close else name


def _check_dataset(dataset: DatasetConfig, evaluation: PGDEvaluationConfig | AutoAttackEvaluationConfig | None) -> None:
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
    asks_for_validation = isinstance(evaluation, PGDEvaluationConfig) and evaluation.num_validation is not None
    if dataset.validation_fraction == 0 and asks_for_validation:
        raise UserError("evaluation.num_validation has no effect with dataset.validation_fraction=0")
    # Of images in folders the loader knows: where there are class folders alone, it draws the test images.
    if not isinstance(dataset, SyntheticConfig | ImageFolderConfig) and dataset.split_seed != 0:
        takes_all = (dataset.validation_fraction, dataset.num_train, dataset.num_test) == (0, None, None)
        if takes_all:
            raise UserError("dataset.split_seed has no effect: all images are used and none is kept for validation")


def _check_trainer(name: str, trainer: TrainerConfig) -> None:
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
    if retrain is None:
        if config.recipe.name != "report":
            raise UserError(f"recipe={config.recipe.name} has no effect with frl=none: choose a class policy")
        if config.keys.init_from is not None:
            raise UserError("init_from has no effect with frl=none: only retraining starts from another model")
        return
    _check_trainer("retrain.trainer", retrain.trainer)
    _check_attack("retrain.attack", retrain.attack, retrain.trainer)
    if isinstance(config.attack, NoAttackConfig) and config.keys.init_from is None:
        raise UserError(f"frl={frl.name} starts from an adversarially trained model: attack=none trains none")
    if config.dataset.validation_fraction == 0:
        raise UserError(f"frl={frl.name} is steered by validation images: dataset.validation_fraction must not be 0")
    if retrain.objective != "mixed" and retrain.attack.fraction != 1:
        raise UserError(f"retrain.objective={retrain.objective} attacks every image: retrain.attack.fraction must be 1")
    if retrain.objective == "trades" and retrain.beta is None:
        raise UserError("retrain.objective=trades needs retrain.beta")
    if retrain.objective != "trades" and retrain.beta is not None:
        raise UserError(f"retrain.beta has no effect with retrain.objective={retrain.objective}")
    _check_departures(config.departures, config.tau, retrain.objective)
    every = frl.update_every
    if every not in (None, "epoch") and not re.fullmatch(r"0*[1-9][0-9]{0,8}", every):
        raise UserError(f"frl.update_every={every}: expected a whole number of steps from 1, below 10^9, or epoch")
    if frl.margin_bounds is not None:
        bounds = frl.margin_bounds
        if len(bounds) != 2 or not bounds[0] <= 1 <= bounds[1]:
            raise UserError("frl.margin_bounds must be two factors, one at most and one at least 1, e.g. [0.5,2]")


def _check_departures(departures: DeparturesConfig, tau: TauConfig, objective: str) -> None:
    needed = {"scrambled_labels": "paired", "weight_by_prediction": "split"}
    for name, other in needed.items():
        if vars(departures)[name] and objective != other:
            raise UserError(
                f"departures.{name}=true has no effect with retrain.objective={objective}, only with {other}"
            )
    if departures.ignored_tau_nat and tau.nat not in (None, tau.bndy):
        raise UserError("tau.nat has no effect with departures.ignored_tau_nat=true: tau.bndy stands in for it")


def _check_evaluation(evaluation: PGDEvaluationConfig | AutoAttackEvaluationConfig) -> None:
    if isinstance(evaluation, AutoAttackEvaluationConfig):
        if evaluation.num_images is None and evaluation.subset_seed != 0:
            raise UserError("evaluation.subset_seed has no effect with evaluation.num_images=null: all are taken")
    elif not evaluation.random_start and evaluation.num_restarts > 1:
        raise UserError("evaluation.num_restarts > 1 needs evaluation.random_start=true: without it all are the same")
    from frl_repro.results.tables.records import format_epsilon, is_same_radius  # noqa: PLC0415 (pandas is slow to import)

    if not evaluation.epsilons:
        raise UserError("evaluation.epsilons must name at least one radius, and each once")
    for one, other in itertools.pairwise(sorted(evaluation.epsilons)):
        if is_same_radius(one, other):
            raise UserError(
                f"evaluation.epsilons must name each radius once: {one!r} and {other!r} are both {format_epsilon(one)} "
                "in tables and files, where radii count as equal up to 1e-6"
            )
