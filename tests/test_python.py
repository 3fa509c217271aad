"""The front door in Python: `import frl_repro`, on networks and tensors of one's own."""

import ast
import subprocess
import sys
from dataclasses import dataclass

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import frl_repro
from frl_repro import UserError
from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.commands.jobs import configure
from frl_repro.data import load_dataset
from frl_repro.data.given import split_of
from frl_repro.models import LeNet5
from frl_repro.models.compute.backends import TORCH, choose_backend
from frl_repro.runs import experiment
from frl_repro.settings.keys import key
from frl_repro.settings.methods import MethodSettings
from frl_repro.training.frl import Method, Rules, Weights
from frl_repro.training.frl.reweight import Reweight
from frl_repro.training.open_run import new_model
from support import ROOT, contents, same_weights, stopped, tiny_run

K = 3
FAST = {"evaluation": {"num_steps": 2}}
BRIEF = {"attack": {"num_steps": 2}, "trainer": {"num_epochs": 2, "batch_size": 30}, **FAST}
BRIEF_AGAIN = {"retrain": {"attack": {"num_steps": 2}, "trainer": {"num_epochs": 2, "batch_size": 30}}, **FAST}
STEERED = {"frl": {"num_validation": 9, "num_steps": 2, "update_every": 2}}


def images(num, seed=0, levels=True):
    """Images of three classes that differ in brightness, and their labels; ``levels``: of grey levels k / 255."""
    y = torch.arange(num) % K
    x = 0.4 * torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) + 0.2 * y.view(-1, 1, 1, 1)
    return ((255 * x).round() / 255 if levels else x), y


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, K)
        )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def given():
    """What every training here is given: a network in training mode, images to train on and to test on."""
    return network(), images(90), {"test": images(30, seed=1)}


