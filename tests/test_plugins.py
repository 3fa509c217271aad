"""Networks and data sets of one's own in the runner: files in a folder of one's own, and functions that are allowed."""

import importlib.metadata
import json
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from safetensors.torch import load_file

from frl_repro.basics.errors import UserError
from frl_repro.basics.plugins import VARIABLE, allowed_function
from frl_repro.commands import cli
from frl_repro.commands.jobs import check_command_line
from frl_repro.models import checkpoints
from frl_repro.models.loading import model_of
from frl_repro.results.tables import reading
from frl_repro.runs import experiment
from support import call, stopped

CODE = """
import torch
from torch import nn

calls = []


def make(num_classes, image_shape, width=4):
    calls.append((num_classes, image_shape, width))
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], width), nn.ReLU(),
                         nn.Linear(width, num_classes))


def load(brightness=0.2):
    def images(num, seed):
        y = torch.arange(num) % 3
        x = 0.4 * torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return x + brightness * y.view(-1, 1, 1, 1), y
    return {"train": images(90, 0), "test": images(30, 1), "class_names": ["dark", "grey", "light"]}


def wrong(**_):
    return 1
"""
RUN = [
    "model=mine", "dataset=mine", "trainer.num_epochs=2", "trainer.batch_size=30", "attack.num_steps=2",
    "evaluation.num_steps=2", "num_threads=1",
]  # fmt: skip


@pytest.fixture
def own(in_tmp, monkeypatch):
    """A folder with a module, files of settings, and nothing allowed."""
    (in_tmp / "own_nets.py").write_text(CODE, encoding="utf-8")
    for group, text in (
        ("model", "name: mine\nfactory: own_nets:make\nsettings:\n  width: 5\n"),
        ("dataset", "name: mine\nfactory: own_nets:load\nvalidation_fraction: 0.2\n"),
        ("experiment", "# @package _global_\nseed: 7\n"),
    ):
        (in_tmp / "settings" / group).mkdir(parents=True)
        (in_tmp / "settings" / group / "mine.yaml").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(in_tmp))
    monkeypatch.delenv(VARIABLE, raising=False)
    yield in_tmp
    sys.modules.pop("own_nets", None)


def train(monkeypatch, *more):
    return call(monkeypatch, "--config-dir", "settings", *RUN, *more)


def the_run(folder):
    (found,) = [path.parent for path in folder.glob("outputs/*/done.json")]
    return found


def test_own_code_is_called_only_where_it_is_allowed(own, monkeypatch, capsys):
    assert train(monkeypatch) == 1
    said = capsys.readouterr().err
    assert "dataset.factory=own_nets:load: other people's code is called only where you allow it" in said
    assert f"set {VARIABLE}=own_nets in the environment" in said
    assert "own_nets" not in sys.modules
    monkeypatch.setenv(VARIABLE, "another, own_nets:load")
    assert train(monkeypatch) == 1
    assert "model.factory=own_nets:make: other people's code" in capsys.readouterr().err


def test_an_own_network_trains_on_own_images_and_is_known_by_content(own, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "own_nets")
    (config,) = check_command_line(["--config-dir", "settings", *RUN], "config")
    with stopped(monkeypatch, after=1):
        experiment.run(config)
    assert train(monkeypatch) == 0
    folder = the_run(own)
    assert folder.name.startswith("mine-mine-pgd-none-seed0-")
    import own_nets

    assert own_nets.calls[-1] == (3, (1, 8, 8), 5)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["model"]["factory"] == "own_nets:make"
    assert record["network"]["name"] == "torch.nn.modules.container:Sequential"
    assert record["data"]["class_names"] == ["dark", "grey", "light"]
    assert load_file(folder / "model.safetensors")["1.weight"].shape == (5, 64)
    assert "dark" in capsys.readouterr().out
    assert train(monkeypatch) == 0
    assert "finished already" in capsys.readouterr().out

    again = [f"checkpoint={folder}", "evaluation.num_steps=2", "num_threads=1"]
    assert call(monkeypatch, *again, main=cli.evaluate_main) == 1
    assert "which this version does not have" in capsys.readouterr().err
    own_files = ["--config-dir", "settings", "model=mine", "dataset=mine"]
    assert call(monkeypatch, *own_files, "dataset.validation_fraction=0.2", *again, main=cli.evaluate_main) == 0
    (measured,) = own.glob("outputs/evaluate/*/classwise.csv")
    tables = [reading.read_classwise([file]) for file in (measured, folder / "classwise.csv")]
    errors = [table[table["split"] == "test"]["robust_error"].tolist() for table in tables]
    assert errors[0] == errors[1]

    other = CODE.replace("nn.ReLU()", "nn.Tanh()")
    monkeypatch.setattr(own_nets, "make", {}, raising=True)
    exec(other, vars(own_nets))
    assert train(monkeypatch) == 1
    assert "was made before a change of the network torch" in capsys.readouterr().err


