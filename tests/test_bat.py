"""BAT: its two friendly images and its loss against loops over images."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frl_repro.attacks import friendly
from frl_repro.basics.errors import UserError
from frl_repro.models.compute.backends import TORCH
from frl_repro.models.lenet5 import LeNet5
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import parse
from frl_repro.training.frl import Plan, Weights
from frl_repro.training.objectives import Friendly
from native_lenet5 import NATIVE
from support import composed

RADIUS, STEP, NUM_STEPS = 0.2, 0.07, 4


class Scaled(nn.Module):
    """A small network with a bend: the gradient's sign changes on the way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(3 * self.first(x.flatten(1))))


def images(n=24, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 2, 2, generator=generator), torch.randint(3, (n,), generator=generator)


def gradient(model, image, loss):
    image = image.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(loss(model(image.unsqueeze(0))[0]), image)
    return found


def by_loop(model, x, y, start, objective):
    """The two images of one image, iterate by iterate."""
    clean = torch.softmax(model(x.unsqueeze(0))[0].detach(), 0)

    def cross_entropy(logits):
        return -torch.log_softmax(logits, 0)[y]

    def divergence(logits):
        return (clean * (clean.log() - torch.log_softmax(logits, 0))).sum()

    def moved(image, loss):
        image = image + STEP * gradient(model, image, loss).sign()
        return (x + (image - x).clamp(-RADIUS, RADIUS)).clamp(0, 1)

    right, iterate = x, start
    for taken in range(NUM_STEPS + 1):
        if int(model(iterate.unsqueeze(0)).argmax()) != int(y):
            break
        right = iterate
        if taken < NUM_STEPS:
            iterate = moved(iterate, divergence if objective == "kl" else cross_entropy)
    return right, moved(iterate, divergence)


@pytest.mark.parametrize("objective", ["cross_entropy", "kl"])
def test_the_friendly_images_are_those_of_a_loop_over_images(objective):
    model, (x, y) = Scaled(), images()
    settings = {"epsilon": RADIUS, "step_size": STEP, "num_steps": NUM_STEPS, "objective": objective}
    start = friendly(model, x, y, **{**settings, "num_steps": 0}, generator=torch.Generator().manual_seed(3))
    assert start.shape == (2, *x.shape)
    generator = torch.Generator().manual_seed(3)
    noise = 2 * torch.rand(x.shape, generator=generator) - 1
    starts = (x + RADIUS * noise).clamp(0, 1)
    found = friendly(model, x, y, **settings, generator=torch.Generator().manual_seed(3))
    outcomes = set()
    for n in range(len(x)):
        right, past = by_loop(model, x[n], y[n], starts[n], objective)
        torch.testing.assert_close(found[0, n], right, rtol=0, atol=1e-6)
        torch.testing.assert_close(found[1, n], past, rtol=0, atol=1e-6)
        outcomes.add((torch.equal(right, x[n]), int(model(past.unsqueeze(0)).argmax()) == int(y[n])))
    assert {(True, False), (False, False), (False, True)} <= outcomes  # at once, later and never wrong


@given(st.integers(0, 100), st.floats(0, 0.5), st.booleans())
def test_friendly_images_stay_in_the_ball_and_leave_no_trace(seed, radius, starts_random):
    model, (x, y) = Scaled().train(), images(seed=seed)
    state = torch.random.get_rng_state()
    found = friendly(
        model, x, y, epsilon=radius, step_size=0.1, num_steps=2, use_random_start=starts_random,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    assert float((found - x).abs().max()) <= radius + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    right = model(found[0]).argmax(1) == y
    assert torch.equal(right, model(x).argmax(1) == y) or starts_random
    assert (right >= (model(x).argmax(1) == y)).all()


def test_native_code_takes_the_single_steps_as_pytorch_does():
    torch.manual_seed(0)
    model = LeNet5(num_classes=10, in_channels=1).eval()
    x, y = torch.rand(40, 1, 32, 32), torch.arange(40) % 10
    settings = {"epsilon": 0.1, "step_size": 0.03, "num_steps": 3}
    one, other = (
        friendly(model, x, y, **settings, generator=torch.Generator().manual_seed(0), ascend=b.ascend, logits=b.logits)
        for b in (TORCH, NATIVE)
    )
    assert float(((one - other).abs() > 1e-5).double().mean()) < 0.02  # a gradient near 0 may have another sign


@pytest.mark.parametrize("is_joint", [True, False])
def test_the_loss_is_a_float64_loop(is_joint):
    x, y = images(9)
    y = y.double().long()
    beta, weights = 2.5, Weights(torch.tensor([2.0, 1.0, 0.5]), torch.tensor([1.0, 3.0, 0.5]))
    torch.manual_seed(1)
    model = Scaled()

    def attack(x, y, *, factor):
        assert factor is None
        return torch.stack([0.9 * x, 0.3 * x])

    objective = Friendly(beta=beta, is_joint=is_joint)
    seen = objective.predict(x, y, forward=model, attack=attack, plan=Plan())
    found = [float(objective.loss(seen, w, scale="images").detach()) for w in (None, weights)]
    expected = [0.0, 0.0]
    for n in range(9):
        p, right, past = (
            torch.softmax(model(factor * x[n : n + 1])[0].detach().double(), 0).tolist() for factor in (1.0, 0.9, 0.3)
        )
        terms = [
            -math.log(right[y[n]]) + sum(q * math.log(3 * q) for q in right),
            beta * sum(a * math.log(a / b) for a, b in zip(p, past, strict=True))
            + sum(q * math.log(3 * q) for q in past),
        ]
        expected[0] += sum(terms) / 9
        expected[1] += (float(weights.nat[y[n]]) * terms[0] + float(weights.bndy[y[n]]) * terms[1]) / 9
    assert found == pytest.approx(expected, rel=1e-5)
    assert seen.is_wrong_attacked.tolist() == (model(0.3 * x).argmax(1) != y).tolist()


@pytest.mark.parametrize(("changes", "message"), [
    ({"retrain__objective": "split"}, "retrain.objective=split does not go with frl=bat, which has retrain"),
    ({"frl": "finetune", "retrain__objective": "friendly"}, "friendly does not go with frl=finetune"),
    ({"recipe": "scratch", "attack__fraction": 0.5}, r"frl=bat attacks every image: attack\.fraction must be 1"),
    ({"recipe": "scratch", "attack": "fgsm"}, "frl=bat looks at an attack's steps: attack=fgsm"),
    ({"retrain__attack__num_restarts": 2}, r"retrain\.attack\.num_restarts > 1 does not go"),
    ({"recipe": "scratch", "attack": "trades", "attack__beta": 6.0}, "attack.beta has no effect with frl=bat"),
])  # fmt: skip
def test_what_does_not_go_with_its_loss_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        parse(composed(**{"frl": "bat", **changes}), RunConfig)
