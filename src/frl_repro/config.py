"""The typed configuration: what each choice reads, allowed ranges, cross-field checks, the run's hash.

The YAML files of ``conf/`` hold values and documentation; the dataclasses below hold types and ranges. A composed
configuration is merged onto a fresh structured one, so that a key that nothing reads cannot slip through.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frl_repro.errors import UserError
from frl_repro.paths import CONFIG_DIR

_IN_EVERY_HASH = object()


def _key(
    bounds: str | None = None,
    *,
    one_of: Sequence[str] | None = None,
    is_machine: bool = False,
    added_as: Any = _IN_EVERY_HASH,
) -> Any:
    """Declare a key: its range in interval notation, or its choices, and whether it is a machine setting.

    ``added_as`` is for keys that came later: with this value a run does what it did before there was the key, and keeps
    the hash and the folder that it had.
    """
    metadata = {"bounds": bounds, "one_of": one_of, "is_machine": is_machine, "added_as": added_as}
    return field(default="???", metadata=metadata)


def _own(bounds: str | None = None, *, one_of: Sequence[str] | None = None, added_as: Any = _IN_EVERY_HASH) -> Any:
    """Declare a key that a method's file in conf/retrain has or has not; None in methods that do not read it."""
    metadata = {"bounds": bounds, "one_of": one_of, "is_machine": False, "is_optional": True, "added_as": added_as}
    return field(default=None, metadata=metadata)


@dataclass
class LeNet5Config:
    """conf/model/lenet5.yaml."""

    name: str = _key()


@dataclass
class SmallCNNConfig:
    """conf/model/cnn_small.yaml."""

    name: str = _key()
    mean: list[float] | None = _key("[0, 1]")
    std: list[float] | None = _key("(0, 1]")


@dataclass
class ResNet8Config:
    """conf/model/resnet8.yaml."""

    name: str = _key()
    width: int = _key("[1, inf)")
    mean: list[float] | None = _key("[0, 1]")
    std: list[float] | None = _key("(0, 1]")


@dataclass
class PreActResNet18Config:
    """conf/model/preact_resnet18.yaml."""

    name: str = _key()
    width: int = _key("[1, inf)")
    mean: list[float] | None = _key("[0, 1]")
    std: list[float] | None = _key("(0, 1]")


@dataclass
class WRN28x10Config:
    """conf/model/wrn28_10.yaml."""

    name: str = _key()
    width: int = _key("[1, inf)")
    mean: list[float] | None = _key("[0, 1]")
    std: list[float] | None = _key("(0, 1]")


ModelConfig = LeNet5Config | SmallCNNConfig | ResNet8Config | PreActResNet18Config | WRN28x10Config

_AUGMENTATIONS = ("none", "crop", "crop_flip")


@dataclass
class FashionMNISTConfig:
    """conf/dataset/fashion_mnist.yaml."""

    name: str = _key()
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key("[0, inf)")
    num_train: int | None = _key("[1, inf)")
    num_test: int | None = _key("[1, inf)")
    augmentation: str = _key(one_of=_AUGMENTATIONS, added_as="none")
    root: str | None = _key(is_machine=True)
    download: bool = _key(is_machine=True)
    cache_dir: str | None = _key(is_machine=True)


@dataclass
class TorchvisionConfig:
    """conf/dataset/cifar10.yaml and svhn.yaml."""

    name: str = _key()
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key("[0, inf)")
    num_train: int | None = _key("[1, inf)")
    num_test: int | None = _key("[1, inf)")
    augmentation: str = _key(one_of=_AUGMENTATIONS)
    root: str | None = _key(is_machine=True)
    download: bool = _key(is_machine=True)
    cache_dir: str | None = _key(is_machine=True)


@dataclass
class CIFAR10JPEGConfig:
    """conf/dataset/cifar10_jpeg.yaml."""

    name: str = _key()
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key("[0, inf)")
    num_train: int | None = _key("[1, inf)")
    num_test: int | None = _key("[1, inf)")
    augmentation: str = _key(one_of=_AUGMENTATIONS)
    root: str | None = _key(is_machine=True)
    cache_dir: str | None = _key(is_machine=True)


@dataclass
class ImageFolderConfig:
    """conf/dataset/image_folder.yaml."""

    name: str = _key()
    root: str = _key()  # no machine setting: another folder is another data set
    image_size: int | None = _key("[8, inf)")
    num_channels: int | None = _key("[1, 3]")
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key("[0, inf)")
    num_train: int | None = _key("[1, inf)")
    num_test: int | None = _key("[1, inf)")
    augmentation: str = _key(one_of=_AUGMENTATIONS)
    cache_dir: str | None = _key(is_machine=True)


