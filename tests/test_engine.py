"""Generated native code against float64 autograd: random networks, attacks, training."""

import copy
import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from frl_repro.attacks import Ascent, ascend, input_gradient, pgd
from frl_repro.attacks.predictions import is_wrong
from frl_repro.models import FusedModel
from frl_repro.models.compute.backends import TORCH, native_backend
from frl_repro.models.compute.native import Engine, engine_for
from frl_repro.models.compute.native.engine import _compare
from frl_repro.models.compute.native.graph import trace
from small_networks import (
    QUICK,
    TOLERANCE,
    check_against_float64,
    cnn_small,
    is_plain,
    random_network,
    relative_error,
    resnet8,
    skip_without_compiler,
    tensors_of,
)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    skip_without_compiler()


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_agree_with_float64_autograd(seed):
    model, shape = random_network(seed)
    engine = Engine(trace(model, shape), trains=is_plain(model), flags=QUICK)
    check_against_float64(engine, model, shape)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 60))
def test_many_random_networks_agree_with_float64_autograd(seed):
    test_random_networks_agree_with_float64_autograd(seed)


@pytest.fixture(scope="module")
def small():
    model = cnn_small()
    return model, engine_for(model, (3, 16, 16))


def test_shipped_networks_agree_with_float64_autograd(small):
    model, engine = small
    assert engine.trains
    check_against_float64(engine, model, (3, 16, 16), sizes=(1, 40))
    model = resnet8()
    engine = engine_for(model, (3, 16, 16))
    assert not engine.trains
    check_against_float64(engine, model, (3, 16, 16), sizes=(40,))


def attack_settings(count):
    epsilon = torch.rand(count, generator=torch.Generator().manual_seed(4)) * 0.1
    epsilon[::5] = 0.0
    return epsilon, epsilon / 3


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("kind", ["labels", "distribution"])
@pytest.mark.parametrize("count", [1, 37])
def test_pgd_equals_a_plain_loop_for_any_threads(small, count, kind, early_stop):
    model, engine = small
    tensors, generator = tensors_of(model), torch.Generator().manual_seed(3)
    x = torch.rand(count, 3, 16, 16, generator=generator)
    labels = engine.logits(tensors, x, num_threads=1).argmax(1)
    labels[::4] = (labels[::4] + 1) % 10  # wrong from the start
    target = labels if kind == "labels" else softmax(torch.randn(count, 10, generator=generator), 1)
    epsilon, step = attack_settings(count)
    radius, length = epsilon.view(-1, 1, 1, 1), step.view(-1, 1, 1, 1)
    expected, running = x.clone(), torch.ones(count, dtype=torch.bool)
    for _ in range(6):
        logits, gradient = engine.logits_and_input_gradient(tensors, expected, target, num_threads=1)
        if early_stop:
            running &= ~is_wrong(logits, labels)
        delta = torch.minimum(torch.maximum(expected + length * gradient.sign() - x, -radius), radius)
        expected = torch.where(running.view(-1, 1, 1, 1), (x + delta).clamp(0, 1), expected)
    for threads in (1, 3):
        found = engine.pgd(
            tensors, x, target, start=x, epsilon=epsilon, step_size=step, num_steps=6, early_stop=early_stop,
            labels=labels, num_threads=threads,
        )  # fmt: skip
        assert torch.equal(found, expected)


