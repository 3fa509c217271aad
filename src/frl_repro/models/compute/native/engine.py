"""A small network in native code: logits, input gradient, PGD and parameter gradients on float32 CPU tensors.

The C++ for a network is generated, compiled on first use and kept (`frl_repro.models.compute.native.build`).
``tensors`` are the network's parameters and buffers by name, read at each call; several networks of one architecture
("runs") may work in one call: each tensor then has a leading dimension R, and the N images are R equal blocks, block r
for network r.

``target`` is either int64 labels (N,) or a float32 distribution (N, K). A sample's result does not depend on its place
in the batch, on the other samples or on the number of threads. docs/engine.md says how it is done.
"""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from frl_repro.models.compute.native.build import NativeUnavailable, load
from frl_repro.models.compute.native.generate import generate
from frl_repro.models.compute.native.graph import (
    Affine,
    Convolution,
    Graph,
    Source,
    Unsupported,
    trace,
    trains_as_it_answers,
)
from frl_repro.models.compute.native.steps import Step

__all__ = ["Engine", "NativeUnavailable", "Unsupported", "engine_for"]

Tensors = Mapping[str, Tensor]

MOST_LANES = 16
WORKSPACE_LIMIT = 16 * 2**20  # bytes

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SIGNATURES = {
    "frl_lanes": (),
    "frl_packed": (),
    "frl_pack": (_POINTER, _INT, _POINTER, _INT),
    "frl_gradients": (_POINTER, _INT, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _INT),
    "frl_attack": (_POINTER, _INT, _POINTER, _LONG, *[_POINTER] * 5, _INT, _POINTER, _INT),
    "frl_parameter_gradients": (_POINTER, _INT, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _INT),
}

_BEFORE_BUILD = "compiling native code for this network and image size: 5 to 30 seconds, once on this machine"

_loading = threading.Lock()
_loaded: dict[str, ctypes.CDLL | NativeUnavailable] = {}  # by text; a failure is kept, not repeated


