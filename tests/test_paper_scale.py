"""Training at the paper's scale: schedules, accumulation, batch norm, best checkpoints, precision, compiling."""

import csv
import dataclasses
import json

import pytest
import torch
from torch import nn

from frl_repro import models
from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.data.synthetic import load_synthetic
from frl_repro.models.compute import speed
from frl_repro.models.compute.backends import TORCH
from frl_repro.models.origin import read_origin
from frl_repro.results.tables import reading, subsets, variants, writing
from frl_repro.results.tables.best import validation_errors
from frl_repro.runs import experiment
from frl_repro.settings.config import RunConfig
from frl_repro.settings.keys import IN_EVERY_HASH, about
from frl_repro.settings.parse import parse
from frl_repro.settings.schema import GROUPS, RetrainConfig
from frl_repro.training import build, fitting, objectives, open_run
from frl_repro.training.trainer import one_cycle_learning_rate, train_epoch
from support import composed, contents, same_weights


class SmallBatchNorm(nn.Module):
    """A convolutional network with batch norm, small enough for tests."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=4, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(autouse=True)
def batch_norm(monkeypatch):
    """Stands in for the network of the configuration: what is tested here holds for any with batch norm."""
    torch.set_num_threads(1)
    monkeypatch.setitem(models.MODELS, "lenet5", lambda num_classes, shape: SmallBatchNorm(num_classes, shape[0]))


def tiny(folder, **changes):
    settings = {
        "dataset": "synthetic",
        "dataset__num_classes": 3,
        "dataset__num_train": 120,
        "dataset__num_test": 45,
        "dataset__validation_fraction": 0.25,
        "trainer": "sgd_one_cycle",
        "trainer__num_epochs": 3,
        "trainer__batch_size": 30,
        "attack__num_steps": 2,
        "attack__fraction": 1,
        "evaluation__num_steps": 2,
        "output_dir": str(folder),
        "backend": "torch",
        **changes,
    }
    return parse(composed(**settings), RunConfig)


# --- schedules ------------------------------------------------------------------------------------------------------


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing():
    rates = [one_cycle_learning_rate(s, num_steps=99, peak=0.2, warmup_share=0.3) for s in range(99)]
    assert rates[29] == pytest.approx(0.2)  # 30 of 100 parts
    assert rates[:30] == pytest.approx([0.2 * (s + 1) / 30 for s in range(30)])
    assert rates[29:] == pytest.approx([0.2 * (100 - s - 1) / 70 for s in range(29, 99)])
    assert min(rates) > 0


def test_the_learning_rate_of_a_step_does_not_depend_on_where_training_continues(tmp_path):
    trainer = tiny(tmp_path).trainer
    by_epoch = [build.learning_rate(trainer, epoch, step=step, num_steps=4) for epoch in range(3) for step in range(4)]
    straight = [
        one_cycle_learning_rate(s, num_steps=12, peak=trainer.learning_rate, warmup_share=trainer.warmup_share)
        for s in range(12)
    ]
    assert by_epoch == straight
    multistep = tiny(tmp_path, trainer="sgd", trainer__lr_milestones=[1, 2], trainer__lr_decay_factor=0.1).trainer
    rates = [build.learning_rate(multistep, epoch, step=3, num_steps=4) for epoch in range(3)]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5])


def test_every_step_takes_its_own_learning_rate(tmp_path, monkeypatch):
    taken = []
    step = torch.optim.SGD.step

    def note(self, *arguments):
        taken.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    config = tiny(tmp_path)
    folder = experiment.run(config)
    expected = [build.learning_rate(config.trainer, e, step=s, num_steps=3) for e in range(3) for s in range(3)]
    assert taken == expected
    with (folder / "history.csv").open() as opened:
        assert [float(row["learning_rate"]) for row in csv.DictReader(opened)] == expected[::3]


# --- accumulation and batch norm ------------------------------------------------------------------------------------


NATURAL = objectives.Mixed(0)


def epoch(model, *, num_accumulation=1, objective=NATURAL, attack=None, batch_size=30, num_train=120):
    train, _ = load_synthetic(num_classes=3, num_train=num_train, num_test=3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    (summary,) = train_epoch(
        model,
        train,
        update=optimizer.step,
        objective=objective,
        attack=attack,
        forward=TORCH.forward,
        batch_size=batch_size,
        num_accumulation=num_accumulation,
        order_generators=[streams.generator(0, "order")],
        attack_generators=[streams.generator(0, "training attack")],
    )
    return summary


def without_batch_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("num_accumulation", [2, 4, 30])
def test_a_batch_computed_in_parts_takes_the_step_of_the_whole(num_accumulation):
    """Also where the last batch is smaller and its parts are not of one size."""
    whole, parts = without_batch_norm(), without_batch_norm()
    once = epoch(whole, num_train=113)
    accumulated = epoch(parts, num_train=113, num_accumulation=num_accumulation)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert accumulated.num_steps == once.num_steps
    assert accumulated.clean_error == once.clean_error
    assert accumulated.train_loss == pytest.approx(once.train_loss, rel=1e-6)


def test_batch_norm_sees_clean_and_attacked_images_apart(tmp_path, monkeypatch):
    """As TRADES' authors do: two passes, the running statistics follow both."""
    sizes = []

    def note(_module, inputs):
        if torch.is_grad_enabled() and _module.training:
            sizes.append(len(inputs[0]))

    config = tiny(tmp_path, attack="trades", attack__beta=6, trainer__num_epochs=1)
    monkeypatch.setitem(
        models.MODELS,
        "lenet5",
        lambda num_classes, shape: with_hook(SmallBatchNorm(num_classes, shape[0]), note),
    )
    folder = experiment.run(config)
    assert sizes == [30] * 6  # 90 images: three steps of two passes
    assert set(reading.read_classwise(folder / "classwise.csv")["method"]) == {"trades"}


