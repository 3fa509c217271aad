"""Methods that change the finished model: rows of length 1, and a bias fitted to the worst class."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from frl_repro.basics.errors import UserError
from frl_repro.results.tables.reading import read_classwise
from frl_repro.runs import experiment
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import parse
from frl_repro.training.frl import method_class
from frl_repro.training.frl.logit_bias import class_errors, fitted_bias
from support import composed, same_weights

NONE = {"retrain__trainer__num_epochs": 0}


def settings_of(folder, name, **changes):
    """Retraining of two epochs; these methods look at no validation images as they train."""
    values = {
        "dataset": "synthetic", "dataset__num_classes": 3, "dataset__num_train": 120, "dataset__num_test": 45,
        "dataset__validation_fraction": 0.25, "trainer__batch_size": 30, "attack__num_steps": 2,
        "evaluation__num_steps": 2, "backend": "torch", "frl": name, "trainer__num_epochs": 1,
        "retrain__trainer__num_epochs": 2, "retrain__trainer__batch_size": 30, "retrain__attack__num_steps": 2,
        "output_dir": str(folder), **changes,
    }  # fmt: skip
    return parse(composed(**values), RunConfig)


def normalised(weights):
    """Rows of the last layer of LeNet-5 by a double loop."""
    rows = weights["fc2.weight"].double()
    lengths = [sum(float(w) ** 2 for w in row) ** 0.5 for row in rows]
    weights["fc2.weight"] = torch.stack([row / length for row, length in zip(rows, lengths, strict=True)]).float()
    return weights


@pytest.mark.parametrize("changes", [NONE, {}, {**NONE, "backend": "native"}])
def test_head_norm_is_the_controls_model_with_rows_of_length_one(changes, tmp_path):
    config = settings_of(tmp_path, "head_norm", **changes)
    folder = experiment.run(config)
    before = config.base().folder if changes else experiment.run(settings_of(tmp_path, "finetune"))
    expected, found = (load_file(path / "model.safetensors") for path in (before, folder))
    assert not torch.equal(expected["fc2.weight"], found["fc2.weight"])
    for name, tensor in normalised(expected).items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("name", ["head_norm", "logit_bias"])
def test_validation_is_measured_after_the_change_and_a_run_without_training_has_before_and_after(name, tmp_path):
    folder = experiment.run(settings_of(tmp_path, name, **NONE))
    rows = read_classwise([folder / "classwise.csv"])
    assert set(rows["epoch"]) == {0, 1}
    assert rows.groupby(["split", "epoch", "epsilon"]).size().eq(3).all()
    assert pd.read_csv(folder / "history.csv").empty
    assert not (folder / "policy.csv").exists()  # a table without rows would be refused by its readers
    trained = experiment.run(settings_of(tmp_path, name))
    last = pd.read_csv(trained / "history.csv").iloc[-1]
    rows = pd.read_csv(trained / "classwise.csv").query("split == 'validation' and epoch == 2")
    first = rows[rows["epsilon"] == rows["epsilon"].min()]
    assert last["validation_natural_error"] == pytest.approx(first["num_natural_errors"].sum() / first["count"].sum())


@pytest.mark.parametrize("model", ["resnet8", "cnn_small"])
def test_the_last_layer_is_found_by_structure(model, tmp_path):
    config = settings_of(tmp_path, "head_norm", model=model, **NONE)
    weights = load_file(experiment.run(config) / "model.safetensors")
    rows = [tensor for name, tensor in weights.items() if tensor.ndim == 2 and tensor.shape[0] == 3]
    torch.testing.assert_close(rows[-1].norm(dim=1), torch.ones(3))


def test_a_network_without_such_a_layer_is_refused():
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for name in ("head_norm", "logit_bias"):
        with pytest.raises(UserError, match=rf"frl={name} changes .*: Sequential has no nn.Linear with 3 outputs"):
            method_class(name).check_network(lambda: pooled, 3)
    unbiased = nn.Sequential(nn.Flatten(), nn.Linear(9, 3, bias=False))
    method_class("head_norm").check_network(lambda: unbiased, 3)
    with pytest.raises(UserError, match=r"bias of the network's last linear layer: 1 has none"):
        method_class("logit_bias").check_network(lambda: unbiased, 3)
    zero = nn.Sequential(nn.Linear(2, 3))
    nn.init.zeros_(zero[0].weight)
    with pytest.raises(UserError, match="a row of 0 is zero and has no direction"):
        method_class("head_norm")(num_runs=1, num_classes=3).finish(0, zero, lambda model: model)


@pytest.mark.parametrize(("changes", "message"), [
    ({"evaluation__keep_best_by": "overall_robust"}, "keep_best_by does not go with frl=logit_bias"),
    ({"dataset__validation_fraction": 0}, "frl=logit_bias is fitted on validation images"),
    ({"recipe": "scratch", "trainer__num_epochs": 0}, "trainer.num_epochs=0 trains nothing"),
    ({"frl": "finetune", "retrain__trainer__num_epochs": 0}, "retrain.trainer.num_epochs=0 trains nothing"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        parse(composed(**{"frl": "logit_bias", **changes}), RunConfig)


# --- the fit of the bias --------------------------------------------------------------------------------------------


def smallest_worst_error(logits, y):
    """Every bias of three classes that makes another choice somewhere, tried one by one."""
    L = logits.double()
    smallest = 2.0

    def between(values):
        values = values.sort().values
        return torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])

    for second in between(L[:, 0] - L[:, 1]):
        third = between(torch.cat([L[:, 0] - L[:, 2], L[:, 1] + second - L[:, 2]]))
        bias = torch.stack([torch.zeros_like(third), second.expand_as(third), third], 1)
        wrong = (L + bias.unsqueeze(1)).argmax(-1) != y
        errors = torch.stack([wrong[:, y == c].double().mean(1) for c in range(3)], 1)
        smallest = min(smallest, float(errors.amax(1).min()))
    return smallest


def logits_of(seed, num_classes=3, per_class=20):
    """Logits of which some classes are far easier than others."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(num_classes * per_class) % num_classes
    logits = 2 * torch.randn(len(y), num_classes, generator=generator)
    logits[torch.arange(len(y)), y] += torch.linspace(0, 3, num_classes)[y]
    return logits + 0.3 * seed * torch.eye(num_classes)[-1], y


