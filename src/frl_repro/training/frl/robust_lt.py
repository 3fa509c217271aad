"""RobustLT: classes with fewer training images get a larger radius."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frl_repro.basics.progress import LOGGER
from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.method import Method, Plan, When


@dataclass
class Settings(MethodSettings):
    """conf/frl/robust_lt.yaml."""

    strength: float = key("share of the radius that goes by class counts (the paper's a)", "[0, 1]", is_per_run=True)
    warmup_share: float = key("share of the training in which that share grows in a line from 0", "[0, 1]")
    smallest_ratio: float = key("largest by smallest class count from which counts are told apart", "[1, inf)")


class RobustLt(Method):
    """Radius of class c: ``(1 - a) eps + tau s_c eps`` with ``s_c = sqrt(ln(n_max / n_c))``; the step follows it.

    ``tau = a / sum over c of (n_c / N) s_c``: the mean radius of the training images stays eps.

    Source: arXiv 2605.13395 (CVPR 2026). The formula jumps where counts become equal: of ten classes of 500 images,
    one image less in one of them gives that class 3.7 times the radius. So counts whose ratio is below
    ``smallest_ratio`` are taken for equal, and equal counts give eps (docs/deviations.md).
    """

    settings: Settings

    def start(self) -> dict[str, Tensor]:
        """Take each class's radius after the warm-up from the class counts."""
        counts = self.class_counts
        if counts.amax() < self.settings.smallest_ratio * counts.amin():
            counts = torch.ones_like(counts)
            LOGGER.info("frl=robust_lt: classes have about equally many images, so each has the same radius")
        return {"factor": radius_factors(counts, self.per_run("strength")).expand(self.shape).clone()}

    def plan(self, when: When) -> Plan:
        """Return the radii of this step."""
        done = (when.epoch + when.step / when.num_steps) / when.num_epochs
        warmup = self.settings.warmup_share
        share = (done / warmup).clamp(max=1) if warmup > 0 else torch.ones_like(done)
        return Plan(radius=1 + share.to(self.device, torch.float64).unsqueeze(-1) * (self.state["factor"] - 1))


def radius_factors(counts: Tensor, strength: Tensor) -> Tensor:
    """Return each class's radius over the base radius, shape (..., K); 1 where counts are equal.

    Parameters
    ----------
    counts : Tensor, shape (K,)
        Training images of each class, at least 1.
    strength : Tensor, shape (..., 1)
        The share a, in [0, 1].
    """
    rarity = (counts.amax() / counts).log().sqrt()
    mean = (counts * rarity).sum() / counts.sum()
    if mean == 0:
        return torch.ones_like(strength * rarity)
    return (1 - strength) + strength / mean * rarity
