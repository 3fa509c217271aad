"""Outcomes by image: written, read back, refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from frl_repro.basics.errors import UserError
from frl_repro.results.tables.outcomes import Outcomes, read_outcomes, write_outcomes


def example():
    generator = np.random.default_rng(0)
    natural = generator.random(50) < 0.3
    return Outcomes(
        labels=generator.integers(0, 12, size=50),
        is_natural_error=natural,
        is_robust_error={8 / 255: natural | (generator.random(50) < 0.2), 0.3: natural | (generator.random(50) < 0.6)},
        about={"run_id": "a-b", "split": "test", "attack": "pgd-20", "seed": 3},
    )


def test_outcomes_come_back_and_equal_ones_are_equal_bytes(tmp_path):
    ours = example()
    for name in ("a", "b"):
        write_outcomes(tmp_path / name, ours)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_outcomes(tmp_path / "a")
    assert read.about == ours.about
    np.testing.assert_array_equal(read.labels, ours.labels)
    np.testing.assert_array_equal(read.is_natural_error, ours.is_natural_error)
    assert sorted(read.is_robust_error) == sorted(ours.is_robust_error)
    for epsilon, is_error in ours.is_robust_error.items():
        np.testing.assert_array_equal(read.is_robust_error[epsilon], is_error)


def test_what_is_no_outcomes_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("no tensors")
    save_file({"labels": np.zeros(3)}, tmp_path / "other")
    save_file({"labels": np.zeros(3), "natural": np.zeros(4)}, tmp_path / "uneven")
    messages = {"text": "cannot read", "missing": "cannot read", "other": "no outcomes", "uneven": "no outcomes"}
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            read_outcomes(tmp_path / name)


def test_more_classes_than_a_byte_holds_come_back(tmp_path):
    many = Outcomes(labels=np.array([256, 3]), is_natural_error=np.array([True, False]), is_robust_error={}, about={})
    write_outcomes(tmp_path / "many", many)
    assert read_outcomes(tmp_path / "many").labels.tolist() == [256, 3]
