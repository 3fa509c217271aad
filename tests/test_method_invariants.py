"""What holds of every method: renamed, equal and absent classes; and a toy problem."""

import functools

import pytest
import torch
from torch import nn

from frl_repro.attacks import pgd
from frl_repro.data.dataset import Split
from frl_repro.training.frl import ClassStats
from frl_repro.training.objectives import Mixed, Predictions, SplitLoss, Trades
from frl_repro.training.steering import Steering, ValidationImages
from frl_repro.training.trainer import train_epoch
from support import batch_of, new_method, when

LOUD = {
    "dafa": {"strength": 1.0, "start_epoch": 1}, "faal": {"ball": 0.5}, "cfol": {"eta": 0.001, "acts_by": "draw"},
    "wat": {"eta": 0.3}, "group_dro": {"eta": 0.1}, "variance": {"strength": 1.0}, "codat": {"rho": 0.7},
    "csr": {"mix": 0.3}, "robust_lt": {"strength": 0.6},
}  # fmt: skip
"""Settings with which a method can be seen at work within a few steps."""

SIX = ("wat", "group_dro", "variance", "codat", "csr", "robust_lt")


def answers_after(method, stats):
    """Show a method the same images in every way there is, twice; return radii and weights by class."""
    for epoch in (1, 2):
        method.plan(when(epoch))
        if method.sees_validation:
            method.see_validation(stats, when(epoch))
        if method.sees_batches:
            method.see_batch(stats, when(epoch))
        if method.sees_epochs:
            method.see_epoch(stats, when(epoch))
    plan, weights = method.plan(when(9)), method.weigh(when(9))
    radius = method.ones() if plan.radius is None else plan.radius
    return radius[0], weights.nat[0], weights.bndy[0], None if weights.pair is None else weights.pair[0]


@pytest.mark.parametrize("name", SIX)
def test_other_numbers_for_classes_give_the_same_answers_in_another_order(name):
    clean, attacked, y = batch_of(num_classes=4, num_images=80, seed=2)
    order = torch.tensor([2, 0, 3, 1])  # class order[k] is called k
    renamed = torch.empty(4, dtype=torch.int64)
    renamed[order] = torch.arange(4)
    counts = torch.tensor([400, 90, 30, 200])
    one = new_method(name, num_classes=4, class_counts=counts.tolist(), **LOUD[name])
    other = new_method(name, num_classes=4, class_counts=counts[order].tolist(), **LOUD[name])
    before = answers_after(one, ClassStats.of(clean, y, attacked, y))
    after = answers_after(other, ClassStats.of(clean[..., order], renamed[y], attacked[..., order], renamed[y]))
    for ours, theirs in zip(before[:3], after[:3], strict=True):
        torch.testing.assert_close(ours[order], theirs, rtol=1e-9, atol=1e-12)
    if before[3] is not None:
        torch.testing.assert_close(before[3][order][:, order], after[3], rtol=1e-7, atol=1e-9)
    assert len({*before[0].tolist(), *before[1].tolist()}) > 2 or before[3] is not None  # it did something


@pytest.mark.parametrize(("name", "objective", "loss"), [
    (name, *kind)
    for name in SIX
    for kind in (("trades", Trades(beta=6.0)), ("split", SplitLoss()), ("mixed", Mixed(1.0)))
    if name != "csr"  # weighs pairs: test_csr.py has equal ones
])  # fmt: skip
def test_equal_classes_give_the_plain_loss(name, objective, loss):
    """Of WAT in all but its scale: K + 1 equal experts weigh 2 K / (K + 1)."""
    y = torch.arange(12).view(1, 12) % 3
    row = torch.tensor([1.0, 1.3, 1.6], dtype=torch.float64)  # wrong, and each class in the same way
    logits = torch.stack([row.roll(int(c)) for c in y[0]]).unsqueeze(0)
    first = 12 if objective == "mixed" else 0
    seen = Predictions(logits[:, first:], y[:, first:], logits, y, is_paired=False)
    method = new_method(name, objective=objective, class_counts=[40, 40, 40], **LOUD[name])
    radius, *_ = answers_after(method, ClassStats([seen]))
    assert radius.tolist() == [1, 1, 1]
    scale = 2 * 3 / 4 if name == "wat" else 1
    found, plain = (loss.loss(seen, weights, scale="images") for weights in (method.weigh(when(9)), None))
    assert float(found) == pytest.approx(scale * float(plain), rel=1e-9)


