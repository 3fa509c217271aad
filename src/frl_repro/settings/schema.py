"""Every setting of every choice: type, range, meaning. Values and defaults are those of ``conf/``.

Imports nothing slow: ``--help`` shows these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.settings import methods
from frl_repro.settings.keys import COUNT, COUNT_OR_NONE, SEED, Key, key, own


@dataclass
class _Choice:
    """A file of ``conf/<group>``."""

    name: str = key("")


@dataclass
class LeNet5Config(_Choice):
    """conf/model/lenet5.yaml."""


_MEAN = (
    "subtracted from each channel inside the network, one number for each or one for all; null: the data set's",
    "[0, 1]",
)
_STD = ("what each channel is divided by; null: the data set's", "(0, 1]")


@dataclass
class LinearConfig(_Choice):
    """conf/model/linear.yaml."""

    mean: list[float] | None = key("subtracted from each pixel, one number for all; null: the data set's", "[0, 1]")
    std: list[float] | None = key("what each pixel is divided by, one number for all; null: the data set's", "(0, 1]")


@dataclass
class CNNSmallConfig(_Choice):
    """conf/model/cnn_small.yaml."""

    mean: list[float] | None = key(*_MEAN)
    std: list[float] | None = key(*_STD)


@dataclass
class _ResidualConfig(_Choice):
    """Networks of any width that normalise images themselves."""

    width: int = key("", "[1, 2^16)")
    mean: list[float] | None = key(*_MEAN)
    std: list[float] | None = key(*_STD)


@dataclass
class ResNet8Config(_ResidualConfig):
    """conf/model/resnet8.yaml."""

    width: int = key("channels of the first block; the other two have twice and four times as many", "[1, 2^16)")


@dataclass
class PreActResNet18Config(_ResidualConfig):
    """conf/model/preact_resnet18.yaml."""

    width: int = key(
        "channels of the first stage; each of the other three doubles them. Less than 64: a smaller model", "[1, 2^16)"
    )


@dataclass
class WRN28x10Config(_ResidualConfig):
    """conf/model/wrn28_10.yaml."""

    width: int = key("widening factor: three stages of 16, 32 and 64 times as many channels", "[1, 2^16)")


@dataclass
class OwnModelConfig(_Choice):
    """A network from outside this package."""

    factory: str = key("module:function that makes the network (docs/python.md); from Python: its class")
    settings: dict[str, Any] = own("what the function takes besides num_classes and image_shape")
    digest: str | None = own("from Python: sha256 of its layers and of the weights that training starts from")


ModelConfig = (
    LeNet5Config
    | LinearConfig
    | CNNSmallConfig
    | ResNet8Config
    | PreActResNet18Config
    | WRN28x10Config
    | OwnModelConfig
)

_AUGMENTATION = (
    "of training images: none, crop (shifts by up to 4 pixels, zeros come in) or crop_flip (mirrors half as well)"
)
_AUGMENTATIONS = ("none", "crop", "crop_flip")


@dataclass
class _DatasetConfig(_Choice):
    """What all data sets have."""

    validation_fraction: float = key("share of the training images kept for validation, stratified by class", "[0, 1)")
    selection_fraction: float = key(
        "share of the validation images that no class policy sees, for choosing among settings", "[0, 1)", added_as=0.0
    )
    split_seed: int = key("drives the validation split and subsets; independent of seed", SEED)
    num_train: int | None = key(
        "use only so many training images (stratified), before the validation split; null: all", COUNT
    )
    num_test: int | None = key("use only so many test images (stratified); null: all", COUNT)
    augmentation: str = key(_AUGMENTATION, one_of=_AUGMENTATIONS)
    imbalance: str = key(
        "keep of each class only a part of its training images, fewer the higher its number: exponential (from all "
        "to 1/imbalance_ratio) or step (of the second half of the classes 1/imbalance_ratio); other splits stay",
        one_of=("none", "exponential", "step"), added_as="none",
    )  # fmt: skip
    imbalance_ratio: float | None = key(
        "share of images that the first class keeps, divided by that of the last class; null without imbalance",
        "(1, inf)", added_as=None,
    )  # fmt: skip


@dataclass
class _StoredConfig(_DatasetConfig):
    """Data sets that are read from files, and kept as one tensor."""

    root: str | None = key("", is_machine=True, is_path=True)
    cache_dir: str | None = key(
        "folder for the images as one tensor; null: the user's cache folder", is_machine=True, is_path=True
    )


@dataclass
class FashionMNISTConfig(_StoredConfig):
    """conf/dataset/fashion_mnist.yaml."""

    augmentation: str = key(_AUGMENTATION, one_of=_AUGMENTATIONS, added_as="none")
    root: str | None = key(
        "folder with FashionMNIST/raw as torchvision keeps it; null: cache, system copy, download",
        is_machine=True, is_path=True,
    )  # fmt: skip
    download: bool = key("fetch the data when no local source has it", is_machine=True)


@dataclass
class TorchvisionConfig(_StoredConfig):
    """Data sets that torchvision reads."""

    download: bool = key("fetch the data when no local source has it; into root where that is given", is_machine=True)


@dataclass
class CIFAR10Config(TorchvisionConfig):
    """conf/dataset/cifar10.yaml."""

    root: str | None = key(
        "folder with cifar-10-batches-py or cifar-10-python.tar.gz; null: cache, download",
        is_machine=True, is_path=True,
    )  # fmt: skip


@dataclass
class SVHNConfig(TorchvisionConfig):
    """conf/dataset/svhn.yaml."""

    root: str | None = key(
        "folder with train_32x32.mat and test_32x32.mat; null: cache, download", is_machine=True, is_path=True
    )


@dataclass
class CIFAR10JPEGConfig(_StoredConfig):
    """conf/dataset/cifar10_jpeg.yaml."""

    root: str | None = key(
        "the archive cifar10-jpeg.tar.xz, or a folder with its train and test; null: cache, data/cifar10_jpeg",
        is_machine=True, is_path=True,
    )  # fmt: skip


@dataclass
class ImageFolderConfig(_StoredConfig):
    """conf/dataset/image_folder.yaml."""

    # No machine setting: another folder is another data set.
    root: str = key("the folder; part of the run's name, for another folder is another data set", is_path=True)
    image_size: int | None = key(
        "resize every image to so many pixels, square; null: all must have one size", "[8, 2^16)"
    )
    num_channels: int | None = key(
        "convert every image to colour (3) or grey (1); null: all must be of one kind", "[1, 3]"
    )
    split_seed: int = key(
        "drives the validation split, subsets, and test images that have no folder of their own; independent of seed",
        SEED,
    )


@dataclass
class SyntheticConfig(_DatasetConfig):
    """conf/dataset/synthetic.yaml."""

    num_classes: int = key("number of classes", "[2, 2^16)")
    num_train: int = key("training images, before the validation split", COUNT)
    num_test: int = key("test images", COUNT)
    split_seed: int = key("drives the images and the validation split; independent of seed", SEED)
    augmentation: str = key(_AUGMENTATION, one_of=_AUGMENTATIONS, added_as="none")


@dataclass
class GaussianMixtureConfig(_DatasetConfig):
    """conf/dataset/gaussian_mixture.yaml."""

    num_features: int = key("pixels of a sample: d", "[1, 2^16)")
    eta: float = key("half the distance of the classes' means in each pixel, in pixel units", "(0, 0.25)")
    sigma: float = key("standard deviation of the easy class in each pixel, in pixel units", "(0, 0.1)")
    deviation_ratio: float = key("K: standard deviation of the hard class, divided by that of the easy one", "[1, 100]")
    prior_ratio: float = key("R: samples of the easy class, divided by those of the hard one", "[1, 1000]")
    num_train: int = key("training samples, before the validation split", COUNT)
    num_test: int = key("test samples", COUNT)
    split_seed: int = key("drives the samples and the validation split; independent of seed", SEED)
    augmentation: str = key("samples are no pictures: none", one_of=("none",))


@dataclass
class OwnDatasetConfig(_DatasetConfig):
    """Images from outside this package."""

    factory: str | None = own("module:function that loads the images (docs/python.md); null: given from Python")
    settings: dict[str, Any] = own("what the function takes")
    digest: str | None = own("from Python: sha256 of class names, images and labels")


DatasetConfig = (
    FashionMNISTConfig | TorchvisionConfig | CIFAR10JPEGConfig | ImageFolderConfig | SyntheticConfig
    | GaussianMixtureConfig | OwnDatasetConfig
)  # fmt: skip

_RADIUS = "radius in pixel units, also as a fraction"
_RANDOM_START = "start at a uniform point of the ball instead of the clean image"
_NUM_RESTARTS = "runs of the attack, the strongest is kept; more than 1 needs random_start"


@dataclass
class NoAttackConfig(_Choice):
    """conf/attack/none.yaml."""


@dataclass
class _TrainingAttackConfig(_Choice):
    """What all attacks of training have."""

    epsilon: float = key(f"{_RADIUS}; in retraining with class margins: of a factor of 1", "(0, 1]")
    fraction: float = key("share of each batch that is attacked, chosen at random", "(0, 1]")


@dataclass
class PGDConfig(_TrainingAttackConfig):
    """conf/attack/pgd.yaml."""

    step_size: float = key("length of a step in pixel units; in retraining it follows the radius", "(0, 1]")
    num_steps: int = key("gradient steps", COUNT)
    random_start: bool = key(_RANDOM_START)
    num_restarts: int = key(_NUM_RESTARTS, COUNT)
    objective: str = key(
        "loss that the attack raises: cross_entropy or kl (from the clean prediction)", one_of=("cross_entropy", "kl")
    )


@dataclass
class FGSMConfig(_TrainingAttackConfig):
    """conf/attack/fgsm.yaml."""

    step_size: float | None = key("length of the step in pixel units; null: epsilon", "(0, 1]")
    random_start: bool = key(_RANDOM_START)


@dataclass
class TradesConfig(_TrainingAttackConfig):
    """conf/attack/trades.yaml: the inner maximisation."""

    step_size: float = key(
        "length of a step in pixel units; in retraining with class margins: grows with the largest", "(0, 1]"
    )
    num_steps: int = key("gradient steps", COUNT)
    start_sd: float = key("standard deviation of the Gaussian start in pixel units", "(0, 1]")


@dataclass
class TradesTrainingConfig(TradesConfig):
    """conf/attack/trades.yaml: the inner maximisation, and with ``beta`` the loss of TRADES as well."""

    beta: float | None = key(
        "weight of KL(f(x) || f(x_adv)) beside the clean loss (TRADES, 1/lambda); null: no such loss",
        "(0, inf)", added_as=None,
    )  # fmt: skip


AttackConfig = NoAttackConfig | PGDConfig | FGSMConfig | TradesConfig

_LR_DECAY_FACTOR = "factor of each decay, also as a fraction"


@dataclass
class _TrainerConfig(_Choice):
    """What all trainers have."""

    num_epochs: int = key(
        "passes over the training images; 0 in retraining alone, with a method that changes the finished model",
        COUNT_OR_NONE,
    )
    batch_size: int = key("images per step", COUNT)
    learning_rate: float = key("learning rate of the first epoch", "(0, inf)")
    weight_decay: float = key("L2 penalty", "[0, inf)")
    ema_decay: float | None = key(
        "evaluate an exponential moving average of the weights with this decay per step (frl=cfa: per epoch); null: "
        "off",
        "(0, 1)",
    )
    ema_from_start: bool = key(
        "begin that average with the weights before the first step (in retraining: the base's), not after it",
        added_as=False,
    )
    num_accumulation: int = key(
        "parts that a batch is computed in, one after the other, to save memory", COUNT, added_as=1
    )
    precision: str = key(
        "arithmetic of training: float32, or bfloat16 (autocast); measuring is always float32",
        one_of=("float32", "bfloat16"), added_as="float32",
    )  # fmt: skip


@dataclass
class AdamConfig(_TrainerConfig):
    """conf/trainer/adam.yaml."""

    lr_decay_every: int = key("epochs between decays of the learning rate", COUNT)
    lr_decay_factor: float = key(_LR_DECAY_FACTOR, "(0, 1]")


@dataclass
class _MomentumConfig(_TrainerConfig):
    """Trainers of stochastic gradient descent."""

    momentum: float = key("share of the running mean of gradients that each step keeps", "[0, 1)")


@dataclass
class SGDConfig(_MomentumConfig):
    """conf/trainer/sgd.yaml."""

    lr_milestones: list[int] = key("epochs after which the learning rate decays", COUNT)
    lr_decay_factor: float = key(_LR_DECAY_FACTOR, "(0, 1]")


@dataclass
class SGDOneCycleConfig(_MomentumConfig):
    """conf/trainer/sgd_one_cycle.yaml."""

    learning_rate: float = key("largest learning rate of the cycle", "(0, inf)")
    warmup_share: float = key("share of all steps after which the peak is reached", "(0, 1)")


TrainerConfig = AdamConfig | SGDConfig | SGDOneCycleConfig


@dataclass
class RecipeConfig(_Choice):
    """conf/recipe."""


@dataclass
class PGDEvaluationConfig(_Choice):
    """conf/evaluation/pgd.yaml."""

    epsilons: list[float] = key("radii in pixel units, also as fractions; one pass serves all", "[0, 1]")
    step_size: float = key("length of a step in pixel units", "(0, 1]")
    num_steps: int = key("gradient steps", COUNT)
    random_start: bool = key(_RANDOM_START)
    num_restarts: int = key(_NUM_RESTARTS, COUNT)
    early_stop: bool = key("count an image as wrong at its first wrong iterate instead of its last one (stronger)")
    batch_size: int = key("images per batch; class errors depend on it no more than on the random starts", COUNT)
    validation_every: int = key("measure the validation split after every so many epochs, and after the last", COUNT)
    num_validation: int | None = key(
        "validation images measured each time (stratified), at most those there are; null: all", COUNT
    )
    keep_best_by: str | None = key(
        "which epoch's checkpoint is kept and measured beside the last: overall_robust or worst_class_robust takes the "
        "smallest such error on validation images at the first radius, of a tie the first; null: the last alone",
        one_of=("overall_robust", "worst_class_robust"), added_as=None,
    )  # fmt: skip


@dataclass
class AutoAttackEvaluationConfig(_Choice):
    """conf/evaluation/autoattack.yaml."""

    epsilons: list[float] = key("radii in pixel units, also as fractions; each takes a pass of its own", "(0, 1]")
    batch_size: int = key(
        "images attacked together; results depend on it; interrupted, it continues by whole batches",
        COUNT,
    )
    num_images: int | None = key(
        "test images to take (stratified), named in the tables' attack column; null: all", COUNT
    )
    subset_seed: int = key(
        "drives which images num_images takes (the same for every model), not what the attack draws", SEED
    )
    whole_classes: list[int] | None = key(
        "classes, from 0, of which all test images are taken beside num_images; null: none", COUNT_OR_NONE,
        added_as=None,
    )  # fmt: skip
    num_components: int | None = key(
        "attacks that run, the first ones in their order, named in the tables' attack column; null: all", COUNT,
        added_as=None,
    )  # fmt: skip


EvaluationConfig = PGDEvaluationConfig | AutoAttackEvaluationConfig


@dataclass
class RetrainConfig:
    """conf/retrain: the training that starts from a robust model."""

    objective: str = key(
        "loss of a step: split (natural + boundary), paired (clean + attacked), mixed (either), trades, or friendly "
        "(that of frl=bat)",
        one_of=("split", "paired", "mixed", "trades", "friendly"),
    )
    beta: float | None = own("weight of the boundary loss", "(0, inf)")
    attack: PGDConfig | FGSMConfig | TradesConfig = field(
        default="???",  # type: ignore[assignment]
        metadata={"key": Key(choices={"pgd": PGDConfig, "fgsm": FGSMConfig, "trades": TradesConfig})},
    )
    trainer: AdamConfig | SGDConfig = field(
        default="???",  # type: ignore[assignment]
        metadata={"key": Key(choices={"adam": AdamConfig, "sgd": SGDConfig})},
    )


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


GROUPS: dict[str, Mapping[str, type]] = {
    "model": {
        "lenet5": LeNet5Config,
        "linear": LinearConfig,
        "cnn_small": CNNSmallConfig,
        "resnet8": ResNet8Config,
        "preact_resnet18": PreActResNet18Config,
        "wrn28_10": WRN28x10Config,
    },
    "dataset": {
        "fashion_mnist": FashionMNISTConfig,
        "cifar10": CIFAR10Config,
        "cifar10_jpeg": CIFAR10JPEGConfig,
        "svhn": SVHNConfig,
        "image_folder": ImageFolderConfig,
        "synthetic": SyntheticConfig,
        "gaussian_mixture": GaussianMixtureConfig,
    },
    "attack": {"none": NoAttackConfig, "pgd": PGDConfig, "fgsm": FGSMConfig, "trades": TradesTrainingConfig},
    "trainer": {"adam": AdamConfig, "sgd": SGDConfig, "sgd_one_cycle": SGDOneCycleConfig},
    "evaluation": {"pgd": PGDEvaluationConfig, "autoattack": AutoAttackEvaluationConfig},
    "frl": methods.SettingsByMethod(),
    "recipe": dict.fromkeys(_choices("recipe"), RecipeConfig),
}
NOT_IN_TRAINING = {"evaluation": "autoattack"}
"""Choices that only measure finished models, by group."""

OWN: dict[str, type] = {"model": OwnModelConfig, "dataset": OwnDatasetConfig}
"""Groups of which people may have choices of their own, with a ``factory``."""

OWN_DATASET_DEFAULTS = {
    "validation_fraction": 0, "selection_fraction": 0, "split_seed": 0, "num_train": None, "num_test": None,
    "augmentation": "none", "imbalance": "none", "imbalance_ratio": None,
}  # fmt: skip
"""What a data set of one's own has where its file does not say."""

SECTIONS: dict[str, type] = {**methods.SECTIONS, "retrain": RetrainConfig}
"""Parts of a run's configuration that exist with some methods only: conf/retrain/<recipe>/<frl>.yaml says which."""
