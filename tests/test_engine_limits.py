"""What generated native code takes: networks of anyone, and what it leaves to PyTorch."""

import logging
import re

import pytest
import torch
from torch import nn

import frl_repro
from frl_repro.attacks import evaluation_mode
from frl_repro.basics.errors import UserError
from frl_repro.models.compute import backends
from frl_repro.models.compute.backends import TORCH, choose_backend
from frl_repro.models.compute.native import Engine, Unsupported, engine_for
from frl_repro.models.compute.native import engine as engine_module
from frl_repro.models.compute.native.graph import trace, trains_as_it_answers
from small_networks import CPU, QUICK, check_against_float64, resnet8, skip_without_compiler, tensors_of


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    skip_without_compiler()


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


def test_the_front_door_measures_it_natively_with_pytorchs_errors(caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    model, generator = Own().eval(), torch.Generator().manual_seed(2)
    x, y = torch.rand(40, 3, 10, 12, generator=generator), torch.arange(40) % 5
    native, own = (frl_repro.evaluate(model, (x, y), num_steps=3, backend=name) for name in ("native", "torch"))
    errors = [name for name in native.columns if name.endswith("_error")]
    assert (native[errors] == own[errors]).all(axis=None)
    assert model.training is False


class Looks(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class Detached(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            return x.tanh()


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(_ctx, gradient):
        return -gradient


class Reversed(nn.Module):
    def forward(self, x):
        return _Reversed.apply(x)


def hooked():
    layer = nn.Tanh()
    layer.register_full_backward_hook(lambda _module, inputs, _outputs: (2 * inputs[0],))
    return layer


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight / self.weight.norm())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.SiLU(), r"last \(SiLU\): silu is not among its layers"),
        (nn.Sequential(nn.Tanh(), nn.Softmax(1)), r"last\.1 \(Softmax\): softmax is not among its layers"),
        (nn.Conv2d(4, 4, 3, groups=2), r"last \(Conv2d\): groups=2, dilation=\(1, 1\), stride=\(1, 1\)"),
        (nn.Conv2d(4, 4, 1, stride=(1, 2)), r"last \(Conv2d\): groups=1, dilation=\(1, 1\), stride=\(1, 2\)"),
        (nn.MaxPool2d(2, ceil_mode=True), r"last \(MaxPool2d\): ceil_mode"),
        (nn.InstanceNorm2d(4), r"last \(InstanceNorm2d\): instance_norm is not among its layers"),
        (nn.BatchNorm2d(4, track_running_stats=False), r"last \(BatchNorm2d\): batch statistics"),
        (Looks(), r"last \(Looks\): mean over dim=None"),
        (Detached(), r"last \(Detached\): tanh without gradients, or with some of its own"),
        (Reversed(), r"last \(Reversed\): view_as without gradients, or with some of its own"),
        (hooked(), r"last \(Tanh\): view_as without gradients, or with some of its own"),
        (Scaled(), r"last \(Scaled\): weights that are computed in the forward pass"),
    ],
)
def test_what_it_cannot_do_falls_back_and_names_the_layer(layer, reason, caplog):
    backends.say_once.cache_clear()
    model = Own(layer).eval()
    with pytest.raises(Unsupported, match=f"^{reason}$"):
        trace(model, (3, 16, 16))
    with caplog.at_level(logging.INFO):
        assert choose_backend("auto", model, CPU, image_shape=(3, 16, 16)) is TORCH
    assert len(caplog.messages) == 1
    assert re.search(f"native code does not know this network, PyTorch takes over: {reason}$", caplog.messages[0])
    with pytest.raises(UserError, match=f"^backend=native: {reason}; use backend=auto$"):
        choose_backend("native", model, CPU, image_shape=(3, 16, 16))


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_modules_of_torchscript_are_left_to_pytorch_and_compiled_ones_are_looked_into():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(Unsupported, match=r"^the network \(RecursiveScriptModule\): TorchScript$"):
        trace(torch.jit.script(model), (1, 2, 2))
    graph, inner = trace(torch.compile(model), (1, 2, 2)), trace(model, (1, 2, 2))
    assert [type(layer) for layer in graph.layers] == [type(layer) for layer in inner.layers]


class Noisy(nn.Module):
    def forward(self, x):
        return x * float(1 + 1e-4 * torch.rand(()))


def test_numbers_drawn_in_the_forward_pass_are_left_to_pytorch():
    with pytest.raises(Unsupported, match=r"^Own computes with other numbers in each forward pass$"):
        engine_for(Own(Noisy()).eval(), (3, 16, 16))


def test_without_a_compiler_pytorch_takes_over_with_one_line(monkeypatch, caplog):
    backends.say_once.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(engine_module, "_loaded", {})
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    with caplog.at_level(logging.INFO):
        backends_chosen = [choose_backend("auto", model, CPU, image_shape=(1, 2, 2)) for _ in range(2)]
    assert backends_chosen == [TORCH, TORCH]
    assert [message.rpartition(": ")[2] for message in caplog.messages] == ["no-such-compiler"]
    assert caplog.messages[0].startswith(
        "native backend not available, PyTorch takes over: the C++ compiler named by CXX"
    )


def test_a_build_is_said_once_and_later_processes_find_the_library(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval(), (3, 1, 1))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            monkeypatch.setattr(engine_module, "_loaded", {})
            Engine(graph, flags=QUICK)
    assert [message for message in caplog.messages if "compiling" in message] == [engine_module._BEFORE_BUILD]


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
