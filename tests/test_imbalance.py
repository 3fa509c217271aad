"""Imbalanced training images: which are kept, of every kind of data set; runs without it stay what they were."""

import json

import pytest
import torch

from frl_repro.basics.errors import UserError
from frl_repro.commands import jobs
from frl_repro.data import load_dataset
from frl_repro.data.dataset import Split
from frl_repro.data.given import dataset_of
from frl_repro.data.splits import imbalanced
from frl_repro.models.origin import read_origin
from frl_repro.runs import experiment
from support import TINY

SMALL = [*TINY, "dataset.num_classes=4", "dataset.num_train=400", "dataset.validation_fraction=0.2"]


def labels_of(*counts, seed=0):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize(("kind", "ratio", "counts", "expected"), [
    ("none", None, (5, 7), (5, 7)),
    ("exponential", 100, (500, 500, 500), (500, 50, 5)),
    ("exponential", 10, (500,) * 5, tuple(round(500 * 10 ** (-c / 4)) for c in range(5))),
    ("exponential", 4, (100, 300), (100, 75)),  # each class a share of its own images
    ("step", 50, (500,) * 4, (500, 500, 10, 10)),
    ("step", 2, (8, 8, 8), (8, 8, 4)),
])  # fmt: skip
def test_counts_are_those_of_the_formula(kind, ratio, counts, expected):
    labels = labels_of(*counts)
    kept = imbalanced(labels, kind, ratio, 3)
    assert torch.bincount(labels[kept]).tolist() == list(expected)
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(kept, imbalanced(labels, kind, ratio, 3))
    if kind != "none":
        assert not torch.equal(kept, imbalanced(labels, kind, ratio, 4))


def test_a_larger_ratio_keeps_a_part_of_what_a_smaller_one_keeps():
    labels = labels_of(200, 200, 200)
    smaller, larger = (set(imbalanced(labels, "exponential", ratio, 0).tolist()) for ratio in (10, 50))
    assert larger < smaller


@pytest.mark.parametrize("kind", ["exponential", "step"])
def test_validation_selection_and_test_images_stay_and_training_images_are_among_those_of_before(kind):
    plain, thin = (
        load_dataset(jobs.configure(*SMALL, "dataset.selection_fraction=0.5", *more).dataset)
        for more in ([], [f"dataset.imbalance={kind}", "dataset.imbalance_ratio=20"])
    )
    for name in ("validation", "selection", "test"):
        assert torch.equal(getattr(plain, name).images, getattr(thin, name).images), name
    assert set(thin.train_indices.tolist()) < set(plain.train_indices.tolist())
    assert plain.class_counts.tolist() == [80] * 4
    assert thin.class_counts[0] == 80
    assert thin.class_counts[-1] == 4


def test_images_that_are_given_from_python_are_thinned_alike():
    train = Split(torch.zeros(60, 1, 8, 8, dtype=torch.uint8), labels_of(30, 30))
    settings = {"name": "own", "class_names": ("a", "b"), "validation_fraction": 0.0, "selection_fraction": 0.0}
    dataset = dataset_of(train, train, None, **settings, split_seed=1, imbalance="step", imbalance_ratio=6.0)
    assert dataset.class_counts.tolist() == [30, 5]
    assert torch.equal(dataset.train.labels, train.labels[dataset.train_indices])


def test_runs_without_imbalance_keep_their_names_and_headers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = jobs.configure(*SMALL)
    off = jobs.configure(*SMALL, "dataset.imbalance=none")
    thin = jobs.configure(*SMALL, "dataset.imbalance=exponential", "dataset.imbalance_ratio=20")
    assert plain.run_id == off.run_id == "synthetic-lenet5-pgd-none-seed0-332d2b26"
    assert thin.hash != plain.hash
    assert thin.hash != jobs.configure(*SMALL, "dataset.imbalance=exponential", "dataset.imbalance_ratio=10").hash
    for config, counts in ((plain, [80, 80, 80, 80]), (thin, [80, 29, 11, 4])):
        folder = experiment.run(config)
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert record["class_counts"] == {f"class {c}": n for c, n in enumerate(counts)}
        header = read_origin(folder / "model.safetensors")["settings"]["dataset"]
        assert ("imbalance" in header) == (config is thin)


@pytest.mark.parametrize(("typed", "message"), [
    ("dataset.imbalance=linear dataset.imbalance_ratio=5", "dataset.imbalance=linear: unknown choice"),
    ("dataset.imbalance=step", r"dataset.imbalance=step needs dataset.imbalance_ratio, e.g. 50"),
    ("dataset.imbalance_ratio=5", "dataset.imbalance_ratio has no effect with dataset.imbalance=none"),
    ("dataset.imbalance=step dataset.imbalance_ratio=1", r"dataset.imbalance_ratio=1: must lie in \(1, inf\)"),
    ("dataset.imbalance=step dataset.imbalance_ratio=nan", r"dataset.imbalance_ratio=nan: must lie in"),
    ("dataset.imbalance=step dataset.imbalance_ratio=many", "expected a number"),
])  # fmt: skip
def test_what_says_nothing_of_an_imbalance_is_refused(typed, message):
    with pytest.raises(UserError, match=message):
        jobs.configure(*TINY, *typed.split())


def test_a_class_that_would_have_no_image_left_is_named():
    config = jobs.configure(*SMALL, "dataset.imbalance=exponential", "dataset.imbalance_ratio=1000")
    with pytest.raises(UserError, match="leaves class 3 without a training image, it has 80: use a smaller ratio"):
        load_dataset(config.dataset)


def test_the_seed_of_the_split_has_an_effect_on_an_imbalance_of_all_images():
    with_all = ["dataset=fashion_mnist", "dataset.split_seed=1"]
    with pytest.raises(UserError, match=r"dataset\.split_seed has no effect"):
        jobs.configure(*with_all)
    config = jobs.configure(*with_all, "dataset.imbalance=step", "dataset.imbalance_ratio=10")
    assert config.dataset.split_seed == 1