def with_hook(model, hook):
    model.register_forward_pre_hook(hook)
    return model


# --- kill and resume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(1,), (1, 2)])
@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__ema_decay": 0.9, "evaluation__keep_best_by": "overall_robust"},
        {"trainer": "sgd", "trainer__lr_milestones": [2], "attack": "trades", "attack__beta": 1},
        {"trainer__precision": "bfloat16", "trainer__num_accumulation": 2},
    ],
    ids=["one-cycle-ema-best", "multistep-trades", "bfloat16-accumulated"],
)
def test_a_killed_training_with_batch_norm_continues_to_the_same_bytes(changes, stops, tmp_path, monkeypatch):
    straight = tiny(tmp_path / "straight", **changes)
    experiment.run(straight)
    killed = tiny(tmp_path / "killed", **changes)
    save = fitting.checkpoints.save_state

    def save_and_stop(path, state):
        save(path, state)
        if state["epoch"] in stops:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting.checkpoints, "save_state", save_and_stop)
        for _ in stops:
            with pytest.raises(KeyboardInterrupt):
                experiment.run(killed)
    state = fitting.checkpoints.load_state(killed.folder / "state.pt")
    assert state["epoch"] == stops[-1]
    assert any("running_mean" in name for name in state["model"])
    experiment.run(killed)
    assert contents(killed.folder) == contents(straight.folder)


