"""What several test modules share: settings of tiny runs, their files, rows of made-up tables, and other processes."""

import contextlib
import copy
import functools
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file

from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.commands import cli
from frl_repro.models import checkpoints
from frl_repro.results.tables import schema, writing
from frl_repro.results.tables.examples import Examples
from frl_repro.results.tables.outcomes import Outcomes
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import node, parse
from frl_repro.settings.schema import GROUPS
from frl_repro.training.frl import ClassStats, Plan, When, method_class
from frl_repro.training.objectives import Predictions

ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------------------------------------------
# Settings

TINY = [
    "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=90", "dataset.num_test=30", "trainer.num_epochs=1",
    "attack.num_steps=2", "evaluation.num_steps=2", "num_threads=1", "backend=torch",
]  # fmt: skip

_TINY = {
    "dataset": "synthetic", "dataset__num_classes": 3, "dataset__num_train": 120, "dataset__num_test": 45,
    "dataset__validation_fraction": 0.25, "trainer__batch_size": 30, "attack__num_steps": 2,
    "evaluation__num_steps": 2, "backend": "torch",
}  # fmt: skip

METHODS = [
    ("finetune", "report"), ("reweight", "report"), ("remargin", "report"), ("combined", "report"),
    ("reweight", "report_code"), ("remargin", "report_code"), ("finetune", "report_code"),
    ("reweight", "paper"), ("remargin", "paper"), ("combined", "paper"),
    ("baseline_reweight", "paper"), ("baseline_reweight", "report"),
]  # fmt: skip

_GROUPS = ("model", "dataset", "attack", "trainer", "evaluation", "frl", "recipe")


@functools.cache
def _composition(*choices):
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        return OmegaConf.to_container(compose("config", list(choices)), resolve=True)


def composed(**changes):
    """Return what Hydra composes of ``group=choice``, with ``group__key=value`` changes, nested keys as ``a__b__c``.

    Values are set as they are: what the command line cannot say, or refuses earlier, can be tried too.
    """
    result = copy.deepcopy(_composition(*(f"{name}={changes[name]}" for name in _GROUPS if name in changes)))
    for name, value in changes.items():
        *path, key = name.split("__")
        node = result
        if name in _GROUPS:
            continue
        for part in path:
            node = node[part]
        node[key] = value
    return result


def tiny_run(folder, **changes):
    """Return the settings of a run of three epochs in this folder."""
    more = {"trainer__num_epochs": 3, "trainer__ema_decay": 0.9, "run_dir": str(folder), **changes}
    return parse(composed(**{**_TINY, **more}), RunConfig)


def tiny_retraining(folder, frl="reweight", recipe="report", **changes):
    """Return the settings of a retraining of two epochs, whose folder and base lie in this one."""
    settings = {
        **_TINY, "frl": frl, "recipe": recipe, "trainer__num_epochs": 1, "retrain__trainer__num_epochs": 2,
        "retrain__trainer__batch_size": 30, "retrain__attack__num_steps": 2, "output_dir": str(folder), **changes,
    }  # fmt: skip
    if frl != "finetune":
        settings = {"frl__num_validation": 12, "frl__num_steps": 2, **settings}
        if recipe != "paper":
            settings = {"frl__update_every": "2", **settings}
    return parse(composed(**settings), RunConfig)


def call(monkeypatch, *arguments, main=cli.main):
    """Return the exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    return main()


# ---------------------------------------------------------------------------------------------------------------
# Files of runs

TABLES = ("classwise.csv", "history.csv", "model.safetensors", "split.safetensors")


def contents(folder):
    """Return the bytes of every file of a run but those that hold times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("run.json", "done.json")}


def table_contents(folder):
    """Return the bytes of what every run has."""
    return {name: (Path(folder) / name).read_bytes() for name in TABLES}


def same_weights(folder, other, name="model.safetensors"):
    """Return whether two runs kept the same weights, to the bit."""
    one, two = (load_file(Path(run) / name) for run in (folder, other))
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@contextlib.contextmanager
def stopped(monkeypatch, *, after):
    """Let a training in this block be stopped once the state of an epoch is written."""
    save = checkpoints.save_state

    def save_and_stop(path, state):
        save(path, state)
        if state["epoch"] == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            yield