@pytest.mark.parametrize("early_stop", [False, True])
def test_an_attack_that_makes_logits_infinite_has_succeeded_and_stops_there(early_stop):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():  # logit 0 leaves float32 where the first pixel is above 0.695; below, class 0 is predicted
        model[1].weight.copy_(torch.tensor([[3.3e38, 0, 0, 0], [0, 1, 0, 0]]))
        model[1].bias.copy_(torch.tensor([1.1e38, 0]))
    x, labels, wanted = torch.full((5, 1, 2, 2), 0.55), torch.zeros(5).long(), torch.ones(5).long()
    x[3:] = 0.8  # infinite from the start: wrong when clean
    backend = native_backend(Engine(trace(model, (1, 2, 2)), flags=QUICK))
    assert not backend.logits(model, x[:3]).isinf().any()
    assert is_wrong(backend.logits(model, x), labels).tolist() == [False] * 3 + [True] * 2
    ascent = Ascent(x, labels, wanted, x, 0.4, 0.1, num_steps=3, early_stop=early_stop)
    found, expected = backend.ascend(model, ascent), ascend(model, ascent)
    assert torch.equal(found, expected)
    assert is_wrong(backend.logits(model, found), labels).all()
    brightest = found.amax((1, 2, 3))
    assert brightest.tolist() == pytest.approx([0.75] * 3 + [0.8] * 2)  # no gradient where logits are infinite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", range(3))
def test_early_stop_leaves_samples_whose_logits_are_not_finite(place, value):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    engine, x, labels = Engine(trace(model, (1, 2, 2)), flags=QUICK), torch.rand(20, 1, 2, 2), torch.arange(20) % 3
    with torch.no_grad():
        model[1].bias[place] = value
    settings = {"epsilon": torch.full((20,), 0.1), "step_size": torch.full((20,), 0.02), "num_steps": 5}
    found = engine.pgd(tensors_of(model), x, labels, start=x, **settings, early_stop=True, labels=labels, num_threads=2)
    assert torch.equal(found, x)
    _compare(engine, model, (1, 2, 2))  # PyTorch's are not finite either: no reason to refuse the engine


@pytest.mark.parametrize("settings", [{}, {"objective": "kl", "start_sd": 0.05}, {"num_restarts": 2}])
def test_attacks_go_where_pytorchs_go(small, settings):
    model, engine = small
    backend = native_backend(engine)
    x = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    y = backend.logits(model, x).argmax(1)
    common = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 5, **settings}
    ours, theirs = (
        pgd(model, x, y, **common, generator=torch.Generator().manual_seed(7), ascend=a, logits=b)
        for a, b in ((backend.ascend, backend.logits), (ascend, TORCH.logits))
    )
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.99
    with torch.no_grad():
        losses = [cross_entropy(model(images), y) for images in (ours, theirs)]
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)


def test_trades_first_step_is_as_near_to_float64_as_pytorchs(small):
    """At TRADES' start, 0.001 from the clean image, the gradient of KL is rounded in float32, whoever computes it.

    It is proportional to the difference of two softmaxes, 4e-5 here, each exact to 6e-8. Relative to the gradient's
    largest entry that leaves an error of 8e-4 in PyTorch and 4e-4 in native code (medians over images), against 2e-5
    and 1e-5 at 0.05. So 3 in 10,000 signs of the first step differ between the two, and 2 % of pixels after five steps.
    """
    model, engine = small
    backend, exact = native_backend(engine), copy.deepcopy(model).double()
    x = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    start = (x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    clean = exact(x.double()).detach()
    _, right = input_gradient(exact, start.double(), softmax(clean, 1))
    _, theirs = input_gradient(model, start, softmax(TORCH.logits(model, x), 1))
    target = softmax(backend.logits(model, x), 1)
    _, ours = engine.logits_and_input_gradient(tensors_of(model), start, target, num_threads=1)

    def errors(gradient):
        largest = [(g.double().flatten(1)).abs().amax(1) for g in (gradient - right, right)]
        return largest[0] / largest[1]

    assert errors(ours).median() < min(1e-3, float(errors(theirs).median()))
    wrong_signs = [int((g.sign() != right.sign()).sum()) for g in (ours, theirs)]
    assert wrong_signs[0] <= wrong_signs[1] < 1e-3 * x.numel()
    common = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 5, "objective": "kl", "start_sd": 0.001}
    reached = []
    for a, b in ((backend.ascend, backend.logits), (ascend, TORCH.logits)):
        attacked = pgd(
            model, x, clean.argmax(1), **common, generator=torch.Generator().manual_seed(7), ascend=a, logits=b
        )
        logits = exact(attacked.double()).detach()
        reached.append(float(kl_div(log_softmax(logits, 1), softmax(clean, 1), reduction="batchmean")))
    assert reached[0] == pytest.approx(reached[1], rel=2e-3)


