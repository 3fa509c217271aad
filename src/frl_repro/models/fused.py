"""Several models of one architecture as one module, so that they train in the same operations."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class FusedModel(nn.Module):
    """R models as one: a batch is R equal blocks of images, and block r goes through model r.

    Parameters of shape (R, ...) hold the models' own ones, which become views of them: an optimiser of model r moves
    its slice, and a backward pass through the whole leaves model r its gradients.

    Parameters
    ----------
    models : sequence of nn.Module, length R
        Of one architecture, on one device, without buffers (batch-norm statistics) and without dropout.

    Raises
    ------
    ValueError
        The models have buffers.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self._models = tuple(models)  # a tuple hides them from nn.Module: they are views, not parts
        if next(models[0].buffers(), None) is not None:
            raise ValueError("models with buffers cannot be fused")
        self._names = [name for name, _ in models[0].named_parameters()]
        for name in self._names:
            views = [model.get_parameter(name) for model in models]
            stacked = nn.Parameter(torch.stack([view.detach() for view in views]))
            for r, view in enumerate(views):
                view.data = stacked.data[r]
            stacked.register_post_accumulate_grad_hook(functools.partial(_hand_out, views))  # type: ignore[no-untyped-call]
            self.register_parameter(name.replace(".", "_"), stacked)

    @property
    def names(self) -> tuple[str, ...]:
        """The models' own names of the parameters, in their order."""
        return tuple(self._names)

    @property
    def num_runs(self) -> int:
        """R."""
        return len(self._models)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (R N, K), of images ``x``, shape (R N, C, H, W), run by run."""
        parameters: dict[str, Tensor] = dict(zip(self._names, self.parameters(), strict=True))
        blocks = x.view(len(self._models), -1, *x.shape[1:])
        return torch.vmap(self._of_one)(parameters, blocks).flatten(0, 1)

    def _of_one(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._models[0], parameters, (x,))
        return logits


def _hand_out(views: Sequence[nn.Parameter], stacked: Tensor) -> None:
    assert stacked.grad is not None
    for view, gradient in zip(views, stacked.grad, strict=True):
        view.grad = gradient


def fuse(models: Sequence[nn.Module]) -> nn.Module:
    """Return the models as one module: a model that is alone as it is, else a `FusedModel`."""
    return models[0] if len(models) == 1 else FusedModel(models)
