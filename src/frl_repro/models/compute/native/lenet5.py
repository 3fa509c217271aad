"""LeNet-5 in native code: logits, input gradient, PGD and parameter gradients on float32 CPU tensors.

The network: images (N, 1, 32, 32) in [0, 1]; conv 5x5 to 6, tanh, 2x2 mean; conv 5x5 to 16, tanh, 2x2 mean; conv 5x5
to 120, tanh; linear to 84, tanh; linear to K. `parameters` are its ten tensors in torch's order: conv1.weight
(6, 1, 5, 5), conv1.bias, conv2.weight (16, 6, 5, 5), conv2.bias, conv3.weight (120, 16, 5, 5), conv3.bias, fc1.weight
(84, 120), fc1.bias, fc2.weight (K, 84), fc2.bias.

Several networks ("runs") may work in one call: parameters then have a leading dimension R, and the N images are R equal
blocks, block r for network r.

`target` is either int64 labels (N,) or a float32 distribution (N, K). A sample's result does not depend on its place in
the batch, on the other samples or on the number of threads. How it is done: `lenet5.cpp`.
"""

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from frl_repro.models.compute.native.build import NativeUnavailable, load

__all__ = [
    "NativeUnavailable",
    "library",
    "logits",
    "logits_and_input_gradient",
    "parameter_gradients",
    "pgd",
]

IMAGE_SHAPE = (1, 32, 32)
CONV_GRADIENTS = (150, 6, 2400, 16)  # entries of conv1.weight, conv1.bias, conv2.weight, conv2.bias
DENSE_ROWS = (400, 120, 120, 84, 84)  # p2, d3, a3, d4, a4: rows of dense_rows; K more for dlogits

_POINTER = ctypes.c_void_p
_SIGNATURES = {
    "frl_lanes": (),
    "frl_lenet5_gradient": (
        _POINTER, ctypes.c_int, ctypes.c_int, _POINTER, ctypes.c_int64, _POINTER, _POINTER,
        _POINTER, _POINTER, ctypes.c_int,
    ),
    "frl_lenet5_pgd": (
        _POINTER, ctypes.c_int, ctypes.c_int, _POINTER, ctypes.c_int64, _POINTER, _POINTER,
        _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER, ctypes.c_int,
    ),
    "frl_lenet5_parameter_gradients": (
        _POINTER, ctypes.c_int, ctypes.c_int, _POINTER, ctypes.c_int64, _POINTER, _POINTER, _POINTER, ctypes.c_int,
    ),
}  # fmt: skip

_loading = threading.Lock()
_loaded: list[ctypes.CDLL | NativeUnavailable] = []  # empty until the first use; a failure is kept, not repeated


def library() -> ctypes.CDLL:
    """Return the compiled library, building it on first use (seconds; later processes find it in the cache).

    Raises
    ------
    NativeUnavailable
        If there is no compiler or the build fails. Every later call in this process raises the same at once.
    """
    with _loading:
        if not _loaded:
            try:
                _loaded.append(_open())
            except NativeUnavailable as error:
                _loaded.append(error)
    found = _loaded[0]
    if isinstance(found, NativeUnavailable):
        raise NativeUnavailable(str(found))
    return found


def logits(parameters: Sequence[Tensor], x: Tensor, *, num_threads: int) -> Tensor:
    """Return the logits.

    Parameters
    ----------
    parameters
        The ten tensors named in the module's docstring.
    x : Tensor, shape (N, 1, 32, 32)
        Images in [0, 1].
    num_threads
        Threads to use, at least 1.

    Returns
    -------
    Tensor, shape (N, K)
    """
    call = _Call(parameters, x, num_threads)
    result = x.new_empty(call.N, call.K)
    call.run("frl_lenet5_gradient", None, None, _pointer(result), None)
    return result


