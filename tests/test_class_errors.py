"""ClassErrors: identities, parity with a plain double loop, relabelling."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frl_repro.evaluation.class_errors import ClassErrors


def draw_outcomes(seed, num_classes, num_samples):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(num_classes), torch.randint(num_classes, (num_samples,), generator=generator)])
    natural, attacked = (torch.rand(len(labels), generator=generator) < 0.4 for _ in range(2))
    return labels, natural, attacked


def from_samples(labels, natural, attacked, num_classes):
    return ClassErrors.from_samples(
        labels, is_natural_error=natural, is_attacked_error=attacked, num_classes=num_classes
    )


@given(seed=st.integers(0, 10**6), num_classes=st.integers(2, 17), num_samples=st.integers(0, 200))
def test_counts_equal_a_plain_double_loop(seed, num_classes, num_samples):
    labels, natural, attacked = draw_outcomes(seed, num_classes, num_samples)
    errors = from_samples(labels, natural, attacked, num_classes)
    for k in range(num_classes):
        count = wrong_clean = right_then_wrong = wrong_either = 0
        for label, is_natural, is_attacked in zip(labels.tolist(), natural.tolist(), attacked.tolist(), strict=True):
            if label == k:
                count += 1
                wrong_clean += is_natural
                right_then_wrong += (not is_natural) and is_attacked
                wrong_either += is_natural or is_attacked
        assert errors.count[k] == count
        assert errors.num_natural_errors[k] == wrong_clean
        assert errors.num_boundary_errors[k] == right_then_wrong
        assert errors.num_robust_errors[k] == wrong_either
        assert errors.class_robust_error[k] == wrong_either / count


@given(seed=st.integers(0, 10**6), num_classes=st.integers(2, 8))
def test_relabelling_classes_permutes_the_result(seed, num_classes):
    labels, natural, attacked = draw_outcomes(seed, num_classes, 50)
    permutation = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
    before = from_samples(labels, natural, attacked, num_classes)
    after = from_samples(permutation[labels], natural, attacked, num_classes)
    for name in ("count", "num_natural_errors", "num_boundary_errors", "class_boundary_error"):
        assert torch.equal(getattr(after, name)[permutation], getattr(before, name))
    assert after.overall_robust_error == before.overall_robust_error


def test_overall_errors_weigh_samples_not_classes():
    errors = ClassErrors(
        count=torch.tensor([1, 9]), num_natural_errors=torch.tensor([1, 0]), num_boundary_errors=torch.tensor([0, 3])
    )
    assert errors.overall_natural_error == 0.1
    assert errors.overall_boundary_error == 0.3
    assert errors.overall_robust_error == 0.4


def test_an_empty_class_is_refused_by_number():
    with pytest.raises(ValueError, match="no samples of class 1"):
        from_samples(torch.tensor([0, 2]), torch.tensor([True, False]), torch.tensor([True, False]), 3)