# ---------------------------------------------------------------------------------------------------------------
# Other processes

WARM = multiprocessing.get_context("forkserver")
"""Forks processes from one that has imported what a run needs, which takes seconds."""
# The optimiser imports torch._dynamo on its first use, which takes longer than a tiny run.
WARM.set_forkserver_preload(["support", "frl_repro.runs.experiment", "torch._dynamo"])


class Other:
    """Another process that does one thing, ``sys.exit(act(*arguments))``, in a folder and an environment of its own."""

    def __init__(self, act, *arguments, environment=os.environ, folder="."):
        self._said = tempfile.TemporaryDirectory()
        place = os.fspath(folder), dict(environment), self._said.name
        self._process = WARM.Process(target=_act_elsewhere, args=(act, arguments, *place))
        self._process.start()

    def end(self, seconds=300):
        """Wait until it ends; return its exit code (negative: the signal that ended it) and what it said."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = ((Path(self._said.name) / name).read_text(encoding="utf-8") for name in ("out", "err"))
        self._said.cleanup()
        assert code is not None, f"no end after {seconds} s: {out}{err}"
        return subprocess.CompletedProcess((), code, out, err)


def _act_elsewhere(act, arguments, folder, environment, said):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(said) / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.exit(act(*arguments))


def run_script(path, *arguments, **place):
    """Run a program of the repository to its end in another process, as ``python path arguments``."""
    return Other(_run_script, str(ROOT / path), arguments, **place).end()


def _run_script(path, arguments):
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


# ---------------------------------------------------------------------------------------------------------------
# Tables

EPSILON = 16 / 255
NAMES = ["Shirt", "Bag", "Trouser"]
# Per class of 1,000: the report's worst class, an easy one and one between; columns natural and robust errors.
ERRORS = {"natural": [(320, 1000), (30, 960), (40, 860)], "adversarial": [(440, 890), (40, 120), (30, 90)]}


def make_rows(method, *, seed=0, shift=0, errors=None, names=NAMES, **keys):
    """Rows of one run; ``shift`` more natural (and so robust) errors in every class but where all are wrong."""
    pairs = errors or ERRORS[method]
    natural = [n + shift for n, _ in pairs]
    boundary = [min(r + shift, 1000) - n - shift for n, r in pairs]
    defaults = {
        "run_id": f"{method}-{seed}",
        "dataset": "fashion_mnist",
        "model": "lenet5",
        "method": method,
        "seed": seed,
        "split": "test",
        "epoch": 15,
        "attack": "pgd-20",
        "epsilon": EPSILON,
    }
    return writing.classwise_rows(defaults | keys, names, [1000] * len(names), natural, boundary)


# Wrong of 1,000, natural and robust; the first class is the worst.
STUDY_BASE = [(480, 900), (40, 120), (30, 90)]
STUDY_NATURAL = [(320, 990), (30, 800), (20, 700)]
STUDY_AFTER = {
    ("reweight", 5.0, 1.0, None): [(360, 790), (60, 130), (40, 100)],
    ("remargin", None, None, 0.0): [(475, 895), (40, 120), (30, 90)],
    ("remargin", None, None, 5.0): [(485, 870), (40, 125), (30, 95)],
    ("combined", 5.0, 1.0, 5.0): [(355, 750), (60, 140), (40, 110)],
}


BASE = [(440, 890), (40, 120), (30, 90)]  # Shirt, Bag, Trouser: wrong of 1,000, natural and robust


def run_rows(nat, bndy, *, seed=0, gain=None, validation_gain=None, method="reweight", recipe="report"):
    """Rows of one retraining that takes ``gain`` natural and robust errors of 1,000 off Shirt."""
    keys = {
        "method": method,
        "seed": seed,
        "run_id": f"{method}-{recipe}-{nat}-{bndy}-{seed}",
        "recipe": recipe,
        "alpha_nat": float(nat),
        "alpha_bndy": float(bndy),
        "alpha_margin": None,
    }
    rows = []
    gain = gain if gain is not None else (10 * nat, 10 * bndy)
    for split, (natural, robust) in (("test", gain), ("validation", validation_gain or gain)):
        rows += make_rows(**keys, split=split, epoch=0, errors=BASE)
        after = [(BASE[0][0] - natural, BASE[0][1] - robust), *BASE[1:]]
        rows += make_rows(**keys, split=split, epoch=10, errors=after)
    return rows


def policy_rows(nat, bndy, seed):
    keys = {key: value for key, value in run_rows(nat, bndy, seed=seed)[0].items() if key in schema.POLICY_COLUMNS}
    return [
        {
            **keys,
            "epoch": epoch,
            "class_id": k,
            "class_name": name,
            "natural_error": 0.4 - 0.1 * k - 0.01 * epoch,
            "boundary_error": 0.1 + 0.05 * k,
            "weight_nat": 1 + 0.1 * epoch - 0.1 * k * epoch,
            "weight_bndy": 1.0,
            "margin": 16 / 255,
        }
        for epoch in (1, 2, 3)
        for k, name in enumerate(NAMES)
    ]


def make_run(folder, *, epoch=None, is_done=False, num_epochs=15):
    """Lay out a run's folder as training does."""
    folder.mkdir(parents=True)
    config = {"trainer": {"num_epochs": 99}, "retrain": {"trainer": {"num_epochs": num_epochs}}}
    about = {"run_id": folder.name, "config_hash": "0"}
    (folder / "run.json").write_text(json.dumps({**about, "config": config}))
    if epoch is not None:
        (folder / "state.pt").write_bytes(json.dumps({"epoch": epoch, "sha256": ""}).encode() + b"\nPK binary \xff\n")
    if is_done:
        (folder / "classwise.csv").write_text("a table")
        digest = "3e3cfdde88db4c4f0a6d7d3ba5b0fd8e7e4e3d9e9d8c6b6e8c0d8e4d9b4c9d5b"
        (folder / "done.json").write_text(json.dumps({**about, "sha256": {"classwise.csv": digest}}))


