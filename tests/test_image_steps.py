"""What a run costs is worked out from settings; here the network's passes are counted as they happen."""

import json

import pytest

from frl_repro.data import load_dataset
from frl_repro.evaluation import measure
from frl_repro.models import LeNet5
from frl_repro.runs import experiment
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import parse
from frl_repro.training import build
from frl_repro.training.cost import base_cost
from support import composed, tiny_retraining

COMMON = {
    "dataset": "synthetic", "dataset__num_classes": 3, "dataset__num_train": 110, "dataset__num_test": 31,
    "dataset__validation_fraction": 0.25, "trainer__batch_size": 30, "trainer__num_epochs": 2,
    "evaluation__num_steps": 3, "backend": "torch",
}  # fmt: skip
AGAIN = {
    "attack__num_steps": 2,
    "retrain__trainer__num_epochs": 2,
    "retrain__trainer__batch_size": 25,
    "retrain__attack__num_steps": 3,
}
LOOKS = {"frl__num_validation": 24, "frl__num_steps": 2}


@pytest.fixture
def counted(monkeypatch):
    """Count forward and backward passes of images, those too that a measurement leaves out because they are wrong."""
    total = {"passes": 0}
    forward, evaluate = LeNet5.forward, measure.evaluate

    def counting(self, x):
        def count(_):
            total["passes"] += len(x)

        count(None)
        logits = forward(self, x)
        if logits.requires_grad:
            logits.register_hook(count)
        return logits

    def evaluating(*arguments, attack, epsilons, **settings):
        samples = evaluate(*arguments, attack=attack, epsilons=epsilons, **settings)
        per_attack = 2 * attack.keywords["num_steps"] + 1
        total["passes"] += int(samples.is_natural_error.sum()) * len(epsilons) * per_attack
        return samples

    monkeypatch.setattr(LeNet5, "forward", counting)
    for module in (measure, build):
        monkeypatch.setattr(module, "evaluate", evaluating)
    return total


def recorded(folder):
    return json.loads((folder / "run.json").read_text())["image_steps"]


@pytest.mark.parametrize("changes", [
    {},
    {"attack": "none", "evaluation__validation_every": 1},
    {"trainer__num_accumulation": 2, "attack__num_restarts": 2},
    {"attack": "trades", "attack__beta": 6.0, "attack__fraction": 1},
    {"frl": "cfol", "recipe": "scratch", "attack__objective": "kl"},
    {"frl": "cfa", "recipe": "scratch"},
    {"frl": "bat", "recipe": "scratch", "attack__fraction": 1},
    {"dataset__selection_fraction": 0.4, "evaluation__keep_best_by": "overall_robust"},
])  # fmt: skip
def test_the_cost_of_a_training_is_what_passes_through_its_network(changes, counted, tmp_path):
    folder = experiment.run(parse(composed(**COMMON | {"output_dir": str(tmp_path)} | changes), RunConfig))
    said = recorded(folder)
    assert sum(said[name] for name in ("training", "steering", "validation", "test")) == counted["passes"]
    assert said["base"] == 0
    assert said["budget"] == counted["passes"] - said["test"]
    assert (said["steering"] > 0) is (changes.get("frl") == "cfa")


@pytest.mark.parametrize(("frl", "recipe", "changes"), [
    ("finetune", "report", {}),
    ("reweight", "report", {**LOOKS, "frl__update_every": "2"}),
    ("remargin", "report_code", {**LOOKS, "frl__update_every": "3", "dataset__selection_fraction": 0.2}),
    ("baseline_reweight", "paper", LOOKS),
    ("bat", "paper", {}),
    ("logit_bias", "report", {"retrain__trainer__num_epochs": 0}),
    ("head_norm", "report", {}),
])  # fmt: skip
def test_whoever_starts_from_a_base_is_charged_for_it(frl, recipe, changes, counted, tmp_path):
    values = {**COMMON, **AGAIN, "frl": frl, "recipe": recipe, "output_dir": str(tmp_path), **changes}
    config = parse(composed(**values), RunConfig)
    (base,) = experiment.run_all([config.base()])
    said_of_base, passes_of_base = recorded(base), counted["passes"]
    assert said_of_base["budget"] == passes_of_base - said_of_base["test"]
    said = recorded(experiment.run(config))
    own = counted["passes"] - passes_of_base
    assert sum(said[name] for name in ("training", "steering", "validation", "test")) == own
    assert said["base"] == said_of_base["budget"]
    assert said["budget"] == own - said["test"] + said["base"]


def test_a_base_of_older_runs_is_charged_by_its_settings_and_a_given_model_is_not_known(tmp_path):
    config = tiny_retraining(tmp_path, "finetune")
    (base,) = experiment.run_all([config.base()])
    assert base_cost(config, load_dataset(config.dataset), None) == recorded(base)["budget"]
    (tmp_path / "other").mkdir()
    given = (base / "model.safetensors").rename(tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "run.json").write_text("{}")
    said = recorded(experiment.run(tiny_retraining(tmp_path, "finetune", init_from=str(given))))
    assert said["base"] is said["budget"] is None
