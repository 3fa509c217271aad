"""Attacks in the L-infinity ball; they leave the model and the global random state as they were."""

from frl_repro.attacks.ascent import Ascend, ascend, evaluation_mode, input_gradient
from frl_repro.attacks.pgd import OBJECTIVES, fgsm, pgd

__all__ = ["OBJECTIVES", "Ascend", "ascend", "evaluation_mode", "fgsm", "input_gradient", "pgd"]