def test_a_process_that_dies_between_the_best_weights_and_the_state_repeats_the_epoch(tmp_path, monkeypatch):
    changes = {"evaluation__keep_best_by": "overall_robust"}
    straight, killed = tiny(tmp_path / "straight", **changes), tiny(tmp_path / "killed", **changes)
    experiment.run(straight)

    def stop(path, state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting.checkpoints, "save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(killed)
    assert (killed.folder / "best.safetensors").exists()
    assert not (killed.folder / "state.pt").exists()
    experiment.run(killed)
    assert contents(killed.folder) == contents(straight.folder)


def test_the_running_average_follows_batch_norms_statistics(tmp_path, monkeypatch):
    state = {}
    monkeypatch.setattr(fitting.checkpoints, "save_state", lambda _, given: state.update(given))
    folder = experiment.run(tiny(tmp_path, trainer__ema_decay=0.9, trainer__num_epochs=1))
    name = "layers.1.running_mean"
    own, average = state["model"][name], state["average"][f"module.{name}"]
    assert not torch.equal(own, average)
    assert torch.equal(records_weights(folder)[name], average)


def records_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# --- best checkpoint ------------------------------------------------------------------------------------------------


def rows(split="validation", *, natural=(1, 2), boundary=(1, 4), count=(10, 10), epsilon=0.1):
    return [
        {
            "split": split, "epsilon": epsilon, "count": c, "num_natural_errors": n, "num_boundary_errors": b,
            "robust_error": (n + b) / c,
        }
        for n, b, c in zip(natural, boundary, count, strict=True)
    ]  # fmt: skip


def test_validation_errors_are_those_at_the_first_radius_and_never_of_test_images():
    found = validation_errors([*rows(), *rows(natural=(1, 2), boundary=(9, 8), epsilon=0.2)])
    assert found == {"overall_natural": 0.15, "overall_robust": 0.4, "worst_class_robust": 0.6}
    with pytest.raises(ValueError, match="chosen on the validation split alone"):
        validation_errors(rows("test"))


@pytest.mark.parametrize("criterion", ["overall_robust", "worst_class_robust"])
@pytest.mark.parametrize(("errors", "best"), [((0.4, 0.2, 0.3), 2), ((0.2, 0.2, 0.3), 1), ((0.4, 0.3, 0.2), 3)])
def test_the_best_epoch_has_the_smallest_validation_error_and_both_are_measured(
    criterion, errors, best, tmp_path, monkeypatch
):
    told = iter(errors)
    monkeypatch.setattr(
        fitting,
        "validation_errors",
        lambda _: {"overall_natural": 0.1, "overall_robust": 0.5, "worst_class_robust": 0.5} | {criterion: next(told)},
    )
    kept = {}
    save = fitting.checkpoints.save_state

    def note(path, state):
        save(path, state)
        kept[state["epoch"]] = {name: tensor.clone() for name, tensor in state["model"].items()}

    monkeypatch.setattr(fitting.checkpoints, "save_state", note)
    folder = experiment.run(tiny(tmp_path, evaluation__keep_best_by=criterion))
    from safetensors.torch import load_file

    for name, tensor in load_file(folder / "best.safetensors").items():
        assert torch.equal(tensor, kept[best][name]), name
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, kept[3][name]), name
    table = reading.read_classwise(folder / "classwise.csv")
    test = table[table["split"] == "test"]
    marks = dict(zip(test["epoch"], test["checkpoint"], strict=True))
    assert marks == ({3: "best+last"} if best == 3 else {best: "best", 3: "last"})
    assert set(table.loc[table["split"] == "validation", "checkpoint"]) == {""}
    assert "best.safetensors" in json.loads((folder / "done.json").read_text())["sha256"]
    for which, at in (("last", 3), ("best", best)):
        chosen = subsets.select_last_epoch(subsets.select_checkpoint(table, which))
        assert set(chosen["epoch"]) == {at}
        assert set(chosen["split"]) == {"test", "validation"}


def test_each_kept_checkpoint_measures_as_it_was_written_down(tmp_path):
    config = tiny(tmp_path, evaluation__keep_best_by="overall_robust", trainer__learning_rate=0.5)
    folder = experiment.run(config)
    table = reading.read_classwise(folder / "classwise.csv")
    with (folder / "history.csv").open() as opened:
        history = list(csv.DictReader(opened))
    errors = [float(row["validation_robust_error"]) for row in history]
    best = 1 + errors.index(min(errors))
    of_first = table[(table["epsilon"] < 0.04) & (table["split"] == "validation")].groupby("epoch")
    by_epoch = (of_first["num_natural_errors"].sum() + of_first["num_boundary_errors"].sum()) / of_first["count"].sum()
    assert errors == pytest.approx(by_epoch.tolist())
    marked = table[table["checkpoint"].str.contains("best")]
    assert set(marked["epoch"]) == {best}

    origin = read_origin(folder / "best.safetensors")
    assert (origin["epoch"], origin["checkpoint"]) == (best, "best")


