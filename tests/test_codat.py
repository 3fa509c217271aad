"""CODAT: the closed form against a numerical solver, and its loss against mean + sqrt(rho) sd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frl_repro.training.frl.codat import worst_shares
from frl_repro.training.objectives import Trades
from support import batch_of, class_means, loss_under, new_method, when

LOSSES = st.lists(st.floats(0, 10), min_size=2, max_size=8)


def shares(losses, rho):
    loss = torch.tensor(losses, dtype=torch.float64)
    return worst_shares(loss, torch.ones(len(losses), dtype=torch.bool), torch.tensor([rho], dtype=torch.float64))


@given(LOSSES, st.floats(0, 4))
def test_shares_are_the_formula_of_a_plain_loop(losses, rho):
    K = len(losses)
    mean = sum(losses) / K
    sd = math.sqrt(sum((value - mean) ** 2 for value in losses) / K)
    found = shares(losses, rho)
    if sd < 1e-6:
        assert found.tolist() == pytest.approx([1 / K] * K, abs=2)  # rounding alone tells such classes apart
        return
    expected = [max(0.0, (1 + math.sqrt(rho) * (value - mean) / sd) / K) for value in losses]
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def ascended(losses, rho, num_steps=3000):
    """Solve max q l with sum q = 1 and mean (K q - 1)^2 <= rho by projected gradient steps."""
    loss = torch.tensor(losses, dtype=torch.float64)
    K = len(losses)
    q = torch.full((K,), 1 / K, dtype=torch.float64)
    for _ in range(num_steps):
        offset = q + 0.01 * loss - 1 / K
        offset = offset - offset.mean()  # onto sum q = 1
        radius = math.sqrt(rho / K)  # mean (K q - 1)^2 = K |q - 1/K|^2
        q = 1 / K + offset * min(1.0, radius / float(offset.norm()))
    return q


@pytest.mark.parametrize("losses", [[1.0, 2.0, 4.0], [0.3, 0.1, 0.2, 0.9, 0.5], [2.0, 1.0]])
@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_without_clipping_the_closed_form_is_the_optimum(losses, rho):
    found = shares(losses, rho)
    assert float(found.min()) > 0
    torch.testing.assert_close(found, ascended(losses, rho), rtol=1e-6, atol=1e-8)
    loss = torch.tensor(losses, dtype=torch.float64)
    value = float(loss.mean() + math.sqrt(rho) * loss.std(correction=0))
    assert float((found * loss).sum()) == pytest.approx(value)


@pytest.mark.parametrize("labels", [None, [0, 0, 0, 2, 2, 2, 2]])  # class 1 is absent
def test_the_loss_is_mean_plus_root_rho_standard_deviations_and_so_is_its_gradient(labels):
    clean, attacked, y = batch_of(labels=labels, has_gradients=True)
    rho = 0.2
    found = loss_under(new_method("codat", rho=rho), Trades(beta=6.0), clean, attacked, y, when(0))
    means = [m for m in class_means(clean[0], attacked[0], y[0], beta=6.0) if m is not None]
    centre = sum(means) / len(means)
    expected = centre + math.sqrt(rho) * torch.sqrt(sum((m - centre) ** 2 for m in means) / len(means))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    ours, theirs = (torch.autograd.grad(value.sum(), (clean, attacked)) for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_shares_of_an_epoch_serve_the_next_one():
    method = new_method("codat", update_every="epoch", rho=0.2)
    clean, attacked, y = batch_of(labels=[0, 0, 1, 1, 2, 2])
    loss_under(method, Trades(beta=6.0), clean, attacked, y, when(0))
    assert method.state["share"][0].tolist() == [1 / 3] * 3
    assert method.weigh(when(0)).nat[0].tolist() == pytest.approx([1, 1, 1])
    from frl_repro.training.frl import ClassStats

    method.see_epoch(ClassStats.of(clean, y, attacked, y), when(0))
    means = [float(m) for m in class_means(clean[0], attacked[0], y[0], beta=6.0)]
    expected = shares(means, 0.2)
    torch.testing.assert_close(method.state["share"][0], expected)
    loss_under(method, Trades(beta=6.0), *batch_of(seed=5, labels=[0, 0, 1, 1, 2, 2]), when(1))
    torch.testing.assert_close(method.weigh(when(1)).nat[0], 3 * expected)
