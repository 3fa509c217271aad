"""Retraining end to end on tiny data: warm start, policy tables, resume; the policy never sees the test split."""

import csv
import dataclasses
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import set_up_logging
from frl_repro.data import Split, stratified_order
from frl_repro.evaluation.class_errors import ClassErrors
from frl_repro.models import build_model
from frl_repro.models.compute.backends import TORCH
from frl_repro.results.tables import reading
from frl_repro.results.tables.outcomes import read_outcomes
from frl_repro.runs import experiment
from frl_repro.training import build, steering
from support import METHODS, WARM, contents, same_weights, tiny_retraining


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A store that all tests share: the base model is trained once, on one thread as everywhere here."""
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bases):
    torch.set_num_threads(1)
    return experiment.run(tiny_retraining(tmp_path_factory.mktemp("straight"), base_dir=str(bases)))


@pytest.mark.parametrize(
    ("key", "number", "message"),
    [
        ("evaluation__num_validation", 2, "too few for one image of each class"),
        ("frl__num_validation", 5, "too few for images of each class; at least 6 are needed"),
    ],
)
def test_validation_images_that_the_data_cannot_give_are_refused_before_the_base_is_trained(
    key, number, message, tmp_path
):
    with pytest.raises(UserError, match=rf"{key.replace('__', '.')}={number}: {message}"):
        experiment.run(tiny_retraining(tmp_path, **{key: number}))
    assert list(tmp_path.iterdir()) == []


def test_of_fewer_validation_images_than_asked_for_the_policy_takes_all_and_a_line_says_so(tmp_path, bases, capsys):
    """The published number is an upper limit: data of one's own need not have so many."""
    set_up_logging()
    asked, every = (
        experiment.run(tiny_retraining(tmp_path / str(number), base_dir=str(bases), frl__num_validation=number))
        for number in (2100, None)
    )
    out = capsys.readouterr().out
    assert out.count("frl.num_validation=2100: there are 30 images, all of them are taken\n") == 1
    weights, others = (load_file(folder / "model.safetensors") for folder in (asked, every))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.parametrize("counts", [(3, 40, 90), (20, 20, 20, 20), (7, 100)])
