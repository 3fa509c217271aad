"""From a network to a small typed graph: the layers that one forward pass of it goes through.

The pass runs in PyTorch, on random images, while every function of PyTorch that it calls is noted: modules, functions
and methods come to the same few functions, and Python's own control flow needs no care unless it looks at pixels.
"""

# ruff: noqa: ARG002 - a layer's arguments are those of PyTorch's function, used here or not

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frl_repro.models import random_state_kept

Source = str | tuple[float, ...]
"""What a layer computes with: the name of a parameter or buffer of the network, or numbers."""


class Unsupported(ValueError):  # noqa: N818 - a limit of the engine rather than a mistake
    """The engine cannot do this network; the message names the layer in one line."""


@dataclass(frozen=True)
class Layer:
    """A step of the network; values are numbered, 0 are the images and n is what the n-th layer gives."""

    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Convolution(Layer):
    """Zero-padded convolution; weight (O, I, KH, KW). A linear layer is one whose kernel covers its input."""

    weight: str
    bias: str | None
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]


@dataclass(frozen=True)
class Activation(Layer):
    """``tanh``, ``relu`` or ``leaky_relu`` with its slope."""

    function: str
    slope: float = 0.0


@dataclass(frozen=True)
class Pooling(Layer):
    """``mean`` (padding counts as zeros) or ``max`` of windows."""

    function: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class Affine(Layer):
    """A number for each channel, or one for all, that is added to or multiplies the input, or batch norm's four."""

    function: str  # add, sub, rsub, mul, div, batch_norm
    sources: tuple[Source, ...]
    epsilon: float = 0.0


@dataclass(frozen=True)
class Addition(Layer):
    """The sum of two branches."""


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes
    ----------
    layers : tuple of Layer
        In the order in which they work.
    shapes : tuple of (C, H, W)
        Of the values; (K, 1, 1) after linear layers.
    names : tuple of str
        Where in the network each layer stands, for people.
    output : int
        The value that holds the logits.
    """

    layers: tuple[Layer, ...]
    shapes: tuple[tuple[int, int, int], ...]
    output: int
    names: tuple[str, ...] = field(compare=False)


def trace(model: nn.Module, image_shape: tuple[int, int, int]) -> Graph:
    """Return the graph of a network in the modes that its modules are in.

    Parameters
    ----------
    model : nn.Module
        Images (N, C, H, W) to logits (N, K); float32 on the processor. Left as it is.
    image_shape : tuple of int
        (C, H, W).

    Raises
    ------
    Unsupported
        The network has a layer that the engine does not know, or computes with numbers that another pass has not.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise Unsupported(f"{name or 'the network'} ({type(module).__name__}): TorchScript")
    with random_state_kept(), torch.compiler.set_stance("force_eager"):  # of a compiled module the layers within
        graph, other = _pass(model, image_shape), _pass(model, image_shape)
    if graph != other:
        raise Unsupported(f"{type(model).__name__} computes with other numbers in each forward pass")
    return graph


def _pass(model: nn.Module, image_shape: tuple[int, int, int]) -> Graph:
    tracer = _Tracer(model, image_shape)
    x = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()  # as in an attack: hooks of gradients show, and so does what is computed without any
    tracer.values[id(x)] = 0
    tracer.kept.append(x)
    with torch.enable_grad(), tracer.places(), tracer:
        try:
            logits = model(x)
        except Unsupported:
            raise
        except Exception as error:
            raise Unsupported(
                f"{type(model).__name__} does not take {'x'.join(map(str, image_shape))} images"
            ) from error
    if not any(isinstance(layer, Convolution) for layer in tracer.layers):
        raise Unsupported(f"{type(model).__name__}: neither convolution nor linear layer")
    value = tracer.values.get(id(logits))
    if value is None or logits.ndim != 2 or tracer.shapes[value] != (logits.shape[1], 1, 1) or logits.shape[1] < 2:
        raise Unsupported(
            f"{type(model).__name__} does not end in (N, K) logits, K at least 2, of a layer that it knows"
        )
    return Graph(tuple(tracer.layers), tuple(tracer.shapes), value, tuple(tracer.names))


