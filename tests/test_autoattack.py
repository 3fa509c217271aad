"""AutoAttack by class and by part: equal to the library's own driver, resumed, restored, kept apart, refused."""

import csv
import dataclasses
import logging
import os
import random
import signal
import sys

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import native_lenet5 as native
from frl_repro.basics.errors import UserError
from frl_repro.commands import cli
from frl_repro.data import Split, batch_to_float, load_dataset, subset
from frl_repro.evaluation import autoattack, measure, measure_autoattack
from frl_repro.evaluation.measure import measure_checkpoint
from frl_repro.models import build_model, checkpoints
from frl_repro.models.compute.backends import TORCH, choose_backend
from frl_repro.models.compute.native import NativeUnavailable
from frl_repro.results.tables import components, reading
from frl_repro.results.tables.outcomes import (
    NATURAL_ERROR,
    NOT_BROKEN,
    are_of_same_images,
    read_outcomes,
    write_outcomes,
)
from frl_repro.results.tables.selection import main_evaluation, select_attack
from frl_repro.settings.config import EvaluateConfig, RunConfig
from frl_repro.settings.parse import parse
from native_lenet5 import NATIVE
from support import ROOT, Other, composed, outcomes_of_three

EPSILON = 0.1


def shortened(ensemble):
    """Give the library's attacks few steps; their code stays what it is."""
    for apgd in (ensemble.apgd, ensemble.apgd_targeted):
        apgd.n_iter, apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = 1, 1, 1, 1  # weak: some is left to the others
    ensemble.fab.n_iter = 6
    ensemble.square.n_queries = 60


@pytest.fixture
def quick(monkeypatch):
    original = pyautoattack.AutoAttack._set_version

    def set_version(self, version="standard"):
        original(self, version)
        shortened(self)

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", set_version)


def direct(predict, x, y, *, names, num_classes, seed=0, epsilon=EPSILON):
    """Return which images the library's own driver breaks with the first 0, 1, ... of its attacks."""
    broken = [predict(x).argmax(1) != y]
    trace = sys.gettrace()  # it takes coverage's away
    try:
        for last in range(1, len(names) + 1):
            ensemble = pyautoattack.AutoAttack(predict, eps=epsilon, seed=seed)
            ensemble.attacks_to_run = list(names[:last])
            num_targets = min(9, num_classes - 1)
            ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = num_targets
            _, predicted = ensemble.run_standard_evaluation(x, y, batch_size=len(x))
            broken.append(predicted != y)
    finally:
        sys.settrace(trace)
    return broken


