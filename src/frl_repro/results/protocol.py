"""The bench's protocol: data, methods, starts, and the settings that each method is tried with (docs/bench.md).

``docs/registration.md`` fixed it before any run. A method that is not listed here can be added to a finished bench by
one command (``scripts/bench.py methods=mine``): it runs with its default settings, under the same protocol. Needs no
torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = "2"
"""Raised with every change that moves numbers: pages say which version theirs are from."""

REGISTRATION = "bench-2026"

BASE, SCRATCH = "base", "scratch"
STARTS = (BASE, SCRATCH)

CONTROL = "finetune"
"""The method that treats every class alike; differences are to it, with the same start and seed."""

SEEDS = (20, 21, 22, 23, 24)
"""Fresh seeds; 0 to 2 served to choose the candidates, 10 to 19 are the registered study's."""

FEW_SEEDS = SEEDS[:3]

AVERAGED = r"\bema_decay=[0-9.]"
"""In a run's variant: its weights are a running average."""

AUTOATTACK_FOLDER = "autoattack"
"""Beside the runs: what AutoAttack makes of chosen models."""

AUTOATTACK_SEEDS = SEEDS[:3]
"""Whose chosen models are measured with AutoAttack."""


@dataclass(frozen=True)
class Track:
    """Data and network on which methods are compared.

    Attributes
    ----------
    name : str
    overrides : str
        Settings of ``train.py`` beside ``experiment=bench``.
    base, scratch, looks : str
        Further ones of retraining, of training from scratch, and of methods that look at validation images: all train
        at one radius.
    seeds : tuple of int
    methods : tuple of str
        Contestants; empty for all.
    other_start : bool
        Whether methods run from the start that is not theirs as well.
    by_front : bool
        Whether its methods are those that `front_methods` picks from other tracks, at the setting chosen there.
    """

    name: str
    overrides: str = ""
    base: str = ""
    scratch: str = ""
    looks: str = ""
    seeds: tuple[int, ...] = SEEDS
    methods: tuple[str, ...] = ()
    other_start: bool = True
    by_front: bool = False


# 24,000 images train, 4,000 steer methods, 4,000 choose settings. The imbalanced track draws from all images.
_PART = "dataset.num_train=32000 dataset.validation_fraction=0.25"
_TEN_STEPS = "retrain.attack.step_size=2/255 retrain.attack.num_steps=10 retrain.trainer.num_epochs=6"
_COMMON = "attack.num_steps=10 trainer.num_epochs=12 evaluation.num_validation=2000 evaluation.validation_every=100"
_LOOKS = "frl.num_steps=10"
_CIFAR10 = f"dataset=cifar10_jpeg dataset.augmentation=crop_flip {_PART} {_COMMON} evaluation.epsilons=[8/255]"
_RETRAIN_AT_8 = f"retrain.attack.epsilon=8/255 {_TEN_STEPS}"
_LOOKS_AT_8 = f"frl.epsilon=8/255 {_LOOKS}"
_SCRATCH_AT_16 = "attack.epsilon=16/255"

LENET5, CNN_SMALL = "fashion_mnist-lenet5", "cifar10-cnn_small"
IMBALANCED, RESNET8 = "fashion_mnist-lenet5-imbalanced", "cifar10-resnet8"

TRACKS = {
    track.name: track
    for track in (
        Track(LENET5, f"{_PART} {_COMMON}", _TEN_STEPS, _SCRATCH_AT_16, _LOOKS),
        Track(CNN_SMALL, f"model=cnn_small {_CIFAR10}", _RETRAIN_AT_8, "", _LOOKS_AT_8, other_start=False),
        Track(
            RESNET8, f"model=resnet8 model.width=8 {_CIFAR10}", _RETRAIN_AT_8, "", _LOOKS_AT_8, FEW_SEEDS,
            other_start=False, by_front=True,
        ),
        Track(
            IMBALANCED, f"dataset.imbalance=exponential dataset.imbalance_ratio=50 {_COMMON}",
            _TEN_STEPS, _SCRATCH_AT_16, _LOOKS, FEW_SEEDS,
            (CONTROL, "ema", "reweight", "margins", "combined", "baseline_reweight", "robust_lt", "group_dro", "cfol"),
        ),
    )
}  # fmt: skip

DECAYS = {"trainer.lr_decay_every": 4 / 12}
"""Settings of training from scratch that are shares of its epochs: the learning rate falls as in the base."""


