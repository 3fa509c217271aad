"""Images a second of adversarial training at the paper's scale, the share of the GPU's arithmetic used, and memory.

    python benchmarks/paper_scale.py device=cuda out=outputs/paper_scale.json
    python benchmarks/paper_scale.py device=cpu width=8 batch=30 batches=2

One image of PGD-10 training is ten forward and input-gradient passes and one training pass; their arithmetic is counted
by PyTorch. What is timed is the project's own training loop on random images: attack, loss, step. The first epoch
(compiling, recording of graphs) is told apart from the second.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from frl_repro.attacks import evaluation_mode, pgd
from frl_repro.basics import streams
from frl_repro.commands.keyvalue import choice, run, usage_text, whole_number
from frl_repro.data import Split
from frl_repro.evaluation.measure import resolve_device, set_up_machine
from frl_repro.models import build_model
from frl_repro.models.compute import speed
from frl_repro.models.compute.backends import choose_backend
from frl_repro.training import objectives
from frl_repro.training.trainer import train_epoch

EPSILON, STEP_SIZE, NUM_STEPS, NUM_CLASSES, IMAGE_SHAPE = 8 / 255, 2 / 255, 10, 10, (3, 32, 32)
WIDTHS = {"preact_resnet18": 64, "wrn28_10": 10}
# Dense bfloat16 with tensor cores, FLOP/s, by part of the device's name. Source: NVIDIA's data sheets (SXM boards).
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
_KEYS = {
    "model": "preact_resnet18 or wrn28_10   [preact_resnet18]",
    "width": "its width   [the model's own]",
    "batch": "images a step   [128]",
    "batches": "steps of each of the two epochs   [30]",
    "device": "cpu, cuda or cuda:N   [auto]",
    "precision": "comma-separated choice of float32, bfloat16   [float32,bfloat16]",
    "compile": "comma-separated choice of false, true   [false, and true on a GPU]",
    "out": "JSON file to write   [none]",
}


def flop_per_image(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Return the floating-point operations of one attack step and of one training pass, an image."""
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    # The counter follows backward() alone, not autograd.grad: without weight gradients both compute the same.
    with (
        evaluation_mode(model),
        speed.without_weight_gradients(model),
        FlopCounterMode(display=False) as attack,
    ):
        nn.functional.cross_entropy(model(x.clone().requires_grad_()), y).backward()
    with FlopCounterMode(display=False) as training:
        nn.functional.cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=True)
    return attack.get_total_flops() // len(x), training.get_total_flops() // len(x)


def timed(
    *, name: str, width: int, batch: int, batches: int, device: torch.device, precision: str, is_compiled: bool
) -> dict[str, Any]:
    """Train two epochs of ``batches`` steps on random images and return what the second took."""
    settings = {"width": width, "mean": (0.5,), "std": (0.25,)}
    model = build_model(name, num_classes=NUM_CLASSES, image_shape=IMAGE_SHAPE, seed=0, **settings).to(device)
    backend = choose_backend("torch", model, device)
    computing = speed.for_training(model, precision=precision, is_compiled=is_compiled)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch * batches, *IMAGE_SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(NUM_CLASSES, (len(images),), generator=generator)
    train = Split(images=images.to(device), labels=labels.to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    flop_attack, flop_training = flop_per_image(model, torch.rand(2, *IMAGE_SHAPE, device=device))

    def attack(
        attacked: nn.Module, x: torch.Tensor, y: torch.Tensor, *, factor: object, generator: Any
    ) -> torch.Tensor:
        del factor
        return pgd(
            attacked, x, y, epsilon=EPSILON, step_size=STEP_SIZE, num_steps=NUM_STEPS, generator=generator,
            ascend=backend.ascend,
        )  # fmt: skip

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for epoch in range(2):
        started = time.perf_counter()
        train_epoch(
            model,
            train,
            update=optimizer.step,
            objective=objectives.Mixed(1),
            attack=speed.attack_on(computing, attack, is_compiled=is_compiled),
            forward=lambda _, x: backend.forward(computing, x),
            batch_size=batch,
            order_generators=[streams.generator(0, "order", epoch)],
            attack_generators=[streams.generator(0, "training attack", epoch, device=device)],
        )
        seconds.append(time.perf_counter() - started)  # the epoch ends with a look at its losses: the device is done
    per_image = NUM_STEPS * flop_attack + flop_training
    images_a_second = batch * batches / seconds[1]
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    peak = next((value for part, value in PEAKS.items() if part in device_name), None)
    return {
        "model": name, "width": width, "batch": batch, "device": device_name, "torch": torch.__version__,
        "precision": precision, "compile": is_compiled, "images_a_second": round(images_a_second, 1),
        "gflop_an_image": round(per_image / 1e9, 2), "tflop_a_second": round(images_a_second * per_image / 1e12, 3),
        "share_of_bfloat16_peak": None if peak is None else round(images_a_second * per_image / peak, 3),
        "first_epoch_seconds": round(seconds[0], 1), "second_epoch_seconds": round(seconds[1], 2),
        "gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None,
    }  # fmt: skip


def _benchmark(given: dict[str, str]) -> str:
    name = choice("model", given.get("model", "preact_resnet18"), WIDTHS)
    device = resolve_device(given.get("device", "auto"))
    set_up_machine(device, None)
    compiles = given.get("compile", "false,true" if device.type == "cuda" else "false")
    found = [
        timed(
            name=name,
            width=whole_number("width", given.get("width", str(WIDTHS[name]))),
            batch=whole_number("batch", given.get("batch", "128")),
            batches=whole_number("batches", given.get("batches", "30")),
            device=device,
            precision=choice("precision", precision, ("float32", "bfloat16")),
            is_compiled=choice("compile", compiled, ("false", "true")) == "true",
        )
        for precision in given.get("precision", "float32,bfloat16").split(",")
        for compiled in compiles.split(",")
    ]
    if "out" in given:
        path = Path(given["out"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return "".join(json.dumps(entry) + "\n" for entry in found)


def _usage() -> str:
    return usage_text(
        "Time adversarial training at the paper's scale.", program="benchmarks/paper_scale.py", keys=_KEYS, sections={}
    )


if __name__ == "__main__":
    sys.exit(run(None, keys=_KEYS, usage=_usage, act=_benchmark))