# --- The package ----------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_neither_torch_nor_hydra():
    code = "import sys, frl_repro; print([m for m in ('torch', 'hydra', 'omegaconf', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_documented_and_known_to_type_checkers():
    stub = ast.parse((ROOT / "src" / "frl_repro" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(frl_repro.__all__) <= set(dir(frl_repro))
    assert all(getattr(frl_repro, name).__doc__ for name in frl_repro.__all__)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in frl_repro.__all__ if f"`{name}" not in page] == []
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        _ = frl_repro.evalute


# --- Evaluate -------------------------------------------------------------------------------------------------------


def test_class_errors_are_those_of_a_plain_loop_and_the_model_is_left_as_it_was():
    model, (x, y) = network(), images(30)
    model[3].eval()  # a mode of its own
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, modes, state = weights(model), [m.training for m in model.modules()], torch.get_rng_state()
    df = frl_repro.evaluate(model, (x, y), epsilons=[0.0, 0.1], num_steps=3, step_size=0.05, random_start=False)
    assert same(before, weights(model))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(state, torch.get_rng_state())

    model.eval()
    for epsilon in (0.0, 0.1):
        rows = df[df["epsilon"] == epsilon].set_index("class_id")
        x_adv = pgd(model, x, y, epsilon=epsilon, step_size=0.05, num_steps=3, use_random_start=False)
        for k in range(K):
            clean, attacked = (model(images[y == k]).argmax(1) != k for images in (x, x_adv))
            assert rows.loc[k, "count"] == 10
            assert rows.loc[k, "natural_error"] == pytest.approx(clean.double().mean().item())
            assert rows.loc[k, "boundary_error"] == pytest.approx((attacked & ~clean).double().mean().item())
            assert rows.loc[k, "robust_error"] == pytest.approx((attacked | clean).double().mean().item())
    assert set(df["attack"]) == {"pgd-3-step_0.05-no_random_start"}


class Pictures(Dataset):
    """A data set as torchvision has them."""

    def __init__(self, x, y, classes=("dark", "grey", "light")):
        self.x, self.y, self.classes = x, y, list(classes)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


def test_data_in_every_form_give_the_same_errors():
    model, (x, y) = network(), images(30)
    forms = [
        (x, y), (x.numpy(), y.numpy()), [x.double(), y.to(torch.int32)], ((255 * x).round().to(torch.uint8), y),
        TensorDataset(x, y), Pictures(x, y), Subset(Pictures(x, y), range(30)), DataLoader(TensorDataset(x, y), 7),
    ]  # fmt: skip
    numbers = ["epsilon", "class_id", "natural_error", "robust_error"]
    tables = [frl_repro.evaluate(model, form, epsilons=0.1, num_steps=2)[numbers] for form in forms]
    assert all(table.equals(tables[0]) for table in tables)


def test_images_between_grey_levels_are_taken_as_they_are():
    class Threshold(nn.Module):
        def forward(self, x):
            brightness = x.mean((1, 2, 3))
            return torch.stack([0.5004 - brightness, brightness - 0.5004], 1)

    x = torch.tensor([0.5003, 0.5005]).view(2, 1, 1, 1).expand(2, 1, 2, 2)  # between 127 / 255 and 128 / 255
    df = frl_repro.evaluate(Threshold(), (x, torch.tensor([0, 1])), epsilons=0.0)
    assert df["natural_error"].tolist() == [0, 0]


def test_classes_are_named_by_the_caller_or_by_the_data_set():
    model, (x, y) = network(), images(30)

    def names(data, **given):
        return frl_repro.evaluate(model, data, epsilons=0.0, **given)["class_name"].tolist()

    assert names((x, y)) == ["class 0", "class 1", "class 2"]
    assert names((x, y), class_names=["a", "b", "c"]) == ["a", "b", "c"]
    assert names(DataLoader(Subset(Pictures(x, y), range(30)), 10)) == ["dark", "grey", "light"]
    assert names(Pictures(x, y, classes=["too", "few"])) == ["class 0", "class 1", "class 2"]


def test_defaults_are_those_of_the_runner():
    import inspect

    runners = vars(configure().evaluation)
    own = {name: value.default for name, value in inspect.signature(frl_repro.evaluate).parameters.items()}
    shared = set(runners) & set(own) - {"name"}
    assert {"epsilons", "step_size", "num_steps", "random_start", "batch_size"} <= shared
    assert {name: own[name] for name in shared} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in runners.items() if name in shared
    }


class Pair(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :K], x


