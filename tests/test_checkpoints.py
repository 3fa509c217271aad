"""Checkpoints of ours know their data; those of others load when that is sound, and what is assumed of them is said."""

import argparse
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from frl_repro.basics.errors import UserError
from frl_repro.commands import cli, jobs
from frl_repro.models import COMPUTATIONS, MODELS, build_model, checkpoints
from frl_repro.models.loading import compare_data
from frl_repro.models.origin import read_origin
from frl_repro.runs import experiment
from frl_repro.settings.config import EvaluateConfig
from support import TINY, call, tiny_retraining

CPU = ("num_threads=1", "backend=torch")
QUICK = ("evaluation.num_steps=1", *CPU)


def network(name="lenet5", *, seed=1):
    """Return a network of which no two layers or statistics are alike."""
    settings = {} if name == "lenet5" else {"width": 2, "mean": (0.4,), "std": (0.3,)}
    model = build_model(name, num_classes=3, image_shape=(1, 32, 32), seed=seed, **settings).eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.copy_(0.1 + torch.rand(values.shape, generator=generator))
    return model


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def renamed(state):
    for old, new in (("conv", "k"), ("fc", "lin"), ("stages", "net"), ("normalise", "scale")):
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def write(path, content):
    """Write as .pt or .safetensors, which sorts names."""
    if path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file({name: tensor.clone().contiguous() for name, tensor in content.items()}, path)
    return path


def assert_loads(path, name="lenet5", *, how="by name", **key):
    model, expected = network(name, seed=7), network(name)
    assert checkpoints.load_weights(path, model, **key) == how
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), expected(x))


# Other people's files