def small(num_classes, *, num_images=40, seed=0):
    """Return a small network, images and labels, of which most are what it predicts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes), nn.Dropout(0.5)
        )
        x = torch.rand(num_images, 2, 8, 8)
        model(x)  # batch norm's statistics
        model.eval()
        y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % num_classes
    return model, x, y


def forward(model, x):
    return model(x)


def run_batch(model, x, y, *, num_classes, forward=forward, epsilon=EPSILON, seed=0):
    return autoattack.attack_batch(model, x, y, forward=forward, epsilon=epsilon, num_classes=num_classes, seed=seed)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 12])
def test_every_part_breaks_what_it_breaks_in_the_librarys_own_driver(quick, num_classes):
    model, x, y = small(num_classes)
    epsilon = {2: 0.12, 3: 0.08, 4: 0.04, 12: 0.04}[num_classes]
    codes = run_batch(model, x, y, num_classes=num_classes, epsilon=epsilon)
    names = autoattack.components(num_classes)
    assert len(codes.unique()) >= 3  # some stand, some are wrong clean, some are broken
    expected = direct(model, x, y, names=names, num_classes=num_classes, epsilon=epsilon)
    for last, is_broken in enumerate(expected):
        ours = (codes != NOT_BROKEN) & (codes <= NATURAL_ERROR + last)
        assert torch.equal(ours, is_broken), f"after {names[:last]}"


def test_the_parts_depend_on_the_number_of_classes():
    assert autoattack.components(10) == autoattack.components(4) == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert autoattack.components(3) == ("apgd-ce", "apgd-dlr", "fab-t", "square")
    assert autoattack.components(2) == ("apgd-ce", "fab-t", "square")
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        autoattack.components(1)


def test_logits_that_are_not_finite_are_broken_clean_and_attacked(quick, caplog):
    """Sure of class 0 at clean images of even grey levels; NaN at odd ones and wherever an attack leads."""
    caplog.set_level(logging.INFO, "frl_repro")

    class Fragile(nn.Module):
        def forward(self, x):
            level = 255 * x[:, 0, 0, 0]
            is_clean = ((level - level.round()).abs() < 1e-3) & (level.round() % 2 == 0)
            return torch.where(is_clean[:, None], 0 * level[:, None] + torch.tensor([9.0, 0.0, 0.0]), float("nan"))

    images = torch.arange(100, 108, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 1, 4, 4).clone()
    split = Split(images=images, labels=torch.zeros(8, dtype=torch.int64))
    codes = {0.003: np.full(8, autoattack.NOT_ATTACKED, dtype=np.uint8)}
    autoattack.attack_split(
        Fragile(), split, forward=forward, codes=codes, num_classes=3, batch_size=5, seed=0,
        device=torch.device("cpu"), keep=lambda: None,
    )  # fmt: skip
    assert (codes[0.003][1::2] == NATURAL_ERROR).all()
    assert (codes[0.003][::2] > NATURAL_ERROR).all()
    assert "8 of 8 images have logits that are not finite (NaN or infinite), clean or attacked" in caplog.text


@pytest.mark.parametrize(
    ("settings", "scale", "message"),
    [({"epsilon": 8}, 1, r"epsilon=8 must lie in \[0, 1\]"), ({}, 255, r"images must lie in \[0, 1\]")],
)
def test_pixels_of_0_to_255_are_refused(settings, scale, message):
    model, x, y = small(3)
    with pytest.raises(UserError, match=message):
        run_batch(model, scale * x, y, num_classes=3, **settings)


def test_the_seed_and_the_batch_count(quick):
    model, x, y = small(2)
    first, again, seed = (run_batch(model, x, y, num_classes=2, epsilon=0.16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, seed)
    halves = [run_batch(model, x[part], y[part], num_classes=2, epsilon=0.16) for part in (slice(20), slice(20, None))]
    assert not torch.equal(first, torch.cat(halves))


def lenet(num_classes=10, num_images=24):
    model = build_model("lenet5", num_classes=num_classes, image_shape=(1, 32, 32), seed=0).eval()
    x = torch.rand(num_images, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % num_classes
    return model, x, y


@pytest.fixture
def has_native():
    try:
        native.engine()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


def test_native_arithmetic_gives_the_librarys_result_too(quick, has_native):
    model, x, y = lenet()
    epsilon, names = 0.06, autoattack.components(10)
    codes = run_batch(model, x, y, num_classes=10, forward=NATIVE.forward_of_images, epsilon=epsilon)
    expected = direct(
        lambda images: NATIVE.forward_of_images(model, images), x, y, names=names, num_classes=10, epsilon=epsilon
    )
    assert len(codes.unique()) >= 3
    assert torch.equal(codes != NOT_BROKEN, expected[-1])
    on_torch = run_batch(model, x, y, num_classes=10, forward=TORCH.forward_of_images, epsilon=epsilon)
    assert torch.equal(codes, on_torch)


def dlr(logits, y):
    top = logits.sort(dim=1).values
    return -(logits.gather(1, y[:, None])[:, 0] - top[:, -2]) / (top[:, -1] - top[:, -3] + 1e-12)


LOSSES = {
    "cross-entropy": lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
    "difference": lambda logits, y: logits[:, 0] - logits.gather(1, y[:, None])[:, 0],
    "dlr": dlr,
}


@pytest.mark.parametrize("name", LOSSES)
def test_native_gradients_of_images_are_those_of_torch(has_native, name):
    model, x, y = lenet()
    logits = model(x).detach().requires_grad_()
    (given,) = torch.autograd.grad(LOSSES[name](logits, y).sum(), logits)
    gradients = []
    for backend in (NATIVE, TORCH):
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(backend.forward_of_images(model, images), images, given)
        gradients.append(gradient)
    # Rounding is relative to the largest entries; small ones are differences of many products.
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-6 * float(gradients[1].abs().max()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_native_gradients_of_other_losses_are_refused(has_native):
    model, x, _ = lenet()
    with pytest.raises(ValueError, match="do not change when all logits of an image do"):
        NATIVE.forward_of_images(model, x.requires_grad_()).sum().backward()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(quick, fails):
    model, x, y = small(4)
    model.train()
    model[0].eval()
    model[4].bias.requires_grad_(False)
    F.cross_entropy(model(x), y).backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.is_grad_enabled()
    calls = []

    def forward(model, images):
        calls.append(len(images))
        if fails and len(calls) == 5:
            raise RuntimeError("out of memory")
        random.random(), np.random.random()
        return model(images)

    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            run_batch(model, x, y, num_classes=4, forward=forward)
    else:
        run_batch(model, x, y, num_classes=4, forward=forward)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert (random.getstate(), torch.is_grad_enabled()) == states[2:]
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, True, False]
    for one, other in zip(gradients, model.parameters(), strict=True):
        assert (one is None and other.grad is None) or torch.equal(one, other.grad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert logging.getLogger("auto-attack").filters == []


def test_vanished_gradients_are_said_in_one_line(quick, caplog):
    _, x, y = small(4)
    images = x[y == y[0]]
    constant = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    with torch.no_grad():
        constant[1].weight.zero_()
        constant[1].bias.copy_(F.one_hot(y[0], 4) * 3.0 + torch.arange(4) / 10)
    with caplog.at_level(logging.INFO, logger="frl_repro"):
        codes = run_batch(constant, images, y[y == y[0]], num_classes=4)
    assert (codes == NOT_BROKEN).all()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "AutoAttack warned 3 times" in line
    assert "points with zero gradient" in line


# --- a measurement, from a checkpoint to files --------------------------------------------------------------------


def settings(folder, **changes):
    values = {
        "checkpoint": str(folder / "model.safetensors"),
        "output_dir": str(folder / "out"),
        "num_examples": 0,
        "top": 10,
        "seed": None,
        "device": "cpu",
        "backend": "torch",
        "num_threads": None,
        "evaluation": "autoattack",
        "dataset": "synthetic",
        "dataset__num_classes": 4,
        "dataset__num_train": 40,
        "dataset__num_test": 40,
        "evaluation__batch_size": 10,
        "evaluation__epsilons": ["8/255", 0.06],
        **changes,
    }
    drawn = composed(**{name: value for name, value in values.items() if name in ("evaluation", "dataset")})
    nodes = {name: drawn[name] for name in ("model", "dataset", "evaluation")}
    nodes["dataset"] |= {"validation_fraction": 0.0}
    for name, value in values.items():
        group, _, key = name.partition("__")
        if key:
            nodes[group][key] = value
        elif name not in ("evaluation", "dataset"):
            nodes[name] = value
    return parse(nodes, EvaluateConfig)


@pytest.fixture
def checkpoint(tmp_path):
    model = build_model("lenet5", num_classes=4, image_shape=(1, 32, 32), seed=0)
    origin = {"run_id": "a-run", "method": "adversarial", "seed": 3, "epoch": 2}
    checkpoints.save_weights(tmp_path / "model.safetensors", model, origin=origin)
    return tmp_path


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("classwise.csv", "autoattack.csv", "outcomes.safetensors")}


def test_a_measurement_says_which_part_broke_which_image(quick, checkpoint):
    config = settings(checkpoint)
    folder = measure_checkpoint(config, command="evaluate.py")
    outcomes = read_outcomes(folder / "outcomes.safetensors")
    assert outcomes.components == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert outcomes.about["attack_seed"] == 3
    assert outcomes.images is None

    test = load_dataset(config.dataset).test
    model = build_model("lenet5", num_classes=4, image_shape=(1, 32, 32), seed=0).eval()
    for epsilon in (8 / 255, 0.06):
        expected = [
            run_batch(model, batch_to_float(x), y, num_classes=4, epsilon=epsilon, seed=3)
            for x, y in zip(test.images.split(10), test.labels.split(10), strict=True)
        ]
        np.testing.assert_array_equal(outcomes.broken_by[epsilon], torch.cat(expected).numpy())

    table = reading.read_classwise(folder / "classwise.csv")
    assert set(table["attack"]) == {"autoattack"}
    assert table["count"].sum() == 2 * 40
    parts = list(csv.DictReader((folder / "autoattack.csv").read_text().splitlines()))
    assert tuple(parts[0]) == components.COMPONENT_COLUMNS
    assert len(parts) == 2 * 4 * 4
    for _, row in table.iterrows():
        of_class = [p for p in parts if int(p["class_id"]) == row["class_id"] and float(p["epsilon"]) == row["epsilon"]]
        assert sum(int(p["num_broken"]) for p in of_class) == row["num_boundary_errors"]
        standing = row["count"] - row["num_natural_errors"]
        for part in of_class:
            assert int(part["num_attacked"]) == standing
            standing -= int(part["num_broken"])
    run = reading.read_json(folder / "run.json")
    assert run["versions"]["pyautoattack"].startswith("0.2")
    assert run["config"]["evaluation"]["batch_size"] == 10


def test_nothing_of_other_images_is_taken_up(quick, checkpoint, monkeypatch, caplog):
    """Same settings and labels, other pixels: as after pictures were swapped."""
    caplog.set_level("INFO", "frl_repro")
    changes = {"dataset__num_test": 12, "evaluation__epsilons": ["8/255"]}
    config = settings(checkpoint, **changes)
    folder = measure_checkpoint(config)
    found = read_outcomes(folder / "outcomes.safetensors")
    first = files(folder)
    measure_checkpoint(config)
    assert files(folder) == first

    def load_with_images_of_other_classes(config):
        dataset = load_dataset(config)
        images = dataset.test.images.roll(1, 0)
        return dataclasses.replace(dataset, test=Split(images=images, labels=dataset.test.labels))

    with monkeypatch.context() as patched:
        patched.setattr(measure, "load_dataset", load_with_images_of_other_classes)
        assert measure_checkpoint(config) == folder
        fresh = measure_checkpoint(settings(checkpoint, **changes, output_dir=str(checkpoint / "fresh")))
    assert "was measured before a change of the data (pixels of test images): measured anew" in caplog.text
    measured = read_outcomes(folder / "outcomes.safetensors")
    assert not are_of_same_images(found, measured)
    assert not np.array_equal(found.broken_by[8 / 255], measured.broken_by[8 / 255])
    assert files(folder) == files(fresh)
    (folder / "run.json").unlink()  # killed between files: the outcomes themselves say what they are of
    measure_checkpoint(config)
    assert files(folder) == first


def measured_until_killed(folder):
    """Measure in a process that is killed once outcomes have been written three times."""
    original = pyautoattack.AutoAttack._set_version

    def quick(self, version="standard"):
        original(self, version)
        shortened(self)

    pyautoattack.AutoAttack._set_version = quick
    kept, write = [], measure_autoattack.write_outcomes

    def kill_at_the_third(path, outcomes):
        write(path, outcomes)
        kept.append(path)
        if len(kept) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    measure_autoattack.write_outcomes = kill_at_the_third
    measure_checkpoint(settings(folder), command="evaluate.py")


def test_a_killed_measurement_continues_and_ends_with_the_same_bytes(quick, checkpoint, monkeypatch):
    straight = files(measure_checkpoint(settings(checkpoint, output_dir=str(checkpoint / "straight"))))
    killed = Other(measured_until_killed, checkpoint).end()
    assert killed.returncode == -9, killed.stderr
    (folder,) = (checkpoint / "out").iterdir()
    assert [path.name for path in folder.iterdir()] == [measure_autoattack.PARTIAL_FILE]

    attacked = []
    original = autoattack.attack_batch
    monkeypatch.setattr(
        autoattack, "attack_batch", lambda *args, **kwargs: attacked.append(args) or original(*args, **kwargs)
    )
    assert measure_checkpoint(settings(checkpoint)) == folder
    assert len(attacked) == 8 - 3  # two radii, four batches each
    assert files(folder) == straight
    assert not (folder / measure_autoattack.PARTIAL_FILE).exists()
    assert reading.read_json(folder / "run.json")["wall_seconds"] > 0

    # Finished: nothing is attacked again, no file is touched; other weights at the same place are.
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    measure_checkpoint(settings(checkpoint))
    assert len(attacked) == 5
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    model = build_model("lenet5", num_classes=4, image_shape=(1, 32, 32), seed=1)
    checkpoints.save_weights(
        checkpoint / "model.safetensors",
        model,
        origin={"run_id": "a-run", "method": "adversarial", "seed": 3, "epoch": 2},
    )
    measure_checkpoint(settings(checkpoint))
    assert len(attacked) == 5 + 8
    assert files(folder) != straight


def test_part_of_the_images_is_named_stratified_and_the_same_for_every_model(quick, checkpoint):
    config = settings(checkpoint, evaluation__num_images=20, evaluation__epsilons=[0.06])
    outcomes = read_outcomes(measure_checkpoint(config) / "outcomes.safetensors")
    test = load_dataset(config.dataset).test
    np.testing.assert_array_equal(outcomes.images, subset(test.labels, 20, 0).numpy())
    np.testing.assert_array_equal(outcomes.labels, test.labels.numpy()[outcomes.images])
    assert np.bincount(outcomes.labels).tolist() == [5, 5, 5, 5]
    other = read_outcomes(
        measure_checkpoint(settings(checkpoint, evaluation__num_images=20, evaluation__epsilons=[0.06], seed=9))
        / "outcomes.safetensors"
    )
    np.testing.assert_array_equal(other.images, outcomes.images)
    names = {
        measure_autoattack.autoattack_name(settings(checkpoint, **changes).evaluation)
        for changes in (
            {},
            {"evaluation__num_images": 20},
            {"evaluation__num_images": 20, "evaluation__subset_seed": 1},
            {"evaluation__num_images": 20, "evaluation__num_components": 2},
        )
    }
    assert names == {
        "autoattack",
        "autoattack-20_images",
        "autoattack-20_images-subset_1",
        "autoattack-first_2-20_images",
    }
    assert outcomes.about["attack"] == "autoattack-20_images"


def test_whole_classes_are_taken_beside_the_subset_and_parts_of_the_attack_alone_run(quick, checkpoint):
    changes = {"evaluation__num_images": 8, "evaluation__whole_classes": [1], "evaluation__num_components": 2}
    folder = measure_checkpoint(settings(checkpoint, **changes))
    part, (first, second) = (read_outcomes(folder / "outcomes.safetensors"), ("apgd-ce", "apgd-t"))
    assert part.components == (first, second)
    assert part.about["attack"] == "autoattack-first_2-8_images-whole_classes"
    whole = read_outcomes(measure_checkpoint(settings(checkpoint)) / "outcomes.safetensors")
    assert np.bincount(part.labels).tolist() == [2, 10, 2, 2]
    assert (part.images[part.labels == 1] == np.flatnonzero(whole.labels == 1)).all()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_are_measured(quick, tmp_path, num_classes):
    model = build_model("lenet5", num_classes=num_classes, image_shape=(1, 32, 32), seed=0)
    checkpoints.save_weights(tmp_path / "model.safetensors", model, origin={"run_id": "few", "seed": 0, "epoch": 1})
    config = settings(tmp_path, dataset__num_classes=num_classes, dataset__num_test=30, evaluation__epsilons=[0.06])
    outcomes = read_outcomes(measure_checkpoint(config) / "outcomes.safetensors")
    assert outcomes.components == autoattack.components(num_classes)
    assert outcomes.broken_by[0.06].max() < 2 + len(outcomes.components)


def test_the_hash_knows_every_setting(checkpoint):
    base = settings(checkpoint, evaluation__num_images=20)
    changes = {"batch_size": 17, "num_images": 21, "subset_seed": 1, "epsilons": [0.1]}
    hashes = {
        settings(checkpoint, **{"evaluation__num_images": 20, f"evaluation__{n}": v}).hash for n, v in changes.items()
    }
    assert len(hashes | {base.hash}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation__num_images": 41}, r"evaluation\.num_images=41: 41 images asked for, but there are 40"),
        ({"evaluation__num_images": 3}, r"evaluation\.num_images=3: 3 images leave 1 of 4 classes without an image"),
        ({"evaluation__num_images": 0}, r"evaluation\.num_images=0: must lie in \[1, 2\^31\)"),
        ({"evaluation__epsilons": [0]}, r"evaluation\.epsilons=\[0\]: must lie in \(0, 1\]"),
        ({"evaluation__epsilons": []}, "at least one radius"),
        ({"evaluation__subset_seed": 1}, r"subset_seed has no effect with evaluation\.num_images=null"),
        ({"evaluation__whole_classes": [1]}, r"whole_classes has no effect with evaluation\.num_images=null"),
        ({"evaluation__num_images": 20, "evaluation__whole_classes": [4]}, "4 is no class, they are 0 to 3"),
        ({"evaluation__batch_size": 0}, r"evaluation\.batch_size=0: must lie in \[1, 2\^31\)"),
        ({"num_examples": 2}, "num_examples has no effect with evaluation=autoattack"),
    ],
)
def test_mistakes_are_named(checkpoint, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        measure_checkpoint(settings(checkpoint, **changes))
    assert "\n" not in str(caught.value)


def call(monkeypatch, capsys, *arguments, main):
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    code = main()
    return code, capsys.readouterr().err


def test_training_refuses_it_in_one_line(monkeypatch, capsys, in_tmp):
    with pytest.raises(UserError, match="evaluation=autoattack measures finished models"):
        parse(composed(evaluation="autoattack"), RunConfig)
    code, text = call(monkeypatch, capsys, "evaluation=autoattack", main=cli.main)
    assert code == 1
    assert text.count("\n") == 1
    assert "python scripts/evaluate.py evaluation=autoattack checkpoint=" in text
    code, text = call(monkeypatch, capsys, "evaluation.num_images=5", main=cli.main)
    assert (code, text.count("\n")) == (1, 1)
    assert "unknown key evaluation.num_images" in text
    assert list(in_tmp.iterdir()) == []


def test_options_of_the_other_attack_are_refused(monkeypatch, capsys, in_tmp):
    for arguments, message in (
        (("evaluation=autoattack", "evaluation.num_steps=5"), "it belongs to evaluation=pgd"),
        (("evaluation.num_images=5",), "it belongs to evaluation=autoattack"),
    ):
        code, text = call(monkeypatch, capsys, "checkpoint=x", *arguments, main=cli.evaluate_main)
        assert (code, text.count("\n")) == (1, 1)
        assert message in text


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setattr("frl_repro.evaluation.measure.load_dataset", lambda _: pytest.fail("data were read"))
    with pytest.raises(UserError, match=r"needs the package pyautoattack.*pip install -e '\.\[autoattack\]'") as caught:
        measure_checkpoint(settings(checkpoint))
    assert "\n" not in str(caught.value)


# --- tables and files ---------------------------------------------------------------------------------------------


def test_outcomes_keep_parts_and_images_and_old_files_have_none(tmp_path):
    ours = outcomes_of_three()
    write_outcomes(tmp_path / "new", ours)
    read = read_outcomes(tmp_path / "new")
    assert (read.components, read.about) == (ours.components, ours.about)
    np.testing.assert_array_equal(read.broken_by[0.1], ours.broken_by[0.1])
    np.testing.assert_array_equal(read.images, ours.images)
    old = read_outcomes(ROOT / "outputs/reference/models/base/seed0.outcomes.safetensors")
    assert (old.components, old.broken_by, old.images) == ((), {}, None)
    assert len(old.is_robust_error) == 2


def test_the_tables_count_by_hand():
    names = ["Shirt", "Bag", "Coat"]
    rows = components.component_rows(outcomes_of_three(), {"attack": "autoattack"}, names)
    counts = [(r["component"], r["class_name"], r["count"], r["num_attacked"], r["num_broken"]) for r in rows]
    assert counts == [
        ("apgd-ce", "Shirt", 2, 1, 0), ("apgd-ce", "Bag", 2, 2, 1), ("apgd-ce", "Coat", 2, 2, 1),
        ("square", "Shirt", 2, 1, 0), ("square", "Bag", 2, 1, 1), ("square", "Coat", 2, 1, 0),
    ]  # fmt: skip


def test_tables_of_autoattack_beside_others_do_not_disturb():
    import pandas as pd

    table = pd.DataFrame(
        {
            "attack": ["pgd-20", "autoattack-1000_images", "pgd-20"],
            "epsilon": [0.1, 0.3, 0.2],
            "method": "natural",
            "run_id": "a",
        }
    )
    assert set(select_attack(table, None)["attack"]) == {"pgd-20"}
    assert main_evaluation(table, epsilon=None, attack=None)[0] == 0.2
    assert main_evaluation(table, epsilon=None, attack="autoattack-1000_images")[0] == 0.3
    only = table[table["attack"] != "pgd-20"]
    assert len(select_attack(only, None)) == 1
    assert len(select_attack(table, "autoattack-1000_images")) == 1
    with pytest.raises(UserError, match="several attacks, pgd-20, pgd-50"):
        select_attack(pd.DataFrame({"attack": ["pgd-20", "pgd-50", "autoattack"]}), None)


def direct_on_published(outcomes, checkpoint, test, epsilon):
    """Return how many images the library's own driver judges differently, on the same images and batches."""
    model = build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0).eval()
    checkpoints.load_weights(checkpoint, model)
    backend = choose_backend(outcomes.about["backend"], model, torch.device("cpu"), image_shape=(1, 32, 32))
    split: Split = test.select(torch.from_numpy(outcomes.images))
    num_differing, size = 0, outcomes.about["batch_size"]
    for first in range(0, len(split), size):
        batch = slice(first, first + size)
        x, y = batch_to_float(split.images[batch]), split.labels[batch]
        ensemble = pyautoattack.AutoAttack(
            lambda images: backend.forward_of_images(model, images), eps=epsilon, seed=outcomes.about["attack_seed"]
        )
        _, predicted = ensemble.run_standard_evaluation(x, y, batch_size=len(x))
        num_differing += int(((predicted != y).numpy() != outcomes.is_robust_error[epsilon][batch]).sum())
    return num_differing


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["adversarial", "combined"])
def test_published_outcomes_are_those_of_the_librarys_own_driver(name):
    reference = ROOT / "outputs/reference"
    outcomes = read_outcomes(reference / "autoattack" / name / "outcomes.safetensors")
    choices = composed(evaluation="autoattack")
    config = parse(
        {
            **{group: choices[group] for group in ("model", "dataset", "evaluation")},
            **{"checkpoint": "x", "output_dir": "x", "num_examples": 0, "seed": None, "top": 10},
            **{"device": "cpu", "backend": "auto", "num_threads": None},
        },
        EvaluateConfig,
    )
    test = load_dataset(config.dataset).test
    for epsilon in outcomes.broken_by:
        assert direct_on_published(outcomes, reference / "models" / name / "seed0.safetensors", test, epsilon) == 0
