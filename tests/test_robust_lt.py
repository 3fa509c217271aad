"""RobustLT: radii from class counts against a loop, their warm-up, and balanced data."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frl_repro.training.frl.robust_lt import radius_factors
from support import new_method, when


@given(st.lists(st.integers(1, 10000), min_size=2, max_size=8), st.floats(0, 1))
def test_radii_are_the_papers_loop_and_their_mean_over_images_is_the_radius(counts, a):
    found = radius_factors(torch.tensor(counts, dtype=torch.float64), torch.tensor([a], dtype=torch.float64))
    s = [math.sqrt(math.log(max(counts) / n)) for n in counts]
    mean = sum(n / sum(counts) * value for n, value in zip(counts, s, strict=True))
    if mean == 0:
        assert found.tolist() == [1.0] * len(counts)
        return
    expected = [(1 - a) + a / mean * value for value in s]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    weighted = sum(n * factor for n, factor in zip(counts, found.tolist(), strict=True)) / sum(counts)
    assert weighted == pytest.approx(1, rel=1e-9)


def test_balanced_classes_have_exactly_the_radius_at_every_step():
    method = new_method("robust_lt", class_counts=[500, 500, 500])
    for epoch in (0, 5, 9):
        assert method.plan(when(epoch, step=3)).radius.tolist() == [[1.0, 1.0, 1.0]]


def test_radii_move_apart_in_a_line_over_the_warm_up():
    method = new_method("robust_lt", class_counts=[500, 50, 5], strength=0.3, warmup_share=0.8)
    full = radius_factors(method.class_counts, torch.tensor([[0.3]], dtype=torch.float64))
    assert full[0, 0] == pytest.approx(0.7)  # the largest class
    for epoch, step, share in ((0, 0, 0.0), (4, 0, 0.5), (2, 1, 0.275), (8, 0, 1.0), (9, 4, 1.0)):
        plan = method.plan(when(epoch, step=step))
        torch.testing.assert_close(plan.radius, 1 + share * (full - 1))
        assert plan.is_step_scaled
    assert torch.equal(method.weigh(when(0)).nat, torch.ones(1, 3, dtype=torch.float64))


def test_counts_that_are_almost_equal_are_equal_unless_the_formula_is_asked_for_to_the_letter():
    counts = [500] * 9 + [499]
    almost, literal = (new_method("robust_lt", num_classes=10, class_counts=counts, smallest_ratio=r) for r in (1.1, 1))
    assert almost.plan(when(9)).radius.tolist() == [[1.0] * 10]
    assert literal.plan(when(9)).radius[0, -1] == pytest.approx(3.7, abs=0.01)
    assert literal.plan(when(9)).radius[0, 0] == pytest.approx(0.7)


def test_runs_side_by_side_have_radii_of_their_own_strength():
    method = new_method("robust_lt", class_counts=[500, 50, 5])
    both = type(method)(num_runs=2, num_classes=3)
    weak, strong = (new_method("robust_lt", class_counts=[500, 50, 5], strength=a) for a in (0.1, 0.5))
    both.configure([weak.settings, strong.settings])
    both.class_counts = method.class_counts
    both.state = both.start()
    for r, alone in enumerate((weak, strong)):
        assert torch.equal(both.plan(when(9, 2)).radius[r], alone.plan(when(9)).radius[0])
