"""Attacks in the L-infinity ball; they leave the model and the global random state as they were."""

from frl_repro.attacks.ascent import Ascend, Ascent, Logits, ascend, evaluation_mode, input_gradient, logits
from frl_repro.attacks.friendly import friendly
from frl_repro.attacks.linear import attack_linear
from frl_repro.attacks.linf import check_images, check_length
from frl_repro.attacks.pgd import OBJECTIVES, fgsm, pgd

__all__ = [
    "OBJECTIVES",
    "Ascend",
    "Ascent",
    "Logits",
    "ascend",
    "attack_linear",
    "check_images",
    "check_length",
    "evaluation_mode",
    "fgsm",
    "friendly",
    "input_gradient",
    "logits",
    "pgd",
]
