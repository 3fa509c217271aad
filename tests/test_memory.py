"""A batch that memory cannot hold is worked through in parts, with one line and the same results."""

import dataclasses
import logging

import pytest
import torch

from frl_repro import attacks, backends, experiment
from frl_repro.attacks import pgd
from frl_repro.errors import reason
from frl_repro.memory import Parts, ascend_in_parts, logits_in_parts
from frl_repro.models import build_model, stack
from test_experiment import contents, tiny


def holds(num, function, *, at=1):
    """Return a function that runs out of memory above ``num`` images; they are argument ``at``."""

    def limited(*arguments, **settings):
        if len(arguments[at]) > num:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
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
    return pgd(stack(models), x, y, epsilon=epsilon, step_size=0.03, generator=generators, **settings)


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


def test_a_run_with_little_memory_writes_the_same_bytes(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    torch.set_num_threads(1)
    folder = experiment.run(tiny(tmp_path / "whole"))
    parts = Parts()
    scarce = dataclasses.replace(
        backends.TORCH,
        logits=logits_in_parts(holds(9, attacks.logits), parts),
        ascend=ascend_in_parts(holds(9, attacks.ascend), parts),
    )
    monkeypatch.setattr(backends, "TORCH", scarce)
    other = experiment.run(tiny(tmp_path / "parts"))
    assert "out of memory" in caplog.text
    assert contents(other) == contents(folder)


def test_where_one_image_is_too_many_it_is_one_line():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        attacked(ascend_in_parts(holds(0, attacks.ascend), Parts()))
    assert (
        reason(caught.value) == "not enough memory for one step: give a smaller trainer.batch_size, or another device"
    )