@dataclass
class SyntheticConfig:
    """conf/dataset/synthetic.yaml."""

    name: str = _key()
    num_classes: int = _key("[2, inf)")
    num_train: int = _key("[1, inf)")
    num_test: int = _key("[1, inf)")
    validation_fraction: float = _key("[0, 1)")
    selection_fraction: float = _key("[0, 1)", added_as=0.0)
    split_seed: int = _key("[0, inf)")
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
    num_steps: int = _key("[1, inf)")
    random_start: bool = _key()
    num_restarts: int = _key("[1, inf)")
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
    num_steps: int = _key("[1, inf)")
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
    num_epochs: int = _key("[1, inf)")
    batch_size: int = _key("[1, inf)")
    learning_rate: float = _key("(0, inf)")
    lr_decay_every: int = _key("[1, inf)")
    lr_decay_factor: float = _key("(0, 1]")
    weight_decay: float = _key("[0, inf)")
    ema_decay: float | None = _key("(0, 1)")
    num_accumulation: int = _key("[1, inf)", added_as=1)
    precision: str = _key(one_of=_PRECISIONS, added_as="float32")


@dataclass
class SGDConfig:
    """conf/trainer/sgd.yaml."""

    name: str = _key()
    num_epochs: int = _key("[1, inf)")
    batch_size: int = _key("[1, inf)")
    learning_rate: float = _key("(0, inf)")
    lr_milestones: list[int] = _key("[1, inf)")
    lr_decay_factor: float = _key("(0, 1]")
    momentum: float = _key("[0, 1)")
    weight_decay: float = _key("[0, inf)")
    ema_decay: float | None = _key("(0, 1)")
    num_accumulation: int = _key("[1, inf)", added_as=1)
    precision: str = _key(one_of=_PRECISIONS, added_as="float32")


@dataclass
class SGDOneCycleConfig:
    """conf/trainer/sgd_one_cycle.yaml."""

    name: str = _key()
    num_epochs: int = _key("[1, inf)")
    batch_size: int = _key("[1, inf)")
    learning_rate: float = _key("(0, inf)")
    warmup_share: float = _key("(0, 1)")
    momentum: float = _key("[0, 1)")
    weight_decay: float = _key("[0, inf)")
    ema_decay: float | None = _key("(0, 1)")
    num_accumulation: int = _key("[1, inf)", added_as=1)
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
    num_validation: int | None = _own("[1, inf)")
    epsilon: float | None = _own("(0, 1]")
    step_size: float | None = _own("(0, 1]")
    num_steps: int | None = _own("[1, inf)")
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
    num_steps: int = _key("[1, inf)")
    random_start: bool = _key()
    num_restarts: int = _key("[1, inf)")
    early_stop: bool = _key()
    batch_size: int = _key("[1, inf)")
    validation_every: int = _key("[1, inf)")
    num_validation: int | None = _key("[1, inf)")
    keep_best_by: str | None = _key(one_of=("overall_robust", "worst_class_robust"), added_as=None)


@dataclass
class AutoAttackEvaluationConfig:
    """conf/evaluation/autoattack.yaml."""

    name: str = _key()
    epsilons: list[float] = _key("(0, 1]")
    batch_size: int = _key("[1, inf)")
    num_images: int | None = _key("[1, inf)")
    subset_seed: int = _key("[0, inf)")


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
    "model": {
        "lenet5": LeNet5Config,
        "cnn_small": SmallCNNConfig,
        "resnet8": ResNet8Config,
        "preact_resnet18": PreActResNet18Config,
        "wrn28_10": WRN28x10Config,
    },
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

    output_dir: str = _key(is_machine=True)
    device: str = _key(is_machine=True)
    backend: str = _key(one_of=("auto", "torch", "native"), is_machine=True)
    num_threads: int | None = _key("[1, inf)", is_machine=True)


@dataclass
class _RunKeys(_Machine):
    """Keys of conf/config.yaml outside every group."""

    seed: int = _key("[0, inf)")
    init_from: str | None = _key()
    run_dir: str | None = _key(is_machine=True)
    base_dir: str | None = _key(is_machine=True)
    logger: str = _key(one_of=("none", "tensorboard"), is_machine=True)
    compile: bool = _key(is_machine=True)
    force: bool = _key(is_machine=True)


@dataclass
class _EvaluateKeys(_Machine):
    """Keys of conf/evaluate.yaml outside every group."""

    seed: int | None = _key("[0, inf)")
    checkpoint: str = _key()
    num_examples: int = _key("[0, inf)", is_machine=True)  # adds a file, changes no number


