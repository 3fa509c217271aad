"""conf/experiment/published_*.yaml: each composes as its own first command says, with the numbers of its source."""

import re

import pytest

from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.commands.jobs import configure

FOLDER = CONFIG_DIR / "experiment"
TRADES = ("trades", 6.0)
# Loss and beta, epochs, and what the source gives.
EXPECTED = {
    "bat": (("friendly", None), 100, {"beta": 6}),
    "cfa": (TRADES, 200, {"radius_offset": 0.3, "beta_offset": 0.5, "start_epoch": 10, "average_start": 50,
                          "average_above": 0.2}),
    "cfol": (("mixed", None), 200, {"eta": 5e-6, "gamma": 0.5}),
    "csr": (TRADES, 2, {"mix": 0.3, "true_logit": 0.9}),
    "dafa": (TRADES, 110, {"strength": 1, "start_epoch": 70}),
    "faal": (TRADES, 2, {"ball": 0.5}),
    "robust_lt": (("mixed", None), 100, {"strength": 0.3, "warmup_share": 0.8}),
    "variance": (("mixed", None), 100, {"strength": 0.1, "slots": None}),
    "wat": (TRADES, 100, {"eta": 0.1, "update_every": "epoch"}),
}  # fmt: skip


def test_every_file_is_looked_at():
    assert {path.stem for path in FOLDER.glob("published_*.yaml")} == {f"published_{name}" for name in EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_setting_composes_as_its_command_says(name):
    loss, num_epochs, numbers = EXPECTED[name]
    text = (FOLDER / f"published_{name}.yaml").read_text()
    line = re.search(r"^#   command   python train\.py (.+)$", text, flags=re.M)
    assert line is not None
    assert "#   not known " in text
    config = configure(*line[1].split())
    attack, trainer = config.training
    assert config.frl.name == name
    assert {key: getattr(config.frl, key) for key in numbers} == numbers
    assert (config.objective, config.trades_beta) == loss
    assert (attack.epsilon, attack.step_size, attack.num_steps) == (8 / 255, 2 / 255, 10)
    assert trainer.num_epochs == num_epochs
    assert trainer.ema_decay == (0.85 if name == "cfa" else None)
    assert config.dataset.name == "cifar10"
    assert config.model.name == "preact_resnet18"
    assert config.dataset.imbalance == ("exponential" if name == "robust_lt" else "none")
    if config.retrain is not None:  # two epochs at two learning rates, from a base of a whole schedule
        assert (trainer.learning_rate, trainer.lr_milestones, config.trainer.num_epochs) == (1e-2, [1], 100)
