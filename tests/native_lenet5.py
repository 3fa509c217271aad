"""LeNet-5 on generated code, for any K: its ten tensors in PyTorch's order to answers, and a backend."""

import functools

from torch import Tensor

from frl_repro.models import LeNet5
from frl_repro.models.compute.backends import Backend, native_backend
from frl_repro.models.compute.native import Engine
from frl_repro.models.compute.native.graph import trace

NAMES = tuple(name for name, _ in LeNet5(num_classes=10).named_parameters())


@functools.cache
def engine(num_classes: int = 10) -> Engine:
    """Raises NativeUnavailable where there is no compiler."""
    return Engine(trace(LeNet5(num_classes=num_classes).eval(), (1, 32, 32)), trains=True)


def _given(parameters) -> tuple[Engine, dict[str, Tensor]]:
    return engine(parameters[9].shape[-1]), dict(zip(NAMES, parameters, strict=True))


def logits(parameters, x, **settings):
    """Return the logits."""
    own, tensors = _given(parameters)
    return own.logits(tensors, x, **settings)


def logits_and_input_gradient(parameters, x, target, **settings):
    """Return the logits and the gradient by the images."""
    own, tensors = _given(parameters)
    return own.logits_and_input_gradient(tensors, x, target, **settings)


def pgd(parameters, x, target, **settings):
    """Return the attacked images."""
    own, tensors = _given(parameters)
    return own.pgd(tensors, x, target, **settings)


def parameter_gradients(parameters, x, logits_gradient, **settings):
    """Return the gradients of the ten tensors."""
    own, tensors = _given([tensor.detach().requires_grad_() for tensor in parameters])
    found = own.parameter_gradients(tensors, x, logits_gradient, **settings)
    return [found[name] for name in NAMES]


def _backend(model) -> Backend:
    return native_backend(engine(list(model.parameters())[9].shape[-1]))


NATIVE = Backend(
    name="native",
    logits=lambda model, x: _backend(model).logits(model, x),
    forward=lambda model, x: _backend(model).forward(model, x),
    forward_of_images=lambda model, x: _backend(model).forward_of_images(model, x),
    ascend=lambda model, ascent: _backend(model).ascend(model, ascent),
)