@dataclass
class _SanityKeys(_Machine):
    """Keys of conf/sanity.yaml outside every group."""

    checkpoint: str = _key()
    other: str | None = _key()
    seed: int | None = _key("[0, inf)")
    num_images: int | None = _key("[1, inf)")
    epsilon: float = _key("(0, 1)")
    num_steps: int = _key("[1, inf)")
    run_dir: str | None = _key(is_machine=True)


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
                self.keys, init_from=None, run_dir=None, base_dir=None, output_dir=output_dir, force=False
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
    r"seed|init_from|evaluation\..*|(retrain\.)?trainer\.(?!(batch_size|num_accumulation|precision)$).*"
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
    elif config.keys.checkpoint in ("", "???"):
        raise UserError("checkpoint is missing: give checkpoint=FILE")
    elif (
        isinstance(config, EvaluateConfig)
        and isinstance(config.evaluation, PGDEvaluationConfig)
        and config.evaluation.keep_best_by is not None
    ):
        raise UserError("evaluation.keep_best_by has no effect here: a checkpoint is measured as it is")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.keys.device):
        raise UserError(f"device={config.keys.device}: unknown choice; known: auto, cpu, cuda, cuda:N")
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
            close = difflib.get_close_matches(name, known, n=1)
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
        close = difflib.get_close_matches(shown, metadata["one_of"], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{key}={shown}: unknown choice; {hint}known: {', '.join(metadata['one_of'])}")
    if metadata.get("bounds") is not None:
        for number in value if isinstance(value, list) else [value]:
            if not within(number, metadata["bounds"]):
                raise UserError(f"{key}={shown}: must lie in {metadata['bounds']}")


def within(number: float, bounds: str) -> bool:
    """Return whether a number lies in an interval such as ``"(0, 1]"`` or ``"[1, inf)"``."""
    low, high = (float(part) for part in bounds[1:-1].split(","))
    above = number > low if bounds[0] == "(" else number >= low
    below = number < high if bounds[-1] == ")" else number <= high
    return above and below


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


def unknown_key(key: str, kind: type[Config]) -> str:
    """Return the message for a key that no choice reads, with the nearest key that exists."""
    keys = all_keys(kind)
    names = [*keys, *_groups_of(kind), *(["experiment", "row", "schedule", "retrain"] if kind is RunConfig else [])]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not close:  # the right name in the wrong place: num_epochs for trainer.num_epochs
        tails = {name.rpartition(".")[2]: name for name in keys}
        close = [tails[t] for t in difflib.get_close_matches(key.rpartition(".")[2], tails, n=1, cutoff=0.7)]
    if close:
        return f"unknown key {key}; did you mean {close[0]}?"
    group = key.split(".", 1)[0]
    inside = sorted(name.split(".", 1)[1] for name in keys if name.startswith(f"{group}."))
    if inside:
        return f"unknown key {key}; {group} has {', '.join(inside)}"
    return (
        f"unknown key {key}; known are {', '.join([*_groups_of(kind), *_sections_of(kind)])} (--help lists every key)"
    )


def _check_dataset(dataset: DatasetConfig, evaluation: PGDEvaluationConfig | AutoAttackEvaluationConfig | None) -> None:
    if isinstance(dataset, ImageFolderConfig):
        if dataset.root in ("", "???"):
            raise UserError("dataset.root is missing: give dataset.root=FOLDER with FOLDER/train/<class>/*, test alike")
        if dataset.num_channels == 2:
            raise UserError("dataset.num_channels=2: give 1 (grey) or 3 (colour), or null for images as they are")
    if dataset.validation_fraction == 0 and dataset.selection_fraction != 0:
        raise UserError(
            "dataset.selection_fraction has no effect with dataset.validation_fraction=0: it is a share of these images"
        )
    asks_for_validation = isinstance(evaluation, PGDEvaluationConfig) and evaluation.num_validation is not None
    if dataset.validation_fraction == 0 and asks_for_validation:
        raise UserError("evaluation.num_validation has no effect with dataset.validation_fraction=0")
    if not isinstance(dataset, SyntheticConfig) and dataset.split_seed != 0:
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
    if every not in (None, "epoch") and not (every.isascii() and every.isdigit() and int(every) > 0):
        raise UserError(f"frl.update_every={every}: expected a whole number of steps from 1, or epoch")
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
    if not evaluation.epsilons or len(set(evaluation.epsilons)) < len(evaluation.epsilons):
        raise UserError("evaluation.epsilons must name at least one radius, and each once")