class Engine:
    """Native code for one architecture.

    Attributes
    ----------
    graph : Graph
    trains : bool
        Whether `parameter_gradients` are those of a training step: the network is the same in training mode.
    lanes : int
        Images per vector.
    workspace_bytes : int
        Memory that each thread works in.

    Raises
    ------
    Unsupported
        A thread would need more memory than `WORKSPACE_LIMIT`: PyTorch does large networks well.
    NativeUnavailable
        There is no compiler or the build fails.
    """

    def __init__(self, graph: Graph, *, trains: bool = False, flags: Sequence[str] = ()) -> None:
        self.graph = graph
        self._program = generate(graph, trains=trains)
        size = 4 * MOST_LANES * self._program.workspace
        if size > WORKSPACE_LIMIT:
            raise Unsupported(
                f"too large: a thread would work in {size / 2**20:.0f} MiB, {WORKSPACE_LIMIT >> 20} at most"
            )
        self._library = _library(self._program.text, tuple(flags))
        self.trains = trains
        self.lanes = int(self._library.frl_lanes())
        self.workspace_bytes = 4 * self.lanes * self._program.workspace

    @property
    def num_classes(self) -> int:
        """K."""
        return self.graph.shapes[self.graph.output][0]

    def pack(self, tensors: Tensors, *, num_threads: int) -> Tensor:
        """Return the weights of R runs as C++ reads them, one row a run."""
        with torch.no_grad():
            arrays = [array.contiguous() for array in self._arrays(tensors)]
        if any(array.dtype != torch.float32 or array.device.type != "cpu" for array in arrays):
            raise TypeError("the network's tensors must be torch.float32 tensors on the CPU")
        if [array.shape[-1] for array in arrays] != self._array_sizes:
            raise ValueError("the network's tensors have other shapes than those that native code was made for")
        runs = max((len(array) for array in arrays if array.ndim == 2), default=1)
        steps = [4 * array.stride(0) if array.ndim == 2 else 0 for array in arrays]  # from one run to the next
        addresses = [a.data_ptr() + run * step for run in range(runs) for a, step in zip(arrays, steps, strict=True)]
        packed = torch.empty(runs, self._library.frl_packed())
        pointers = (_POINTER * len(addresses))(*addresses)
        self._library.frl_pack(pointers, runs, packed.data_ptr(), num_threads)
        return packed

    def logits(self, tensors: Tensors, x: Tensor, *, num_threads: int, packed: Tensor | None = None) -> Tensor:
        """Return the logits, shape (N, K), of images, shape (N, C, H, W); ``packed`` as by `pack`, if it is there."""
        call = _Call(self, self.pack(tensors, num_threads=num_threads) if packed is None else packed, x, num_threads)
        result = x.new_empty(call.N, self.num_classes)
        call.run("frl_gradients", None, None, result.data_ptr(), None)
        return result

    def logits_and_input_gradient(
        self, tensors: Tensors, x: Tensor, target: Tensor, *, num_threads: int
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (N, K) and the gradient (N, C, H, W) of the summed cross-entropy by the images.

        With the clean softmax as target, this is also the gradient of KL(clean || attacked).
        """
        call = _Call(self, self.pack(tensors, num_threads=num_threads), x, num_threads)
        goal = call.target(target)
        result, gradient = x.new_empty(call.N, self.num_classes), x.new_empty(x.shape)
        call.run("frl_gradients", *goal, result.data_ptr(), gradient.data_ptr())
        return result, gradient

    def pgd(
        self,
        tensors: Tensors,
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
        """Return the last iterate of L-inf projected gradient ascent on the cross-entropy, shape (N, C, H, W).

        Each step is `x_adv = clip(x + clip(x_adv + step_size * sign(gradient) - x, -epsilon, epsilon), 0, 1)`.

        Parameters
        ----------
        tensors
            See the module.
        x, start : Tensor, shape (N, C, H, W)
            Clean images in [0, 1] and the first iterates, already inside the ball.
        target : Tensor, shape (N,) int64 or (N, K) float32
            Labels or distributions of the cross-entropy that is increased.
        epsilon, step_size : Tensor, shape (N,)
            Radius and step of each sample, in [0, 1] pixel units.
        num_steps
            Number of steps, at least 0.
        early_stop
            Whether a sample is left at its first iterate (the start included) whose predicted class is not its label,
            or whose logits are not all finite.
        labels : Tensor, shape (N,) int64, optional
            True classes, needed with `early_stop`.
        num_threads
            Threads to use, at least 1.
        """
        call = _Call(self, self.pack(tensors, num_threads=num_threads), x, num_threads)
        goal = call.target(target)
        if not 0 <= num_steps < 2**31:  # a C integer
            raise ValueError(f"num_steps must lie in [0, 2^31), got {num_steps}")
        if early_stop and labels is None:
            raise ValueError("early_stop needs labels, a (N,) tensor of true classes")
        stop = call.labels("labels", labels) if early_stop and labels is not None else None
        radius, step = (
            call.floats(name, value, (call.N,)) for name, value in (("epsilon", epsilon), ("step_size", step_size))
        )
        call.floats("start", start, tuple(x.shape))
        x_adv = start.detach().clone(memory_format=torch.contiguous_format)
        if num_steps > 0:
            call.run("frl_attack", *goal, stop, radius, step, num_steps, x_adv.data_ptr())
        return x_adv

    def parameter_gradients(
        self,
        tensors: Tensors,
        x: Tensor,
        logits_gradient: Tensor,
        *,
        num_threads: int,
        packed: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return by name the gradients of the ``tensors`` that require one, given the loss's gradient by the logits.

        ``packed`` is what `pack` made of the tensors, where it is there already.

        The result is the same bit for bit from run to run and for any `num_threads`, as long as torch's own number of
        threads stays the same (linear layers' gradients are matrix products in torch).

        Raises
        ------
        ValueError
            The engine was made without them, see `trains`.
        """
        if not self.trains:
            raise ValueError("no parameter gradients: the network is another one in training mode")
        call = _Call(self, self.pack(tensors, num_threads=num_threads) if packed is None else packed, x, num_threads)
        given = call.floats("logits_gradient", logits_gradient, (call.N, self.num_classes))
        program, lanes = self._program, self.lanes
        sums = x.new_zeros(call.runs, program.num_sums)
        rows = x.new_empty(call.runs, program.num_rows, -(-call.N // (call.runs * lanes)) * lanes)
        call.run("frl_parameter_gradients", given, sums.data_ptr(), rows.data_ptr())
        gradients: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, gradient in self._gradients(tensors, sums, rows):
                if tensors[name].requires_grad:  # a tensor that several layers share has the sum
                    whole = gradient.reshape(tensors[name].shape)
                    gradients[name] = gradients[name] + whole if name in gradients else whole
        return gradients

    def _arrays(self, tensors: Tensors) -> list[Tensor]:
        """Return what the flat array is made of, each of shape (..., size)."""
        arrays = []
        for step in self._program.steps:
            channels = self.graph.shapes[step.output][0]
            if step.affines:
                scale, shift = _affine_numbers(step, tensors, channels)
            if not isinstance(step.layer, Convolution):
                arrays += [scale, shift] if step.affines else []
                continue
            weight = tensors[step.layer.weight]
            lead = weight.shape[: self._lead(tensors)]
            weight = weight.reshape(*lead, channels, -1)
            bias = torch.zeros(channels) if step.layer.bias is None else tensors[step.layer.bias]
            if step.affines:
                weight, bias = weight * scale.unsqueeze(-1), bias * scale + shift
            arrays += [weight.flatten(-2), bias.expand(*lead, channels)]
        return arrays

    @property
    def _array_sizes(self) -> list[int]:
        sizes = []
        for step in self._program.steps:
            channels, outs = self.graph.shapes[step.input][0], self.graph.shapes[step.output][0]
            if isinstance(step.layer, Convolution):
                sizes += [outs * channels * step.layer.kernel[0] * step.layer.kernel[1], outs]
            elif step.affines:
                sizes += [outs, outs]
        return sizes

    def _lead(self, tensors: Tensors) -> int:
        """Return how many leading dimensions the tensors have: 1 of several runs, else 0."""
        for layer in self.graph.layers:
            if isinstance(layer, Convolution):
                return int(tensors[layer.weight].ndim % 2)  # 2 or 4 for one run
        return 0

    def _gradients(self, tensors: Tensors, sums: Tensor, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the gradient, (R, ...), of each convolution's weight and bias."""
        program = self._program
        for index, step in enumerate(program.steps):
            if not isinstance(step.layer, Convolution):
                continue
            channels, height, width = self.graph.shapes[step.input]
            outs = self.graph.shapes[step.output][0]
            if index in program.sums:
                kernel = (*step.layer.kernel, channels)
                first, count = program.sums[index], outs * kernel[0] * kernel[1] * kernel[2]
                weight = sums[:, first : first + count].reshape(-1, outs, *kernel).movedim(4, 2)
                bias = sums[:, first + count : first + count + outs]
            else:
                first, count = program.rows[index], channels * height * width
                a, d = rows[:, first : first + count], rows[:, first + count : first + count + outs]
                weight, bias = (d @ a.mT).reshape(-1, outs, channels, height, width), d.sum(2)
            if step.affines:  # folded into them
                scale, _ = _affine_numbers(step, tensors, outs)
                weight, bias = weight * scale.view(-1, outs, 1, 1, 1), bias * scale
            yield step.layer.weight, weight
            if step.layer.bias is not None:
                yield step.layer.bias, bias


def engine_for(model: nn.Module, image_shape: tuple[int, int, int]) -> Engine:
    """Return native code for a network in evaluation mode; it is compared with PyTorch's answers once.

    Parameters
    ----------
    model : nn.Module
        Images (N, C, H, W) in [0, 1] to logits (N, K). Left as it is.
    image_shape : tuple of int
        (C, H, W).

    Raises
    ------
    Unsupported
        The network has a layer that the engine does not know.
    NativeUnavailable
        There is no compiler, the build fails, or what it built gives other logits than PyTorch.
    """
    graph = trace(model, image_shape)
    trains = trains_as_it_answers(model, image_shape, graph) and not _affine_parameters(model, graph)
    engine = Engine(graph, trains=trains)
    _compare(engine, model, image_shape)
    return engine


def _affine_parameters(model: nn.Module, graph: Graph) -> bool:
    """Return whether numbers for channels are trained: their gradients are PyTorch's work."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return any(source in trained for layer in graph.layers if isinstance(layer, Affine) for source in layer.sources)


def _compare(engine: Engine, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    x = torch.rand(3, *image_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    found = engine.logits(tensors, x, num_threads=1)
    scale = float(expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=1e-3 * scale, equal_nan=True):
        raise NativeUnavailable("the native logits differ from PyTorch's")


def _affine_numbers(step: Step, tensors: Tensors, channels: int) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (..., C), of a step's affines."""

    def numbers(source: Source) -> Tensor:
        if not isinstance(source, str):
            return torch.tensor(source).expand(channels)
        tensor = tensors[source]
        count = channels if tensor.numel() % channels == 0 else 1
        return (
            tensor.reshape(*tensor.shape[:-3], count).expand(*tensor.shape[:-3], channels)
            if tensor.ndim >= 3
            else tensor
        )

    scale, shift = torch.ones(channels), torch.zeros(channels)
    for affine in step.affines:
        values = [numbers(source) for source in affine.sources]
        if affine.function == "batch_norm":
            mean, variance, weight, bias = values
            factor = weight * (variance + affine.epsilon).rsqrt()
            scale, shift = scale * factor, (shift - mean) * factor + bias
        elif affine.function in ("add", "sub"):
            shift = shift + values[0] if affine.function == "add" else shift - values[0]
        elif affine.function == "rsub":
            scale, shift = -scale, values[0] - shift
        elif affine.function == "mul":
            scale, shift = scale * values[0], shift * values[0]
        else:
            scale, shift = scale / values[0], shift / values[0]
    return scale, shift


class _Call:
    """Checked arguments of one call; keeps every tensor alive whose address was taken."""

    def __init__(self, engine: Engine, packed: Tensor, x: Tensor, num_threads: int) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        self._engine, self._threads = engine, num_threads
        self.N = x.shape[0] if x.ndim else 0
        self.runs = len(packed)
        if self.N % self.runs:
            raise ValueError(f"x must hold equal blocks for {self.runs} networks, got {self.N} images")
        self._alive: list[Tensor] = [packed]
        self._x = self.floats("x", x, (self.N, *engine.graph.shapes[0]))

    def floats(self, name: str, value: Tensor, shape: tuple[int, ...]) -> int:
        """Return the address of a float32 tensor of this shape."""
        return self._address(name, value, torch.float32, shape)

    def labels(self, name: str, value: Tensor) -> int:
        """Return the address of N int64 classes."""
        address = self._address(name, value, torch.int64, (self.N,))
        last = self._engine.num_classes - 1
        if self.N and not 0 <= int(value.min()) <= int(value.max()) <= last:
            raise ValueError(f"{name} must be classes from 0 to {last}, got {int(value.min())} to {int(value.max())}")
        return address

    def target(self, value: Tensor) -> tuple[int | None, int | None]:
        """Return the addresses (labels, distribution) of a target, one of them None."""
        if value.ndim == 1:
            return self.labels("target", value), None
        return None, self.floats("target", value, (self.N, self._engine.num_classes))

    def run(self, name: str, *arguments: int | None) -> None:
        """Call the library's function `name`; ctypes releases the interpreter lock meanwhile."""
        function = getattr(self._engine._library, name)
        weights = self._alive[0].data_ptr()
        if self.N and function(weights, self.runs, self._x, self.N, *arguments, self._threads):
            raise MemoryError(f"{name} ran out of memory for {self.N} images")

    def _address(self, name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
        if value.dtype != dtype or value.device.type != "cpu":
            raise TypeError(f"{name} must be a {dtype} tensor on the CPU, got {value.dtype} on {value.device}")
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        self._alive.append(value.detach().contiguous())
        return self._alive[-1].data_ptr()


def _library(text: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Return the compiled library of a program: from this process, from the user's cache, or built now (seconds)."""
    key = "\0".join((text, *flags))
    with _loading:
        if key not in _loaded:
            try:
                _loaded[key] = _build(text, flags)
            except NativeUnavailable as error:
                _loaded[key] = error
    found = _loaded[key]
    if isinstance(found, NativeUnavailable):
        raise NativeUnavailable(str(found))
    return found


def _build(text: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.cpp"
        source.write_text(text, encoding="utf-8")
        library = load(source, extra_flags=flags, before_build=_BEFORE_BUILD)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library