def shifted(errors, seed):
    """Errors of another seed: a little more or less, by class."""
    return [(natural + 3 * (seed - 1), robust + 4 * (seed - 1)) for natural, robust in errors]


def write_run(root, method, errors, *, seed, alphas=(None, None, None), base=None):
    """Write the table of a run of a study; return its folder."""
    keys = dict(zip(("alpha_nat", "alpha_bndy", "alpha_margin"), alphas, strict=True))
    run_id = f"{method}-{'-'.join(map(str, alphas))}-{seed}"
    recipe = "report" if base else None
    rows = []
    for split in ("test", "validation") if base else ("test",):
        for epoch, wrong in ((0, base), (10, errors)):
            if wrong is not None:
                rows += make_rows(
                    method=method,
                    run_id=run_id,
                    seed=seed,
                    split=split,
                    epoch=epoch,
                    errors=wrong,
                    recipe=recipe,
                    **keys,
                )
    folder = root / run_id
    folder.mkdir(parents=True)
    writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_HEADER)
    return folder


def write_study(root):
    """Write the tables of a whole study of three seeds; return its folder."""
    for seed in range(3):
        base = shifted(STUDY_BASE, seed)
        write_run(root, "natural", shifted(STUDY_NATURAL, seed), seed=seed)
        write_run(root, "adversarial", base, seed=seed)
        for (method, *alphas), errors in STUDY_AFTER.items():
            write_run(root, method, shifted(errors, seed), seed=seed, alphas=alphas, base=base)
    return root


def bars(axes):
    """Widths of the bars, one row a quantity."""
    return [[bar.get_width() for bar in container] for container in axes.containers if hasattr(container, "patches")]