def test_the_best_checkpoint_never_depends_on_test_images(tmp_path, monkeypatch):
    settings = {"evaluation__keep_best_by": "worst_class_robust", "trainer__num_epochs": 4}
    ours = experiment.run(tiny(tmp_path / "a", **settings))
    load = experiment.load_dataset

    def with_other_test_labels(config):
        dataset = load(config)
        labels = (dataset.test.labels + 1) % 3
        return dataclasses.replace(dataset, test=dataclasses.replace(dataset.test, labels=labels))

    monkeypatch.setattr(experiment, "load_dataset", with_other_test_labels)
    other = experiment.run(tiny(tmp_path / "b", **settings))
    assert same_weights(ours, other, "best.safetensors")  # their headers name the data, which differ
    assert (ours / "classwise.csv").read_bytes() != (other / "classwise.csv").read_bytes()


def test_tables_without_a_best_checkpoint_say_so(tmp_path):
    table = reading.read_classwise(experiment.run(tiny(tmp_path, trainer__num_epochs=1)) / "classwise.csv")
    with pytest.raises(UserError, match=r"kept no best checkpoint, as runs with evaluation\.keep_best_by"):
        subsets.select_checkpoint(table, "best")


# --- precision, compiling, channels last ----------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return SmallBatchNorm(3, 1)


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_and_gradients_in_float32():
    model = network()
    computing = speed.for_training(model, precision="bfloat16", is_compiled=False)
    kinds = []
    model.layers[3].register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    x = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = computing(x)
    logits.sum().backward()
    assert kinds == [torch.bfloat16]
    assert logits.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    plain = network()
    exact = speed.for_training(plain, precision="float32", is_compiled=False)(x)
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(logits, exact)
    assert exact.equal(network()(x))


def test_attacks_in_bfloat16_stay_in_the_ball_and_raise_the_loss():
    model = network().eval()
    computing = speed.for_training(model, precision="bfloat16", is_compiled=False)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(16, 1, 32, 32, generator=generator), torch.arange(16) % 3
    x_adv = pgd(computing, x, y, epsilon=0.1, step_size=0.03, num_steps=5, generator=generator)
    assert x_adv.dtype == torch.float32
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert nn.functional.cross_entropy(model(x_adv), y) > nn.functional.cross_entropy(model(x), y)


def test_precision_is_science_and_machine_switches_are_not(tmp_path):
    plain = tiny(tmp_path)
    assert tiny(tmp_path, trainer__precision="bfloat16").hash != plain.hash
    assert tiny(tmp_path, compile=True).hash == plain.hash
    assert tiny(tmp_path, compile=True).shared != plain.shared


def test_training_in_bfloat16_differs_and_is_measured_in_float32(tmp_path, monkeypatch):
    measured = []
    evaluate = open_run.measure

    def note(model, *arguments, **settings):
        measured.append(type(model))
        return evaluate(model, *arguments, **settings)

    monkeypatch.setattr(open_run, "measure", note)
    plain = experiment.run(tiny(tmp_path, trainer__num_epochs=1))
    low = experiment.run(tiny(tmp_path, trainer__num_epochs=1, trainer__precision="bfloat16"))
    assert (plain / "model.safetensors").read_bytes() != (low / "model.safetensors").read_bytes()
    assert set(measured) == {SmallBatchNorm}


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"compile": True}, "compile=true"),
        ({"trainer__precision": "bfloat16"}, "precision=bfloat16"),
    ],
)
def test_native_code_says_what_it_does_not_follow(changes, setting, tmp_path):
    with pytest.raises(UserError, match=f"backend=native does not follow {setting}; use backend=torch"):
        experiment.run(tiny(tmp_path, backend="native", **changes))


