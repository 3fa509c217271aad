"""Variance (FAT): class weights whose gradient is that of the mean loss plus the variance of the class means."""

import pytest
import torch

from frl_repro.basics.errors import UserError
from frl_repro.training.frl import ClassStats
from frl_repro.training.frl.variance import Settings as VarianceSettings
from frl_repro.training.objectives import Mixed, Paired, Predictions, Trades
from support import batch_of, class_means, loss_under, new_method, when

STRENGTH = 0.7


@pytest.mark.parametrize(("slots", "labels"), [
    (None, None), (100, None), (None, [0, 0, 0, 2, 2, 2, 2]), (100, [0, 0, 0, 2, 2, 2, 2]),  # class 1 is absent
])  # fmt: skip
def test_the_weighted_loss_has_the_gradient_of_the_mean_plus_the_variance(slots, labels):
    clean, attacked, y = batch_of(labels=labels, has_gradients=True)
    method = new_method("variance", strength=STRENGTH, slots=slots)
    weighted = loss_under(method, Trades(beta=6.0), clean, attacked, y, when(0))
    found = torch.autograd.grad(weighted.sum(), (clean, attacked))

    means = class_means(clean[0], attacked[0], y[0], beta=6.0)
    counts = [int((y == c).sum()) for c in range(3)]
    mean_loss = sum(n * m for n, m in zip(counts, means, strict=True) if m is not None) / sum(counts)
    values = [m for m in means if m is not None]
    values += [torch.zeros((), dtype=torch.float64)] * (0 if slots is None else slots - len(values))
    centre = sum(values) / len(values)
    variance = sum((value - centre) ** 2 for value in values) / len(values)
    expected = torch.autograd.grad(mean_loss + STRENGTH * variance, (clean, attacked))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_attacked_images_alone_are_what_the_paper_trains_on():
    """CE(x_adv) mean + strength Var, where a batch holds attacked images alone."""
    _, attacked, y = batch_of(has_gradients=True)
    none = torch.empty(1, 0, 3, dtype=torch.float64)
    seen = Predictions(none, y[:, :0], attacked, y, is_paired=False)
    method = new_method("variance", strength=STRENGTH, objective="mixed")
    method.see_batch(ClassStats([seen]), when(0))
    weighted = Mixed(1.0).loss(seen, method.weigh(when(0)), scale=method.scale)
    losses = -attacked[0].log_softmax(-1).gather(-1, y[0].unsqueeze(-1)).squeeze(-1)
    means = torch.stack([losses[y[0] == c].mean() for c in range(3)])
    expected = losses.mean() + STRENGTH * ((means - means.mean()) ** 2).mean()
    (found,) = torch.autograd.grad(weighted.sum(), attacked)
    torch.testing.assert_close(found, torch.autograd.grad(expected, attacked)[0], rtol=1e-10, atol=1e-14)


def test_strength_0_is_the_plain_loss_and_slots_must_hold_all_classes():
    clean, attacked, y = batch_of()
    objective = Paired()
    found = loss_under(new_method("variance", strength=0, objective="paired"), objective, clean, attacked, y, when(0))
    plain = objective.loss(Predictions(clean, y, attacked, y, is_paired=True), None, scale="images")
    assert float(found) == pytest.approx(float(plain), rel=1e-12)
    settings = VarianceSettings(name="variance", strength=0.1, slots=2)
    settings.check_classes(2)
    with pytest.raises(UserError, match=r"frl\.slots=2: there are 3 classes; give at least as many"):
        settings.check_classes(3)


def test_the_hundred_slots_of_the_published_code_penalise_the_mean():
    """Three equal classes: the text's variance is 0, and that over 100 slots is not."""
    y = torch.tensor([[0, 1, 2]])
    logits = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    stats = ClassStats.of(logits, y, logits, y)
    of_text, of_code = new_method("variance", objective="paired"), new_method("variance", slots=100, objective="paired")
    for method in (of_text, of_code):
        method.see_batch(stats, when(0))
    assert of_text.weigh(when(0)).nat[0].tolist() == pytest.approx([1, 1, 1], rel=1e-12)
    m = 2 * (float(torch.logsumexp(logits[0, 0], 0)) - 1)  # clean and attacked
    expected = 1 + 0.1 * 2 * (m - 3 * m / 100) / 100 * 3
    assert of_code.weigh(when(0)).nat[0].tolist() == pytest.approx([expected] * 3, rel=1e-12)
