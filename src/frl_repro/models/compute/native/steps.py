"""From layers to steps: what one pass over memory does, a convolution with all that follows it alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from frl_repro.models.compute.native.graph import Activation, Addition, Affine, Convolution, Graph, Layer, Pooling


@dataclass
class Step:
    """A layer with what was merged into it: ``activation(affines(layer(inputs)) + skip)``."""

    layer: Layer | None  # None: only what follows
    input: int
    output: int
    affines: list[Affine] = field(default_factory=list)
    skip: int | None = None
    activation: str = "Identity"


def merge(graph: Graph) -> list[Step]:
    """Return as steps the layers that the logits depend on, each merged with what follows it alone."""
    consumers = _consumers(graph)
    merged: set[int] = set()
    steps: list[Step] = []
    for place, layer in enumerate(graph.layers):
        if place in merged or place + 1 not in consumers:
            continue
        step = _first_step(layer, place + 1)
        while (after := _only_consumer(step, consumers, graph)) is not None:
            following = graph.layers[after]
            if isinstance(following, Affine) and step.skip is None:
                step.affines.append(following)
            elif isinstance(following, Activation):
                step.activation = _activation(following)
            elif isinstance(following, Addition) and step.skip is None:
                other = sum(following.inputs) - step.output
                if other not in {0, *(earlier.output for earlier in steps)}:
                    break  # the other branch comes later and takes this one in
                step.skip = other
            else:
                break
            merged.add(after)
            step.output = after + 1
        steps.append(step)
    return steps


def _consumers(graph: Graph) -> dict[int, list[int]]:
    """Return which layers take each value that the logits depend on; the logits themselves are taken by none."""
    consumers: dict[int, list[int]] = {graph.output: []}
    for place, layer in reversed(list(enumerate(graph.layers))):
        if place + 1 in consumers:
            for value in layer.inputs:
                consumers.setdefault(value, []).append(place)
    return consumers


def _first_step(layer: Layer, output: int) -> Step:
    step = Step(None, layer.inputs[0], output)
    if isinstance(layer, Affine):
        step.affines.append(layer)
    elif isinstance(layer, Activation):
        step.activation = _activation(layer)
    elif isinstance(layer, Addition):
        step.skip = layer.inputs[1]
    else:
        step.layer = layer
    return step


def _only_consumer(step: Step, consumers: dict[int, list[int]], graph: Graph) -> int | None:
    after = consumers[step.output]
    is_closed = isinstance(step.layer, Pooling) or step.activation != "Identity" or step.output == graph.output
    return None if is_closed or len(after) != 1 else after[0]


def _activation(layer: Activation) -> str:
    if layer.function != "leaky_relu":
        return {"relu": "Relu", "tanh": "Tanh"}[layer.function]
    slope = Fraction(layer.slope).limit_denominator(10**9)
    return f"LeakyRelu<std::ratio<{slope.numerator}, {slope.denominator}>>"


def is_linear(step: Step, graph: Graph) -> bool:
    """Return whether a step's kernel covers its whole input once: a linear layer, whatever it was called."""
    layer = step.layer
    assert isinstance(layer, Convolution)
    return layer.kernel == graph.shapes[step.input][1:] and layer.padding == (0, 0)
