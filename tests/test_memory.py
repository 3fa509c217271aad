"""A batch that memory cannot hold is worked through in parts, with one line and the same results."""

import dataclasses
import logging

import pytest
import torch

import native_lenet5 as native
from frl_repro import attacks
from frl_repro.attacks import pgd
from frl_repro.basics.errors import reason
from frl_repro.models import build_model, fuse
from frl_repro.models.compute import backends
from frl_repro.models.compute.memory import Parts, ascend_in_parts, logits_in_parts
from frl_repro.models.compute.native import NativeUnavailable
from frl_repro.models.compute.native import engine as engine_module
from frl_repro.runs import experiment
from support import table_contents, tiny_run


def on_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def on_processor():
    torch.empty(2**60, dtype=torch.uint8)  # the allocator's own error: a RuntimeError


def in_native_code():
    raise MemoryError("frl_lenet5_pgd ran out of memory for 13 images")


def in_cpp():
    raise RuntimeError("std::bad_alloc")


def holds(num, function, *, at=1, runs_out=on_gpu):
    """Return a function that runs out of memory above ``num`` images; they are argument ``at``."""

    def limited(*arguments, **settings):
        if len(arguments[at]) > num:
            runs_out()
        return function(*arguments, **settings)

    return limited


def attacked(ascend, *, num_runs=1, factor=None, early_stop=False, restarts=1):
    models = [build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=r) for r in range(num_runs)]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_runs * 13, 1, 32, 32, generator=generator)
    y = torch.arange(len(x)) % 3
    epsilon = 0.1 if factor is None else torch.linspace(0.01, 0.1, len(x))
    settings = {"num_steps": 3, "num_restarts": restarts, "early_stop": early_stop, "ascend": ascend}
    generators = [torch.Generator().manual_seed(r) for r in range(num_runs)]
    return pgd(fuse(models), x, y, epsilon=epsilon, step_size=0.03, generator=generators, **settings)


@pytest.mark.parametrize("num", [1, 4, 12])
@pytest.mark.parametrize(
    "settings", [{}, {"factor": True}, {"early_stop": True}, {"restarts": 3}, {"num_runs": 3, "factor": True}]
)
def test_an_attack_in_parts_gives_the_same_images(num, settings, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    most = num * settings.get("num_runs", 1)
    parts = Parts()
    found = attacked(ascend_in_parts(holds(most, attacks.ascend), parts), **settings)
    torch.testing.assert_close(found, attacked(attacks.ascend, **settings), rtol=0, atol=1e-6)
    lines = [message for message in caplog.messages if "out of memory" in message]
    assert lines[-1].startswith(f"out of memory: attacks and measurements go on with {parts._most} images at a time")
    assert parts._most <= num
    caplog.clear()
    attacked(ascend_in_parts(holds(most, attacks.ascend), parts), **settings)
    assert caplog.messages == []  # it has learnt its lesson


@pytest.mark.parametrize("runs_out", [on_processor, in_native_code, in_cpp])
def test_memory_may_run_out_anywhere(runs_out, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    found = attacked(ascend_in_parts(holds(4, attacks.ascend, runs_out=runs_out), Parts()))
    torch.testing.assert_close(found, attacked(attacks.ascend), rtol=0, atol=1e-6)
    assert "out of memory: attacks and measurements go on with 4 images at a time" in caplog.text
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        runs_out()
    assert reason(caught.value).startswith("not enough memory for one step: give a smaller trainer.batch_size")


def test_another_error_is_no_shortage_of_memory():
    def broken(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        attacked(ascend_in_parts(broken, Parts()))


def test_native_code_works_in_parts_to_the_same_bits(monkeypatch):
    try:
        native.engine()
    except NativeUnavailable as problem:
        pytest.skip(str(problem))
    model = build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=0).eval()
    x = torch.rand(70, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def answers():
        settings = {"ascend": native.NATIVE.ascend, "generator": torch.Generator().manual_seed(0)}
        x_adv = pgd(model, x, torch.arange(70) % 3, epsilon=0.1, step_size=0.03, num_steps=3, **settings)
        return x_adv, native.NATIVE.logits(model, x_adv)

    whole, most = answers(), engine_module._Call.__init__

    def scarce(self, engine, packed, x, num_threads):
        if len(x) > 20:
            in_native_code()
        most(self, engine, packed, x, num_threads)

    monkeypatch.setattr(engine_module._Call, "__init__", scarce)
    monkeypatch.setattr(backends._PARTS, "_most", None)
    for found, expected in zip(answers(), whole, strict=True):
        assert torch.equal(found, expected)


def test_a_run_with_little_memory_writes_the_same_bytes(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    torch.set_num_threads(1)
    folder = experiment.run(tiny_run(tmp_path / "whole"))
    parts = Parts()
    scarce = dataclasses.replace(
        backends.TORCH,
        logits=logits_in_parts(holds(9, attacks.logits), parts),
        ascend=ascend_in_parts(holds(9, attacks.ascend), parts),
    )
    monkeypatch.setattr(backends, "TORCH", scarce)
    other = experiment.run(tiny_run(tmp_path / "parts"))
    assert "out of memory" in caplog.text
    assert table_contents(other) == table_contents(folder)


def test_where_one_image_is_too_many_it_is_one_line():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        attacked(ascend_in_parts(holds(0, attacks.ascend), Parts()))
    assert (
        reason(caught.value) == "not enough memory for one step: give a smaller trainer.batch_size, or another device"
    )
