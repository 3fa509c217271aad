"""Projected gradient descent and the fast gradient sign method in the L-infinity ball."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from frl_repro.attacks.ascent import Ascend, Ascent, Logits, ascend, evaluation_mode, logits
from frl_repro.attacks.linf import check_images, per_sample, random_start
from frl_repro.attacks.predictions import is_wrong
from frl_repro.basics.errors import UserError

Objective = Literal["cross_entropy", "kl"]
OBJECTIVES: tuple[Objective, ...] = ("cross_entropy", "kl")


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float | Tensor,
    step_size: float | Tensor,
    num_steps: int,
    use_random_start: bool = True,
    start_sd: float | None = None,
    num_restarts: int = 1,
    objective: Objective = "cross_entropy",
    early_stop: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ascend: Ascend = ascend,
    logits: Logits = logits,
    is_checked: bool = False,
) -> Tensor:
    """Return attacked images: steepest ascent of the loss in the L-infinity ball, clipped to [0, 1].

    The model's mode, parameter gradients, buffers and the global random state are left as they were.

    Parameters
    ----------
    model : nn.Module
        [0, 1] images in, logits out; attacked in evaluation mode.
    x : Tensor, shape (N, C, H, W)
        Clean images in [0, 1].
    y : Tensor, shape (N,), int64
        True classes.
    epsilon : float or Tensor, shape (N,)
        Radius in pixel units, in [0, 1]. 0 returns the clean image.
    step_size : float or Tensor, shape (N,)
        Length of a step in pixel units, in [0, 1].
    num_steps : int
        Gradient steps of each restart, at least 1.
    use_random_start : bool
        Start at a random point of the ball; otherwise at the clean image.
    start_sd : float, optional
        Draw the start from a Gaussian of this standard deviation (pixel units) instead of uniformly (TRADES).
    num_restarts : int
        Runs of the attack. Of several, each sample keeps a misclassified result before a correctly classified one,
        and the one of larger loss otherwise. More than one needs a random start.
    objective : {"cross_entropy", "kl"}
        Loss that is raised: cross-entropy with the true class, or the divergence from the clean prediction,
        KL(f(x) || f(x_adv)) (TRADES). The latter needs a random start: its gradient is zero at the clean image.
    early_stop : bool
        Leave a sample alone as soon as it is misclassified. Reports the strongest iterate instead of the last one and
        saves the steps of fallen samples; meant for evaluation.
    generator : torch.Generator or sequence of them, optional
        Source of the random starts; required when there are any. Of several, each serves one of as many equal blocks of
        ``x``: fused runs keep the starts that each would draw alone.
    ascend, logits : callable
        The steps themselves, and the model's answers that a KL objective and the choice among restarts need: PyTorch's
        by default, or those of another backend.
    is_checked : bool
        Images, and radii and steps given as tensors, are known to lie in [0, 1]: they are not looked at, for which a
        GPU would have to wait.

    Returns
    -------
    Tensor, shape (N, C, H, W)
        Attacked images, detached.

    Raises
    ------
    UserError
        Images or a setting out of range, or settings that contradict one another.

    Notes
    -----
    Source: Madry et al. 2018, section 2.1; Zhang et al. 2019 (TRADES), equation 5 for ``kl``. Without random start it
    is bit-identical to foolbox's ``LinfProjectedGradientDescentAttack``.
    """
    if num_steps < 1 or num_restarts < 1:
        raise UserError(f"num_steps={num_steps} and num_restarts={num_restarts} must be at least 1")
    if objective not in OBJECTIVES:
        raise UserError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
    if not use_random_start and (num_restarts > 1 or objective == "kl"):
        what = "num_restarts > 1" if num_restarts > 1 else "objective=kl"
        raise UserError(f"{what} needs random_start=true: without it every restart is the same and KL has no gradient")
    if use_random_start and generator is None:
        raise UserError("a random start needs a generator: the attack never draws from the global random state")
    x, y = x.detach(), y.detach()
    if len(x) == 0:
        return x
    if not is_checked:
        check_images(x)
    radius = per_sample(epsilon, x, name="epsilon", is_checked=is_checked)
    step = per_sample(step_size, x, name="step_size", is_checked=is_checked)

    with evaluation_mode(model):
        target = y
        if objective == "kl":
            target = torch.softmax(logits(model, x), dim=1)
        best = best_score = None
        for _ in range(num_restarts):
            start = x
            if use_random_start and generator is not None:
                start = random_start(x, radius, generator, sd=start_sd)
            x_adv = ascend(model, Ascent(x, y, target, start, radius, step, num_steps, early_stop))
            if num_restarts == 1:
                return x_adv
            score = _score(logits(model, x_adv), y, target)
            if best is None or best_score is None:
                best, best_score = x_adv, score
            else:
                is_better = score > best_score
                best = torch.where(is_better.view(-1, *[1] * (x.ndim - 1)), x_adv, best)
                best_score = torch.where(is_better, score, best_score)
    assert best is not None
    return best


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float | Tensor,
    step_size: float | Tensor | None = None,
    use_random_start: bool = False,
    generator: torch.Generator | None = None,
    ascend: Ascend = ascend,
) -> Tensor:
    """Return images attacked with one signed gradient step; see `pgd` for parameters, errors and promises.

    ``step_size`` None means ``epsilon`` (Goodfellow et al. 2015); with a random start and a step of 1.25 epsilon this
    is the fast attack of Wong et al. 2020.
    """
    return pgd(
        model,
        x,
        y,
        epsilon=epsilon,
        step_size=epsilon if step_size is None else step_size,
        num_steps=1,
        use_random_start=use_random_start,
        generator=generator,
        ascend=ascend,
    )


def _score(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return a score by which restarts are compared: misclassified first, then the larger loss. Shape (N,)."""
    loss = nn.functional.cross_entropy(logits, target, reduction="none")
    # loss / (1 + loss) is increasing in the loss and stays below 1, the value of being misclassified. It is NaN where
    # the loss is infinite or NaN, of which none is larger.
    loss = loss.double()
    return is_wrong(logits, y).double() + (loss / (1 + loss)).nan_to_num(nan=1.0)
