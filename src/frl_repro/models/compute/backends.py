"""Who does the heavy arithmetic: PyTorch for every model and device, native code for small networks on the processor.

A backend answers four questions: the logits of images, the same differentiable with respect to the parameters, or
with respect to the images, and the steps of an attack. Losses are written once, in PyTorch, on the logits. Which
backend answers changes speed, and numbers only by rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frl_repro import attacks
from frl_repro.attacks import Ascend, Ascent
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER
from frl_repro.models import FusedModel
from frl_repro.models.compute.graphs import GraphedAscend
from frl_repro.models.compute.memory import Parts, ascend_in_parts, logits_in_parts
from frl_repro.models.compute.native import Engine, NativeUnavailable, Unsupported, engine_for

# How far a gradient's sum over the classes may be from zero: a share of its magnitudes, and what is left of the
# difference of two numbers near 1, of which cross-entropy's gradient consists where the network is sure.
_ZERO_SUM_SHARE, _ZERO_SUM_ROUNDING = 1e-4, 1e-6


@dataclass(frozen=True)
class Backend:
    """A set of functions that do the arithmetic, of one model or of the `frl_repro.models.FusedModel` of several runs.

    Attributes
    ----------
    name : str
        ``"torch"`` or ``"native"``.
    logits : callable (model, x) -> Tensor
        x (N, C, H, W) to logits (N, K), without gradients; the model is in evaluation mode.
    forward : callable (model, x) -> Tensor
        x to logits that can be differentiated with respect to the model's parameters (not x); in the model's own mode.
    forward_of_images : callable (model, x) -> Tensor
        x to logits that can be differentiated with respect to x (not the parameters), for attacks of other libraries.
        The loss must not change when a constant is added to all logits of an image, as differences of logits,
        cross-entropy and DLR do not: native code differentiates no other.
    ascend : Ascend
        The steps of an attack.
    """

    name: str
    logits: Callable[[nn.Module, Tensor], Tensor]
    forward: Callable[[nn.Module, Tensor], Tensor]
    forward_of_images: Callable[[nn.Module, Tensor], Tensor]
    ascend: Ascend


def _torch_forward(model: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = model(x)
    return logits


_PARTS = Parts()
TORCH = Backend(
    name="torch",
    logits=logits_in_parts(attacks.logits, _PARTS),
    forward=_torch_forward,
    forward_of_images=_torch_forward,
    ascend=ascend_in_parts(attacks.ascend, _PARTS),
)
# One for all runs: they share what it has recorded.
CUDA = dataclasses.replace(TORCH, ascend=ascend_in_parts(GraphedAscend(), _PARTS))


def _one_per_sample(value: float | Tensor, x: Tensor) -> Tensor:
    return value.flatten() if isinstance(value, Tensor) and value.ndim > 0 else x.new_full((len(x),), float(value))


def _target_of(given: Tensor) -> Tensor:
    """Return the target whose cross-entropy has this gradient by the logits.

    Native code differentiates cross-entropy against a target t. By the logits that is softmax * sum(t) - t: the given
    gradient for t = -given, whose sum is zero.
    """
    if (given.sum(1).abs() > _ZERO_SUM_SHARE * given.abs().sum(1) + _ZERO_SUM_ROUNDING).any():
        raise ValueError("native input gradients are of losses that do not change when all logits of an image do")
    return -given


def native_backend(engine: Engine) -> Backend:
    """Return the backend of a network for which native code was generated, and of fused ones of its architecture."""

    def tensors(model: nn.Module) -> dict[str, Tensor]:
        if isinstance(model, FusedModel):
            return dict(zip(model.names, model.parameters(), strict=True))
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def logits(model: nn.Module, x: Tensor) -> Tensor:
        return engine.logits(tensors(model), x, num_threads=torch.get_num_threads())

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        answer: Tensor
        if engine.trains:
            given = tensors(model)
            answer = _EngineForward.apply(engine, tuple(given), x, *given.values())  # type: ignore[no-untyped-call]
        else:
            answer = model(x)
        return answer

    def forward_of_images(model: nn.Module, x: Tensor) -> Tensor:
        answer: Tensor = _EngineForwardOfImages.apply(engine, tensors(model), x)  # type: ignore[no-untyped-call]
        return answer

    def ascend(model: nn.Module, ascent: Ascent) -> Tensor:
        return engine.pgd(
            tensors(model),
            ascent.x,
            ascent.target,
            start=ascent.start,
            epsilon=_one_per_sample(ascent.epsilon, ascent.x),
            step_size=_one_per_sample(ascent.step_size, ascent.x),
            num_steps=ascent.num_steps,
            early_stop=ascent.early_stop,
            labels=ascent.y,
            num_threads=torch.get_num_threads(),
        )

    return Backend(
        name="native",
        logits=logits_in_parts(logits, _PARTS),
        forward=forward,
        forward_of_images=forward_of_images,
        ascend=ascend_in_parts(ascend, _PARTS),
    )


class _EngineForward(torch.autograd.Function):
    """Logits whose backward pass is the native one; it repeats the forward pass, which costs a third of a step."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, names: tuple[str, ...], x: Tensor, *tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        ctx.engine, ctx.names, ctx.packed = engine, names, engine.pack(given, num_threads=torch.get_num_threads())
        ctx.save_for_backward(x, *tensors)  # which refuses the backward pass once one has changed
        return engine.logits(given, x, num_threads=torch.get_num_threads(), packed=ctx.packed)

    @staticmethod
    def backward(ctx: Any, *logits_gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        given = dict(zip(ctx.names, tensors, strict=True))
        found = ctx.engine.parameter_gradients(
            given, x, logits_gradients[0], num_threads=torch.get_num_threads(), packed=ctx.packed
        )
        return None, None, None, *(found.get(name) for name in ctx.names)


class _EngineForwardOfImages(torch.autograd.Function):
    """Logits whose backward pass gives the native gradient by the images; it repeats the forward pass."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        ctx.engine, ctx.names = engine, tuple(tensors)
        ctx.save_for_backward(x, *tensors.values())
        return engine.logits(tensors, x, num_threads=torch.get_num_threads())

    @staticmethod
    def backward(ctx: Any, *logits_gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        given = dict(zip(ctx.names, tensors, strict=True))
        target = _target_of(logits_gradients[0])
        _, gradient = ctx.engine.logits_and_input_gradient(given, x, target, num_threads=torch.get_num_threads())
        return None, None, gradient


def choose_backend(
    name: str,
    model: nn.Module,
    device: torch.device,
    *,
    image_shape: Sequence[int] | None = None,
    only_torch: str | None = None,
    is_ours: bool = True,
) -> Backend:
    """Return the backend for a model on a device.

    Parameters
    ----------
    name : {"auto", "torch", "native"}
        ``auto`` takes native code where it serves, and PyTorch with one logged line where native code does not build or
        does not know a layer.
    model : nn.Module
    device : torch.device
    image_shape : sequence of int, optional
        (C, H, W) of the images. Native code is generated for one size.
    only_torch : str, optional
        A setting that native code does not follow.
    is_ours : bool
        The network is one of this package. Of another one, what was recorded as a CUDA graph serves the returned
        backend alone: the same weights may be computed in another way by the next network, or by this one once changed.

    Raises
    ------
    UserError
        ``native`` was asked for and cannot be had.
    """
    if name == "native" and only_torch is not None:
        raise UserError(f"backend=native does not follow {only_torch}; use backend=torch")
    if name == "native" and device.type != "cpu":
        raise UserError(f"backend=native works on the processor, not on {device.type}; use backend=auto")
    if name == "torch" or only_torch is not None or device.type != "cpu":
        if device.type != "cuda":
            return TORCH
        return CUDA if is_ours else dataclasses.replace(TORCH, ascend=ascend_in_parts(GraphedAscend(), _PARTS))
    try:
        if image_shape is None:
            raise Unsupported("no image size is known")
        channels, height, width = image_shape
        with attacks.evaluation_mode(model):
            return native_backend(engine_for(model, (channels, height, width)))
    except (NativeUnavailable, Unsupported) as reason:
        if name == "native":
            raise UserError(f"backend=native: {reason}; use backend=auto") from None
        if isinstance(reason, NativeUnavailable):
            say_once(f"native backend not available, PyTorch takes over: {reason}")
        elif image_shape is not None:
            say_once(f"native code does not know this network, PyTorch takes over: {reason}")
        return TORCH


@functools.cache
def say_once(message: str) -> None:
    """Log what holds for all runs of this process."""
    LOGGER.info("%s", message)
