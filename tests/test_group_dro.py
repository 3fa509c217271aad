"""Group-DRO: shares and losses of several batches against a plain loop."""

import math

import pytest
import torch

from frl_repro.training.objectives import Trades
from support import batch_of, class_means, loss_under, new_method, when

ETA = 0.3
LABELS = ([0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 2], [1, 1, 1, 2, 0])  # the second lacks class 1


def test_shares_and_loss_are_the_papers_loop():
    method = new_method("group_dro", eta=ETA)
    q = [1 / 3] * 3
    for step, labels in enumerate(LABELS):
        clean, attacked, y = batch_of(labels=labels, seed=step)
        found = loss_under(method, Trades(beta=6.0), clean, attacked, y, when(0, step=step))
        means = [0.0 if m is None else float(m) for m in class_means(clean[0], attacked[0], y[0], beta=6.0)]
        raised = [q[c] * math.exp(ETA * means[c]) for c in range(3)]
        q = [value / sum(raised) for value in raised]
        assert method.state["log_share"].exp()[0].tolist() == pytest.approx(q, rel=1e-10)
        assert float(found) == pytest.approx(sum(q[c] * means[c] for c in range(3)), rel=1e-10)


def test_a_class_that_is_never_seen_keeps_its_part_of_what_is_left_by_the_others():
    method = new_method("group_dro", eta=ETA)
    clean, attacked, y = batch_of(labels=[0, 0, 2, 2])
    loss_under(method, Trades(beta=6.0), clean, attacked, y, when(0))
    assert method.weigh(when(0)).nat[0, 1] == 0
    share = method.state["log_share"].exp()[0]
    assert 0 < share[1] < 1 / 3
    assert float(share.sum()) == pytest.approx(1)


def test_a_share_that_is_too_small_for_a_number_grows_again():
    method = new_method("group_dro", eta=1.0)
    method.state["log_share"] = torch.log_softmax(torch.tensor([[0.0, 0.0, -2000.0]], dtype=torch.float64), -1)
    assert method.state["log_share"].exp()[0, 2] == 0
    labels, logits = torch.tensor([[0, 1, 2]]), 400 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    logits[0, 2] = torch.tensor([1200.0, 0, 0])  # class 2 is wrong, far off
    for step in range(2):
        loss_under(method, Trades(beta=6.0), logits, logits, labels, when(0, step=step))
    assert method.state["log_share"].exp()[0, 2] == pytest.approx(1)
