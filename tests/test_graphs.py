"""CUDA graphs give the numbers of the steps that they record; without a GPU, attacks run as ever."""

import logging

import pytest
import torch

from frl_repro.attacks import ascend, pgd
from frl_repro.evaluation.measure import set_up_machine
from frl_repro.models import build_model, fuse
from frl_repro.models.compute import graphs
from frl_repro.models.compute.backends import TORCH, choose_backend


def setting(device, num_runs=1):
    set_up_machine(torch.device(device), None)
    generator = torch.Generator().manual_seed(0)
    models = [build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=r).to(device) for r in range(num_runs)]
    x = torch.rand(num_runs * 6, 1, 32, 32, generator=generator).to(device)
    return fuse(models), x, torch.arange(num_runs * 6, device=device) % 3


def attacked(model, x, y, steps, *, factor=1.0, early_stop=False):
    return pgd(
        model,
        x,
        y,
        epsilon=0.1 * factor,
        step_size=0.03 * factor,
        num_steps=4,
        use_random_start=False,
        early_stop=early_stop,
        ascend=steps,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine that cannot record")
def test_where_nothing_can_be_recorded_attacks_run_as_ever_and_one_line_says_so(caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    model, x, y = setting("cpu")
    steps, expected = graphs.GraphedAscend(), attacked(*setting("cpu"), ascend)
    for _ in range(5):
        assert torch.equal(attacked(model, x, y, steps), expected)
    assert caplog.text.count("attacks run without CUDA graphs: ") == 1
    assert choose_backend("torch", model, torch.device("cpu")) is TORCH


@pytest.mark.gpu
@pytest.mark.parametrize("num_runs", [1, 3])
def test_recorded_attacks_give_the_numbers_of_the_plain_one(num_runs, monkeypatch):
    model, x, y = setting("cuda", num_runs)
    steps, recorded = graphs.GraphedAscend(), []
    record = graphs._record
    monkeypatch.setattr(graphs, "_record", lambda *arguments: recorded.append(1) or record(*arguments))
    factor = torch.linspace(0.5, 2, len(x), device="cuda")
    for call in range(6):
        with torch.no_grad():  # weights that move in place, as an optimiser moves them
            for parameter in model.parameters():
                parameter.mul_(1.1)
        images = x.roll(call, 0)
        for given in (1.0, factor):
            expected = attacked(model, images, y, ascend, factor=given)
            torch.testing.assert_close(attacked(model, images, y, steps, factor=given), expected, rtol=0, atol=1e-6)
    assert len(recorded) == 2  # one with a radius for all, one with a radius each
    expected = attacked(model, x, y, ascend, early_stop=True)
    torch.testing.assert_close(attacked(model, x, y, steps, early_stop=True), expected, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_weights_that_moved_elsewhere_are_recorded_anew(monkeypatch):
    model, x, y = setting("cuda")
    steps = graphs.GraphedAscend()
    for _ in range(4):
        attacked(model, x, y, steps)
    other = setting("cuda", num_runs=2)[0]._models[1]
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        mine.data = its.data  # as fusing does
    for _ in range(4):
        torch.testing.assert_close(attacked(model, x, y, steps), attacked(model, x, y, ascend), rtol=0, atol=1e-6)
