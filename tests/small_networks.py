"""Small networks, random ones among them, and what generated native code is compared with."""

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from frl_repro.models import build_model
from frl_repro.models.compute.native import Engine, NativeUnavailable
from frl_repro.models.compute.native.graph import trace

TOLERANCE = 1e-4  # relative to the largest entry


CPU = torch.device("cpu")


QUICK = ("-O1",)  # builds in half the time; shipped networks are tested as users get them


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


def skip_without_compiler():
    """Skip where the machine has no compiler; the rest of the package then runs on torch."""
    try:
        Engine(trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2)), flags=QUICK)
    except NativeUnavailable as error:
        pytest.skip(str(error))