X, Y = images(30)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            network(),
            (255 * X, Y),
            r"data: images must lie in \[0, 1\], got pixels from .* divide those of 0..255 by 255",
        ),
        (network(), (X - 0.5, Y), r"data: images must lie in \[0, 1\], got pixels from -0.5"),
        (network(), (X * float("nan"), Y), r"data: images must lie in \[0, 1\], got pixels from nan"),
        (network(), (X.squeeze(1), Y), r"must have shape \(N, C, H, W\), got \(30, 8, 8\): .*unsqueeze"),
        (network(), ((255 * X).long(), Y), "must be floats in .* or uint8 in 0..255, got torch.int64"),
        (network(), (X[:0], Y[:0]), "data: no images"),
        (network(), (X, Y[:20]), r"labels must have shape \(30,\), one for each image, got \(20,\)"),
        (network(), (X, Y.float()), "labels must be whole numbers, the classes' ids, got torch.float32"),
        (network(), (X, Y + 1), "labels must be 0 to 2, got 3$"),
        (network(), (X[Y != 1], Y[Y != 1]), r"no images of class 1 \(class 1\): class errors need at least one each"),
        (network(), X, "give .images, labels., a torch Dataset or a DataLoader of such pairs, not Tensor"),
        (network(), [1, 2, 3], "an item must be a pair .image, label., got int"),
        (network(), Pictures([object()] * 3, Y), "images must be tensors, got object: .* transform"),
        (network(), Pictures([torch.zeros(1, n, 8) for n in (8, 9, 8)], Y[:3]), "images of several shapes"),
        (network(), (torch.rand(6, 3, 8, 8), Y[:6]), r"cannot take float32 images of shape \(3, 8, 8\): RuntimeError"),
        (nn.Conv2d(1, K, 3), (X, Y), r"must return logits of shape \(2, K\) of 2 images, got \(2, 3, 6, 6\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), (X, Y), r"must return logits of shape \(2, K\).*\(2, 1\)"),
        (Pair(), (X, Y), r"Pair\) must return logits of shape \(2, K\) of 2 images, not tuple"),
        (torch.relu, (X, Y), "give a torch.nn.Module, not builtin"),
    ],
)
def test_a_mistake_in_model_or_data_is_one_clear_line(model, data, message):
    with pytest.raises(UserError, match=message) as caught:
        frl_repro.evaluate(model, data, num_steps=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilons": 8}, r"epsilons=\[8.*\]: must lie in \[0, 1\]"),
        ({"epsilons": []}, "evaluation.epsilons must name at least one radius"),
        ({"num_steps": 0}, "num_steps=0: must lie in"),
        ({"num_restarts": 2, "random_start": False}, "needs evaluation.random_start=true"),
        ({"device": "gpu"}, "device=gpu: unknown choice; known: auto, cpu, cuda"),
        ({"backend": "jax"}, "backend=jax: unknown choice"),
        ({"class_names": ["a", "b"]}, "class_names: 2 names for 3 classes"),
        ({"class_names": ["a", "b", "a"]}, "class_names: each class needs a name of its own"),
    ],
)
def test_a_mistake_in_a_setting_is_one_clear_line(settings, message):
    with pytest.raises(UserError, match=message):
        frl_repro.evaluate(network(), (X, Y), **settings)


def test_native_code_that_does_not_know_a_layer_names_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), K), nn.Softplus())
    with pytest.raises(
        UserError, match=r"^backend=native: 2 \(Softplus\): softplus is not among its layers; use backend=auto$"
    ):
        frl_repro.evaluate(model, (X, Y), num_steps=1, backend="native")


def test_a_network_that_is_almost_lenet5_is_not_computed_by_lenet5s_code():
    class Sharper(LeNet5):
        def forward(self, x):
            return 2 * super().forward(x)

    assert choose_backend("auto", Sharper(num_classes=K), torch.device("cpu")) is TORCH


# --- Attack ---------------------------------------------------------------------------------------------------------


def test_attacked_images_are_pgds_stay_in_the_ball_and_repeat():
    model, (x, y) = network(), images(30)
    x_adv = frl_repro.attack(model, x, y, epsilon=0.1, step_size=0.05, num_steps=3, seed=4)
    start = streams.generator(4, "attack")
    assert torch.equal(x_adv, pgd(model, x, y, epsilon=0.1, step_size=0.05, num_steps=3, generator=start))
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert 0.05 < (x_adv - x).abs().max() <= 0.1 + 1e-6
    as_bytes = frl_repro.attack(model, (255 * x).round().byte(), y, epsilon=0.1, step_size=0.05, num_steps=3, seed=4)
    assert torch.equal(as_bytes, x_adv)
    assert model.training


def test_each_image_may_have_a_radius_of_its_own_and_classes_may_be_missing():
    x, y = images(2)
    radius = torch.tensor([0.0, 0.2])
    x_adv = frl_repro.attack(network(), x, y, epsilon=radius, step_size=0.1, num_steps=2)
    assert torch.equal(x_adv[0], x[0])
    assert (x_adv[1] - x[1]).abs().max() > 0.1
    with pytest.raises(UserError, match="attack: labels must be 0 to 2, got 7"):
        frl_repro.attack(network(), x, y + 7)


# --- Train ----------------------------------------------------------------------------------------------------------


