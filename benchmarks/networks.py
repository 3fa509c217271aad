"""Attack steps of small networks: native code against PyTorch eager, with channels last, and compiled.

    python benchmarks/networks.py out=docs/networks                # about 10 minutes on two cores
    python benchmarks/networks.py networks=cnn_small batches=100 seconds=10 threads=1

Contestants take turns, see benchmark.py. The share is native code's part of the speed of a 1,024-wide float32 matrix
product that takes turns with it.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark import CPU, EPSILON, MATRIX_SIDE, STEP_SIZE, in_turns, machine

from frl_repro.attacks import pgd
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, usage_text, whole_number
from frl_repro.models import build_model
from frl_repro.models.compute.backends import TORCH, Backend, choose_backend
from frl_repro.models.compute.native.graph import Convolution, trace

COLOUR = {"mean": [0.5], "std": [0.25]}
NETWORKS: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "lenet5": ("lenet5", (1, 32, 32), {}),
    "cnn_small": ("cnn_small", (3, 32, 32), COLOUR),
    "resnet8_8": ("resnet8", (3, 32, 32), {"width": 8, **COLOUR}),
    "resnet8_16": ("resnet8", (3, 32, 32), {"width": 16, **COLOUR}),
}
OPERATIONS_A_CALL = 2e10
_KEYS = {
    "out": "name of the JSON file to write, without ending   [none]",
    "seconds": "for each network and batch size   [30]",
    "threads": "processor threads   [all]",
    "batches": "comma-separated batch sizes   [100,1000]",
    "networks": f"comma-separated choice of {', '.join(NETWORKS)}   [all]",
}


def main() -> int:
    """Measure what the command line asks for; returns the exit code."""
    text = functools.partial(usage_text, "Measure attacks on small networks.", program=program_name(), keys=_KEYS)
    return run(None, keys=_KEYS, usage=lambda: text(sections={}), act=measure)


def measure(given: dict[str, str]) -> str:
    """Measure the chosen networks, write JSON where asked to, return a table."""
    torch.set_num_threads(whole_number("threads", given.get("threads", str(os.cpu_count() or 1))))
    torch.manual_seed(0)
    names = [choice("networks", name, tuple(NETWORKS)) for name in given.get("networks", ",".join(NETWORKS)).split(",")]
    batches = [whole_number("batches", batch) for batch in given.get("batches", "100,1000").split(",")]
    seconds = whole_number("seconds", given.get("seconds", "30"))
    result: dict[str, Any] = {"machine": machine(CPU), "networks": {}}
    for name in names:
        result["networks"][name] = {str(batch): attacks(name, batch, seconds) for batch in batches}
    if "out" in given:
        Path(given["out"]).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return report(result)


def multiply_adds(model: torch.nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of an image's forward pass; its input gradient takes as many again."""
    graph, total = trace(model, image_shape), 0
    for layer, (channels, height, width) in zip(graph.layers, graph.shapes[1:], strict=True):
        if isinstance(layer, Convolution):
            taps = graph.shapes[layer.inputs[0]][0] * layer.kernel[0] * layer.kernel[1]
            total += channels * height * width * taps
    return total


def attacks(name: str, batch: int, budget: float) -> dict[str, Any]:
    """Return each contestant's median and best microseconds per image-step, and native code's share of the product."""
    kind, image_shape, settings = NETWORKS[name]
    model = build_model(kind, num_classes=10, image_shape=image_shape, seed=0, **settings).eval()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    operations = 4 * multiply_adds(model, image_shape)
    num_steps = max(1, min(20, round(OPERATIONS_A_CALL / operations / batch)))
    x, y = torch.rand(batch, *image_shape), torch.randint(10, (batch,))

    def attack(model: Any, backend: Backend, images: torch.Tensor) -> Callable[[], Any]:
        settings = {"epsilon": EPSILON, "step_size": STEP_SIZE, "num_steps": num_steps, "use_random_start": False}
        return lambda: pgd(model, images, y, ascend=backend.ascend, **settings)  # type: ignore[arg-type]

    images = x.to(memory_format=torch.channels_last)
    a = torch.randn(MATRIX_SIDE, MATRIX_SIDE)
    calls: dict[str, Callable[[], Any]] = {
        "product": lambda: a @ a,
        "native": attack(model, choose_backend("native", model, CPU, image_shape=image_shape), x),
        "torch": attack(model, TORCH, x),
        "channels last": attack(last, TORCH, images),
        "compiled": attack(torch.compile(last), TORCH, images),
    }
    seconds = in_turns(calls, budget)
    row: dict[str, Any] = {"rounds": len(seconds["native"]), "num_steps": num_steps}
    for of, pick in {"median": statistics.median, "best": min}.items():
        row[of] = {n: 1e6 * pick(s) / batch / num_steps for n, s in seconds.items() if n != "product"}
        speed = operations * batch * num_steps / pick(seconds["native"])
        row[of]["share"] = speed * pick(seconds["product"]) / (2 * MATRIX_SIDE**3)
    return row


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    m = result["machine"]
    lines = [
        f"{m['processor']}, {m['threads']} threads, {m['lanes']} lanes, torch {m['torch']}; an idle loop gets "
        f"{100 * m['granted']:.0f} % of a core; microseconds per image-step, median (best)",
        "",
        "| network, batch | native | torch | channels last | compiled | fastest of PyTorch / native | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in result["networks"].items():
        for batch, row in rows.items():
            median, best = row["median"], row["best"]
            theirs = ("torch", "channels last", "compiled")
            cells = [f"{median[n]:.1f} ({best[n]:.1f})" for n in ("native", *theirs)]
            ratios = [min(row[of][n] for n in theirs) / row[of]["native"] for of in ("median", "best")]
            cells += [
                f"{ratios[0]:.1f} ({ratios[1]:.1f})",
                f"{100 * median['share']:.0f} ({100 * best['share']:.0f}) %",
            ]
            lines.append(f"| {name}, {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