@pytest.mark.parametrize("name", SIX)
def test_a_class_that_is_absent_leaves_finite_weights(name):
    clean, attacked, y = batch_of(labels=[0, 0, 1, 1, 1])
    method = new_method(name, class_counts=[50, 20, 10], **LOUD[name])
    for answer in answers_after(method, ClassStats.of(clean, y, attacked, y)):
        assert answer is None or bool(torch.isfinite(answer).all())


# --- a toy problem ---------------------------------------------------------------------------------------------------

SPREAD, NUM_EPOCHS = 0.09, 20
RARE, EQUAL = (300, 300, 40), (200, 200, 200)  # training images of each class


class Plane(nn.Module):
    """A linear classifier of two pixels, whose scale is that of its weights."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return self.linear((x.flatten(1) - 0.5) / 0.2)


def images_of(counts, seed):
    """Three classes on a plane, neighbours in a row."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.25, 0.5], [0.5, 0.65], [0.65, 0.45]])
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    x = centres[y] + SPREAD * torch.randn(len(y), 2, generator=generator)
    return Split(x.clamp(0, 1).view(-1, 1, 1, 2), y)


def toy_attack(epsilon):
    """Return an attack: the worst image of the ball, as far as the gradient at the clean one says."""

    def attack(model, x, y, *, factor=None, generator=None, is_step_scaled=True):
        radius = epsilon if factor is None else epsilon * factor
        return pgd(model, x, y, epsilon=radius, step_size=radius, num_steps=1, use_random_start=False)

    return attack


def worst_error(method, counts, epsilon):
    """Train on so many images of each class; return the largest class error of attacked test images, all alike many."""
    model, attack = Plane(), toy_attack(epsilon)

    def measure(model, images, seed):
        x_adv = attack(model, images.images, images.labels)
        with torch.no_grad():
            return ClassStats.of(model(images.images), images.labels, model(x_adv), images.labels)

    looks = None
    if method is not None and method.sees_validation:
        looks = ValidationImages(images_of((100, 100, 100), 1), measure, update_every=None, num_images=300, seeds=[0])
    steering = Steering(method, looks, [model], [NUM_EPOCHS])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for epoch in range(NUM_EPOCHS):
        steering.begin_epoch([epoch])
        train_epoch(
            model, images_of(counts, 0), update=optimizer.step, objective=Mixed(1.0), attack=attack,
            forward=lambda model, x: model(x), batch_size=160, steering=steering,
            order_generators=[torch.Generator().manual_seed(epoch)], attack_generators=[torch.Generator()],
        )  # fmt: skip
    stats = measure(model, images_of((500, 500, 500), 2), 0)
    return float((stats.wrong_attacked / stats.num_attacked).max())


plain_error = functools.cache(functools.partial(worst_error, None))


@pytest.mark.parametrize("name", list(LOUD))
def test_a_method_lowers_the_worst_class_error_of_a_toy_problem(name):
    """One class is rare; of CSR, which counts errors and takes no shares of a class, all are equally frequent."""
    counts, epsilon = (EQUAL, 0.03) if name == "csr" else (RARE, 0.005)
    method = new_method(name, objective="mixed", class_counts=list(counts), **LOUD[name])
    assert worst_error(method, counts, epsilon) < 0.9 * plain_error(counts, epsilon)


def test_methods_do_not_lower_it_everywhere():
    """What their cards warn of: a radius beyond the distance of classes, and counts of errors where a class is rare."""
    method = new_method("robust_lt", objective="mixed", class_counts=list(RARE), strength=0.6)
    assert method.plan(when(9)).radius[0, 2] > 9
    assert worst_error(method, RARE, 0.02) == 1
    counting = new_method("csr", objective="mixed", mix=0.9)
    assert worst_error(counting, RARE, 0.005) > plain_error(RARE, 0.005)
