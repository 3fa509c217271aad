"""Stratified order, subset and validation split: properties that hold for every label vector."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_repro.basics.errors import UserError
from frl_repro.data.splits import split_train_validation, split_validation, stratified_order, subset

labels_of_any_counts = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(torch.tensor)
seeds = st.integers(0, 2**32)
without_deadline = settings(deadline=None)  # the first call of a torch function takes long


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@without_deadline
@given(labels=labels_of_any_counts, seed=seeds)
def test_order_is_a_permutation(labels, seed):
    order = stratified_order(labels, generator(seed))
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(len(labels)))


@without_deadline
@given(labels=labels_of_any_counts, seed=seeds)
def test_every_prefix_is_the_webster_apportionment(labels, seed):
    order = stratified_order(labels, generator(seed))
    totals = torch.bincount(labels)
    present = totals > 0
    for length in range(len(labels) + 1):
        counts = torch.bincount(labels[order[:length]], minlength=len(totals))[present]
        # No class may hold a sample to which another class has an earlier claim: the definition, in whole numbers.
        last_taken = (2 * counts - 1)[:, None] * totals[present][None, :]
        next_free = (2 * counts + 1)[None, :] * totals[present][:, None]
        assert (last_taken <= next_free).all()


@without_deadline
@given(num_classes=st.integers(1, 12), count=st.integers(1, 12), seed=seeds)
def test_prefix_counts_of_equal_classes_differ_by_at_most_one(num_classes, count, seed):
    labels = torch.arange(num_classes).repeat(count)
    order = stratified_order(labels, generator(seed))
    for length in range(len(labels) + 1):
        counts = torch.bincount(labels[order[:length]], minlength=num_classes)
        assert counts.max() - counts.min() <= 1


@without_deadline
@given(labels=labels_of_any_counts, seed=seeds, new_names=st.permutations(list(range(7))))
def test_renaming_classes_leaves_order_and_split(labels, seed, new_names):
    renamed = torch.tensor(new_names)[labels]
    assert torch.equal(stratified_order(labels, generator(seed)), stratified_order(renamed, generator(seed)))


def test_order_is_random_within_and_between_classes():
    labels = torch.arange(10).repeat(20)
    first, second = (stratified_order(labels, generator(seed)) for seed in (0, 1))
    assert (first != second).float().mean() > 0.9
    assert labels[first[:10]].tolist() != labels[second[:10]].tolist()
    # Which sample comes first is uniform: over many seeds every class and every fifth of the positions has its share.
    starts = torch.stack([stratified_order(labels, generator(seed))[0] for seed in range(500)])
    assert torch.bincount(labels[starts], minlength=10).min() > 25
    assert torch.bincount(starts // 40, minlength=5).min() > 65


@without_deadline
@given(labels=labels_of_any_counts, seed=seeds, fraction=st.floats(0, 0.99))
def test_split_is_a_partition_or_refused(labels, seed, fraction):
    num_classes = len(labels.unique())
    try:
        train, validation = split_train_validation(labels, fraction, seed)
    except UserError:
        num_validation = round(fraction * len(labels))
        # Refused only where a class is too small: with more than K of each kind and no tiny class it must work.
        smallest = int(torch.bincount(labels)[labels.unique()].min())
        assert fraction > 0
        assert smallest * fraction < 1 or smallest * (1 - fraction) < 1 or num_validation < num_classes
        return
    assert len(validation) == round(fraction * len(labels))
    assert torch.cat([train, validation]).sort().values.tolist() == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert len(labels[train].unique()) == num_classes
    assert len(labels[validation].unique()) == (num_classes if fraction > 0 else 0)


def test_split_of_equal_classes_is_equal():
    labels = torch.arange(10).repeat(600)
    train, validation = split_train_validation(labels, 0.1, seed=3)
    assert torch.bincount(labels[validation]).tolist() == [60] * 10
    assert torch.bincount(labels[train]).tolist() == [540] * 10
    assert torch.bincount(labels[validation[:100]]).tolist() == [10] * 10


def test_split_neither_reads_nor_changes_the_global_random_state():
    labels = torch.arange(5).repeat(20)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = split_train_validation(labels, 0.2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12345)
    second = split_train_validation(labels, 0.2, seed=7)
    other = split_train_validation(labels, 0.2, seed=8)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_split_is_the_same_on_every_machine():
    _, validation = split_train_validation(torch.arange(4).repeat(5), 0.25, seed=0)
    assert validation.tolist() == [4, 5, 19, 14, 13]


def test_no_validation():
    train, validation = split_train_validation(torch.tensor([0, 1, 1]), 0.0, seed=0)
    assert train.tolist() == [0, 1, 2]
    assert len(validation) == 0
    assert validation.dtype == torch.int64


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_fraction_out_of_range(fraction):
    with pytest.raises(
        UserError, match=r"^dataset\.validation_fraction=\S+ is out of range: allowed are 0 .* to below 1"
    ):
        split_train_validation(torch.tensor([0, 1]), fraction, seed=0)


def test_split_refuses_to_leave_a_class_without_images():
    labels = torch.arange(10).repeat(10)
    with pytest.raises(UserError, match="leaves 5 of 10 classes without a validation image: use a larger fraction"):
        split_train_validation(labels, 0.05, seed=0)
    with pytest.raises(UserError, match="leaves 5 of 10 classes without a training image: use a smaller fraction"):
        split_train_validation(labels, 0.95, seed=0)


@without_deadline
@given(seed=seeds, small=st.integers(3, 30), large=st.integers(30, 60))
def test_subsets_are_sorted_and_nested(seed, small, large):
    labels = torch.arange(3).repeat(20)
    few, many = subset(labels, small, seed), subset(labels, large, seed)
    assert few.tolist() == sorted(set(few.tolist()))
    assert len(few) == small
    assert set(few.tolist()) <= set(many.tolist())


def test_subset_of_all_is_everything_in_order():
    assert subset(torch.tensor([1, 0, 1]), 3, seed=5).tolist() == [0, 1, 2]


def test_subset_refuses_impossible_sizes():
    labels = torch.arange(3).repeat(2)
    for num in (0, 7):
        with pytest.raises(UserError, match=f"{num} images asked for, but there are 6: give a number from 1 to 6"):
            subset(labels, num, seed=0)
    with pytest.raises(UserError, match="2 images leave 1 of 3 classes without an image: use more images"):
        subset(labels, 2, seed=0)


@without_deadline
@given(num_classes=st.integers(1, 6), count=st.integers(4, 20), fraction=st.sampled_from([0.25, 0.5, 0.75]), seed=seeds)
def test_selection_images_are_apart_from_those_that_steer_and_stratified(num_classes, count, fraction, seed):
    labels = torch.arange(num_classes).repeat(count)
    labels = labels[stratified_order(labels, generator(seed))]
    steering, chosen_on = split_validation(labels, fraction)
    assert sorted([*steering.tolist(), *chosen_on.tolist()]) == list(range(len(labels)))
    assert len(chosen_on) == round(fraction * len(labels))
    for part in (steering, chosen_on):
        counts = torch.bincount(labels[part], minlength=num_classes)
        assert counts.max() - counts.min() <= 1


def test_no_selection_leaves_all_validation_images_to_the_policy():
    steering, chosen_on = split_validation(torch.tensor([0, 1, 1, 0]), 0.0)
    assert (steering.tolist(), chosen_on.tolist()) == ([0, 1, 2, 3], [])


def test_a_selection_that_lacks_a_class_is_refused():
    with pytest.raises(UserError, match="leaves a class without an image"):
        split_validation(torch.tensor([0, 1, 0, 1]), 0.25)