def test_settings_of_own_files_are_swept_checked_and_part_of_the_name(own):
    flags = ["--config-dir", "settings"]
    jobs = check_command_line(
        [*flags, "-m", *RUN, "dataset.validation_fraction=0.1,0.2", "frl=none,reweight"], "config"
    )
    assert len({job.run_id for job in jobs}) == 4
    assert [job.dataset.validation_fraction for job in jobs] == [0.1, 0.1, 0.2, 0.2]
    assert jobs[0].model.settings == {"width": 5}
    assert check_command_line([*flags, *RUN, "experiment=mine"], "config")[0].seed == 7
    for typed, message in (
        ("model=mein", "model=mein: unknown choice; did you mean mine"),
        ("model.factory=os:system", "unknown key model.factory"),
        ("dataset.root=/tmp", "root"),
    ):
        with pytest.raises(UserError, match=message):
            check_command_line([*flags, *RUN, typed], "config")
    for group, text, message in (
        (
            "model",
            "name: lenet5\nfactory: own_nets:make",
            "give what has a factory a name of its own",
        ),
        ("model", "name: mine\nfactory: own_nets:make\nwidth: 3", "unknown key model.width"),
        ("dataset", "name: mine\nfactory: own_nets:load\nvalidation_fraction: 2", "must lie in"),
    ):
        (own / "settings" / group / "bad.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            check_command_line([*flags, *RUN, f"{group}=bad"], "config")


def test_a_sweep_and_hydras_answers_look_into_the_own_folder(own, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "own_nets")
    assert train(monkeypatch, "--cfg", "job") == 0
    assert "factory: own_nets:make" in capsys.readouterr().out
    assert train(monkeypatch, "-m", "trainer.num_epochs=1", "seed=0,1", "hydra/launcher=fused") == 0
    assert len(list(own.glob("outputs/mine-mine-*/done.json"))) == 2


def test_a_retraining_makes_its_base_with_the_own_network(own, monkeypatch):
    monkeypatch.setenv(VARIABLE, "own_nets")
    brief = ["retrain.trainer.num_epochs=1", "retrain.attack.num_steps=2", "frl.num_steps=2", "frl.num_validation=9"]
    assert train(monkeypatch, "frl=reweight", *brief) == 0
    (base,) = own.glob("outputs/bases/*/done.json")
    record = json.loads((the_run(own) / "run.json").read_text(encoding="utf-8"))
    assert record["start"]["file"] == str(base.parent.relative_to(own) / "model.safetensors")
    assert record["network"] == json.loads((base.parent / "run.json").read_text(encoding="utf-8"))["network"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("own_nets", "expected module:function"),
        ("own_nets:make()", "expected module:function"),
        ("absent_module:make", "cannot import absent_module"),
        ("own_nets:absent", "own_nets has no function absent"),
        ("own_nets:__name__", "own_nets has no function __name__"),
        ("os:system", "called only where you allow it"),
    ],
)
def test_a_mistake_in_a_factory_is_one_clear_line(own, monkeypatch, named, message):
    monkeypatch.setenv(VARIABLE, "own_nets,absent_module")
    with pytest.raises(UserError, match=message):
        allowed_function(named, key="model.factory")


def test_what_a_function_returns_is_checked(own, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "own_nets")
    for group, message in (
        ("model", "model.factory=own_nets:wrong returns int, not a torch.nn.Module"),
        ("dataset", "dataset.factory=own_nets:wrong must return a mapping of train, test"),
    ):
        path = own / "settings" / group / "wrong.yaml"
        path.write_text("name: wrong\nfactory: own_nets:wrong\n", encoding="utf-8")
        assert train(monkeypatch, f"{group}=wrong") == 1
        assert message in capsys.readouterr().err


def test_entry_points_of_installed_packages_are_allowed(own, monkeypatch):
    point = EntryPoint("mine", "own_nets:make", "frl_repro.plugins")
    monkeypatch.setattr("frl_repro.basics.plugins.entry_points", lambda group: EntryPoints([point]).select(group=group))
    assert allowed_function("own_nets:make", key="model.factory").__name__ == "make"
    with pytest.raises(UserError, match="called only where you allow it"):
        allowed_function("own_nets:load", key="dataset.factory")
    assert importlib.metadata.entry_points(group="frl_repro.plugins") == ()


def test_a_checkpoints_header_calls_nothing(own, monkeypatch):
    monkeypatch.setenv(VARIABLE, "own_nets")
    network = torch.nn.Linear(4, 3)
    origin = {
        "run_id": "a", "seed": 0, "model": "mine", "dataset": "mine", "method": "natural", "epoch": 1,
        "settings": {"model": {"name": "mine", "factory": "own_nets:make", "settings": {}}},
    }  # fmt: skip
    path = own / "checkpoint.safetensors"
    checkpoints.save_weights(path, network, origin=origin)
    (config,) = check_command_line([], "config")
    with pytest.raises(UserError, match="model=mine: unknown choice"):
        model_of(path, config.model, setting="checkpoint")
    with pytest.raises(UserError, match="was trained with model=mine, which this version does not have"):
        check_command_line([f"checkpoint={path}"], "evaluate")
    assert "own_nets" not in sys.modules
