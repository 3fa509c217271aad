"""Generated native code for 64-bit Arm, under emulation, against this processor's."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from frl_repro.models import build_model
from frl_repro.models.compute.native import Engine
from frl_repro.models.compute.native.build import COMMON_FLAGS
from frl_repro.models.compute.native.graph import trace
from small_networks import TOLERANCE, cnn_small, is_plain, relative_error, resnet8, skip_without_compiler, tensors_of

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
COUNT, STEPS = 21, 5
EPSILON, STEP_SIZE = 0.03, 0.01

# Answers to a file of numbers: arrays of weights, each after its size, then images and gradients of logits.
MAIN = """
#include <cstdio>

int main(int, char** names) {
    constexpr int N = %d, K = Network::CLASSES, SIZE = Network::PIXELS * Network::CHANNELS;
    std::vector<std::vector<float>> arrays(Network::ARRAYS);
    std::vector<const float*> addresses;
    std::vector<float> packed(Network::PACKED), x(N * SIZE), given(N * K);
    FILE* in = std::fopen(names[1], "rb");
    auto read = [in](std::vector<float>& to) {
        if (std::fread(to.data(), 4, to.size(), in) != to.size()) std::abort();
    };
    for (auto& array : arrays) {
        std::vector<float> size(1);
        read(size);
        array.resize(static_cast<size_t>(size[0]));
        read(array);
        addresses.push_back(array.data());
    }
    read(x);
    read(given);
    std::vector<int64_t> labels(N);
    for (int n = 0; n < N; ++n) labels[n] = n %% K;
    const std::vector<float> epsilon(N, %ff), step(N, %ff);
    std::vector<float> logits(N * K), gradient(N * SIZE), adv = x, sums(Network::NUM_SUMS);
    std::vector<float> rows(Network::NUM_ROWS * num_groups(N) * LANES);
    frl_pack(addresses.data(), 1, packed.data(), 2);
    frl_gradients(packed.data(), 1, x.data(), N, labels.data(), nullptr, logits.data(), gradient.data(), 2);
    frl_attack(packed.data(), 1, x.data(), N, labels.data(), nullptr, nullptr, epsilon.data(), step.data(), %d,
               adv.data(), 2);
    if (Network::TRAINS)
        frl_parameter_gradients(packed.data(), 1, x.data(), N, given.data(), sums.data(), rows.data(), 2);
    FILE* out = std::fopen(names[2], "wb");
    for (const auto* values : {&logits, &gradient, &adv, &sums}) std::fwrite(values->data(), 4, values->size(), out);
    std::fclose(out);
}
"""


@pytest.fixture(autouse=True)
def tools() -> None:
    skip_without_compiler()
    for name in (COMPILER, EMULATOR):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not there (packages g++-aarch64-linux-gnu and qemu-user of Debian)")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "cnn_small", "resnet8"])
def test_arm_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    shape = (1, 32, 32) if name == "lenet5" else (3, 16, 16)
    lenet5 = build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=0).eval()
    model = {"lenet5": lambda: lenet5, "cnn_small": cnn_small, "resnet8": resnet8}[name]()
    engine, tensors = Engine(trace(model, shape), trains=is_plain(model)), tensors_of(model)
    generator = torch.Generator().manual_seed(1)
    x, given = torch.rand(COUNT, *shape, generator=generator), torch.randn(COUNT, 10, generator=generator)

    source = tmp_path / "network.cpp"
    source.write_text(engine._program.text + MAIN % (COUNT, EPSILON, STEP_SIZE, STEPS))
    flags = [flag for flag in COMMON_FLAGS if flag not in {"-shared", "-fPIC"}]
    subprocess.run([COMPILER, *flags, "-static", source, "-o", tmp_path / "network"], check=True)
    parts = [part.detach().flatten() for a in engine._arrays(tensors) for part in (torch.tensor([float(a.numel())]), a)]
    numbers = torch.cat([*parts, x.flatten(), given.flatten()])
    (tmp_path / "in").write_bytes(numbers.numpy().tobytes())
    subprocess.run([EMULATOR, tmp_path / "network", tmp_path / "in", tmp_path / "out"], check=True)
    found = torch.frombuffer(bytearray((tmp_path / "out").read_bytes()), dtype=torch.float32)
    logits, gradient, attacked, sums = found.split([COUNT * 10, x.numel(), x.numel(), engine._program.num_sums])

    labels = torch.arange(COUNT) % 10
    expected = engine.logits_and_input_gradient(tensors, x, labels, num_threads=1)
    assert relative_error(logits.view(COUNT, 10), expected[0].double()) < TOLERANCE
    assert relative_error(gradient.view(x.shape), expected[1].double()) < TOLERANCE
    radius, length = torch.full((COUNT,), EPSILON), torch.full((COUNT,), STEP_SIZE)
    ours = engine.pgd(
        tensors, x, labels, start=x, epsilon=radius, step_size=length, num_steps=STEPS, early_stop=False, num_threads=1
    )
    assert ((attacked.view(x.shape) - ours).abs() < 1e-6).float().mean() > 0.999
    if engine.trains:
        gradients = engine.parameter_gradients(tensors, x, given, num_threads=1)
        first, places = gradients["conv1.weight"], engine._program.sums
        place, (outs, ins, height, width) = places[min(places)], first.shape
        values = sums[place : place + first.numel()].view(outs, height, width, ins).permute(0, 3, 1, 2)
        assert relative_error(values, first.double()) < TOLERANCE