@dataclass(frozen=True)
class Contestant:
    """A method on the bench.

    Attributes
    ----------
    frl : str
        Its ``frl=``.
    settings : tuple of str
        Overrides that are tried; the first is the published setting, or the default where none is published. Each
        method has as many as any other, but for those without numbers of their own.
    starts : tuple of str
        From a base, from scratch, or both; the first is the published one.
    looks : bool
        Whether it looks at validation images.
    needs_imbalance : bool
        Whether it does nothing where all classes have equally many training images.
    shares : mapping of str to float
        Settings that are shares of the epochs of training from scratch, as the method's source has them.
    is_control : bool
        Whether it treats all classes alike, or is not a published method.
    """

    frl: str
    settings: tuple[str, ...] = ("",)
    starts: tuple[str, ...] = (SCRATCH, BASE)
    looks: bool = False
    needs_imbalance: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    is_control: bool = False


def _values(key: str, *values: float) -> tuple[str, ...]:
    return tuple(f"{key}={value:g}" for value in values)


def _alphas(*pairs: tuple[float, float], more: str = "") -> tuple[str, ...]:
    return tuple(f"alpha.nat={nat:g} alpha.bndy={bndy:g}{more}" for nat, bndy in pairs)


CONTESTANTS = {
    CONTROL: Contestant("finetune", is_control=True),
    "ema": Contestant("finetune", ("retrain.trainer.ema_decay=0.998",), (BASE,), is_control=True),
    "ema_from_base": Contestant(
        "finetune",
        ("retrain.trainer.ema_decay=0.998 retrain.trainer.ema_from_start=true",),
        (BASE,),
        is_control=True,
    ),
    "reweight": Contestant("reweight", _alphas((5, 1), (5, 5), (20, 20)), (BASE,), looks=True),
    "margins": Contestant(
        "combined",
        tuple(f"alpha.nat=0 alpha.bndy=0 alpha.margin={value}" for value in (5, 10, 20)),
        (BASE,),
        looks=True,
    ),
    "combined": Contestant("combined", _alphas((5, 1), (5, 5), (20, 20), more=" alpha.margin=5"), (BASE,), looks=True),
    "baseline_reweight": Contestant("baseline_reweight", _values("alpha.rob", 5, 1, 20), (BASE,), looks=True),
    "dafa": Contestant("dafa", _values("frl.strength", 1, 0.5, 2), shares={"frl.start_epoch": 70 / 110}),
    "faal": Contestant("faal", _values("frl.ball", 0.5, 0.25, 1), STARTS),
    "cfol": Contestant("cfol", _values("frl.eta", 5e-6, 5e-5, 5e-4)),
    "cfa": Contestant(
        "cfa",
        tuple(f"frl.radius_offset={x} frl.beta_offset={x}" for x in (0.5, 0.3, 0.7)),
        shares={"frl.start_epoch": 10 / 200, "frl.average_start": 50 / 200},
    ),
    "wat": Contestant("wat", _values("frl.eta", 0.1, 0.03, 0.3)),
    "bat": Contestant("bat", _values("frl.beta", 6, 3, 1)),
    "csr": Contestant("csr", _values("frl.mix", 0.3, 0.1, 0.5), STARTS),
    "variance": Contestant("variance", _values("frl.strength", 0.1, 0.5, 1)),
    "codat": Contestant("codat", _values("frl.rho", 0.5, 0.1, 1)),
    "group_dro": Contestant("group_dro", _values("frl.eta", 1e-3, 1e-4, 1e-2)),
    "robust_lt": Contestant("robust_lt", _values("frl.strength", 0.3, 0.1, 0.5), needs_imbalance=True),
    "head_norm": Contestant("head_norm", starts=STARTS),
    "logit_bias": Contestant("logit_bias", starts=STARTS, is_control=True),
}
"""By name on the bench: a method with margins alone is another contestant than the same method with weights."""


def contestant_of(method: str, alpha_nat: float, alpha_bndy: float, variant: str) -> str:
    """Return what a run's method is called on the bench, from the columns of its tables."""
    if method == "combined" and alpha_nat == alpha_bndy == 0:
        return "margins"
    if method == CONTROL and re.search(AVERAGED, variant):
        return "ema_from_base" if re.search(r"\bema_from_start=[Tt]rue", variant) else "ema"
    return method
