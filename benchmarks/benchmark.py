"""What docs/performance.md quotes: image-steps per second, epochs, evaluation, memory; one run on one machine.

    python benchmarks/benchmark.py out=docs/performance            # everything: about 5 minutes on two cores
    python benchmarks/benchmark.py out=/tmp/b parts=attacks batches=100 seconds=5
    python benchmarks/benchmark.py parts=side_by_side device=cuda runs=1,4,16,48,80

An image-step is one forward and one input-gradient pass of one image: what an attack's step costs. Contestants take
turns until their time is over, so that a slow moment of the machine meets all of them alike; compare ratios, not
seconds. The median says what to expect, the best repetition what the code can do on a machine that others use too.
torchattacks is optional: `pip install --no-deps torchattacks`.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import platform
import random
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, usage_text, whole_number
from frl_repro.data import Split, batch_to_float
from frl_repro.evaluation.measure import set_up_machine
from frl_repro.models import build_model, fuse
from frl_repro.models.compute.backends import Backend, choose_backend
from frl_repro.models.compute.native import NativeUnavailable, engine_for
from frl_repro.training import objectives
from frl_repro.training.trainer import train_epoch

FLOP_PER_IMAGE_STEP = 2 * 2 * (117_600 + 240_000 + 48_000 + 10_080 + 840)  # multiply-adds of both passes, K = 10
BATCHES = "50,100,1000,10000"
RUNS = "1,4,16"
EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 20
IMAGE_STEPS_A_CALL = 20_000
MATRIX_SIDE = 1024
NUM_IMAGES = 60_000  # of Fashion-MNIST's training split
BATCH_SIZE = 100
MIN_ROUNDS = 5
WARM_UP = 5  # steps; a GPU records its attack in one of them
PAUSE = 5e-4  # seconds; a loop that does nothing takes less than a microsecond
CPU = torch.device("cpu")
PARTS = ("attacks", "epochs", "side_by_side")
_KEYS = {
    "out": "name of the files to write, without ending   [none]",
    "seconds": "for each measurement of the part attacks   [20]",
    "images": "that an epoch is measured on; seconds are of 60,000   [6000]",
    "threads": "processor threads   [all]",
    "batches": f"comma-separated batch sizes   [{BATCHES}]",
    "parts": f"comma-separated choice of {', '.join(PARTS)}   [all]",
    "runs": f"comma-separated numbers of fused runs   [{RUNS}]",
    "device": "of the part side_by_side: cpu or cuda   [cpu]",
}


def main() -> int:
    """Measure what the command line asks for; returns the exit code."""
    return run(None, keys=_KEYS, usage=usage, act=measure)


def usage() -> str:
    """Return the text of ``--help``."""
    program = program_name()
    examples = (
        f"  {program} out=docs/performance\n"
        f"  {program} parts=attacks batches=100 seconds=5\n"
        f"  {program} parts=side_by_side device=cuda runs=1,4,16,48,80"
    )
    return usage_text("Measure speed.", program=program, keys=_KEYS, sections={"examples": examples})


def measure(given: dict[str, str]) -> str:
    """Measure the chosen parts, write JSON and a plot where asked to, return a table."""

    def numbers(key: str, default: str) -> list[int]:
        return [whole_number(key, value.strip()) for value in given.get(key, default).split(",")]

    parts = [choice("parts", part.strip(), PARTS) for part in given.get("parts", ",".join(PARTS)).split(",")]
    seconds = whole_number("seconds", given.get("seconds", "20"))
    images = whole_number("images", given.get("images", "6000"))
    threads = whole_number("threads", given.get("threads", str(os.cpu_count() or 1)))
    device = torch.device(choice("device", given.get("device", "cpu"), ("cpu", "cuda")))
    batches, runs = numbers("batches", BATCHES), numbers("runs", RUNS)
    if images < 2 * BATCH_SIZE:
        raise UserError(f"images={images}: an epoch is measured by its steps, give at least {2 * BATCH_SIZE}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no GPU that PyTorch can use")
    path = Path(given["out"]) if "out" in given else None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(device),
        "matrix_product_gflops": matrix_product(seconds / 4, device),
    }
    if "attacks" in parts:
        result["attacks"] = attacks(batches, seconds)
        result["native_against_threads"] = against_threads(seconds / 2)
        result["native_against_steps"] = against_steps(seconds / 2)
    if "epochs" in parts:
        result["epochs"] = epochs(images)
    if "side_by_side" in parts:
        result["side_by_side"] = {str(number): side_by_side(number, device) for number in runs}
    result["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if path:
        path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if "attacks" in result:
            plot(result, path.with_suffix(".png"))
    return report(result)


def machine(device: torch.device) -> dict[str, Any]:
    """Return processor, threads and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "processor": names[0] if names else platform.processor(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "avx512": "avx512f" in flags,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lanes": lanes(),
        "granted": granted(),
    }