def test_without_weight_gradients_leaves_no_trace():
    model = network()
    model.layers[0].weight.requires_grad_(False)
    inside = []

    def fails(model):
        with speed.without_weight_gradients(model):
            inside.extend(p.requires_grad for p in model.parameters())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails(model)
    assert not any(inside)
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * (len(list(model.parameters())) - 1)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own modules
@pytest.mark.parametrize("changes", [{"attack__num_steps": 2}, {"attack": "trades", "attack__beta": 6}])
def test_a_compiled_network_trains_alike(changes, tmp_path):
    settings = {"trainer__num_epochs": 1, "trainer__learning_rate": 0.01, **changes}
    plain = experiment.run(tiny(tmp_path / "a", **settings))
    compiled = experiment.run(tiny(tmp_path / "b", compile=True, **settings))
    for name, tensor in records_weights(plain).items():
        torch.testing.assert_close(records_weights(compiled)[name], tensor, rtol=1e-2, atol=1e-3)


# --- beside runs from before ----------------------------------------------------------------------------------------


def test_tables_take_a_run_from_before_a_key_for_what_it_did(tmp_path):
    """An old seed and a new one of the same settings are one setting; another precision is another."""
    folders = [
        experiment.run(tiny(tmp_path, trainer__num_epochs=1, **changes))
        for changes in ({"seed": 0}, {"seed": 1}, {"seed": 2, "trainer__precision": "bfloat16"})
    ]
    old = json.loads((folders[0] / "run.json").read_text())
    for section in ("trainer", "dataset"):
        for key in variants.BEFORE_THE_KEY:
            old["config"][section].pop(key, None)
    (folders[0] / "run.json").write_text(json.dumps(old))
    files = [folder / "classwise.csv" for folder in folders]
    table = variants.with_variants(reading.read_classwise(files), files)
    assert dict(zip(table["seed"], table["variant"], strict=True)) == {
        0: "precision=float32", 1: "precision=float32", 2: "precision=bfloat16",
    }  # fmt: skip


def test_tables_know_every_key_that_came_later():
    added = {}
    for schemas in [*GROUPS.values(), {"": RetrainConfig}]:
        for schema in schemas.values():
            for item in dataclasses.fields(schema):
                value = about(item).added_as
                if value is not IN_EVERY_HASH and value is not None:
                    added[item.name] = str(value).lower() if isinstance(value, bool) else str(value)
    assert added == variants.BEFORE_THE_KEY


def test_rows_of_a_state_from_before_a_column_are_written_with_an_empty_cell(tmp_path):
    writing.write_table(tmp_path / "t.csv", [{"run_id": "a"}], ["run_id", "alpha_rob", "checkpoint"])
    assert (tmp_path / "t.csv").read_text() == "run_id,alpha_rob,checkpoint\na,,\n"
    with pytest.raises(ValueError, match=r"differ in \['epoch'\]"):
        writing.write_table(tmp_path / "t.csv", [{"run_id": "a"}], ["run_id", "epoch"])


# --- retraining from a row of the same table ------------------------------------------------------------------------


def test_retraining_starts_from_a_finished_run_that_trained_the_same_model_however_measured(tmp_path):
    row = experiment.run(
        tiny(tmp_path, trainer__num_epochs=1, evaluation__epsilons=[0.05], evaluation__keep_best_by="overall_robust")
    )
    method = {"frl": "baseline_reweight", "recipe": "paper", "trainer__num_epochs": 1}
    method |= {"retrain__trainer__num_epochs": 1, "retrain__attack__num_steps": 1, "frl__num_steps": 1}
    folder = experiment.run(tiny(tmp_path, **method))
    assert not (tmp_path / "bases").exists()
    assert json.loads((folder / "run.json").read_text())["start"]["file"] == str(row / "model.safetensors")
    other = experiment.run(tiny(tmp_path, **method, trainer__learning_rate=0.03))
    assert (tmp_path / "bases").exists()
    assert json.loads((other / "run.json").read_text())["start"]["file"] != str(row / "model.safetensors")