def trains_as_it_answers(model: nn.Module, image_shape: tuple[int, int, int], graph: Graph) -> bool:
    """Return whether the network is the same in training mode: no batch statistics, no dropout. It stays as it is."""
    if any(isinstance(layer, Affine) and layer.function == "batch_norm" for layer in graph.layers):
        return False
    try:
        own = copy.deepcopy(model).train()
    except Exception:  # whatever a module of someone else's raises that cannot be copied
        return False
    try:
        return trace(own, image_shape) == graph
    except Unsupported:
        return False


# Functions of PyTorch that look at a tensor's form and not at its values.
_LOOKS = {"size", "dim", "__get__", "numel", "nelement", "ndimension", "__len__", "stride", "is_contiguous"}
_SAME = {"contiguous", "clone", "identity"}
_SHAPES = {"flatten", "view", "reshape", "squeeze", "unflatten", "view_as"}


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = model
        self.layers: list[Layer] = []
        self.names: list[str] = []
        self.shapes = [image_shape]
        self.values: dict[int, int] = {}  # id of a tensor to its value
        self.sources = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self.computed: set[int] = set()  # ids of tensors made from parameters in the pass
        self.kept: list[Any] = []  # an id is another's as soon as its tensor is gone
        self.stack = [("", model)]

    @contextmanager
    def places(self) -> Iterator[None]:
        """Follow which module is at work."""
        with ExitStack() as hooks:
            for name, module in self.model.named_modules():
                entry = (name, module)

                def enter(_module: nn.Module, _arguments: Any, entry: tuple[str, nn.Module] = entry) -> None:
                    self.stack.append(entry)

                def leave(_module: nn.Module, _arguments: Any, _result: Any) -> None:
                    self.stack.pop()

                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        given += [
            t for a in (*args, *kwargs.values()) if isinstance(a, list | tuple) for t in a if isinstance(t, Tensor)
        ]
        name = func.__name__
        if any(id(t) in self.values for t in given):
            self._note(name, args, kwargs, result)
        elif isinstance(result, Tensor) and any(id(t) in self.sources or id(t) in self.computed for t in given):
            self.computed.add(id(result))
            self.kept.append(result)
        return result

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if not isinstance(result, Tensor):
            if name not in _LOOKS:
                self._fail(f"{name} looks at values")
            return
        if not torch.is_grad_enabled():  # inside a function with a backward pass of its own as well
            self._fail(f"{name} without gradients, or with some of its own")
        name = name.rstrip("_") if not name.startswith("__") else name
        if name in _SAME:
            value = self._value(args[0])
        elif name in _SHAPES:
            value = self._reshaped(self._value(args[0]), result)
        else:
            if not hasattr(self, f"_on_{name}"):
                self._fail(f"{name} is not among its layers")
            handler: Callable[..., int] = getattr(self, f"_on_{name}")
            try:
                value = handler(*args, **kwargs)
            except TypeError:
                self._fail(f"{name} with arguments that it does not know")
        if result.numel() != 2 * _volume(self.shapes[value]):
            self._fail(f"{name} gives {tuple(result.shape)}")
        self.values[id(result)] = value
        self.kept.append(result)

    def _fail(self, reason: str) -> Any:
        name, module = self.stack[-1]
        raise Unsupported(f"{name or 'forward'} ({type(module).__name__}): {reason}")

    def _value(self, tensor: Any) -> int:
        if not isinstance(tensor, Tensor) or id(tensor) not in self.values:
            self._fail("an input that is not a layer's output")
        return self.values[id(tensor)]

    def _parameter(self, tensor: Tensor) -> str:
        if id(tensor) not in self.sources:
            self._fail("weights that are computed in the forward pass")
        return self.sources[id(tensor)]

    def _reshaped(self, value: int, result: Tensor) -> int:
        shape = self.shapes[value]
        if result.shape not in {(2, _volume(shape)), (2, *shape)}:
            self._fail(f"reshapes {shape} to {tuple(result.shape[1:])}")
        return value

    def _add(self, layer: Layer, shape: tuple[int, int, int]) -> int:
        name, module = self.stack[-1]
        self.layers.append(layer)
        self.names.append(f"{name or 'forward'} ({type(module).__name__})")
        self.shapes.append(shape)
        return len(self.layers)

    # Layers: the arguments are those of PyTorch's functions of these names.

    def _on_conv2d(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> int:  # fmt: skip
        value = self._value(x)
        (steps, dilations) = (_pair(stride), _pair(dilation))
        kernel = (weight.shape[2], weight.shape[3])
        if padding == "same":
            padding = [(k - 1) // 2 for k in kernel]
            if any(k % 2 == 0 for k in kernel):
                self._fail("'same' padding of an even kernel")
        top, left = _pair(0 if padding == "valid" else padding)
        if groups != 1 or dilations != (1, 1) or steps[0] != steps[1]:
            self._fail(f"groups={groups}, dilation={dilations}, stride={steps}")
        _, height, width = self.shapes[value]
        out = [
            (side + 2 * pad - k) // steps[0] + 1
            for side, pad, k in zip((height, width), (top, left), kernel, strict=True)
        ]
        layer = Convolution(
            (value,),
            self._parameter(weight),
            None if bias is None else self._parameter(bias),
            kernel,
            steps[0],
            (top, left),
        )
        return self._add(layer, (weight.shape[0], out[0], out[1]))

    def _on_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
        value = self._value(x)
        if x.ndim != 2:
            self._fail(f"linear layer on {x.ndim} dimensions")
        kernel = self.shapes[value][1:]
        layer = Convolution(
            (value,), self._parameter(weight), None if bias is None else self._parameter(bias), kernel, 1, (0, 0)
        )
        return self._add(layer, (weight.shape[0], 1, 1))

    def _on_relu(self, x: Tensor, inplace: bool = False) -> int:
        return self._activation(x, "relu")

    def _on_tanh(self, x: Tensor) -> int:
        return self._activation(x, "tanh")

    def _on_leaky_relu(self, x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> int:
        if negative_slope < 0:
            self._fail(f"negative_slope={negative_slope}")
        return self._activation(x, "leaky_relu", float(negative_slope))

    def _activation(self, x: Tensor, function: str, slope: float = 0.0) -> int:
        value = self._value(x)
        return self._add(Activation((value,), function, slope), self.shapes[value])

    def _on_max_pool2d(
        self, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> int:  # fmt: skip
        if _pair(dilation) != (1, 1):
            self._fail(f"dilation={dilation}")
        return self._pooling("max", x, kernel_size, stride, padding, ceil_mode)

    def _on_avg_pool2d(
        self, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> int:  # fmt: skip
        if divisor_override is not None or (not count_include_pad and _pair(padding) != (0, 0)):
            self._fail("a divisor other than the window's size")
        return self._pooling("mean", x, kernel_size, stride, padding, ceil_mode)

    def _on_adaptive_avg_pool2d(self, x: Tensor, output_size: Any) -> int:
        sides, wanted = self.shapes[self._value(x)][1:], _pair(output_size)
        out = [side if w is None else w for side, w in zip(sides, wanted, strict=True)]
        if any(side % w for side, w in zip(sides, out, strict=True)):
            self._fail(f"{sides} is no multiple of {tuple(out)}")
        return self._pooling("mean", x, [side // w for side, w in zip(sides, out, strict=True)], None, 0, False)

    def _on_mean(self, x: Tensor, dim: Any = None, keepdim: bool = False) -> int:
        if x.ndim != 4 or sorted(d % 4 for d in (dim if isinstance(dim, list | tuple) else [-1])) != [2, 3]:
            self._fail(f"mean over dim={dim}")
        return self._pooling("mean", x, self.shapes[self._value(x)][1:], None, 0, False)

    def _pooling(self, function: str, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> int:
        value = self._value(x)
        size, pads = _pair(kernel), _pair(padding)
        steps = size if stride is None or stride == [] else _pair(stride)
        channels, *sides = self.shapes[value]
        if ceil_mode:
            self._fail("ceil_mode")
        height, width = ((a + 2 * p - k) // s + 1 for a, p, k, s in zip(sides, pads, size, steps, strict=True))
        return self._add(Pooling((value,), function, size, steps, pads), (channels, height, width))

    def _on_batch_norm(
        self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> int:  # fmt: skip
        if training or running_mean is None or running_var is None:
            self._fail("batch statistics")
        value = self._value(x)
        if x.ndim == 2 and self.shapes[value][1:] != (1, 1):
            self._fail("batch norm of flattened pixels")
        sources: tuple[Source, ...] = tuple(
            (default,) if t is None else self._parameter(t)
            for t, default in ((running_mean, 0.0), (running_var, 1.0), (weight, 1.0), (bias, 0.0))
        )
        return self._add(Affine((value,), "batch_norm", sources, eps), self.shapes[value])

    def _on_dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> int:
        if training:
            self._fail("dropout in training mode")
        return self._value(x)

    _on_dropout2d = _on_feature_dropout = _on_alpha_dropout = _on_dropout

    def _on_add(self, x: Any, other: Any, *, alpha: float = 1) -> int:
        if alpha != 1:
            self._fail(f"alpha={alpha}")
        if isinstance(x, Tensor) and isinstance(other, Tensor) and id(x) in self.values and id(other) in self.values:
            pair = (self.values[id(x)], self.values[id(other)])
            if self.shapes[pair[0]] != self.shapes[pair[1]] or x.shape != other.shape:
                self._fail(f"adds {tuple(x.shape)} and {tuple(other.shape)}")
            return self._add(Addition(pair), self.shapes[pair[0]])
        return self._affine("add", x, other) if self._is_value(x) else self._affine("add", other, x)

    def _on_sub(self, x: Any, other: Any, *, alpha: float = 1) -> int:
        if alpha != 1:
            self._fail(f"alpha={alpha}")
        return self._affine("sub", x, other) if self._is_value(x) else self._affine("rsub", other, x)

    def _on___rsub__(self, x: Any, other: Any) -> int:
        return self._affine("rsub", x, other)

    def _on_mul(self, x: Any, other: Any) -> int:
        return self._affine("mul", x, other) if self._is_value(x) else self._affine("mul", other, x)

    def _on_div(self, x: Any, other: Any, *, rounding_mode: str | None = None) -> int:
        if rounding_mode is not None or not self._is_value(x):
            self._fail("division other than by numbers")
        return self._affine("div", x, other)

    _on_true_divide, _on_subtract, _on_multiply, _on_divide = _on_div, _on_sub, _on_mul, _on_div
    _on___radd__, _on___rmul__ = _on_add, _on_mul

    def _is_value(self, x: Any) -> bool:
        return isinstance(x, Tensor) and id(x) in self.values

    def _affine(self, function: str, x: Tensor, other: Any) -> int:
        value = self._value(x)
        if self._is_value(other):
            self._fail(f"{function} of two branches")
        channels = self.shapes[value][0]
        source: Source
        if isinstance(other, Tensor):
            is_flat = x.ndim == 2
            per_channel = {(channels,), (1, channels)} if is_flat else {(channels, 1, 1), (1, channels, 1, 1)}
            if other.numel() != 1 and (
                tuple(other.shape) not in per_channel or (is_flat and self.shapes[value][1:] != (1, 1))
            ):
                self._fail(f"{function} of {tuple(other.shape)}: neither one number nor one for each channel")
            if id(other) in self.computed:
                self._fail("numbers that are computed in the forward pass")
            source = self.sources.get(id(other)) or tuple(other.flatten().tolist())
        elif isinstance(other, int | float):
            source = (float(other),)
        else:
            self._fail(f"{function} of {type(other).__name__}")
        return self._add(Affine((value,), function, (source,)), self.shapes[value])


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, list | tuple):
        return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
    return (value, value)


def _volume(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
