"""WAT: hedge weights of K + 1 experts against loops, and their total weight."""

import math

import pytest
import torch

from frl_repro.settings.config import RunConfig
from frl_repro.settings.lookup import explanations
from frl_repro.training.frl import ClassStats
from support import batch_of, class_means, new_method, when

K, ETA = 3, 0.1


def looks(method, num, *, scale=1.0):
    """Show so many looks, one at the start of each epoch; return the class means of each as lists."""
    seen = []
    for epoch in range(num):
        clean, attacked, y = batch_of(seed=epoch, num_images=30)
        method.see_validation(ClassStats.of(scale * clean, y, scale * attacked, y), when(epoch))
        means = class_means(scale * clean[0], scale * attacked[0], y[0], beta=6.0)
        counts = [int((y == c).sum()) for c in range(K)]
        means = [float(mean) for mean in means]
        average = sum(n * m for n, m in zip(counts, means, strict=True)) / sum(counts)
        seen.append([*means, average])
    return seen


def test_weights_are_the_hedge_of_all_looks_but_the_first():
    method = new_method("wat", eta=ETA)
    seen = looks(method, 4)
    total = [sum(look[i] for look in seen[1:]) for i in range(K + 1)]
    power = [math.exp(ETA * value) for value in total]
    experts = [K * p / sum(power) for p in power]
    expected = [experts[c] + experts[K] for c in range(K)]
    weights = method.weigh(when(3))
    assert weights.nat[0].tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(weights.nat, weights.bndy)
    assert method.scale == "images"  # the total weight counts


def test_hedge_weights_are_the_best_reply_that_pays_for_its_distance_from_equal_ones():
    """w / K maximises sum_i p_i eta L_i less KL(p || equal) over the simplex: no neighbour does better."""
    method = new_method("wat", eta=ETA)
    looks(method, 3)
    loss, p = method.state["loss"][0], method.experts()[0] / K

    def value(p):
        return float((p * ETA * loss).sum() - (p * (p * (K + 1)).log()).sum())

    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(50):
            other = p * (size * torch.randn(K + 1, dtype=torch.float64, generator=generator)).exp()
            assert value(other / other.sum()) <= value(p) + 1e-12


def test_the_total_weight_falls_from_two_to_one_as_weights_gather_in_a_class():
    method = new_method("wat", eta=ETA)
    assert method.weigh(when(0)).nat[0].tolist() == [2, 2, 2]
    looks(method, 1)
    assert method.weigh(when(0)).nat[0].tolist() == [2, 2, 2]  # before the first step nothing is learned
    totals = [2.0]
    for factor in (1.0, 10.0, 100.0, 10000.0):
        method.state["loss"] = factor * torch.tensor([[3.0, 1.0, 0.5, 1.5]], dtype=torch.float64)
        totals.append(float(method.weigh(when(1)).nat.mean()))
    assert totals == sorted(totals, reverse=True)
    assert totals[1] == pytest.approx(2 * K / (K + 1), abs=0.05)
    assert totals[-1] == pytest.approx(1, abs=1e-9)


def test_looks_between_steps_of_the_first_epoch_count():
    method = new_method("wat", update_every="5")
    clean, attacked, y = batch_of(num_images=30)
    stats = ClassStats.of(clean, y, attacked, y)
    method.see_validation(stats, when(0, step=0))
    assert float(method.state["loss"].sum()) == 0
    method.see_validation(stats, when(0, step=5))
    assert float(method.state["loss"].sum()) > 0


def test_help_explains_what_a_method_that_looks_at_validation_images_shares_with_others():
    known = explanations(RunConfig)
    assert {"eta", "epsilon", "num_steps", "update_every", "num_validation"} <= known["frl=wat"].keys()
    assert "null: that of the training attack" in known["frl=wat"]["epsilon"].help
    assert "epsilon" not in known["frl=codat"]