def test_several_runs_in_one_call_have_the_bytes_of_each_alone():
    def network(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))

    models = [network(seed) for seed in range(3)]
    backend = native_backend(engine_for(models[0], (1, 6, 6)))
    x, y = torch.rand(3 * 20, 1, 6, 6), torch.arange(60) % 5
    weights = torch.rand(60, 1)

    def answers(model, block):
        model.zero_grad()
        logits = backend.forward(model, x[block])
        (logits * weights[block]).square().sum().backward()
        attacked = backend.ascend(
            model, Ascent(x[block], y[block], y[block], x[block], 0.1, 0.05, num_steps=3, early_stop=True)
        )
        return logits.detach(), backend.logits(model, x[block]), attacked

    alone, gradients = [], []
    for r, model in enumerate(models):
        alone.append(answers(model, slice(20 * r, 20 * r + 20)))
        gradients.append([p.grad.clone() for p in model.parameters()])
    together = answers(FusedModel(models), slice(None))
    for r, model in enumerate(models):
        for mine, ours in zip(alone[r], together, strict=True):
            assert torch.equal(mine, ours[20 * r : 20 * r + 20])
        for parameter, gradient in zip(model.parameters(), gradients[r], strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def test_a_step_of_training_is_pytorchs(small):
    model, engine = small
    backend = native_backend(engine)
    x, y = torch.rand(24, 3, 16, 16), torch.arange(24) % 10
    found = []
    for forward in (backend.forward, TORCH.forward):
        model.zero_grad()
        cross_entropy(forward(model, x), y).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        assert relative_error(ours, theirs.double()) < TOLERANCE
    images = x.clone().requires_grad_()
    for forward in (backend.forward_of_images, TORCH.forward_of_images):
        (gradient,) = torch.autograd.grad(cross_entropy(forward(model, images), y), images)
        found.append(gradient)
    assert relative_error(found[2], found[3].double()) < TOLERANCE


def test_batch_norm_trains_in_pytorch_and_is_attacked_with_its_latest_statistics():
    model = resnet8()
    backend = native_backend(engine_for(model, (3, 16, 16)))
    x = torch.rand(16, 3, 16, 16)
    before = backend.logits(model, x)
    model.train()
    assert backend.forward(model, x).grad_fn is not None
    model.eval()
    with torch.no_grad():
        assert torch.allclose(backend.logits(model, x), model(x), atol=1e-4)
    assert not torch.allclose(backend.logits(model, x), before)


def test_results_depend_neither_on_place_nor_on_threads(small):
    model, engine = small
    tensors, x, given = tensors_of(model), torch.rand(53, 3, 16, 16), torch.randn(53, 10)
    order = torch.randperm(53, generator=torch.Generator().manual_seed(6))
    target = torch.arange(53) % 10
    here = engine.logits_and_input_gradient(tensors, x, target, num_threads=1)
    there = engine.logits_and_input_gradient(tensors, x[order], target[order], num_threads=3)
    assert all(torch.equal(a[order], b) for a, b in zip(here, there, strict=True))
    runs = [engine.parameter_gradients(tensors, x, given, num_threads=n) for n in (1, 2, 3)]
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in runs[0])


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_batch_of_a_thousand_is_its_parts_for_any_threads(small, early_stop):
    model, engine = small
    tensors, y = tensors_of(model), torch.arange(1000) % 10
    x = torch.rand(1000, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    length = torch.full((1000,), 0.01)

    def attacked(part, threads):
        return engine.pgd(
            tensors, x[part], y[part], start=x[part], epsilon=3 * length[part], step_size=length[part], num_steps=4,
            early_stop=early_stop, labels=y[part], num_threads=threads,
        )  # fmt: skip

    whole = attacked(slice(None), 2)
    assert torch.equal(whole, attacked(slice(None), 1))
    assert torch.equal(whole, torch.cat([attacked(slice(i, i + 100), 2) for i in range(0, 1000, 100)]))


def test_empty_batches_and_no_steps(small):
    model, engine = small
    tensors, x = tensors_of(model), torch.rand(2, 3, 16, 16)
    assert engine.logits(tensors, x[:0], num_threads=2).shape == (0, 10)
    gradients = engine.parameter_gradients(tensors, x[:0], torch.zeros(0, 10), num_threads=1)
    assert all(not gradient.any() for gradient in gradients.values())
    settings = {"epsilon": torch.ones(2), "step_size": torch.ones(2), "early_stop": False, "num_threads": 1}
    assert torch.equal(engine.pgd(tensors, x, torch.tensor([0, 1]), start=x, num_steps=0, **settings), x)


def test_non_finite_weights_show(small):
    model, engine = small
    for name in ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"):
        tensors = {key: value.detach().clone() for key, value in tensors_of(model).items()}
        tensors[name].view(-1)[0] = float("nan")
        logits, gradient = engine.logits_and_input_gradient(
            tensors, torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2]), num_threads=1
        )
        assert logits.isnan().any(1).all()
        assert gradient.isnan().any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 1, 16, 16)}, ValueError, r"x must have shape \(2, 3, 16, 16\), got \(2, 1, 16, 16\)"),
        ({"x": torch.zeros(2, 3, 16, 16).double()}, TypeError, r"x must be a torch\.float32 tensor"),
        ({"target": torch.tensor([0, 10])}, ValueError, r"target must be classes from 0 to 9, got 0 to 10"),
        ({"target": torch.zeros(2, 9)}, ValueError, r"target must have shape \(2, 10\)"),
        ({"num_threads": 0}, ValueError, r"num_threads must be at least 1, got 0"),
        ({"epsilon": torch.zeros(3)}, ValueError, r"epsilon must have shape \(2,\), got \(3,\)"),
        ({"num_steps": -1}, ValueError, r"num_steps must lie in \[0, 2\^31\), got -1"),
        ({"early_stop": True}, ValueError, r"early_stop needs labels"),
    ],
)
def test_wrong_arguments_are_named(small, change, error, message):
    model, engine = small
    x = torch.zeros(2, 3, 16, 16)
    arguments = {
        "tensors": tensors_of(model), "x": x, "target": torch.tensor([0, 1]), "start": x, "epsilon": torch.zeros(2),
        "step_size": torch.zeros(2), "num_steps": 1, "early_stop": False, "num_threads": 1,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        engine.pgd(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda tensor: tensor.double(), TypeError, r"tensors must be torch\.float32 tensors on the CPU"),
        (
            lambda tensor: tensor[:, :8],
            ValueError,
            r"tensors have other shapes than those that native code was made for",
        ),
    ],
)
def test_weights_of_another_kind_are_refused(small, change, error, message):
    model, engine = small
    tensors = tensors_of(model)
    with pytest.raises(error, match=message):
        engine.logits(
            tensors | {"conv2.weight": change(tensors["conv2.weight"])}, torch.zeros(1, 3, 16, 16), num_threads=1
        )


def test_gradient_of_equal_largest_pixels_goes_to_the_first_as_in_pytorch():
    model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)).eval()
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.tensor([1])
    _, found = engine_for(model, (1, 4, 4)).logits_and_input_gradient(tensors_of(model), x, y, num_threads=1)
    images = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(model(images), y), images)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found != 0).sum() == 4


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-DFRL_LANES=4",), ("-DFRL_LANES=8",), ("-march=x86-64-v3",), ("-march=x86-64",)])
def test_other_processors_variants_agree(flags):
    if flags[0].startswith("-march") and os.uname().machine != "x86_64":
        pytest.skip("for x86 processors")
    for model, shape in ((cnn_small(), (3, 16, 16)), random_network(3)):
        engine = Engine(trace(model, shape), trains=is_plain(model), flags=(*QUICK, *flags))
        check_against_float64(engine, model, shape)
