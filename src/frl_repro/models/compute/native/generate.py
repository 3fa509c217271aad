"""From a graph to C++ for this one network, and to the order in which it wants its weights.

Layers are merged into steps (a convolution with what follows it), each value gets a place in a workspace, and the steps
become calls of the templates in ``layers.hpp``. Gradients flow back in place: the last consumer of a value writes the
gradient over the value itself. docs/engine.md has the design.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frl_repro.models.compute.native.graph import Convolution, Graph, Pooling
from frl_repro.models.compute.native.steps import Step, is_linear, merge

_ALIGN = 16  # vectors between places: a workspace is a whole number of cache lines for any width


@dataclass(frozen=True)
class Program:
    """The C++ text of a network, and where it leaves the gradients of weights.

    It wants as arrays for each step in turn: weights and biases of its convolution, affines folded in, or scale and
    shift of its affines.

    Attributes
    ----------
    text : str
    steps : list of Step
    sums : dict of int to int
        Place among the sums of the gradients of a step's convolution: weights [O][KH][KW][I], then biases.
    rows : dict of int to int
        First of the rows of a linear step: its inputs [channel][row][column], then the gradients of its outputs.
    num_sums, num_rows : int
    workspace : int
        Vectors of a workspace.
    """

    text: str
    steps: list[Step]
    sums: dict[int, int]
    rows: dict[int, int]
    num_sums: int
    num_rows: int
    workspace: int


def _template(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def generate(graph: Graph, *, trains: bool) -> Program:
    """Return the program of a network, with parameter gradients if it ``trains``: they lengthen the build."""
    return _Generator(graph, trains=trains).program()


class _Generator:
    def __init__(self, graph: Graph, *, trains: bool) -> None:
        self.graph = graph
        self.trains = trains
        self.steps = merge(graph)
        self.size = 0  # of the workspace so far
        self.constants: list[str] = []
        self.packed = "0"  # name of the place where the next packed array begins
        self.num_arrays = 0  # that Python gives
        self.packing: list[str] = []  # what brings them into order
        self.sums: dict[int, int] = {}
        self.rows: dict[int, int] = {}
        self.num_sums = self.num_rows = 0
        self.activation = {step.output: step.activation for step in self.steps}
        self.places: dict[int, int] = {}
        self.arrays: list[dict[str, str]] = []  # of each step: names of its packed arrays

    def program(self) -> Program:
        graph = self.graph
        channels, height, width = graph.shapes[0]
        classes = graph.shapes[graph.output][0]
        clean, image = (self._reserve(channels * height * width) for _ in range(2))
        self.places[0] = image
        for step in self.steps:
            self._declare(step)
        forward = [self._forward(index, step) for index, step in enumerate(self.steps)]
        dlogits = self._reserve(classes)
        backward = self._backward(dlogits)
        sums = self._reserve(self.num_sums)
        constants = {
            "CLASSES": classes, "CHANNELS": channels, "PIXELS": height * width, "CLEAN": clean, "IMAGE": image,
            "LOGITS": self.places[graph.output], "DLOGITS": dlogits, "SUMS": sums, "WORKSPACE": self.size,
            "TRAINS": int(self.trains), "NUM_SUMS": self.num_sums, "NUM_ROWS": self.num_rows,
        }  # fmt: skip
        declared = "\n".join(f"    static constexpr int {name} = {value};" for name, value in constants.items())
        network = _NETWORK.format(
            constants=declared + "\n" + "\n".join(f"    {line}" for line in self.constants),
            packed=self.packed,
            forward="\n".join(f"        {line}" for line in forward),
            backward="\n".join(f"        {line}" for line in backward),
            packing="\n".join(f"        {line}" for line in self.packing),
            arrays=self.num_arrays,
        )
        text = _template("layers.hpp") + _template("driver.hpp") + network + _template("interface.hpp")
        return Program(
            text=text,
            steps=self.steps,
            sums=self.sums,
            rows=self.rows,
            num_sums=self.num_sums,
            num_rows=self.num_rows,
            workspace=self.size,
        )

    def _reserve(self, count: int) -> int:
        place = self.size
        self.size += -(-count // _ALIGN) * _ALIGN
        return place

    # Weights: where each step's packed arrays begin, and what they hold.

    def _place(self, name: str, size: str) -> str:
        """Declare where a packed array begins; returns its address."""
        self.constants.append(f"static constexpr int {name}_AT = {self.packed};")
        self.packed = f"{name}_AT + {size}"
        return f"w + {name}_AT"

    def _window(self, sizes: Sequence[int], source: str, bias: str, strides: Sequence[int], group: int = 1) -> str:
        """Declare a window and how its weights are packed; returns its name."""
        name = f"W{len(self.packing)}"
        numbers = ", ".join(map(str, (*sizes, str(bias != "nullptr").lower())))
        self.constants.append(f"using {name} = Window<{numbers}>;")
        to = self._place(name, f"{name}::PACKED")
        order = ", ".join(map(str, strides))
        self.packing.append(f"pack<{name}, {group}>({source}, {bias}, {{{order}}}, {to});")
        return name

    def _declare(self, step: Step) -> None:
        arrays: dict[str, str] = {}
        self.arrays.append(arrays)
        (in_c, in_h, in_w), (out_c, out_h, out_w) = self.graph.shapes[step.input], self.graph.shapes[step.output]
        first, layer = self.num_arrays, step.layer
        if isinstance(layer, Convolution):
            self.num_arrays += 2
            (kh, kw), stride, (top, left) = layer.kernel, layer.stride, layer.padding
            pixels, source = kh * kw, f"a[{first}]"
            sizes = (in_h, in_w, in_c, out_h, out_w, out_c, kh, kw, stride, top, left)
            strides = (kw, 1, pixels, in_c * pixels, 0)
            arrays["forward"] = self._window(sizes, source, f"a[{first + 1}]", strides)
            if is_linear(step, self.graph):  # its inputs in the order in which they lie, [pixel][channel]
                sizes = (1, 1, out_c, 1, 1, in_c * pixels, 1, 1, 1, 0, 0)
                strides = (0, 0, in_c * pixels, 1, pixels)
                arrays["backward 0 0"] = self._window(sizes, source, "nullptr", strides, in_c)
                return
            strides = (-stride * kw, -stride, in_c * pixels, pixels, 0)
            for y in range(min(stride, in_h)):
                for x in range(min(stride, in_w)):
                    (rows, last_row, row_pad), (columns, last, column_pad) = (
                        _phase(y, kh, stride, top),
                        _phase(x, kw, stride, left),
                    )
                    height, width = -(-(in_h - y) // stride), -(-(in_w - x) // stride)
                    sizes = (out_h, out_w, out_c, height, width, in_c, rows, columns, 1, row_pad, column_pad)
                    last_tap = f"{source} + {last_row * kw + last}"
                    arrays[f"backward {y} {x}"] = self._window(sizes, last_tap, "nullptr", strides)
        elif step.affines:
            self.num_arrays += 2
            for number, kind in enumerate(("scale", "shift")):
                arrays[kind] = f"N{len(self.packing)}"
                to = self._place(arrays[kind], str(out_c))
                self.packing.append(f"std::copy_n(a[{first + number}], {out_c}, {to});")

    # Forward

    def _forward(self, index: int, step: Step) -> str:
        shape = self.graph.shapes[step.output]
        in_place = step.skip is not None and self._is_spare(step.skip)
        self.places[step.output] = (
            self.places[step.skip] if in_place and step.skip is not None else self._reserve(_volume(shape))
        )
        source, to = f"ws + {self.places[step.input]}", f"ws + {self.places[step.output]}"
        if isinstance(step.layer, Pooling):
            return f"pool<{self._kind(step)}, {self._pool(step)}>({source}, {to});"
        skip = "nullptr" if step.skip is None else f"ws + {self.places[step.skip]}"
        is_flat = isinstance(step.layer, Convolution) and is_linear(step, self.graph)
        width = 1 if is_flat else shape[2]
        has_skip = str(step.skip is not None).lower()
        sink = f"Activate<{step.activation}, {has_skip}, {width}, {shape[0]}>{{{to}, {skip}}}"
        if isinstance(step.layer, Convolution):
            name = self.arrays[index]["forward"]
            return f"correlate<{name}>({source}, w + {name}_AT, {sink});"
        return self._pointwise(source, shape, self.arrays[index], sink)

    def _pointwise(self, source: str, shape: tuple[int, int, int], arrays: dict[str, str], sink: str) -> str:
        channels, height, width = shape
        scale, shift = (f"w + {arrays[k]}_AT" if k in arrays else "nullptr" for k in ("scale", "shift"))
        flags = ", ".join(str(k in arrays).lower() for k in ("scale", "shift"))
        return f"pointwise<{height}, {width}, {channels}, {flags}>({source}, {scale}, {shift}, {sink});"

    def _is_spare(self, value: int) -> bool:
        """Return whether nobody needs a value after the step that adds it: the sum may take its place."""
        uses = sum((step.input == value) + (step.skip == value) for step in self.steps)
        return value > 0 and uses == 1 and self.activation[value] == "Identity" and value != self.graph.output

    def _kind(self, step: Step) -> str:
        assert isinstance(step.layer, Pooling)
        return {"mean": "Mean", "max": "Max"}[step.layer.function]

    def _pool(self, step: Step) -> str:
        layer = step.layer
        assert isinstance(layer, Pooling)
        (channels, height, width), (_, out_h, out_w) = self.graph.shapes[step.input], self.graph.shapes[step.output]
        sizes = (height, width, channels, out_h, out_w, *layer.kernel, *layer.stride, *layer.padding)
        return f"Pool<{', '.join(map(str, sizes))}>"

    # Backward: `at` is where what is known of each value's gradient lies; `left` counts the consumers still to come.

    def _backward(self, dlogits: int) -> list[str]:
        graph = self.graph
        taken = [graph.output, *(step.input for step in self.steps)]
        taken += [step.skip for step in self.steps if step.skip is not None]
        left = {value: taken.count(value) for value in range(len(graph.shapes))}
        at: dict[int, int] = {}
        own: set[int] = set()  # values whose gradient so far lies in memory of its own
        lines: list[str] = []
        trained = {0: False}  # whether a value depends on parameters that have gradients
        for step in self.steps:
            sources = [trained[value] for value in (step.input, step.skip) if value is not None]
            trained[step.output] = isinstance(step.layer, Convolution) or any(sources)

        def add(new: list[str], value: int) -> None:
            """Add what computes a value's gradient: not where the parameters' are wanted and it leads to none."""
            lines.extend(("" if trained[value] else "if constexpr (!PARAMETERS) ") + line for line in new)

        def finish(value: int) -> Callable[..., str]:
            """Return how a consumer's part of the gradient is written: a sink, for the phases of a strided layer."""
            left[value] -= 1
            others = at.get(value)
            if left[value] == 0:
                to, activation = self.places[value], self.activation.get(value, "Identity")
            else:
                to, activation = (
                    (at[value] if value in own else self._reserve(_volume(graph.shapes[value]))),
                    "Identity",
                )
                own.add(value)
            at[value] = to
            channels, _, width = graph.shapes[value]

            more = "nullptr" if others is None else f"ws + {others}"

            def sink(width: int = width, channels: int = channels, step: int = 1, y: int = 0, x: int = 0) -> str:
                numbers = f"{str(others is not None).lower()}, {width}, {channels}, {step}, {y}, {x}"
                if value == 0 and left[0] == 0:
                    return f"HandOver<Take, {numbers}>{{take, {more}}}"
                return f"Finish<{activation}, {numbers}>{{ws + {to}, ws + {self.places[value]}, {more}}}"

            return sink

        def give(value: int, place: int) -> None:
            """Hand a finished gradient on to a value that was added."""
            is_last = left[value] == 1
            as_it_is = value > 0 and (not is_last or self.activation[value] == "Identity")
            if value not in at and as_it_is:
                left[value] -= 1
                at[value] = place
            else:
                add([self._pointwise(f"ws + {place}", graph.shapes[value], {}, finish(value)())], value)

        give(graph.output, dlogits)
        for index, step in reversed(list(enumerate(self.steps))):
            if step.output not in at:
                continue  # nothing that the logits depend on
            place, source = at[step.output], f"ws + {self.places[step.input]}"
            if isinstance(step.layer, Convolution) and self.trains:
                lines.append(self._parameter_gradient(index, step, source, place))
            if step.skip is not None:
                give(step.skip, place)
            add(self._step_back(index, step, place, finish(step.input)), step.input)
        return lines

    def _step_back(self, index: int, step: Step, place: int, sink: Callable[..., str]) -> list[str]:
        """Return how the gradient at ``place`` goes on to a step's input."""
        shape, arrays, gradient = self.graph.shapes[step.input], self.arrays[index], f"ws + {place}"
        if isinstance(step.layer, Pooling):
            source, spread = f"ws + {self.places[step.input]}", "nullptr"
            if _leaves_or_overlaps(step.layer, shape):
                spread = f"ws + {self._reserve(_volume(shape))}"
            return [f"pool_back<{self._kind(step)}, {self._pool(step)}>({source}, {gradient}, {spread}, {sink()});"]
        if not isinstance(step.layer, Convolution):
            only_scale = {"scale": arrays["scale"]} if "scale" in arrays else {}
            return [self._pointwise(gradient, shape, only_scale, sink())]
        lines = []
        for key in [key for key in arrays if key.startswith("backward")]:
            _, y, x = key.split()
            where = sink(step=step.layer.stride, y=int(y), x=int(x))
            if is_linear(step, self.graph):
                where = sink(width=1, channels=_volume(shape))
            lines.append(f"correlate<{arrays[key]}>({gradient}, w + {arrays[key]}_AT, {where});")
        return lines

    def _parameter_gradient(self, index: int, step: Step, source: str, place: int) -> str:
        window = self.arrays[index]["forward"]
        outs, channels = self.graph.shapes[step.output][0], self.graph.shapes[step.input][0]
        ins = _volume(self.graph.shapes[step.input])
        if is_linear(step, self.graph):
            first = self.num_rows
            self.rows[index] = first
            self.num_rows += ins + outs
            return (
                f"if constexpr (PARAMETERS) rows->write({first}, {source}, {ins // channels}, {channels}), "
                f"rows->write({first + ins}, ws + {place}, 1, {outs});"
            )
        assert isinstance(step.layer, Convolution)
        first = self.num_sums
        weights = outs * channels * step.layer.kernel[0] * step.layer.kernel[1]
        self.sums[index] = first
        self.num_sums += weights + outs
        return (
            f"if constexpr (PARAMETERS) weight_gradient<{window}>({source}, ws + {place}, "
            f"ws + SUMS + {first}, ws + SUMS + {first + weights});"
        )