def logits_and_input_gradient(
    parameters: Sequence[Tensor], x: Tensor, target: Tensor, *, num_threads: int
) -> tuple[Tensor, Tensor]:
    """Return the logits and the gradient of the summed cross-entropy with respect to the images.

    With the clean softmax as target, this is also the gradient of KL(clean || attacked).

    Parameters
    ----------
    parameters
        The ten tensors named in the module's docstring.
    x : Tensor, shape (N, 1, 32, 32)
        Images in [0, 1].
    target : Tensor, shape (N,) int64 or (N, K) float32
        Labels or distributions.
    num_threads
        Threads to use, at least 1.

    Returns
    -------
    logits : Tensor, shape (N, K)
    gradient : Tensor, shape (N, 1, 32, 32)
    """
    call = _Call(parameters, x, num_threads)
    labels, distribution = call.target(target)
    result, gradient = x.new_empty(call.N, call.K), x.new_empty(x.shape)
    call.run("frl_lenet5_gradient", labels, distribution, _pointer(result), _pointer(gradient))
    return result, gradient


def pgd(
    parameters: Sequence[Tensor],
    x: Tensor,
    target: Tensor,
    *,
    start: Tensor,
    epsilon: Tensor,
    step_size: Tensor,
    num_steps: int,
    early_stop: bool,
    labels: Tensor | None = None,
    num_threads: int,
) -> Tensor:
    """Return the last iterate of L-inf projected gradient ascent on the cross-entropy.

    Each step is `x_adv = clip(x + clip(x_adv + step_size * sign(gradient) - x, -epsilon, epsilon), 0, 1)`.

    Parameters
    ----------
    parameters
        The ten tensors named in the module's docstring.
    x, start : Tensor, shape (N, 1, 32, 32)
        Clean images in [0, 1] and the first iterates, already inside the ball.
    target : Tensor, shape (N,) int64 or (N, K) float32
        Labels or distributions of the cross-entropy that is increased.
    epsilon, step_size : Tensor, shape (N,)
        Radius and step of each sample, in [0, 1] pixel units.
    num_steps
        Number of steps, at least 0.
    early_stop
        Whether a sample is left at its first iterate (the start included) whose predicted class is not its label, or
        whose logits are not all finite.
    labels : Tensor, shape (N,) int64, optional
        True classes, needed with `early_stop`.
    num_threads
        Threads to use, at least 1.

    Returns
    -------
    Tensor, shape (N, 1, 32, 32)
    """
    call = _Call(parameters, x, num_threads)
    goal = call.target(target)
    if not 0 <= num_steps < 2**31:  # a C integer
        raise ValueError(f"num_steps must lie in [0, 2^31), got {num_steps}")
    if early_stop and labels is None:
        raise ValueError("early_stop needs labels, a (N,) tensor of true classes")
    stop = call.labels("labels", labels) if early_stop and labels is not None else None
    radius, step = (
        call.floats(name, value, (call.N,)) for name, value in (("epsilon", epsilon), ("step_size", step_size))
    )
    call.floats("start", start, (call.N, *IMAGE_SHAPE))
    x_adv = start.detach().clone(memory_format=torch.contiguous_format)
    if num_steps > 0:
        call.run("frl_lenet5_pgd", *goal, stop, radius, step, num_steps, _pointer(x_adv))
    return x_adv


