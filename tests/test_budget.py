"""Image-steps that are said beforehand against passes that are counted."""

import dataclasses
import json

import pytest
import torch

from frl_repro.commands.jobs import configure
from frl_repro.models import LeNet5
from frl_repro.runs.experiment import run_all
from frl_repro.training import fitting
from frl_repro.training.budget import image_steps

NUM_TRAIN, NUM_VALIDATION = 90, 30
"""A quarter of 120 images is for validation."""


@pytest.fixture
def counted(monkeypatch):
    """Passes of images while epochs are trained: forward and backward 1, forward alone 0.5."""
    passes, is_training = [], []
    forward, train_epoch = LeNet5.forward, fitting.train_epoch

    def counting(self, x):
        if is_training:
            passes.append(len(x) * (1.0 if torch.is_grad_enabled() else 0.5))
        return forward(self, x)

    def epoch(*arguments, **keywords):
        is_training.append(True)
        try:
            return train_epoch(*arguments, **keywords)
        finally:
            is_training.pop()

    monkeypatch.setattr(LeNet5, "forward", counting)
    monkeypatch.setattr(fitting, "train_epoch", epoch)
    return passes


TINY = (
    "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=120", "dataset.num_test=45",
    "dataset.validation_fraction=0.25", "trainer.num_epochs=2", "trainer.batch_size=30", "evaluation.num_steps=2",
    "backend=torch", "num_threads=1",
)  # fmt: skip
RETRAIN = ("attack.num_steps=2", "retrain.trainer.num_epochs=2", "retrain.trainer.batch_size=30",
           "retrain.attack.num_steps=2")  # fmt: skip
LOOKS = ("frl.num_validation=12", "frl.num_steps=2", "frl.update_every=2")


def run(folder, *overrides):
    config = configure(*TINY, *overrides, f"output_dir={folder}")
    (outcome,) = run_all([config], command="test")
    assert not isinstance(outcome, Exception), outcome
    recorded = json.loads((outcome / "run.json").read_text())["image_steps"]
    said = image_steps(config, num_train=NUM_TRAIN, num_validation=NUM_VALIDATION)
    assert recorded == dataclasses.asdict(said)
    return config, said


@pytest.mark.parametrize(
    "overrides",
    [
        ("attack=none",),
        ("attack=fgsm",),
        ("attack=pgd", "attack.num_steps=2", "attack.fraction=0.5"),
        ("attack=pgd", "attack.num_steps=2", "attack.num_restarts=2"),
        ("attack=trades", "attack.num_steps=2", "attack.beta=6", "attack.fraction=1"),
    ],
    ids=" ".join,
)
def test_a_training_costs_what_was_said(overrides, tmp_path, counted):
    _, said = run(tmp_path, *overrides)
    assert sum(counted) == said.total
    assert said.steering == said.base == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ("frl=finetune",),
        ("frl=reweight", *LOOKS),
        ("frl=combined", "recipe=paper", *LOOKS[:2]),
        ("frl=faal",),
        ("frl=bat",),
        ("frl=dafa", "recipe=scratch"),
    ],
    ids=" ".join,
)
def test_a_method_costs_what_was_said_and_its_base_is_charged_to_it(overrides, tmp_path, counted):
    is_scratch = "recipe=scratch" in overrides
    config, said = run(tmp_path, *overrides, *(RETRAIN[:1] if is_scratch else RETRAIN))
    # Of a look at validation images only those are attacked that are right when clean.
    assert said.total - said.steering * 2 / 3 <= sum(counted) <= said.total
    if is_scratch:
        assert said.base == 0
    else:
        base = image_steps(config.base(), num_train=NUM_TRAIN, num_validation=NUM_VALIDATION)
        assert said.base == base.total > 0
    assert (said.steering > 0) == any("num_validation" in one for one in overrides)