def test_every_sample_of_the_least_number_of_validation_images_has_each_class(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    validation = Split(images=torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels=labels)
    config = tiny_retraining("unused")
    enough = next(n for n in range(1, len(labels) + 1) if is_enough(config, n, validation))
    order = stratified_order(labels, streams.generator(0, "test"))
    for first in range(len(labels)):
        chosen = order[torch.arange(first, first + enough) % len(labels)]
        assert set(labels[chosen].tolist()) == set(range(len(counts)))


def is_enough(config, number, validation):
    config = dataclasses.replace(config, frl=dataclasses.replace(config.frl, num_validation=number))
    try:
        return build.num_steering_images(config, validation) == number
    except UserError:
        return False


@pytest.mark.parametrize(("frl", "recipe"), METHODS)
def test_every_method_of_every_recipe_trains_and_writes_its_tables(frl, recipe, tmp_path, bases):
    folder = experiment.run(tiny_retraining(tmp_path, frl, recipe, base_dir=str(bases)))
    table = reading.read_classwise(folder / "classwise.csv")
    assert set(table["method"]) == {frl}
    assert set(table["recipe"]) == {recipe}
    assert set(table.loc[table["split"] == "test", "epoch"]) == {0, 2}
    with (folder / "policy.csv").open() as opened:
        policy = list(csv.DictReader(opened))
    assert [(row["epoch"], row["class_id"]) for row in policy] == [(str(e), str(k)) for e in (1, 2) for k in range(3)]
    weights = [float(row["weight_nat"]) for row in policy if row["epoch"] == "2"]
    assert sum(weights) == pytest.approx(3)
    assert (policy[0]["natural_error"] == "") is (frl == "finetune")
    if frl == "reweight" and recipe == "report":
        assert len(set(weights)) > 1


def test_before_is_the_base_model(finished, bases):
    (base,) = [
        path
        for path in bases.iterdir()
        if json.loads((path / "run.json").read_text())["config"]["dataset"]["validation_fraction"]
    ]
    before = reading.read_classwise(finished / "classwise.csv").query("epoch == 0 and split == 'test'")
    recorded = json.loads((finished / "run.json").read_text())
    assert recorded["start"]["file"] == str(base / "model.safetensors")
    own = reading.read_classwise(base / "classwise.csv").query("split == 'test'")
    counts = ["class_id", "num_natural_errors"]
    assert before.query("epsilon < 0.04")[counts].values.tolist() == own.query("epsilon < 0.04")[counts].values.tolist()


def test_a_base_is_trained_once_and_found_again(tmp_path, monkeypatch):
    experiment.run(tiny_retraining(tmp_path))
    (base,) = (tmp_path / "bases").iterdir()
    stamp = (base / "done.json").stat().st_mtime_ns
    experiment.run(tiny_retraining(tmp_path, alpha__nat=3))
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [base.name]
    assert (base / "done.json").stat().st_mtime_ns == stamp
    experiment.run(tiny_retraining(tmp_path, seed=1))
    assert len(list((tmp_path / "bases").iterdir())) == 2


def test_init_from_takes_the_place_of_the_base(finished, bases, tmp_path):
    (base,) = [
        path
        for path in bases.iterdir()
        if json.loads((path / "run.json").read_text())["config"]["dataset"]["validation_fraction"]
    ]
    folder = experiment.run(tiny_retraining(tmp_path, init_from=str(base / "model.safetensors")))
    assert not (tmp_path / "bases").exists()
    assert (folder / "history.csv").read_text().replace(folder.name, "") == (
        finished / "history.csv"
    ).read_text().replace(finished.name, "")
    with pytest.raises(UserError, match=r"init_from=nowhere\.pt: no such file"):
        experiment.run(tiny_retraining(tmp_path, init_from="nowhere.pt"))


def _retrain(folder, announce=None):
    torch.set_num_threads(1)
    if announce is not None:
        announce.send(True)
    experiment.run(tiny_retraining(folder))


def test_parallel_jobs_share_one_base_and_a_killed_one_leaves_no_half_written_entry(finished, tmp_path):
    """Two jobs that need the same base: one is killed while it trains, the other waits and finishes the base."""
    receiver, sender = WARM.Pipe(duplex=False)
    first = WARM.Process(target=_retrain, args=(tmp_path, sender))
    first.start()
    assert receiver.poll(120)
    second = WARM.Process(target=_retrain, args=(tmp_path,))
    second.start()
    first.join(0.5)
    if first.is_alive():
        os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join(120)
    # Where the first got as far as the run itself, the second was right to refuse: once more, alone.
    if second.exitcode != 0:
        _retrain(tmp_path)
    experiment.run(tiny_retraining(tmp_path))
    (base,) = (tmp_path / "bases").iterdir()
    assert (base / "done.json").exists()
    (run,) = [path for path in tmp_path.iterdir() if path.name != "bases"]
    assert contents(run) == contents(finished)


def test_an_interrupted_retraining_continues_to_the_same_bytes(finished, bases, tmp_path, monkeypatch):
    from frl_repro.training import fitting

    save = fitting.checkpoints.save_state

    def save_and_stop(path, state):
        save(path, state)
        raise KeyboardInterrupt

    config = tiny_retraining(tmp_path, base_dir=str(bases))
    with monkeypatch.context() as patched:
        patched.setattr(fitting.checkpoints, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config)
    assert (config.folder / "state.pt").exists()
    experiment.run(config)
    assert contents(config.folder) == contents(finished)


def test_the_policy_never_sees_the_test_split(finished, bases, tmp_path, monkeypatch):
    """Other test labels change the test rows and nothing else: neither weights nor margins nor the trained model."""
    load = experiment.load_dataset

    def load_with_other_test_labels(config):
        dataset = load(config)
        return dataclasses.replace(
            dataset, test=dataclasses.replace(dataset.test, labels=(dataset.test.labels + 1) % 3)
        )

    monkeypatch.setattr(experiment, "load_dataset", load_with_other_test_labels)
    other = experiment.run(tiny_retraining(tmp_path, base_dir=str(bases)))
    for name in ("policy.csv", "history.csv"):
        assert (finished / name).read_bytes() == (other / name).read_bytes(), name
    assert same_weights(finished, other)  # their headers name the data, which differ
    assert (finished / "classwise.csv").read_bytes() != (other / "classwise.csv").read_bytes()


def test_a_policy_steered_by_test_images_is_noticed(finished, bases, tmp_path, monkeypatch):
    """The check above is worth something: hand the test split to the policy and it fails."""
    make = build.ValidationImages
    monkeypatch.setattr(build, "ValidationImages", lambda **kwargs: make(**{**kwargs, "validation": leaked[0]}))
    load = experiment.load_dataset
    leaked = []

    def load_and_leak(config):
        dataset = load(config)
        leaked[:] = [dataset.test]
        return dataset

    monkeypatch.setattr(experiment, "load_dataset", load_and_leak)
    other = experiment.run(tiny_retraining(tmp_path, base_dir=str(bases)))
    assert (finished / "policy.csv").read_bytes() != (other / "policy.csv").read_bytes()


def test_validation_images_are_drawn_anew_for_each_update_and_stratified():
    from frl_repro.data.synthetic import load_synthetic

    split, _ = load_synthetic(num_classes=3, num_train=36, num_test=3, seed=0)
    seen = []

    def measure(model, images, seed):
        seen.append((images, seed))
        return ClassErrors(*torch.ones(3, 3, dtype=torch.int64))

    looked = steering.ValidationImages(
        validation=split, measure=measure, update_every=2, num_images=12, seeds=[0],
    )  # fmt: skip
    looked.begin_epoch([0])
    for step in range(6):
        if looked.is_due(step):
            looked.look([torch.nn.Identity()], step)
    assert len(seen) == 3
    assert len({seed for _, seed in seen}) == 3
    for images, _ in seen:
        assert torch.bincount(images.labels).tolist() == [4, 4, 4]
    used = torch.cat([images.images for images, _ in seen]).flatten(1)
    assert len(torch.unique(used, dim=0)) == len(torch.unique(split.images.flatten(1), dim=0))


@pytest.mark.parametrize(("recipe", "follows"), [("report", True), ("report_code", False)])
def test_every_attacked_sample_stays_within_its_own_classs_margin(recipe, follows, monkeypatch):
    config = tiny_retraining("unused", "remargin", recipe)
    used = {}

    def watch(model, x, y, **settings):
        used.update(settings)
        return pgd(model, x, y, **settings)

    monkeypatch.setattr(build, "pgd", watch)
    model = build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(30, 1, 32, 32, generator=generator), torch.arange(30) % 3
    factors = torch.tensor([0.5, 1.0, 2.0])
    x_adv = build.training_attack(config, TORCH)(model, x, y, factor=factors[y], generator=[generator])
    distance = (x_adv - x).abs().flatten(1).amax(1)
    radius = config.retrain.attack.epsilon * factors[y]
    assert (distance <= radius + 1e-6).all()
    assert (distance > 0.9 * radius).all()  # each uses its own margin
    step = torch.as_tensor(used["step_size"])
    expected = config.retrain.attack.step_size * (factors[y] if follows else torch.ones(()))
    assert torch.equal(step.expand(30), expected.expand(30))


def test_selection_images_are_measured_before_and_after_and_steer_nothing(tmp_path, bases, monkeypatch):
    settings = {"base_dir": str(bases), "dataset__selection_fraction": 0.5, "dataset__num_train": 240}
    first = experiment.run(tiny_retraining(tmp_path / "first", **settings))
    table = reading.read_classwise(first / "classwise.csv")
    assert set(table.loc[table["split"] == "selection", "epoch"]) == {0, 2}
    counts = table.groupby("split")["count"].max()
    assert counts["selection"] == counts["validation"] == 10  # of 60 validation images in 3 classes, half each

    load = experiment.load_dataset

    def load_with_other_selection_labels(config):
        dataset = load(config)
        labels = (dataset.selection.labels + 1) % 3
        return dataclasses.replace(dataset, selection=dataclasses.replace(dataset.selection, labels=labels))

    monkeypatch.setattr(experiment, "load_dataset", load_with_other_selection_labels)
    other = experiment.run(tiny_retraining(tmp_path / "other", **settings))
    for name in ("policy.csv", "history.csv"):
        assert (first / name).read_bytes() == (other / name).read_bytes(), name
    weights, others = (load_file(folder / "model.safetensors") for folder in (first, other))  # headers name the data
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    other_table = reading.read_classwise(other / "classwise.csv")
    differing = table[(table != other_table).any(axis=1) & (table["natural_error"] != other_table["natural_error"])]
    assert set(differing["split"]) == {"selection"}


def test_a_run_keeps_which_test_images_are_wrong(finished):
    table = reading.read_classwise(finished / "classwise.csv").query("split == 'test' and epoch == 2")
    kept = read_outcomes(finished / "outcomes.safetensors")
    assert kept.about["run_id"] == table["run_id"].iloc[0]
    for epsilon, rows in table.groupby("epsilon"):
        (wrong,) = (is_error for radius, is_error in kept.is_robust_error.items() if abs(radius - epsilon) < 1e-6)
        for row in rows.itertuples():
            of_class = kept.labels == row.class_id
            assert of_class.sum() == row.count
            assert kept.is_natural_error[of_class].sum() == row.num_natural_errors
            assert wrong[of_class].sum() == row.num_natural_errors + row.num_boundary_errors