@pytest.mark.parametrize("seed", range(5))
def test_the_bias_is_as_good_as_any_other_of_three_classes(seed):
    logits, y = logits_of(seed)
    bias = fitted_bias(logits, y, num_rounds=500)
    best = smallest_worst_error(logits, y)
    found = float(class_errors(logits.double() + bias, y).max())
    assert found <= best + 1 / 20 + 1e-9  # at most one image of a class more
    assert found < float(class_errors(logits, y).max()) - 0.2  # visibly better than without
    assert float(bias.sum()) == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 1000), st.integers(2, 6))
def test_the_worst_class_never_gets_worse_and_relabelling_permutes(seed, num_classes):
    logits, y = logits_of(seed % 7, num_classes, per_class=6)
    bias = fitted_bias(logits, y, num_rounds=50)
    assert class_errors(logits.double() + bias, y).max() <= class_errors(logits, y).max()
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
    permuted = fitted_bias(logits[:, order], order.argsort()[y], num_rounds=50)
    torch.testing.assert_close(permuted, bias[order])


def test_equal_classes_and_absent_ones_need_no_bias():
    logits = torch.eye(3).repeat(4, 1)
    assert fitted_bias(logits, torch.arange(12) % 3, num_rounds=10).tolist() == [0, 0, 0]
    y = torch.tensor([0, 0, 1, 1])
    assert class_errors(logits[:4], y).tolist() == [0.5, 1.0, 0.0]
    assert torch.isfinite(fitted_bias(logits[:4], y, num_rounds=10)).all()


def test_a_run_that_was_killed_before_its_change_ends_with_the_same_bytes(tmp_path, monkeypatch):
    straight = experiment.run(settings_of(tmp_path / "straight", "logit_bias"))
    config = settings_of(tmp_path / "killed", "logit_bias", base_dir=str(tmp_path / "straight" / "bases"))
    kind = method_class("logit_bias")

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kind, "finish", kill)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config)
    folder = experiment.run(config)
    assert same_weights(straight, folder)
    for name in ("classwise.csv", "history.csv", "policy.csv"):
        assert (straight / name).read_bytes() == (folder / name).read_bytes()


def test_side_by_side_each_model_gets_its_own_change(tmp_path):
    configs = [settings_of(tmp_path / "together", "head_norm", seed=seed, **NONE) for seed in (0, 1)]
    configs += [settings_of(tmp_path / "together", "head_norm", seed=seed) for seed in (0, 1)]
    for folder, config in zip(experiment.run_all(configs), configs, strict=True):
        weights = load_file(folder / "model.safetensors")
        torch.testing.assert_close(weights["fc2.weight"].norm(dim=1), torch.ones(3))
        assert config.last_epoch in set(read_classwise([folder / "classwise.csv"])["epoch"])
    one, other = (load_file(config.folder / "model.safetensors") for config in configs[2:])
    assert not torch.equal(one["fc2.weight"], other["fc2.weight"])