def _phase(first: int, kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    """Return how many taps of a kernel's row reach input pixels first, first + stride, ..., the last, and the padding.

    Output pixel o and tap k meet at input pixel o * stride + k - padding. For the q-th of these pixels that is
    o = q + e - t where k = k0 + stride * t: a window over the output that slides by one and takes the taps backwards.
    """
    k0 = (first + padding) % stride
    count = len(range(k0, kernel, stride))
    return count, max(0, k0 + stride * (count - 1)), count - 1 - (first + padding - k0) // stride


def _leaves_or_overlaps(layer: Pooling, shape: tuple[int, int, int]) -> bool:
    is_even = all(side % k == 0 for side, k in zip(shape[1:], layer.kernel, strict=True))
    return not (is_even and layer.kernel == layer.stride and layer.padding == (0, 0))


def _volume(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


_NETWORK = """
namespace {{

struct Network {{
{constants}
    static constexpr int PACKED = {packed};
    static constexpr int ARRAYS = {arrays};

    static void pack_all([[maybe_unused]] const float* const* a, [[maybe_unused]] float* w) {{
{packing}
    }}

    static void forward([[maybe_unused]] const float* w, vec* ws) {{
{forward}
    }}

    template <bool PARAMETERS, class Take>
    static void backward([[maybe_unused]] const float* w, vec* ws, [[maybe_unused]] const Rows* rows,
                         [[maybe_unused]] const Take& take) {{
{backward}
    }}
}};

}}  // namespace
"""
