"""CFA: radius and boundary loss of a class grow with its robust accuracy; a running average keeps fair epochs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.settings.config import RunConfig
from frl_repro.settings.keys import COUNT, key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl.method import ClassStats, ErrorRates, Method, Plan, Weights, When

_ROUNDING = 1e-9  # of a share of images


@dataclass
class Settings(MethodSettings):
    """conf/frl/cfa.yaml."""

    radius_offset: float = key(
        "radius of a class: this plus its robust accuracy, times the usual one (lambda 1)", "[0, inf)", is_per_run=True
    )
    beta_offset: float = key(
        "weight of a class's boundary loss: this plus its robust accuracy, times the usual one (lambda 2)",
        "[0, inf)",
        is_per_run=True,
    )
    start_epoch: int = key("epochs that are trained with every class alike before", COUNT)
    average_start: int = key("epochs that the running average (trainer.ema_decay) lets pass before", COUNT)
    average_above: float = key(
        "robust accuracy on validation images that the worst class of an epoch needs for the average", "[0, 1]"
    )

    def check(self, config: RunConfig) -> None:
        """Ask for validation images where there is an average."""
        if config.training[1].ema_decay is not None and config.dataset.validation_fraction == 0:
            place = "trainer" if config.retrain is None else "retrain.trainer"
            raise UserError(
                "frl=cfa chooses the epochs of its average by validation images: dataset.validation_fraction must not "
                f"be 0, or {place}.ema_decay=null"
            )

    def remark(self, num_epochs: int, *, averages: bool) -> str | None:
        """Say when radii never move, or the average never begins."""
        begins = {"radii move": max(self.start_epoch, 1)}
        begins |= {"the average begins": self.average_start} if averages else {}
        late = [f"{what} after epoch {epoch}" for what, epoch in begins.items() if epoch >= num_epochs]
        return f"frl=cfa: {' and '.join(late)}, but training has {num_epochs}" if late else None


class Cfa(Method):
    """Easy classes get the larger radius and the larger weight of the boundary loss.

    With t_c the robust accuracy of class c in the training batches of the last epoch, each image attacked within its
    own radius, ``epsilon_c = (radius_offset + t_c) epsilon`` and ``beta_c = (beta_offset + t_c) beta``. The attack's
    step stays. The loss of an image is ``(natural + beta_y boundary) / (1 + beta_y)``, divided by the number of images.

    In the loss of TRADES beta is its weight of the divergence; natural and boundary (or adversarial) loss of ``split``
    and ``paired`` have beta = 1. In a mixed batch of which a share f is attacked, beta = f / (1 - f) and the loss has
    the same mean over clean and attacked images; with f = 1 only radii differ, as in the paper without TRADES.

    The running average (FAWA) takes in the weights of epochs after which the worst class's robust accuracy on
    validation images, at the first radius of ``evaluation.epsilons``, is at least ``average_above``; it begins with
    the first of them, and without any the last weights are the model.

    Source: Wei et al., CVPR 2023 (CFA), equations 6 to 9 and algorithm 1.
    """

    sees_epochs: ClassVar[bool] = True
    scale: ClassVar[Literal["weights", "images"]] = "images"
    averages: ClassVar[Literal["steps", "epochs"]] = "epochs"
    settings: Settings

    def start(self) -> dict[str, Tensor]:
        """Every class alike."""
        return {"radius": self.ones(), "beta": self.ones()}

    def see_epoch(self, stats: ClassStats, when: When) -> None:
        """Take the robust accuracies of the epoch, from the last one that treats classes alike; absent classes stay."""
        accuracy = 1 - stats.wrong_attacked / stats.num_attacked
        is_due = (when.epoch + 1 >= self.settings.start_epoch).to(accuracy.device).unsqueeze(-1)
        is_known = is_due & (stats.num_attacked > 0)
        for name in ("radius", "beta"):
            factor = self.per_run(f"{name}_offset") + accuracy
            self.state[name] = torch.where(is_known, factor, self.state[name])

    def plan(self, when: When) -> Plan:
        """Return the radii."""
        return Plan(radius=self.state["radius"], is_step_scaled=False)

    def weigh(self, when: When) -> Weights:
        """Return the weights of both losses; the loss of TRADES multiplies with beta, a mixed batch with its share."""
        # Where all images are attacked a weight of 0 would be 0 / 0: there every weight gives 1.
        share, factor = self.attacked_share, self.state["beta"].clamp(min=1e-12)
        mean = (1 - share) + share * factor  # (1 + beta_c) / (1 + beta)
        of_plain = 1.0 if self.objective == "mixed" else 1 - share  # 1 / (1 + beta), of losses that are summed
        return Weights(of_plain / mean, of_plain * factor / mean)

    def accepts(self, errors: ErrorRates | None, when: When) -> Tensor:
        """Return whether the worst class is robust enough, after the epochs that are left out."""
        if errors is None:
            return super().accepts(errors, when)
        accuracy = 1 - (errors.class_natural_error + errors.class_boundary_error)
        is_fair = accuracy.amin(-1).cpu() >= self.settings.average_above - _ROUNDING
        return is_fair & (when.epoch + 1 > self.settings.average_start)

    def columns(self, when: When) -> Mapping[str, Tensor]:
        """Return the factors of beta for the table of the policy; radii are there as margins."""
        return {"cfa_beta": self.state["beta"]}
