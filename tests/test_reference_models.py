"""The published weights give the published tables: each is measured anew on all test images of real Fashion-MNIST."""

from pathlib import Path

import numpy as np
import pytest
import torch

from frl_repro.commands.jobs import configure_evaluation
from frl_repro.evaluation.measure import measure_checkpoint
from frl_repro.models.origin import read_origin
from frl_repro.results.report import exploratory
from frl_repro.results.tables import reading, subsets
from frl_repro.results.tables.outcomes import OUTCOMES_FILE, read_outcomes
from frl_repro.results.tables.selection import select_attack
from support import ROOT

REFERENCE = Path("outputs", "reference")  # relative: what is recorded of a run names no folder of this machine
MODELS = sorted(path.relative_to(ROOT) for path in (ROOT / REFERENCE / "models").glob("*/seed?.safetensors"))
COUNTS = ["count", "num_natural_errors", "num_boundary_errors"]
TOLERANCE = 0.001  # 0.1 point of a class's error: other processors round otherwise, and an attack follows


@pytest.fixture(scope="module")
def published():
    # Exploratory runs start from bases of their own, with the same seeds.
    tables = [path for path in reading.find_tables(ROOT / REFERENCE) if path.parents[1].name not in exploratory.PLACES]
    return select_attack(reading.read_classwise(tables), "pgd-20")


@pytest.fixture
def one_thread():
    """One thread, as the published tables were made with."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(published, path):
    """Rows of the published tables on the test images for a file of weights, by radius and class."""
    origin = read_origin(ROOT / path)
    rows = published[published["split"] == "test"]
    if path.parent.name == "base":  # the start of every retraining of this seed
        rows = rows[(rows["epoch"] == 0) & (rows["seed"] == origin["seed"])]
    else:
        rows = rows[(rows["run_id"] == origin["run_id"]) & (rows["epoch"] == origin["epoch"])]
    rows = rows.drop_duplicates(["epsilon", "class_id", *COUNTS])
    return rows.set_index(["epsilon", "class_id"]).sort_index()


def test_there_are_three_seeds_of_every_model(published):
    names = ("adversarial", "base", "combined", "natural", "remargin", "reweight")
    assert [(path.parent.name, path.stem) for path in MODELS] == [
        (name, f"seed{s}") for name in names for s in range(3)
    ]
    for path in MODELS:
        assert len(rows_of(published, path)) == 2 * 10, path  # one table each, also where several runs start from it


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_outcomes_count_the_published_errors(path, published):
    outcomes = read_outcomes(ROOT / path.with_suffix(f".{OUTCOMES_FILE}"))
    for epsilon, is_robust_error in outcomes.is_robust_error.items():
        of_radius = subsets.select_epsilon(rows_of(published, path).reset_index(), epsilon)
        masks = (np.ones_like(is_robust_error), outcomes.is_natural_error, is_robust_error & ~outcomes.is_natural_error)
        counts = np.stack([np.bincount(outcomes.labels[mask], minlength=10) for mask in masks], axis=1)
        np.testing.assert_array_equal(counts, of_radius[COUNTS].to_numpy())


@pytest.mark.data
@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_published_model_gives_its_published_table(path, published, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(ROOT)
    settings = [f"checkpoint={path}", f"output_dir={tmp_path}", "num_threads=1", "device=cpu"]
    folder = measure_checkpoint(configure_evaluation(*settings))
    expected = rows_of(published, path)
    measured = reading.read_classwise([folder / "classwise.csv"]).set_index(["epsilon", "class_id"]).sort_index()
    assert measured.index.equals(expected.index)
    assert (measured["count"] == expected["count"]).all()
    assert (measured["attack"] == expected["attack"]).all()
    errors = ["natural_error", "robust_error"]
    deviation = (measured[errors] - expected[errors]).abs().to_numpy().max()
    message = f"{path}: {100 * deviation:.2f} points; images that moved: {_moved(folder / OUTCOMES_FILE, path)}"
    assert deviation <= TOLERANCE + 1e-12, message


def _moved(file, path):
    """Numbers of images whose outcome differs from the published one: clean, and at each radius."""
    ours, theirs = read_outcomes(file), read_outcomes(path.with_suffix(f".{OUTCOMES_FILE}"))
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    pairs = [(ours.is_natural_error, theirs.is_natural_error)]
    pairs += [(ours.is_robust_error[epsilon], is_error) for epsilon, is_error in theirs.is_robust_error.items()]
    return [int(np.count_nonzero(one != other)) for one, other in pairs]