def lanes() -> int | None:
    """Return the native code's images per vector; None where it does not build."""
    try:
        return engine_for(
            build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0).eval(), (1, 32, 32)
        ).lanes
    except NativeUnavailable:
        return None


def granted(budget: float = 3.0) -> float:
    """Return the share of a core that an idle loop gets: below about 0.95 others use the machine, and slow it."""
    start = last = time.perf_counter()
    lost = 0.0
    while last < start + budget:
        now = time.perf_counter()
        if now - last > PAUSE:
            lost += now - last
        last = now
    return 1 - lost / (last - start)


def in_turns(contestants: dict[str, Callable[[], Any]], budget: float) -> dict[str, list[float]]:
    """Return the seconds of each repetition; contestants take turns, after one call each to warm up.

    In an order that changes: the pauses of a rationed machine follow a clock, and would meet the same one each time.
    """
    order = random.Random(0)
    for call in contestants.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(next(iter(seconds.values()))) < MIN_ROUNDS:
        for name, call in order.sample(list(contestants.items()), len(contestants)):
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def matrix_product(budget: float, device: torch.device) -> float:
    """Return the best speed of a float32 matrix product in GFLOP/s: what the processor or GPU can do."""
    side = MATRIX_SIDE if device.type == "cpu" else 8 * MATRIX_SIDE
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)

    def product() -> None:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = in_turns({"product": product}, budget)["product"]
    return 2 * side**3 / min(seconds) / 1e9


def attack_with(name: str, model: torch.nn.Module, num_steps: int) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """Return PGD from the clean image by one of the contestants."""
    if name in ("native", "torch"):
        backend = choose_backend(name, model, CPU, image_shape=(1, 32, 32))
        settings = {"epsilon": EPSILON, "step_size": STEP_SIZE, "num_steps": num_steps, "use_random_start": False}
        return lambda x, y: pgd(model, x, y, ascend=backend.ascend, **settings)  # type: ignore[arg-type]
    if name == "foolbox":
        import foolbox

        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=num_steps, random_start=False)
        return lambda x, y: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPSILON)
    import torchattacks

    return torchattacks.PGD(model, eps=EPSILON, alpha=STEP_SIZE, steps=num_steps, random_start=False)


def attacks(batches: Sequence[int], budget: float) -> dict[str, dict[str, Any]]:
    """Return, by batch size, each contestant's median and best microseconds per image-step, and rounds taken.

    ``share`` is native's part of the speed of the matrix product, medians and best repetitions.
    """
    model = build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0)
    names = [
        name for name in ("native", "torch", "foolbox", "torchattacks") if name in ("native", "torch") or found(name)
    ]
    a = torch.randn(MATRIX_SIDE, MATRIX_SIDE)
    table: dict[str, dict[str, Any]] = {}
    for batch in batches:
        # A step costs the same whichever it is: PGD-20, and fewer steps where a call would take many seconds.
        num_steps = min(NUM_STEPS, max(1, IMAGE_STEPS_A_CALL // batch))
        x, y = torch.rand(batch, 1, 32, 32), torch.randint(10, (batch,))
        calls = {name: attack_with(name, model, num_steps) for name in names}
        contestants: dict[str, Callable[[], Any]] = {n: functools.partial(call, x, y) for n, call in calls.items()}
        # The fast ones are also measured by themselves: their best repetition wants many.
        pair: dict[str, Callable[[], Any]] = {"native": contestants["native"], "product": lambda: a @ a}
        slow, fast = in_turns(contestants, budget / 2), in_turns(pair, budget / 2)
        row: dict[str, Any] = {"rounds": len(slow["native"]), "rounds_native": len(fast["native"])}
        for name, of in {"median": statistics.median, "best": min}.items():
            per_step = {n: 1e6 * of(slow[n]) / batch / num_steps for n in names}
            peak = 2 * MATRIX_SIDE**3 / of(fast["product"])
            speed = FLOP_PER_IMAGE_STEP * batch * num_steps / of(fast["native"])
            row[name] = {**per_step, "share": speed / peak}
        table[str(batch)] = row
    return table


def against_steps(budget: float) -> dict[str, float]:
    """Return native's best milliseconds at batch 1,000 for each number of attack steps."""
    model = build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0)
    x, y = torch.rand(1000, 1, 32, 32), torch.randint(10, (1000,))
    calls = {str(steps): functools.partial(attack_with("native", model, steps), x, y) for steps in (1, 5, 10, 20, 50)}
    return {steps: 1e3 * min(seconds) for steps, seconds in in_turns(calls, budget).items()}


def found(package: str) -> bool:
    """Return whether a contestant is installed."""
    return importlib.util.find_spec(package) is not None


def against_threads(budget: float) -> dict[str, float]:
    """Return native's best microseconds per image-step at batch 1,000 for each number of threads."""
    model = build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0)
    x, y = torch.rand(1000, 1, 32, 32), torch.randint(10, (1000,))
    before, table = torch.get_num_threads(), {}
    for threads in range(1, before + 1):
        torch.set_num_threads(threads)
        call = attack_with("native", model, 4)
        seconds = in_turns({"native": lambda call=call: call(x, y)}, budget)["native"]  # type: ignore[misc]
        table[str(threads)] = 1e6 * min(seconds) / 1000 / 4
    torch.set_num_threads(before)
    return table