def parameter_gradients(
    parameters: Sequence[Tensor], x: Tensor, logits_gradient: Tensor, *, num_threads: int
) -> list[Tensor]:
    """Return the parameters' gradient of a loss, given its gradient with respect to the logits.

    The result is the same bit for bit from run to run and for any `num_threads`, as long as torch's own number of
    threads stays the same (the dense layers' gradients are matrix products in torch).

    Parameters
    ----------
    parameters
        The ten tensors named in the module's docstring.
    x : Tensor, shape (N, 1, 32, 32)
        Images in [0, 1].
    logits_gradient : Tensor, shape (N, K)
        Gradient of the loss with respect to the logits of `x`.
    num_threads
        Threads to use, at least 1.

    Returns
    -------
    list of ten Tensors
        In the order and the shapes of `parameters`.
    """
    call = _Call(parameters, x, num_threads)
    given = call.floats("logits_gradient", logits_gradient, (call.N, call.K))
    lanes = library().frl_lanes()
    conv = x.new_zeros(call.R, sum(CONV_GRADIENTS))
    rows = x.new_empty(call.R, sum(DENSE_ROWS) + call.K, -(-call.N // (call.R * lanes)) * lanes)
    call.run("frl_lenet5_parameter_gradients", given, _pointer(conv), _pointer(rows))
    p2, d3, a3, d4, a4, d5 = torch.split(rows, [*DENSE_ROWS, call.K], 1)
    dense = [d3 @ p2.mT, d3.sum(2), d4 @ a3.mT, d4.sum(2), d5 @ a4.mT, d5.sum(2)]
    flat = [*torch.split(conv, list(CONV_GRADIENTS), 1), *dense]
    return [gradient.reshape(p.shape) for gradient, p in zip(flat, parameters, strict=True)]


class _Call:
    """Checked arguments of one call; keeps every tensor alive whose address was taken."""

    def __init__(self, parameters: Sequence[Tensor], x: Tensor, num_threads: int) -> None:
        if len(parameters) != 10:
            raise ValueError(f"parameters must be LeNet-5's ten tensors, got {len(parameters)}")
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        leading = tuple(parameters[0].shape[:-4])
        self.R = leading[0] if leading else 1
        self.N = x.shape[0] if x.ndim else 0
        self.K = parameters[9].shape[-1] if parameters[9].ndim else 0
        if self.K < 2:
            raise ValueError(f"the last layer must have at least 2 classes, got {self.K}")
        if len(leading) > 1 or self.R < 1 or self.N % self.R:
            raise ValueError(f"x must hold equal blocks for networks {leading}, got {self.N} images")
        self._alive: list[Tensor] = []
        self._threads = num_threads
        shapes = [(6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 16, 5, 5), (120,), (84, 120), (84,)]
        shapes += [(self.K, 84), (self.K,)]
        addresses = [
            self.floats(f"parameters[{i}]", p, (*leading, *shape))
            for i, (p, shape) in enumerate(zip(parameters, shapes, strict=True))
        ]
        self._parameters = (ctypes.c_void_p * 10)(*addresses)
        self._x = self.floats("x", x, (self.N, *IMAGE_SHAPE))

    def floats(self, name: str, value: Tensor, shape: tuple[int, ...]) -> int:
        """Return the address of a float32 tensor of this shape."""
        return self._address(name, value, torch.float32, shape)

    def labels(self, name: str, value: Tensor) -> int:
        """Return the address of N int64 classes."""
        address = self._address(name, value, torch.int64, (self.N,))
        if self.N and not 0 <= int(value.min()) <= int(value.max()) < self.K:
            raise ValueError(
                f"{name} must be classes from 0 to {self.K - 1}, got {int(value.min())} to {int(value.max())}"
            )
        return address

    def target(self, value: Tensor) -> tuple[int | None, int | None]:
        """Return the addresses (labels, distribution) of a target, one of them None."""
        if value.ndim == 1:
            return self.labels("target", value), None
        return None, self.floats("target", value, (self.N, self.K))

    def run(self, name: str, *arguments: int | None) -> None:
        """Call the library's function `name`; ctypes releases the interpreter lock meanwhile."""
        function = getattr(library(), name)
        if self.N and function(self._parameters, self.R, self.K, self._x, self.N, *arguments, self._threads):
            raise MemoryError(f"{name} ran out of memory for {self.N} images")

    def _address(self, name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
        if value.dtype != dtype or value.device.type != "cpu":
            raise TypeError(f"{name} must be a {dtype} tensor on the CPU, got {value.dtype} on {value.device}")
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        self._alive.append(value.detach().contiguous())
        return _pointer(self._alive[-1])


def _open() -> ctypes.CDLL:
    loaded = load(Path(__file__).with_suffix(".cpp"))
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return loaded


def _pointer(value: Tensor) -> int:
    return value.data_ptr()