def test_training_without_files_leaves_none_repeats_itself_and_leaves_the_given_model(in_tmp, given):
    model, data, more = given
    before, state = weights(model), torch.get_rng_state()
    one = frl_repro.train(model, data, **more, **BRIEF)
    assert same(before, weights(model))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert list(in_tmp.iterdir()) == []
    assert (one.folder, one.policy, len(one.history)) == (None, None, 2)
    assert not one.model.training
    assert not same(before, weights(one.model))

    other = frl_repro.train(model, data, **more, **BRIEF)
    assert same(weights(one.model), weights(other.model))
    pd.testing.assert_frame_equal(one.classwise, other.classwise)
    seeded = frl_repro.train(model, data, **more, **BRIEF, seed=1)
    assert not same(weights(one.model), weights(seeded.model))

    measured = frl_repro.evaluate(one.model, more["test"], num_steps=2)
    test = one.classwise[one.classwise["split"] == "test"].reset_index()
    for column in ("class_name", "epsilon", "natural_error", "robust_error", "attack"):
        assert measured[column].tolist() == test[column].tolist()


def test_it_trains_what_the_runner_trains(tmp_path):
    config = tiny_run(tmp_path / "run", trainer__num_epochs=2)
    experiment.run(config)
    data = load_dataset(config.dataset)
    result = frl_repro.train(
        new_model(config, data),
        (data.train.images, data.train.labels),
        test=(data.test.images, data.test.labels),
        validation=(data.validation.images, data.validation.labels),
        folder=tmp_path / "own",
        trainer={"num_epochs": 2, "batch_size": 30, "ema_decay": 0.9},
        attack={"num_steps": 2},
        evaluation={"num_steps": 2},
        backend="torch",
    )
    assert same_weights(tmp_path / "run", tmp_path / "own")
    assert result.folder == tmp_path / "own"


def test_the_same_call_continues_to_the_same_bytes_and_then_finds_the_finished_run(tmp_path, monkeypatch, given):
    model, data, more = given

    def train(folder):
        return frl_repro.train(model, data, **more, folder=tmp_path / folder, **BRIEF)

    straight = train("straight")
    with stopped(monkeypatch, after=1):
        train("stopped")
    torch.rand(3)  # what others draw in between changes nothing, though the network draws for its dropout
    resumed = train("stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")
    pd.testing.assert_frame_equal(resumed.classwise, straight.classwise)

    monkeypatch.setattr(experiment, "fit", lambda *_, **__: pytest.fail("trained again"))
    found = train("straight")
    assert same(weights(found.model), weights(straight.model))
    pd.testing.assert_frame_equal(found.history, straight.history)


def test_another_model_other_data_or_other_settings_are_refused(tmp_path, monkeypatch, given):
    model, data, more = given
    folder = tmp_path / "run"
    with stopped(monkeypatch, after=1):
        frl_repro.train(model, data, **more, folder=folder, **BRIEF)
    tanh = network()
    tanh[2] = nn.Tanh()
    for other in (network(seed=1), tanh):
        with pytest.raises(UserError, match=r"other the network torch.*Sequential.*: give another folder"):
            frl_repro.train(other, data, **more, folder=folder, **BRIEF)
    with pytest.raises(UserError, match=r"holds a training with other the data .*pixels of train images"):
        frl_repro.train(model, images(90, seed=5), **more, folder=folder, **BRIEF)
    with pytest.raises(UserError, match=r"holds a training with other settings \(seed\): give another folder"):
        frl_repro.train(model, data, **more, folder=folder, **BRIEF, seed=3)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds files that are no run"):
        frl_repro.train(model, data, **more, folder=tmp_path / "notes", **BRIEF)


