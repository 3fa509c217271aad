"""What each process of `test_distributed` does. Arguments: what to do, and a folder.

The first process works in ``<folder>/writer`` and the other in ``<folder>/other``, with relative paths: what the other
one writes, or wants to read, is seen.
"""

import contextlib
import dataclasses
import datetime
import io
import os
import sys
from pathlib import Path

import torch
from torch import nn

from frl_repro.attacks import Ascent
from frl_repro.basics import sameness
from frl_repro.commands import cli
from frl_repro.models import build_model
from frl_repro.models.compute import backends, distributed
from frl_repro.runs import experiment, opening
from frl_repro.training import fitting

SMALL = [
    "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=120", "dataset.num_test=45",
    "dataset.validation_fraction=0.25", "trainer.num_epochs=1", "trainer.batch_size=28", "attack.num_steps=2",
    "evaluation.num_steps=2", "backend=torch", "num_threads=1",
]  # fmt: skip
"""90 training images in batches of 28: the last has six."""

RETRAINING = [
    *SMALL, "frl=reweight", "frl.num_validation=12", "frl.num_steps=2", "frl.update_every=2", "alpha.nat=5",
    "retrain.trainer.num_epochs=2", "retrain.trainer.batch_size=25", "retrain.attack.num_steps=2",
    "evaluation.keep_best_by=overall_robust",
]  # fmt: skip

SWEEP = ["-m", *SMALL, "trainer.learning_rate=1e38,1e-3", "output_dir=sweep"]
"""Its first job diverges."""


class Stop(BaseException):
    """Ends a program as no handler expects."""


class Small(nn.Module):
    """A network with all that makes slices matter: constant buffers, and weights used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        x = torch.relu(self.conv(self.scale * x))
        return self.out(torch.relu(self.conv(x[:, :1])).mean((2, 3)))


def gradients(num_images, *, num_parts=1):
    """Gradients of a loss that is no mean over images, of two forward passes; one process's and the shared ones."""
    x = torch.rand(num_images, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for backend in (backends.TORCH, distributed.shared(backends.TORCH)):
        model = Small()
        for _ in range(2 * num_parts):  # twice the same: the second pass through a shared model is like the first
            model.zero_grad()
            for part in x.chunk(num_parts):
                clean, attacked = backend.forward(model, part), backend.forward(model, part + 0.1)
                weights = clean.detach().softmax(1)[:, 0]
                (weights @ (clean - attacked).square().sum(1) / weights.sum() + attacked.logsumexp(1).max()).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    return found


def attacked(num_images, *, early_stop):
    """Images attacked with radii of their own, and their logits; one process's and the shared ones."""
    model = build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=0).eval()
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(num_images, 1, 32, 32, generator=generator), torch.arange(num_images) % 3
    radius = torch.linspace(0.01, 0.1, max(num_images, 1))[:num_images].view(-1, 1, 1, 1)
    found = []
    for backend in (backends.TORCH, distributed.shared(backends.TORCH)):
        x_adv = backend.ascend(model, Ascent(x, y, y, x, radius, 0.02, num_steps=3, early_stop=early_stop))
        found.append([x_adv, backend.logits(model, x_adv)])
    return found


def train(*arguments):
    """Run train.py; return its exit code and what it said."""
    sys.argv = ["train.py", *arguments]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main()
    return code, said.getvalue()


def stopped(*arguments):
    """Run train.py until the state of the first epoch of retraining is written."""
    end_epoch = fitting._Training.end_epoch

    def end_epoch_and_stop(training, *given, **settings):
        end_epoch(training, *given, **settings)
        if training.run.config.retrain is not None:
            raise Stop

    fitting._Training.end_epoch = end_epoch_and_stop
    try:
        train(*arguments)
    except Stop:
        return True
    finally:
        fitting._Training.end_epoch = end_epoch
    return False


def everything():
    results = {
        "gradients": {n: gradients(n) for n in (8, 7, 1)},
        "gradients in parts": gradients(9, num_parts=2),
        "attacked": {(n, stop): attacked(n, early_stop=stop) for n in (5, 1, 0) for stop in (False, True)},
        "straight": train(*RETRAINING, "output_dir=straight"),
        "again": train(*RETRAINING, "output_dir=straight"),
        "stopped": stopped(*RETRAINING, "output_dir=resumed", "base_dir=straight/bases"),
        "resumed": train(*RETRAINING, "output_dir=resumed", "base_dir=straight/bases"),
        "sweep": train(*SWEEP),
        "batch norm": train(*SMALL, "model=preact_resnet18", "model.width=8", "output_dir=refused"),
        "fused": train(*SWEEP, "hydra/launcher=fused"),
        "no run": train(*SMALL, "run_dir=straight"),
    }
    sys.argv = ["evaluate.py", "checkpoint=model.safetensors"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        results["evaluate"] = cli.evaluate_main(), said.getvalue()
    return results


def other_data(dataset):
    """The data set with one pixel changed."""
    images = dataset.test.images.clone()
    images[0, 0, 0, 0] += 1
    return dataclasses.replace(dataset, test=dataclasses.replace(dataset.test, images=images))


def differing():
    """What is said where the other process has another command, other data, or another backend."""
    is_other = os.environ["RANK"] == "1"

    def with_other(*arguments):
        return train(*SMALL, "output_dir=different", *(arguments if is_other else []))

    results = {
        "rate": with_other("trainer.learning_rate=0.5"),
        "seed": with_other("seed=1"),
        "num_train": with_other("dataset.num_train=123"),
        "force": with_other("force=true"),
        "typo": with_other("trainer.learning_rat=0.5"),
        "flag": with_other("--no-such-flag"),
        "jobs": with_other("-m", "seed=0,1"),
        "threads": with_other("num_threads=2"),
    }
    load, choose = experiment.load_dataset, opening.choose_backend
    if is_other:
        experiment.load_dataset = lambda config: other_data(load(config))
    results["data"] = train(*SMALL, "output_dir=again")
    experiment.load_dataset = load
    if is_other:
        opening.choose_backend = lambda *given, **more: dataclasses.replace(choose(*given, **more), name="native")
    results["backend"] = train(*SMALL, "output_dir=again")
    return results


def other_version():
    """Train where the other process has another PyTorch."""
    if os.environ["RANK"] == "1":
        facts = {**sameness.code(), "torch": "1.13.1"}
        sameness.code = lambda: facts
    sys.argv = ["train.py", *SMALL, "output_dir=failed"]
    return cli.main()


def fail_alone():
    """Fail in the other process, in the middle of an epoch."""
    distributed._PATIENCE = datetime.timedelta(seconds=3)
    if os.environ["RANK"] == "1":
        make = distributed.shared

        def fail(*_arguments, **_settings):
            raise OSError(28, "No space left on device", "somewhere")

        distributed.shared = lambda backend: dataclasses.replace(make(backend), ascend=fail)
    sys.argv = ["train.py", *SMALL, "output_dir=failed"]
    return cli.main()


def act(what, folder):
    """Do it in this process's own folder; return the exit code."""
    rank = os.environ["RANK"]
    place = folder / ("writer" if rank == "0" else "other")
    place.mkdir(exist_ok=True)
    os.chdir(place)
    torch.set_num_threads(1)
    if what in ("fail", "other version"):
        return {"fail": fail_alone, "other version": other_version}[what]()
    with distributed.group():
        found = {"everything": everything, "differing": differing}[what]()
    torch.save(found, folder / f"found{rank}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(act(sys.argv[1], Path(sys.argv[2])))