def epochs(num_images: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by backend and work, seconds of an epoch (natural, half attacked) and of an evaluation at 8/255.

    Random pixels: the work does not depend on what they show. Each step is timed by itself; ``median`` and ``best`` are
    that step's seconds times the steps of the whole.
    """
    images = torch.randint(256, (num_images, 1, 32, 32), dtype=torch.uint8)
    labels = torch.arange(num_images) % 10
    return {name: epochs_with(name, images, labels) for name in ("native", "torch")}


def epochs_with(name: str, images: torch.Tensor, labels: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the seconds of one backend."""
    model = build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0)
    backend = choose_backend(name, model, CPU, image_shape=(1, 32, 32))
    optimizer, attack = adam(model), training_attack(backend)

    def epoch(objective: Any) -> dict[str, float]:
        ends = [time.perf_counter()]
        train_epoch(
            model,
            Split(images=images, labels=labels),
            update=optimizer.step,
            objective=objective,
            attack=attack,
            forward=backend.forward,
            batch_size=BATCH_SIZE,
            order_generators=[streams.generator(0, "order")],
            attack_generators=[streams.generator(0, "attack")],
            advance=lambda _: ends.append(time.perf_counter()),
        )
        return of_steps(ends, NUM_IMAGES // BATCH_SIZE)

    def evaluation() -> dict[str, float]:
        """Every image attacked, as if none were wrong from the start."""
        ends = [time.perf_counter()]
        for batch in batch_to_float(images).split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            predicted = backend.logits(model, batch).argmax(1)
            backend.logits(model, attack(model, batch, predicted, generator=streams.generator(0, "attack")))
            ends.append(time.perf_counter())
        return of_steps(ends, 10_000 // BATCH_SIZE)

    return {
        "natural epoch": epoch(objectives.Mixed(0)),
        "adversarial epoch": epoch(objectives.Mixed(0.5)),
        "evaluation of 10,000": evaluation(),
    }


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser as training makes it, with a rate that moves nothing."""
    return torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)


def training_attack(backend: Backend) -> Callable[..., Any]:
    """Return PGD-20 with a random start, as training calls it; no class margins."""

    def attack(model: Any, x: Any, y: Any, *, generator: Any, factor: Any = None) -> Any:
        assert factor is None
        settings = {"epsilon": EPSILON, "step_size": STEP_SIZE, "num_steps": NUM_STEPS, "ascend": backend.ascend}
        return pgd(model, x, y, generator=generator, **settings)  # type: ignore[arg-type]

    return attack


def side_by_side(num_runs: int, device: torch.device) -> dict[str, float]:
    """Return a retraining step of so many runs at once: every image attacked by PGD-20, loss, gradients, Adam.

    On the processor a sweep gives each thread runs of its own: what that costs is measured with ``threads=1``.
    Seconds, and on a GPU the peak memory in MB.
    """
    set_up_machine(device, None)
    is_gpu = device.type == "cuda"
    num_images = BATCH_SIZE * (WARM_UP + (40 if is_gpu else 10))
    images = torch.randint(256, (num_images, 1, 32, 32), dtype=torch.uint8).to(device)
    labels = (torch.arange(num_images) % 10).to(device)
    models = [
        build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=r).to(device) for r in range(num_runs)
    ]
    backend = choose_backend("auto", models[0], device, image_shape=(1, 32, 32))
    optimizers = [adam(model) for model in models]

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()

    def note(_: int) -> None:
        if is_gpu:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    ends: list[float] = []
    train_epoch(
        fuse(models),
        Split(images=images, labels=labels),
        update=update,
        objective=objectives.Mixed(1),
        attack=training_attack(backend),
        forward=backend.forward,
        batch_size=BATCH_SIZE,
        order_generators=[streams.generator(r, "order") for r in range(num_runs)],
        attack_generators=[streams.generator(r, "attack", device=device) for r in range(num_runs)],
        advance=note,
    )
    memory = {"memory_mb": torch.cuda.max_memory_allocated(device) / 2**20} if is_gpu else {}
    return {**of_steps(ends[WARM_UP:], 1), **memory}


def of_steps(ends: Sequence[float], num_steps: int) -> dict[str, float]:
    """Return median and best of the steps that ended at these times, the first left out, times their number."""
    seconds = [b - a for a, b in itertools.pairwise(ends)][1:]
    return {"median": num_steps * statistics.median(seconds), "best": num_steps * min(seconds)}


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    m = result["machine"]
    lines = [
        f"{m['processor']}, {m['threads']} of {m['cores']} cores, {m['lanes']} lanes, torch {m['torch']}, "
        f"Python {m['python']}; matrix product {result['matrix_product_gflops']:.0f} GFLOP/s; "
        f"peak memory {result['peak_memory_mb']} MB; an idle loop gets {100 * m['granted']:.0f} % of a core",
        "",
    ]
    if "attacks" in result:
        names = [name for name in next(iter(result["attacks"].values()))["median"] if name != "share"]
        for of in ("median", "best"):
            lines += [
                f"PGD, microseconds per image-step, {of} repetition (in brackets: times native)",
                "",
                "| batch | " + " | ".join(names) + " | native, share of the matrix product |",
                "|---" * (len(names) + 2) + "|",
            ]
            for batch, rows in result["attacks"].items():
                row = rows[of]
                cells = [f"{row[n]:.1f}" + (f" ({row[n] / row['native']:.1f})" if n != "native" else "") for n in names]
                lines.append(f"| {int(batch):,} | " + " | ".join(cells) + f" | {100 * row['share']:.0f} % |")
            lines.append("")
        threads = ", ".join(f"{n}: {us:.1f}" for n, us in result["native_against_threads"].items())
        lines += [f"native at batch 1,000, best microseconds per image-step by threads: {threads}"]
        steps = ", ".join(f"{n}: {ms:.1f}" for n, ms in result["native_against_steps"].items())
        lines += [f"native at batch 1,000, best milliseconds of an attack by its steps: {steps}", ""]
    if "epochs" in result:
        for of in ("median", "best"):
            lines += [f"| seconds, {of} step times their number | native | torch | ratio |", "|---|---|---|---|"]
            for what, native in result["epochs"]["native"].items():
                other = result["epochs"]["torch"][what]
                lines.append(f"| {what} | {native[of]:.1f} | {other[of]:.1f} | {other[of] / native[of]:.1f} |")
            lines.append("")
    if "side_by_side" in result:
        rows = result["side_by_side"]
        first = next(iter(rows.values()))
        where = m["gpu"] or m["processor"]
        lines += [
            f"retraining steps of fused runs, {where}, best (median) of the steps",
            "",
            "| runs | ms a step | against one run | image-steps a second | share of the matrix product | memory, MB |",
            "|---|---|---|---|---|---|",
        ]
        for runs, row in rows.items():
            speed = int(runs) * BATCH_SIZE * NUM_STEPS / row["best"]
            share = speed * FLOP_PER_IMAGE_STEP / result["matrix_product_gflops"] / 1e9
            lines.append(
                f"| {runs} | {1e3 * row['best']:.1f} ({1e3 * row['median']:.1f}) | {row['best'] / first['best']:.1f} "
                f"({row['median'] / first['median']:.1f}) | {speed:,.0f} | {100 * share:.0f} % "
                f"| {row.get('memory_mb', float('nan')):.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw image-steps per second against the batch size."""
    from matplotlib.figure import Figure

    from frl_repro.results.figures.style import COLUMN_WIDTH, paper_style

    with paper_style():
        figure = Figure(figsize=(COLUMN_WIDTH, 2.3), layout="constrained")
        axes = figure.subplots()
        names = [name for name in next(iter(result["attacks"].values()))["median"] if name != "share"]
        for name, marker in zip(names, "osD^", strict=False):
            batches = [int(batch) for batch in result["attacks"]]
            speed = [1e6 / row["best"][name] for row in result["attacks"].values()]
            axes.plot(batches, speed, marker=marker, markersize=4, linewidth=1, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("Images in a batch")
        axes.set_ylabel("Image-steps per second")
        axes.set_title(f"PGD on LeNet-5, best repetition, {result['machine']['threads']} cores")
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=200)


if __name__ == "__main__":
    sys.exit(main())