def test_retraining_starts_from_the_given_model_and_is_measured_before_and_after(given):
    model, data, more = given
    result = frl_repro.train(model, data, **more, method="reweight", alpha={"nat": 5}, **BRIEF_AGAIN, **STEERED)
    test = result.classwise[result.classwise["split"] == "test"]
    before = test[test["epoch"] == 0].reset_index(drop=True)
    measured = frl_repro.evaluate(model, more["test"], num_steps=2)
    assert before["robust_error"].tolist() == measured["robust_error"].tolist()
    assert set(test["epoch"]) == {0, 2}
    assert set(test["alpha_nat"]) == {5.0}
    assert set(result.policy["epoch"]) == {1, 2}
    assert result.policy.groupby("epoch")["weight_nat"].mean().tolist() == pytest.approx([1, 1])
    validation = result.classwise[result.classwise["split"] == "validation"]
    assert (
        validation[validation["epoch"] == 0].drop_duplicates("class_id")["count"].sum() == 18
    )  # 0.2, as the recipe has it

    text = frl_repro.table(result)
    assert "before (epoch 0) and after (epoch 2)" in text
    assert frl_repro.figure("2", result).axes
    assert frl_repro.figure("trajectory", result).axes
    assert frl_repro.figure("tradeoff", result, measured).axes


def test_validation_images_are_a_share_or_those_that_are_given(tmp_path, given):
    model, data, more = given
    held = images(15, seed=7)
    for validation, num in ((0.1, 9), (held, 15)):
        result = frl_repro.train(model, data, **more, validation=validation, **BRIEF)
        rows = result.classwise[result.classwise["split"] == "validation"]
        assert rows.drop_duplicates("class_id")["count"].sum() == num
    with pytest.raises(UserError, match="frl=reweight is steered by validation images"):
        frl_repro.train(model, data, **more, validation=0.0, method="reweight", **BRIEF_AGAIN, **STEERED)
    with pytest.raises(UserError, match=r"validation: images of shape \(1, 9, 9\), those of train have \(1, 8, 8\)"):
        frl_repro.train(model, data, **more, validation=(torch.zeros(3, 1, 9, 9), torch.arange(3)), **BRIEF)


# --- Methods as objects ---------------------------------------------------------------------------------------------


@dataclass
class Settings(MethodSettings):
    strength: float = key("how much more the first class weighs", "[0, inf)", is_per_run=True)


class FirstClass(Method):
    """The first class weighs more; its settings are those of this module."""

    sees_batches = True

    def start(self):
        return {"seen": torch.zeros(self.shape)}

    def see_batch(self, stats, when):  # noqa: ARG002
        self.state["seen"] = self.state["seen"] + stats.num_attacked

    def weigh(self, when):  # noqa: ARG002
        weight = self.ones()
        weight[:, :1] += self.per_run("strength")
        return Weights(weight, weight)

    def columns(self, when):  # noqa: ARG002
        return {"seen": self.state["seen"]}


class Fixed(Method):
    """As `FirstClass`, its strength an attribute."""

    def __init__(self, strength):
        super().__init__(num_runs=1, num_classes=K)
        self.strength = strength

    def weigh(self, when):  # noqa: ARG002
        weight = self.ones()
        weight[:, 0] += self.strength
        return Weights(weight, weight)


def test_a_method_is_a_name_a_class_or_an_object(given):
    model, data, more = given
    more = {**more, **BRIEF_AGAIN}
    by_class = frl_repro.train(model, data, **more, method=FirstClass, frl={"strength": 2})
    by_object = frl_repro.train(model, data, **more, method=Fixed(2.0))
    control = frl_repro.train(model, data, **more, method="finetune")
    assert same(weights(by_class.model), weights(by_object.model))
    assert not same(weights(by_class.model), weights(control.model))
    assert by_class.policy["weight_nat"].tolist()[:K] == [3, 1, 1]
    assert by_class.policy["seen"].astype(float).sum() > 0
    assert "first_class-report-strength2-seed0" in by_class.run_id
    assert set(by_class.classwise["method"]) == {"first_class"}
    other = frl_repro.train(model, data, **more, method=Fixed(3.0))
    assert other.run_id != by_object.run_id
    more = {**given[2], **BRIEF, "recipe": "scratch", "frl": {"strength": 2}}
    from_scratch = frl_repro.train(model, data, **more, method=FirstClass)
    assert "first_class-scratch" in from_scratch.run_id


