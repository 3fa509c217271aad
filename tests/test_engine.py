"""Generated native code against float64 autograd: random networks, attacks, training, and its limits."""

import copy
import logging
import os
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from frl_repro.attacks import ascend, evaluation_mode, pgd
from frl_repro.backends import NATIVE, TORCH, choose_backend, native_backend
from frl_repro.errors import UserError
from frl_repro.models import ModelStack, build_model
from frl_repro.native import Engine, NativeUnavailable, Unsupported, engine_for
from frl_repro.native.graph import trace, trains_as_it_answers

TOLERANCE = 1e-4  # relative to the largest entry
CPU = torch.device("cpu")
QUICK = ("-O1",)  # builds in half the time; shipped networks are tested as users get them


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """Skip where the machine has no compiler; the rest of the package then runs on torch."""
    try:
        Engine(trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2)), flags=QUICK)
    except NativeUnavailable as error:
        pytest.skip(str(error))


class Branches(nn.Module):
    """The sum of two ways through; an empty way is the input itself."""

    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return self.one(x) + self.other(x)


class Shift(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def batch_norm(channels, draw):
    layer = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(draw.randrange(1000))
    for tensor, low in (
        (layer.running_mean, -0.3),
        (layer.running_var, 0.5),
        (layer.weight.data, 0.5),
        (layer.bias.data, -0.3),
    ):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + low)
    return layer