PREFIXES = ("", "model.", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model.", "net.backbone.")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["lenet5", "preact_resnet18"])
def test_prefixes_of_wrappers_in_any_order_load_alike_from_both_formats(tmp_path, name, suffix):
    state = network(name).state_dict()
    for prefix in PREFIXES:
        assert_loads(write(tmp_path / f"a{suffix}", prefixed(state, prefix)), name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["lenet5", "preact_resnet18"])
def test_counters_may_be_there_or_not(tmp_path, name, suffix):
    averaged = AveragedModel(network(name)).state_dict()
    assert "n_averaged" in averaged
    assert_loads(write(tmp_path / f"averaged{suffix}", averaged), name)
    without = {n: t for n, t in network(name).state_dict().items() if not n.endswith("num_batches_tracked")}
    assert_loads(write(tmp_path / f"without{suffix}", without), name)


def test_a_part_that_was_compiled_or_distributed_alone_loads(tmp_path):
    state = {
        name.replace("stages.", "stages._orig_mod."): t for name, t in network("preact_resnet18").state_dict().items()
    }
    assert_loads(write(tmp_path / "a.pt", state), "preact_resnet18")


def test_a_network_whose_own_names_share_their_beginning_loads_too(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    state = Whole().state_dict()
    for suffix in (".pt", ".safetensors"):
        for prefix in PREFIXES:
            model = Whole()
            path = write(tmp_path / f"a{suffix}", prefixed(state, prefix))
            assert checkpoints.load_weights(path, model) == "by name"
            assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_other_names_load_in_order_where_the_file_keeps_one_and_by_shape_where_shapes_tell(tmp_path):
    lenet, resnet = renamed(network().state_dict()), renamed(network("preact_resnet18").state_dict())
    assert_loads(write(tmp_path / "a.pt", lenet), how="in order")
    assert_loads(write(tmp_path / "b.pt", resnet), "preact_resnet18", how="in order")
    assert_loads(write(tmp_path / "a.safetensors", lenet), how="by shape")
    assert_loads(write(tmp_path / "c.pt", dict(sorted(lenet.items()))), how="by shape")


@pytest.mark.parametrize("with_counters", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_sorted_tensors_with_other_names_are_never_matched_in_a_wrong_order(tmp_path, suffix, with_counters):
    state = renamed(network("preact_resnet18").state_dict())
    kept = {n: t for n, t in sorted(state.items()) if with_counters or not n.endswith("num_batches_tracked")}
    with pytest.raises(UserError, match=r"its names are not the model's .* rename its tensors$"):
        checkpoints.load_weights(write(tmp_path / f"a{suffix}", kept), network("preact_resnet18"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": {"state_dict": state}, "epoch": 3},
        lambda state: {"checkpoint": {"model": state}},
        lambda state: {"net": prefixed(state, "module.")},
        lambda state: {"ema_state_dict": state},
        lambda state: {"state_dict": state, "optimizer": {"exp_avg": {"a": torch.zeros(2)}}},
        lambda state: {"state_dict": state, "best_acc": np.float64(0.93), "curve": np.arange(3.0), "n": np.int64(3)},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_in_dictionaries_also_beside_numbers_of_numpy(tmp_path, caplog, wrap, zipped):
    caplog.set_level(logging.INFO)
    torch.save(wrap(network().state_dict()), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert_loads(tmp_path / "a.pt")
    assert caplog.text == ""


def test_of_several_state_dicts_the_usual_one_is_taken_with_a_line_and_a_key_chooses(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    raw, other = network().state_dict(), network(seed=5).state_dict()
    path = write(tmp_path / "a.pt", {"state_dict": raw, "ema_state_dict": other})
    assert_loads(path)
    assert "takes the weights of 'state_dict'; it also holds 'ema_state_dict' (checkpoint_key= chooses)" in caplog.text
    caplog.clear()
    assert_loads(write(tmp_path / "b.pt", {"state_dict": other, "ema_state_dict": raw}), key="ema_state_dict")
    flat = {**prefixed(other, "model."), **prefixed(raw, "ema.")}
    assert_loads(write(tmp_path / "c.safetensors", flat), key="ema")
    assert_loads(write(tmp_path / "d.pt", {"state_dict": flat}), key="state_dict.ema")
    assert caplog.text == ""
    for content, key, message in (
        ({"G": raw, "D": raw}, None, r"several state_dicts: choose one with checkpoint_key=, of 'G', 'D'"),
        ({"a": raw, "b": raw}, "c", r"no state_dict under checkpoint_key='c'; it has 'a', 'b'"),
        (flat, None, r"holds 20 tensors, the model has 10 \(checkpoint_key= chooses those under 'model', 'ema'\)"),
        # What a message offers is what the key takes, also of a state_dict inside a dictionary.
        ({"state_dict": flat}, None, r"\(checkpoint_key= chooses those under 'state_dict\.model', 'state_dict\.ema'\)"),
        ({"state_dict": flat}, "ema", r"it has 'state_dict', 'state_dict\.model', 'state_dict\.ema'$"),
        # A part that is too small to be the network is not offered.
        ({**raw, "epoch": torch.tensor(3)}, None, r"holds 11 tensors, the model has 10$"),
        ({**prefixed(raw, "net."), "loss.weight": torch.ones(10)}, None, r"has 10 \(.* chooses those under 'net'\)"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.load_weights(write(tmp_path / "e.pt", content), network(), key=key)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (network, r"frl_repro\.models\.lenet5\.LeNet5"),
        (lambda: {"state_dict": network().state_dict(), "args": argparse.Namespace(lr=1)}, r"argparse\.Namespace"),
    ],
)
def test_what_else_was_pickled_is_named_with_what_to_do(tmp_path, content, named):
    torch.save(content(), tmp_path / "a.pt")
    message = rf"is not a checkpoint: .* \(it holds {named}, .*torch\.save\(model\.state_dict\(\), path\)\)"
    with pytest.raises(UserError, match=message):
        checkpoints.load_weights(tmp_path / "a.pt", network())


def test_numbers_of_eight_bits_load_and_those_too_large_for_the_network_do_not(tmp_path):
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in network().state_dict().items()}
    model = network(seed=7)
    checkpoints.load_weights(write(tmp_path / "a.safetensors", state), model)
    assert torch.equal(model.fc1.weight, state["fc1.weight"].float())
    large = {name: tensor.double() * 1e300 for name, tensor in network().state_dict().items()}
    with pytest.raises(UserError, match=r"conv1\.weight holds values that are not finite"):
        checkpoints.load_weights(write(tmp_path / "b.pt", large), model)
    sparse = {**network().state_dict(), "fc1.bias": torch.zeros(84).to_sparse()}
    with pytest.raises(UserError, match=r"fc1\.bias is no plain tensor"):
        checkpoints.load_weights(write(tmp_path / "c.pt", sparse), model)


def test_what_each_network_computes_is_said():
    assert COMPUTATIONS.keys() == MODELS.keys()


class WithReLU(nn.Sequential):
    """A network of other activations whose tensors happen to be LeNet-5's."""

    def __init__(self):
        convolutions = [nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)]
        super().__init__(*convolutions, nn.Linear(120, 84), nn.Linear(84, 3))


@pytest.mark.parametrize("command", ["evaluate", "sanity"])
def test_what_is_assumed_of_a_checkpoint_of_other_code_is_said(monkeypatch, capsys, in_tmp, command):
    write(in_tmp / "relu.pt", {"ema": WithReLU().state_dict(), "model": WithReLU().state_dict()})
    settings = ["dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=3", "dataset.num_test=30", *CPU]
    settings += ["checkpoint=relu.pt", "checkpoint_key=ema"]
    settings += ["evaluation.num_steps=1"] if command == "evaluate" else ["num_images=30", "num_steps=1"]
    call(monkeypatch, *settings, main={"evaluate": cli.evaluate_main, "sanity": cli.sanity_main}[command])
    assert (
        "relu.pt: not written by this program: tensors matched in order; activation functions cannot be seen in a "
        "checkpoint: assumed are model=lenet5 (tanh, average pooling) and the classes and images of dataset=synthetic"
    ) in capsys.readouterr().out


def test_a_start_of_other_code_is_said_and_a_key_chooses_it(in_tmp, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    raw, ema = network(), network(seed=5)
    path = write(in_tmp / "start.pt", {"state_dict": raw.state_dict(), "ema": ema.state_dict()})
    starts = {"init_from": str(path), "retrain__trainer__num_epochs": 1}
    usual = experiment.run(tiny_retraining(in_tmp, **starts))
    assert "it also holds 'ema' (init_from_key= chooses)" in caplog.text
    assert "start.pt: not written by this program: tensors matched by name" in caplog.text
    chosen = experiment.run(tiny_retraining(in_tmp, **starts, init_from_key="ema"))
    assert usual != chosen
    alone = write(in_tmp / "alone.pt", ema.state_dict())
    same = experiment.run(tiny_retraining(in_tmp, **{**starts, "init_from": str(alone)}))
    assert load_file(same / "model.safetensors")["fc1.weight"].equal(
        load_file(chosen / "model.safetensors")["fc1.weight"]
    )
    with pytest.raises(UserError, match="init_from_key has no effect without init_from"):
        tiny_retraining(in_tmp, init_from_key="ema")


# Ours know their data


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert call(patched, *TINY, "run_dir=run", "dataset.split_seed=3") == 0
    return folder / "run"


@pytest.fixture
def trained(kept, in_tmp):
    """The folder of a run, for a test to do with what it likes."""
    return shutil.copytree(kept, in_tmp / "run")


def evaluate(monkeypatch, capsys, *arguments):
    """Return exit code, standard output and standard error."""
    code = call(monkeypatch, *QUICK, *arguments, main=cli.evaluate_main)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def table(out):
    """Return the table of a measurement's output without what was said before it."""
    return out[out.index("synthetic-lenet5") :].partition("tables:")[0]


def test_a_header_holds_data_and_settings_and_equal_runs_give_equal_bytes(monkeypatch, trained, in_tmp):
    origin = read_origin(trained / "model.safetensors")
    assert origin["data"]["class_names"] == ["class 0", "class 1", "class 2"]
    assert origin["data"]["image_shape"] == [1, 32, 32]
    config = jobs.configure(*TINY, "dataset.split_seed=3")
    assert origin["data"]["digest"] == experiment.load_dataset(config.dataset).digest
    assert origin["settings"]["model"] == {"name": "lenet5"}
    assert origin["settings"]["dataset"] == {
        "name": "synthetic", "num_classes": 3, "num_train": 90, "num_test": 30, "validation_fraction": 0.0,
        "selection_fraction": 0.0, "split_seed": 3, "augmentation": "none",
    }  # fmt: skip
    assert call(monkeypatch, *TINY, "run_dir=again", "dataset.split_seed=3") == 0
    assert (in_tmp / "again" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_nothing_need_be_retyped_and_a_folder_stands_for_its_weights(monkeypatch, capsys, trained):
    typed = [argument for argument in TINY if argument.startswith("dataset")] + ["dataset.split_seed=3"]
    outputs = []
    for arguments in (["checkpoint=run"], ["checkpoint=run/model.safetensors"], ["checkpoint=run", *typed]):
        code, out, err = evaluate(monkeypatch, capsys, *arguments)
        assert (code, err) == (0, "")
        assert out.startswith("run/model.safetensors: weights matched by name\nsynthetic-lenet5")
        outputs.append(out.partition("next:")[0])  # what comes next names the checkpoint as it was typed
    assert len(set(outputs)) == 1  # one measurement in one folder
    trained.rename("moved")
    shutil.copy("moved/model.safetensors", "alone.safetensors")
    code, out, _ = evaluate(monkeypatch, capsys, "checkpoint=alone.safetensors")
    assert (code, table(out)) == (0, table(outputs[0]))
    code, out, err = evaluate(monkeypatch, capsys, "-m", "checkpoint=moved,alone.safetensors")
    measured = out.partition("next:")[0]
    assert (code, err, measured.count("synthetic-lenet5-pgd-none-seed0")) == (0, "", 4)
    config = jobs.configure_evaluation("checkpoint=moved")
    assert isinstance(config, EvaluateConfig)
    assert (config.dataset.num_classes, config.dataset.split_seed) == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "model=preact_resnet18",
            "model=preact_resnet18: checkpoint=run/model.safetensors was trained with model=lenet5",
        ),
        ("dataset.num_classes=4", "was trained on dataset=synthetic, classes 'class 0', 'class 1', 'class 2' (3)"),
        ("checkpoint=nowhere", "checkpoint=nowhere: no such file"),
        ("checkpoint=empty", "checkpoint=empty: no model.safetensors in this folder (give a checkpoint, or a run's"),
        ("checkpoint=begun", "checkpoint=begun: no model.safetensors in this folder (the run is not finished)"),
    ],
)
def test_what_is_typed_otherwise_is_refused(monkeypatch, capsys, trained, in_tmp, arguments, message):
    (in_tmp / "empty").mkdir()
    (in_tmp / "begun").mkdir()
    shutil.copy(trained / "run.json", in_tmp / "begun")
    given = arguments.split() if arguments.startswith("checkpoint") else ["checkpoint=run", *arguments.split()]
    code, out, err = evaluate(monkeypatch, capsys, *given)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not (in_tmp / "outputs").exists()


def test_another_part_of_its_data_is_said(monkeypatch, capsys, trained):
    code, out, err = evaluate(monkeypatch, capsys, "checkpoint=run", "dataset.num_test=15")
    assert (code, err) == (0, "")
    first, _, rest = out.partition("\n")
    assert first == (
        "checkpoint=run/model.safetensors was trained on dataset=synthetic; here are dataset.num_test=15 (there 30)"
    )
    assert "15 samples" in rest


def test_a_network_with_settings_is_rebuilt_and_others_are_refused(monkeypatch, capsys, in_tmp):
    resnet = ["model=preact_resnet18", "model.width=1", "model.std=[0.3]", "run_dir=run"]
    assert call(monkeypatch, *TINY, *resnet) == 0
    capsys.readouterr()
    code, out, err = evaluate(monkeypatch, capsys, "checkpoint=run")
    assert (code, err, "weights matched by name" in out) == (0, "", True)
    code, _, err = evaluate(monkeypatch, capsys, "checkpoint=run", "model.width=2")
    assert code == 1
    where = "checkpoint=run/model.safetensors"
    assert err == f"error: model.width=2: {where} was trained with model.width=1; leave model.width out\n"


def test_sanity_takes_the_settings_too_and_another_network_may_attack(monkeypatch, capsys, trained):
    assert (
        call(monkeypatch, *TINY, "run_dir=other", "dataset.split_seed=3", "model=preact_resnet18", "model.width=1") == 0
    )
    capsys.readouterr()
    arguments = ["checkpoint=run", "other=other", "num_images=30", "num_steps=1", *CPU]
    call(monkeypatch, *arguments, main=cli.sanity_main)
    printed = capsys.readouterr()
    assert "run/model.safetensors: weights matched by name" in printed.out
    assert "other/model.safetensors: weights matched by name" in printed.out
    assert "table and figure: " in printed.out
    assert call(monkeypatch, *TINY, "run_dir=four", "dataset.num_classes=4") == 0
    capsys.readouterr()
    assert call(monkeypatch, "checkpoint=run", "other=four", *CPU, main=cli.sanity_main) == 1
    assert "other=four/model.safetensors was trained on dataset=synthetic, classes 'class 0'" in capsys.readouterr().err


def photos(root, grey):
    """Lay out an image folder: ``grey`` says how bright each class is."""
    for split in ("train", "test"):
        for name, level in grey.items():
            for place in range(4):
                path = root / split / name / f"{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((32, 32), level + place, dtype=np.uint8)).save(path)


def test_a_checkpoint_of_own_images_is_measured_on_its_classes_alone(monkeypatch, capsys, in_tmp):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    photos(in_tmp / "own photos", {"dark": 20, "light": 200})
    photos(in_tmp / "zebras", {"light": 200, "zebra": 20})
    photos(in_tmp / "more", {"dark": 30, "light": 210})
    train = ["trainer.num_epochs=1", "attack.num_steps=1", "run_dir=run", *QUICK]
    assert call(monkeypatch, "dataset=image_folder", "dataset.root='own photos'", *train) == 0
    capsys.readouterr()
    code, out, err = evaluate(monkeypatch, capsys, "checkpoint=run")
    assert (code, err, out.splitlines()[0]) == (0, "", "run/model.safetensors: weights matched by name")
    code, out, err = evaluate(monkeypatch, capsys, "checkpoint=run", "dataset.root=zebras")
    assert (code, err.count("\n")) == (1, 1)
    assert "classes 'dark', 'light' (2); dataset=image_folder has 'light', 'zebra' (2): give it images of its" in err
    code, out, err = evaluate(monkeypatch, capsys, "checkpoint=run", "dataset.root=more")
    assert (code, err) == (0, "")
    assert "with the same settings, but its images are not those that it was trained on" in out
    shutil.move("run/model.safetensors", "alone.safetensors")  # where its images lie, a header does not say
    code, _, err = evaluate(monkeypatch, capsys, "checkpoint=alone.safetensors")
    assert (code, err.startswith("error: dataset.root is missing: give dataset.root=FOLDER")) == (1, True)


def test_classes_in_another_order_are_refused(trained):
    data = experiment.load_dataset(jobs.configure(*TINY).dataset)
    object.__setattr__(data, "class_names", tuple(reversed(data.class_names)))
    config = jobs.configure(*TINY).dataset
    with pytest.raises(UserError, match="whose classes come in another order than those of dataset=synthetic"):
        compare_data(trained / "model.safetensors", data, config, setting="checkpoint")


def rewrite(path, change):
    """Change what the header of a checkpoint says of its run."""
    origin = read_origin(path)
    change(origin)
    save_file(load_file(path), path, metadata={"frl_repro": json.dumps(origin)})


def forget(*names):
    def change(origin):
        for name in names:
            del origin[name]

    return change


def test_a_checkpoint_of_version_0_1_loads_with_a_line_of_what_is_assumed(monkeypatch, capsys, trained):
    (trained / "done.json").unlink()
    path = trained / "model.safetensors"
    rewrite(path, forget("settings", "data"))
    code, out, err = evaluate(monkeypatch, capsys, "checkpoint=run")  # run.json knows
    assert (code, err, out.splitlines()[0]) == (0, "", "run/model.safetensors: weights matched by name")
    code, out, _ = evaluate(monkeypatch, capsys, "checkpoint=run", "dataset.num_test=15")
    assert "was trained on other data; here are dataset.num_test=15 (there 30)" in out
    (trained / "run.json").unlink()
    typed = [argument for argument in TINY if argument.startswith("dataset.")]
    code, out, _ = evaluate(monkeypatch, capsys, "checkpoint=run", *typed)
    assert code == 0
    assert "says model and data set (synthetic), not their settings: assumed are those given here" in out
    rewrite(path, lambda origin: origin.update(dataset="svhn"))
    code, out, _ = evaluate(monkeypatch, capsys, "checkpoint=run", "dataset=synthetic", *typed)
    assert (code, "was trained on dataset=svhn and is taken to dataset=synthetic" in out) == (0, True)


# What a header says may be hostile

HOSTILE = {
    "run_id": ["/tmp/elsewhere", "../elsewhere", "..", ".", "", "a/b", "a\\b", "a\nb", "a\x1b[2J", 3, None,
               "x" * 300, []],
    "seed": [-1, 2**70, 1.5, "3", True, None],
    "epoch": [-1, "x"],
    "method": ["a/b", 3, "\x1b"],
    "alpha_nat": ["1", float("nan"), 1e400],
    "checkpoint": ["worst"],
    "dataset": ["../x", ["synthetic"]],
    "data": [{}, [], {"digest": "0", "class_names": ["a"], "image_shape": [1, 2, 3]},
             {"digest": "0" * 64, "class_names": "abc", "image_shape": [1, 32, 32]},
             {"digest": "0" * 64, "class_names": ["a"], "image_shape": [1, 32]}],
    "settings": [[], {"dataset": 3}, {"dataset": {"name": "synthetic", "num_classes": "${oc.env:HOME}"}},
                 {"dataset": {"name": "nothing"}}, {"dataset": {"name": "synthetic", "num_classes": -1}},
                 {"dataset": {"name": "synthetic", "a=b x": 1}}, {"dataset": {"name": "synthetic", "num_steps": 1}},
                 {"model": {"name": "preact_resnet18", "width": 10**30, "mean": None, "std": None}}],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["evaluate", "sanity"])
def test_hostile_headers_end_in_one_line_and_nothing_is_written(monkeypatch, capsys, trained, in_tmp, name, command):
    (trained / "done.json").unlink()
    sound = (trained / "model.safetensors").read_bytes()
    path = in_tmp / "inner" / "model.safetensors"
    path.parent.mkdir()
    before = sorted(in_tmp.rglob("*"))
    for value in HOSTILE[name]:
        path.write_bytes(sound)
        rewrite(path, lambda origin, value=value: origin.update({name: value}))
        settings = QUICK if command == "evaluate" else (*CPU, "num_images=30", "num_steps=1")
        main = {"evaluate": cli.evaluate_main, "sanity": cli.sanity_main}[command]
        assert call(monkeypatch, "checkpoint=inner", *settings, main=main) == 1, value
        printed = capsys.readouterr()
        assert printed.err.startswith("error: "), value
        assert (printed.err.count("\n"), printed.err.isprintable()) == (1, False), value  # the line's end alone
        assert printed.err[:-1].isprintable(), value
        assert "unexpected" not in printed.err, value
        path.unlink()
        assert sorted(in_tmp.rglob("*")) == before, value