class Gentle(Reweight):
    """A variant of a method of FRL's family: half of its updates."""

    def update(self, errors):
        before = {name: tensor.clone() for name, tensor in self.state.items()}
        super().update(errors)
        self.state = {name: (tensor + before[name]) / 2 for name, tensor in self.state.items()}


def test_a_variant_of_frls_family_takes_its_settings(given):
    model, data, more = given
    result = frl_repro.train(model, data, **more, method=Gentle, alpha={"nat": 4}, **BRIEF_AGAIN, **STEERED)
    usual = frl_repro.train(model, data, **more, method="reweight", alpha={"nat": 4}, **BRIEF_AGAIN, **STEERED)
    assert set(result.classwise["method"]) == {"gentle"}
    assert set(result.classwise["alpha_nat"]) == {4.0}
    assert not same(weights(result.model), weights(usual.model))
    rules = Rules(alpha={"nat": 1.0, "bndy": 1.0}, tau={"nat": 0.0, "bndy": 0.0})
    with pytest.raises(UserError, match="give the class Gentle: its numbers are alpha=, tau= and frl="):
        frl_repro.train(model, data, **more, method=Gentle(rules, shape=(1, K)))


class Looking(Method):
    Settings = MethodSettings
    sees_validation = "losses"


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("rewieght", {}, "method=rewieght: unknown; known: .*reweight"),
        (FirstClass, {}, "frl.strength is missing"),
        (FirstClass, {"frl": {"strength": -1}}, r"frl.strength=-1: must lie in \[0, inf\)"),
        (FirstClass, {"frl": {"strenght": 1}}, "unknown key frl.strenght; did you mean frl.strength"),
        (Fixed(1.0), {"frl": {"strength": 1}}, "frl has no effect with a method that is an object"),
        (Looking, {}, "Looking looks at validation images: its Settings must derive from .*ValidationSettings"),
        (nn.Linear, {}, "give a method's name, or a subclass or an object of Method, not Linear"),
        (Method(num_runs=1, num_classes=5), {}, "made for 1 runs of 5 classes, needed is one for 1 run of 3"),
        ("reweight", {"trainer": {"num_epochs": 2}}, "trainer.num_epochs= has no effect .* give retrain.trainer"),
        ("none", {"dataset": "svhn"}, "dataset= has no effect in frl_repro.train: give the data themselves"),
        ("none", {"output_dir": "here"}, "output_dir= has no effect .* give folder="),
        ("none", {"trainer": {"num_epoch": 2}}, "unknown key trainer.num_epoch; did you mean trainer.num_epochs"),
        ("none", {"epochs": 2}, "unknown key epochs"),
        ("none", {"alpha": {"nat": 5}}, "alpha.nat"),
        ("none", {"seed": [1, 2]}, "seed"),
    ],
)
def test_a_mistake_in_method_or_settings_is_one_clear_line(given, method, settings, message):
    model, data, more = given
    with pytest.raises(UserError, match=message):
        frl_repro.train(model, data, **more, method=method, **settings)


def test_settings_are_nested_or_dotted_and_choose_groups_by_name(tmp_path, given):
    model, data, more = given
    nested = {"attack": {"name": "fgsm", "epsilon": 8 / 255}, "trainer": {"name": "sgd", "num_epochs": 1}, **FAST}
    dotted = {
        "attack": "fgsm", "attack.epsilon": "8/255", "trainer": "sgd", "trainer.num_epochs": 1,
        "evaluation.num_steps": 2,
    }  # fmt: skip
    one, other = (frl_repro.train(model, data, **more, **settings) for settings in (nested, dotted))
    assert one.run_id == other.run_id
    assert "own-Sequential-fgsm-none" in one.run_id