def random_network(seed):
    """Return a random network and its (C, H, W): odd sizes, strides, paddings, branches, poolings, K."""
    draw = random.Random(seed)
    channels, height, width = shape = (draw.randint(1, 3), draw.randint(6, 17), draw.randint(6, 17))
    layers = [
        Shift([draw.uniform(0.2, 0.6) for _ in range(channels)], [draw.uniform(0.2, 0.5) for _ in range(channels)])
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(draw.randint(1, 4)):
            kind = draw.choice(["conv", "conv", "conv", "branch", "pool", "norm"])
            if kind == "conv":
                kernel = (draw.randint(1, min(5, height)), draw.randint(1, min(5, width)))
                stride, out = draw.randint(1, 3), draw.randint(1, 9)
                padding = (draw.randint(0, kernel[0] // 2), draw.randint(0, kernel[1] // 2))
                layers.append(nn.Conv2d(channels, out, kernel, stride, padding, bias=draw.random() < 0.7))
                channels = out
            elif kind == "branch":
                inside = [nn.Conv2d(channels, channels, 3, 1, 1), batch_norm(channels, draw), nn.ReLU()]
                other = draw.choice([nn.Identity(), nn.Conv2d(channels, channels, 1), nn.MaxPool2d(3, 1, 1)])
                ways = [nn.Sequential(*inside[: draw.randint(1, 3)]), other]
                draw.shuffle(ways)
                layers.append(Branches(*ways))
            elif kind == "pool" and min(height, width) >= 3:
                size, stride = draw.choice([(2, 2), (3, 2), (3, 1), (2, 3)])
                pool = draw.choice([nn.MaxPool2d, nn.AvgPool2d])
                layers.append(pool(size, stride, draw.randint(0, size // 2)))
            else:
                layers.append(batch_norm(channels, draw))
            layers += [nn.Tanh(), nn.ReLU(), nn.LeakyReLU(0.1), nn.Identity()][draw.randrange(4) :][:1]
            _, channels, height, width = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape
        if draw.random() < 0.5:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            height = width = 1
        else:
            layers += [nn.Flatten(), nn.Linear(channels * height * width, 7), nn.Tanh()]
            channels, height, width = 7, 1, 1
        layers.append(nn.Linear(channels, draw.choice([2, 3, 10, 17])))
    return nn.Sequential(*layers).eval(), shape


def tensors_of(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def check_against_float64(engine, model, shape, *, sizes=(1, 21), seed=0):
    """Logits, input gradients and parameter gradients of a batch of each size, labels and distributions."""
    generator = torch.Generator().manual_seed(seed)
    K = engine.num_classes
    exact = copy.deepcopy(model).double()
    tensors = tensors_of(model)
    for N in sizes:
        x = torch.rand(N, *shape, generator=generator)
        labels = torch.randint(K, (N,), generator=generator)
        distribution = softmax(2 * torch.randn(N, K, generator=generator), 1)
        for target in (labels, distribution):
            images = x.double().requires_grad_()
            logits = exact(images)
            loss = cross_entropy(logits, target if target.ndim == 1 else target.double(), reduction="sum")
            wanted = [p for p in exact.parameters() if p.requires_grad]
            expected = torch.autograd.grad(loss, [images, *wanted], allow_unused=True)
            found, gradient = engine.logits_and_input_gradient(tensors, x, target, num_threads=2)
            assert torch.equal(found, engine.logits(tensors, x, num_threads=1))
            assert relative_error(found, logits.detach()) < TOLERANCE
            assert relative_error(gradient, expected[0]) < TOLERANCE
        if engine.trains:
            given = (softmax(logits.detach(), 1) - distribution.double()).float()
            gradients = engine.parameter_gradients(tensors, x, given, num_threads=2)
            for (name, _), right in zip(model.named_parameters(), expected[1:], strict=True):
                if right is not None and name in gradients:
                    assert relative_error(gradients[name], right) < TOLERANCE, name


def is_plain(model):
    return not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_agree_with_float64_autograd(seed):
    model, shape = random_network(seed)
    engine = Engine(trace(model, shape), trains=is_plain(model), flags=QUICK)
    check_against_float64(engine, model, shape)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 60))
def test_many_random_networks_agree_with_float64_autograd(seed):
    test_random_networks_agree_with_float64_autograd(seed)


def resnet8(width=4, num_classes=10, channels=3):
    model = build_model(
        "resnet8", num_classes=num_classes, image_shape=(channels, 16, 16), seed=0, width=width, mean=[0.5], std=[0.25]
    )
    with torch.no_grad():  # statistics as after some training
        model.train()(torch.rand(64, channels, 16, 16, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def cnn_small(num_classes=10, side=16, seed=0):
    return build_model(
        "cnn_small", num_classes=num_classes, image_shape=(3, side, side), seed=seed, mean=[0.4, 0.5, 0.6], std=[0.25]
    ).eval()


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


def test_lenet5_of_generated_code_agrees_with_its_own_kernel():
    model = build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0).eval()
    engine, x = engine_for(model, (1, 32, 32)), torch.rand(20, 1, 32, 32)
    assert choose_backend("auto", model, CPU, image_shape=(1, 32, 32)) is NATIVE
    generated = native_backend(engine)
    assert torch.allclose(generated.logits(model, x), NATIVE.logits(model, x), atol=1e-6)
    arguments = (model, x, torch.zeros(20).long(), torch.zeros(20).long(), x, 0.1, 0.02)
    settings = {"num_steps": 5, "early_stop": False}
    same = (generated.ascend(*arguments, **settings) - NATIVE.ascend(*arguments, **settings)).abs() < 1e-6
    assert same.float().mean() > 0.999
    for wanted in (generated, NATIVE):
        model.zero_grad()
        wanted.forward(model, x).square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        if wanted is generated:
            first = gradients
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(first, gradients, strict=True))


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
            running &= logits.argmax(1) == labels
        delta = torch.minimum(torch.maximum(expected + length * gradient.sign() - x, -radius), radius)
        expected = torch.where(running.view(-1, 1, 1, 1), (x + delta).clamp(0, 1), expected)
    for threads in (1, 3):
        found = engine.pgd(
            tensors, x, target, start=x, epsilon=epsilon, step_size=step, num_steps=6, early_stop=early_stop,
            labels=labels, num_threads=threads,
        )  # fmt: skip
        assert torch.equal(found, expected)


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
            model, x[block], y[block], y[block], x[block], 0.1, 0.05, num_steps=3, early_stop=True
        )
        return logits.detach(), backend.logits(model, x[block]), attacked

    alone, gradients = [], []
    for r, model in enumerate(models):
        alone.append(answers(model, slice(20 * r, 20 * r + 20)))
        gradients.append([p.grad.clone() for p in model.parameters()])
    together = answers(ModelStack(models), slice(None))
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
        ({"num_steps": -1}, ValueError, r"num_steps must be at least 0, got -1"),
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


class Own(nn.Module):
    """A network as users write them: three convolutions, two branches, functions, methods, sizes taken from tensors."""

    def __init__(self, last=None):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding="same")
        self.left, self.right = nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.Conv2d(6, 4, 1, stride=2)
        self.last = nn.Identity() if last is None else last
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = nn.functional.relu(self.first(2 * x - 1), inplace=True)
        x = torch.tanh(self.left(x)) + self.right(x).relu()
        x = self.last(x)
        if x.shape[1] > 1:
            x = nn.functional.max_pool2d(x, 2)
        return self.head(x.mean(dim=(2, 3)).view(x.size(0), -1))


def test_a_users_own_network_is_attacked_natively():
    model = Own().eval()
    backend = choose_backend("auto", model, CPU, image_shape=(3, 10, 12))
    assert backend.name == "native"
    check_against_float64(engine_for(model, (3, 10, 12)), model, (3, 10, 12))


class Looks(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight / self.weight.norm())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.SiLU(), r"last \(SiLU\): no silu"),
        (nn.Sequential(nn.Tanh(), nn.Softmax(1)), r"last\.1 \(Softmax\): no softmax"),
        (nn.Conv2d(4, 4, 3, groups=2), r"last \(Conv2d\): groups=2, dilation=\(1, 1\), stride=\(1, 1\)"),
        (nn.Conv2d(4, 4, 1, stride=(1, 2)), r"last \(Conv2d\): groups=1, dilation=\(1, 1\), stride=\(1, 2\)"),
        (nn.MaxPool2d(2, ceil_mode=True), r"last \(MaxPool2d\): ceil_mode"),
        (nn.InstanceNorm2d(4), r"last \(InstanceNorm2d\): no instance_norm"),
        (nn.BatchNorm2d(4, track_running_stats=False), r"last \(BatchNorm2d\): batch statistics"),
        (Looks(), r"last \(Looks\): mean over dim=None"),
        (Scaled(), r"last \(Scaled\): weights that are computed in the forward pass"),
    ],
)
def test_what_it_cannot_do_falls_back_and_names_the_layer(layer, reason, caplog):
    model = Own(layer).eval()
    with pytest.raises(Unsupported, match=f"^{reason}$"):
        trace(model, (3, 16, 16))
    with caplog.at_level(logging.INFO):
        assert choose_backend("auto", model, CPU, image_shape=(3, 16, 16)) is TORCH
    assert len(caplog.messages) == 1
    with pytest.raises(UserError, match=f"^backend=native: {reason}; use backend=auto$"):
        choose_backend("native", model, CPU, image_shape=(3, 16, 16))


def test_a_large_network_is_left_to_pytorch():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 62 * 62, 2)
    )
    with pytest.raises(Unsupported, match=r"^too large: a thread would work in \d+ MiB, 16 at most$"):
        engine_for(model.eval(), (3, 64, 64))


def test_tracing_leaves_the_network_as_it_was():
    model, before = resnet8().train(), torch.get_rng_state()
    buffers = [buffer.clone() for buffer in model.buffers()]
    with evaluation_mode(model):
        graph = trace(model, (3, 16, 16))
    assert not trains_as_it_answers(model, (3, 16, 16), graph)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_answers_natively_and_trains_in_pytorch():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).eval()
    engine = engine_for(model, (1, 4, 4))
    assert not engine.trains
    with pytest.raises(ValueError, match="no parameter gradients"):
        engine.parameter_gradients(tensors_of(model), torch.zeros(1, 1, 4, 4), torch.zeros(1, 3), num_threads=1)


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
