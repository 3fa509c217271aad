"""Tables of registered runs of the bench with made-up errors, for tests of what is read from them."""

import json
import zlib

import numpy as np

from frl_repro.results.protocol import AUTOATTACK_FOLDER, TRACKS
from frl_repro.results.registration import bench_runs
from frl_repro.results.tables import schema, writing

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_COUNTS = {"selection": 400, "test": 1000}
_LEVELS = np.array([0.42, 0.12, 0.6, 0.3, 0.58, 0.16, 0.85, 0.2, 0.22, 0.18])


def gains_of(method, start):
    """What a method does to the worst class and to the others, in points; fixed by its name."""
    if method == "finetune":
        return 0.0, 0.0
    number = zlib.crc32(f"{method} {start}".encode()) / 2**32
    return -0.25 * number, 0.06 * number


def class_errors(run, radius, seed):
    """Robust errors of all classes: the method's effect, the setting's and the seed's own."""
    worst, others = gains_of(run.method, run.start)
    generator = np.random.default_rng(zlib.crc32(f"{run.cell} {seed}".encode()))
    errors = _LEVELS * (0.62 if radius < 0.05 else 1.0) + others
    errors[6] += worst + 0.02 * ("0.5" in run.setting)
    return np.clip(errors + generator.normal(0, 0.008, len(errors)), 0.02, 0.98)


def write_runs(root, *, tracks=tuple(TRACKS), methods=None, seeds=(20, 21, 22, 23, 24), autoattack=True, settings=None):
    """Write ``classwise.csv``, ``run.json`` and ``policy.csv`` of registered runs below ``root/<track>``."""
    for run_id, run in bench_runs().items():
        is_wanted = run.track in tracks and run.seed in seeds and (methods is None or run.method in methods)
        if not is_wanted or (settings is not None and run.setting not in settings):
            continue
        folder = root / run.track / run_id
        folder.mkdir(parents=True, exist_ok=True)
        radii = (8 / 255,) if run.track.startswith("cifar10") else (8 / 255, 16 / 255)
        keys = {
            "run_id": run_id, "dataset": run.track.split("-")[0], "model": run.track.split("-")[1],
            "method": run.method, "seed": run.seed, "recipe": "scratch" if run.start == "scratch" else "report",
            "alpha_nat": None, "alpha_bndy": None, "alpha_margin": None, "alpha_rob": None,
        }  # fmt: skip
        rows = []
        for epoch in (6,) if run.start == "scratch" else (0, 6):
            for split, count in _COUNTS.items():
                for radius in radii:
                    rows += _rows({**keys, "split": split, "epoch": epoch, "attack": "pgd-20"}, run, radius, count)
        writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_HEADER)
        (folder / "run.json").write_text(json.dumps(_record(run_id, run)))
        _write_policy(folder / "policy.csv", keys, run)
        if autoattack and run.seed in (20, 21, 22):
            target = root / run.track / AUTOATTACK_FOLDER / f"{run_id}-0123abcd"
            target.mkdir(parents=True, exist_ok=True)
            name = "autoattack-first_2-1000_images-whole_classes"
            part = [
                row
                for radius in radii
                for row in _rows({**keys, "split": "test", "epoch": 6, "attack": name}, run, radius, 100, more=0.02)
            ]
            writing.write_table(target / "classwise.csv", part, schema.CLASSWISE_HEADER)


def _rows(keys, run, radius, count, *, more=0.0):
    errors = class_errors(run, radius, run.seed) if keys["epoch"] else np.clip(_LEVELS * 1.05 * (
        0.62 if radius < 0.05 else 1.0), 0, 0.99)  # fmt: skip
    wrong = np.round(np.clip(errors + more, 0, 1) * count).astype(int)
    natural = (wrong * 0.45).astype(int)
    keys = {**keys, "epsilon": radius}
    return writing.classwise_rows(keys, CLASSES, [count] * 10, natural.tolist(), (wrong - natural).tolist())


def _record(run_id, run):
    steps = {"training": 3e5, "attack": 1.4e6, "steering": 0.0, "base": 1.7e6 if run.start == "base" else 0.0}
    return {
        "run_id": run_id, "config_hash": run_id[-8:], "config": {"seed": run.seed}, "wall_seconds": 61.0,
        "image_steps": steps, "git_commit": "0" * 40, "registration": {"name": run.registration, "cell": run.cell},
    }  # fmt: skip


def _write_policy(path, keys, run):
    rows = []
    for epoch in range(1, 7):
        for class_id, name in enumerate(CLASSES):
            weight = 1 + (0.4 if class_id == 6 else -0.04) * epoch / 6
            row = {**keys, "epoch": epoch, "class_id": class_id, "class_name": name}
            values = {"natural_error": 0.3, "boundary_error": 0.3, "margin": 16 / 255}
            rows.append({**row, **values, "weight_nat": weight, "weight_bndy": weight})
    writing.write_table(path, rows, schema.POLICY_COLUMNS)
