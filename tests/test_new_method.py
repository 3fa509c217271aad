"""docs/new_method.md: its code is a method, its lines are settings, and it stays a page."""

import importlib.util
import sys

import pytest
import torch
import yaml

import frl_repro
from frl_repro.settings.parse import node
from frl_repro.training.frl import ClassStats
from pages import code_of
from support import ROOT, when

PAGE = ROOT / "docs" / "new_method.md"
(CODE,), (YAML,) = (code_of(PAGE, kind) for kind in ("python", "yaml"))
LABELS = torch.tensor([[0, 0, 1, 2]])


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The page's code as a module."""
    path = tmp_path / "hard.py"
    path.write_text(CODE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("hard_of_the_page", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where settings of a class are looked for
    spec.loader.exec_module(module)
    return module


def test_the_page_is_short_and_its_settings_are_those_of_its_code(made):
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 60
    values = yaml.safe_load(YAML)
    assert values.pop("defaults")[1] == "_self_"
    settings = node(made.Settings, values, "frl.")
    assert (settings.name, settings.gain) == ("hard", 0.5)


def test_the_pages_method_weighs_the_hardest_class_more(made):
    method = made.Hard(num_runs=1, num_classes=3)
    method.configure([made.Settings(name="hard", gain=0.5)])
    method.state = method.start()
    assert method.weigh(when(0)).nat[0].tolist() == [1, 1, 1]
    logits = torch.tensor([[[2.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0], [0, 0, 1.0]]])  # the image of class 1 is wrong
    method.see_batch(ClassStats.of(logits, LABELS, logits, LABELS), when(0))
    assert method.weigh(when(0)).nat[0].tolist() == [1, 1.5, 1]


def test_the_pages_method_trains(made):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = (0.3 * torch.rand(60, 1, 8, 8, generator=generator) + 0.3 * y.view(-1, 1, 1, 1)).clamp(0, 1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    trained = frl_repro.train(
        network, (x, y), test=(x, y), validation=0.2, method=made.Hard, frl={"gain": 0.5}, num_threads=1,
        retrain={"trainer": {"num_epochs": 1}, "attack": {"num_steps": 1}}, evaluation={"num_steps": 1},
    )  # fmt: skip
    assert sorted(trained.policy["weight_nat"].tolist()) == [1, 1, 1.5]
