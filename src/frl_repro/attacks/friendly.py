"""Two friendly images of each: the last of an attack that is still right, and one just past the first wrong one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frl_repro.attacks.ascent import Ascend, Ascent, Logits, ascend, evaluation_mode, logits
from frl_repro.attacks.linf import per_sample, random_start
from frl_repro.attacks.pgd import Objective
from frl_repro.attacks.predictions import is_wrong


def friendly(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float | Tensor,
    step_size: float | Tensor,
    num_steps: int,
    use_random_start: bool = True,
    start_sd: float | None = None,
    objective: Objective = "cross_entropy",
    generator: torch.Generator | Sequence[torch.Generator],
    ascend: Ascend = ascend,
    logits: Logits = logits,
) -> Tensor:
    """Return the friendly images, shape (2, N, C, H, W): those that are still right, and those past being wrong.

    The attack is that of `pgd`, looked at before each step and after the last; parameters and promises are the same. Of
    an image whose iterates are x_0, x_1, ... the first is the last iterate before a wrong one, or the clean image where
    the start is wrong already. The second is one step past the first wrong iterate, or past the last iterate where none
    is wrong: a step that raises KL(f(x) || f(x_adv)).

    Source: Sun et al. 2022 (BAT), arXiv 2209.07534. What is done with images that are never, or at once, wrong is our
    choice.
    """
    x, y = x.detach(), y.detach()
    radius = per_sample(epsilon, x, name="epsilon", is_checked=True)
    step = per_sample(step_size, x, name="step_size", is_checked=True)
    with evaluation_mode(model):
        clean = torch.softmax(logits(model, x), 1)
        target = clean if objective == "kl" else y

        def one_step(images: Tensor, target: Tensor) -> Tensor:
            return ascend(model, Ascent(x, y, target, images, radius, step, num_steps=1))

        iterate = random_start(x, radius, generator, sd=start_sd) if use_random_start else x
        right, is_standing = x, torch.ones_like(y, dtype=torch.bool)
        for num_taken in range(num_steps + 1):
            is_standing = is_standing & ~is_wrong(logits(model, iterate), y)
            of_standing = is_standing.view(-1, *[1] * (x.ndim - 1))
            right = torch.where(of_standing, iterate, right)
            if num_taken < num_steps:
                iterate = torch.where(of_standing, one_step(iterate, target), iterate)
        return torch.stack([right, one_step(iterate, clean)])