def test_a_model_without_weights_or_with_shared_ones(given):
    _, data, more = given
    with pytest.raises(UserError, match="has no weights to train"):
        frl_repro.train(nn.Flatten(), data, **more)
    with pytest.raises(UserError, match=r"give a torch.nn.Module, not builtin"):
        frl_repro.train(torch.relu, data, **more)

    class Odd(nn.Linear):
        def get_extra_state(self):
            return "text"

    with pytest.raises(UserError, match="must hold tensors alone, _extra_state is str"):
        frl_repro.train(Odd(2, 3), data, **more)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(64, K)
            self.other = nn.Linear(64, K)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.one(x.flatten(1)) + self.other(x.flatten(1))

    result = frl_repro.train(Shared(), data, **more, **BRIEF)
    assert result.model.one.weight is result.model.other.weight


# --- Tables and figures ---------------------------------------------------------------------------------------------


def test_tables_and_figures_take_what_was_measured(given):
    model, data, more = given
    natural = frl_repro.evaluate(model, more["test"], num_steps=2, method="natural", name="before")
    result = frl_repro.train(model, data, **more, **BRIEF)
    assert frl_repro.table(natural).startswith("before: errors in percent, test split, epoch 0, 30 samples")
    assert frl_repro.figure("1", natural, result).axes
    with pytest.raises(UserError, match="figure '9': unknown; known: 1, 2"):
        frl_repro.figure("9", natural)
    with pytest.raises(UserError, match="give what `evaluate` or `train` has returned"):
        frl_repro.figure("1")
    with pytest.raises(UserError, match="of a training with a method"):
        frl_repro.figure("trajectory", result)


def test_figures_tell_apart_what_a_methods_own_numbers_alone_do(given):
    model, data, more = given
    results = [
        frl_repro.train(model, data, **more, **BRIEF_AGAIN, method="faal", frl={"ball": ball}) for ball in (0.1, 1.0)
    ]
    labels = [label.get_text() for label in frl_repro.figure("settings", *results).axes[0].get_yticklabels()]
    assert any("ball=0.1" in label for label in labels)
    assert any("ball=1" in label and "0.1" not in label for label in labels)
    assert frl_repro.figure("tradeoff", *results).axes
    assert frl_repro.figure("trajectory", results[0]).axes


def test_float_images_keep_their_values_in_a_split():
    x, y = images(30, levels=False)
    assert split_of((x, y), name="data").images.dtype == torch.float32
    assert split_of(images(30), name="data").images.dtype == torch.uint8
    result = frl_repro.train(network(), (x, y), test=(x, y), **BRIEF)
    assert len(result.history) == 2


def test_what_was_recorded_of_a_network_on_a_gpu_serves_no_other_network():
    cuda = torch.device("cuda")  # nothing is computed here
    one, other = (choose_backend("auto", network(), cuda, is_ours=False) for _ in range(2))
    assert one.ascend is not other.ascend
    assert choose_backend("auto", network(), cuda) is choose_backend("auto", network(), cuda)


OWN_NETWORKS = """
import torch, frl_repro
from torch import nn

class Branches(nn.Module):
    def __init__(self, joins):
        super().__init__()
        self.first, self.left, self.right = (nn.Conv2d(a, 4, 3, padding=1) for a in (1, 4, 4))
        self.joins, self.head = joins, nn.LazyLinear(3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.head(self.joins(torch.relu(self.left(x)), self.right(x)).flatten(1))

x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
for joins in (torch.add, lambda a, b: torch.cat((a, b), 1)):
    model = Branches(joins)
    model(x)
    frl_repro.evaluate(model, (x, y), epsilons=[0.1], num_steps=1)
"""


def test_own_networks_say_what_attacks_them():
    done = subprocess.run([sys.executable, "-c", OWN_NETWORKS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "attacks on Branches run on native code\n" in done.stdout
    assert (
        "native code does not know this network, PyTorch takes over: forward (Branches): cat is not among its layers\n"
    ) in done.stdout
