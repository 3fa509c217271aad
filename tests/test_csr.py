"""CSR: pair weights from the confusions of attacked training images, against loops and a power iteration."""

import math

import pytest
import torch

from frl_repro.training.frl import ClassStats
from frl_repro.training.frl.csr import pair_weights
from frl_repro.training.objectives import Mixed, Predictions, Trades
from support import batch_of, new_method, when


def by_loops(logits, y, factor):
    """G, [predicted][true]: counts in a loop, first singular vectors by power iteration, minmax over all entries."""
    K = len(logits[0])
    counts = [[0.0] * K for _ in range(K)]
    for row, c in zip(logits, y, strict=True):
        scaled = [factor * value if k == c else value for k, value in enumerate(row)]
        predicted = max(range(K), key=lambda k: scaled[k])
        if predicted != c:
            counts[predicted][c] += 1
    v = [1 / math.sqrt(K)] * K
    for _ in range(2000):
        u = [sum(counts[i][j] * v[j] for j in range(K)) for i in range(K)]
        v = [sum(counts[i][j] * u[i] for i in range(K)) for j in range(K)]
        norm = math.sqrt(sum(value * value for value in v))
        v = [value / norm for value in v]
    u = [sum(counts[i][j] * v[j] for j in range(K)) for i in range(K)]
    norm = math.sqrt(sum(value * value for value in u))
    product = [[u[i] / norm * v[j] for j in range(K)] for i in range(K)]
    low, high = min(map(min, product)), max(map(max, product))
    return [[2 * (value - low) / (high - low) + 0.01 for value in row] for row in product]


@pytest.mark.parametrize("factor", [0.9, 0.2, 1.0])
def test_pair_weights_and_loss_are_a_plain_loop(factor):
    clean, attacked, y = batch_of(num_classes=4, num_images=60)
    method = new_method("csr", num_classes=4, true_logit=factor)
    seen = Predictions(clean, y, attacked, y, is_paired=True)
    method.see_epoch(ClassStats([seen]), when(0))
    G = by_loops(attacked[0].tolist(), y[0].tolist(), factor)
    torch.testing.assert_close(method.state["pair"][0], torch.tensor(G, dtype=torch.float64).T, rtol=1e-6, atol=1e-8)
    found = Trades(beta=6.0).loss(seen, method.weigh(when(1)), scale=method.scale)
    expected = 0.0
    for n, c in enumerate(y[0].tolist()):
        p, q = torch.softmax(clean[0, n], 0), torch.softmax(attacked[0, n], 0)
        predicted = int(attacked[0, n].argmax())  # of the logits as they are
        divergence = sum(p[k] * (p[k] / q[k]).log() for k in range(4))
        expected += float(-0.7 * p[c].log() + 6 * divergence - 0.3 * G[predicted][c] * q[c].log())
    assert float(found) == pytest.approx(expected / 60, rel=1e-6)


def test_the_true_logits_factor_lets_right_predictions_count_as_errors():
    clean, attacked, y = batch_of(num_images=60)
    stats = ClassStats.of(clean, y, attacked, y)
    scaled = torch.where(torch.nn.functional.one_hot(y, 3).bool(), 0.5 * attacked, attacked)
    expected = torch.zeros(1, 3, 3, dtype=torch.float64)
    for true, predicted in zip(y[0].tolist(), scaled[0].argmax(-1).tolist(), strict=True):
        expected[0, true, predicted] += 1
    assert torch.equal(stats.confusion_at(0.5), expected)
    assert not torch.equal(stats.confusion_at(0.5), stats.confusion)


@pytest.mark.parametrize("confusion", [
    torch.diag(torch.tensor([5.0, 6.0, 7.0])),  # no error
    torch.full((3, 3), 4.0),  # all errors alike
])  # fmt: skip
def test_where_nothing_tells_pairs_apart_every_pair_weighs_the_same(confusion):
    assert torch.equal(pair_weights(confusion.double()), torch.ones(3, 3, dtype=torch.float64))


def test_in_the_first_epoch_and_in_a_mixed_batch():
    method = new_method("csr", objective="mixed")
    clean, attacked, y = batch_of()
    seen = Predictions(clean[:, :0], y[:, :0], attacked, y, is_paired=False)
    found = Mixed(1.0).loss(seen, method.weigh(when(0)), scale=method.scale)
    plain = -attacked[0].log_softmax(-1).gather(-1, y[0].unsqueeze(-1)).mean()
    assert float(found) == pytest.approx(float(plain), rel=1e-12)  # 0.7 + 0.3