def outcomes_of_three():
    """Outcomes of six images of three classes under two attacks."""
    codes = np.array([0, 1, 2, 3, 2, 0], dtype=np.uint8)
    return Outcomes(
        labels=np.array([0, 0, 1, 1, 2, 2]),
        is_natural_error=codes == 1,
        is_robust_error={0.1: codes != 0},
        about={"run_id": "a", "split": "test", "attack": "autoattack-6_images", "seed": 0, "method": "natural"},
        components=("apgd-ce", "square"),
        broken_by={0.1: codes},
        images=np.array([3, 5, 6, 8, 9, 11]),
    )


ABOUT_EXAMPLES = {
    "class_names": ["Shirt", "Bag"], "worst": "Shirt", "best": "Bag", "epsilon": 16 / 255, "attack": "pgd-20",
    "method": "reweight", "run_id": "a",
}  # fmt: skip


def two_examples(channels=1):
    """Example images of two classes; the first is fooled."""
    generator = np.random.default_rng(0)
    clean = generator.random((2, channels, 8, 8), dtype=np.float32)
    attacked = np.clip(clean + np.float32(16 / 255) * np.sign(generator.normal(size=clean.shape)), 0, 1)
    labels = np.array([0, 1])
    return Examples(clean, attacked.astype(np.float32), labels, labels, np.array([1, 1]), ABOUT_EXAMPLES)


# ---------------------------------------------------------------------------------------------------------------
# Methods and losses

POLICIES = {name: method_class(name) for name in ("finetune", "reweight", "remargin", "combined", "baseline_reweight")}


def new_policy(name, rules, *, shape):
    """Return a method of FRL's family, its multipliers at their start."""
    return POLICIES[name](rules, shape=shape)


def stats_of(logits, y):
    """Class sums of images whose clean and attacked logits are the same."""
    return ClassStats.of(logits, y, logits, y)


def when(epoch, num_runs=1, *, step=0, num_epochs=10, num_steps=5):
    return When(torch.full((num_runs,), epoch), torch.full((num_runs,), num_epochs), step, num_steps)


def new_method(name, *, num_classes=3, objective="trades", beta=6.0, class_counts=None, **settings):
    """Return a method for one run at its start, with the settings of its file and these."""
    kind = method_class(name)
    method = kind(num_runs=1, num_classes=num_classes)
    method.configure([node(GROUPS["frl"][name], {**composed(frl=name)["frl"], **settings}, "frl.")])
    method.objective, method.beta = objective, beta
    if class_counts is not None:
        method.class_counts = torch.tensor(class_counts, dtype=torch.float64)
    method.state = method.start()
    return method


def batch_of(num_classes=3, num_images=20, seed=0, labels=None, *, has_gradients=False):
    """Logits of clean and attacked images of one run, float64, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(num_classes, (num_images,), generator=generator) if labels is None else torch.tensor(labels)
    clean, attacked = (
        2 * torch.randn(1, len(y), num_classes, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    return clean.requires_grad_(has_gradients), attacked.requires_grad_(has_gradients), y.unsqueeze(0)


def loss_under(method, objective, clean, attacked, y, at):
    """Return the weighted loss of a batch that the method has seen."""
    seen = Predictions(clean, y, attacked, y, is_paired=True)
    method.see_batch(ClassStats([seen]), at)
    return objective.loss(seen, method.weigh(at), scale=method.scale)


def class_means(clean, attacked, y, *, beta):
    """Return by class the mean of CE + beta KL of its images, a plain loop; None for a class without any."""
    means = []
    for c in range(clean.shape[-1]):
        losses = []
        for n in range(len(y)):
            if int(y[n]) == c:
                p, q = torch.softmax(clean[n], 0), torch.softmax(attacked[n], 0)
                losses.append(-p[c].log() + beta * sum(p[k] * (p[k] / q[k]).log() for k in range(len(p))))
        means.append(sum(losses) / len(losses) if losses else None)
    return means


def step_loss(objective, x, y, *, forward, attack, radius=None, weights=None, scale="weights"):
    """Return the predictions of a batch and their loss: a step without its update."""
    seen = objective.predict(x, y, forward=forward, attack=attack, plan=Plan(radius))
    return seen, objective.loss(seen, weights, scale=scale)
