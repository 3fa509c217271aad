"""Two processes, as torchrun starts them, train as one does; one of them writes; one that fails ends both."""

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import distributed_worker
from distributed_worker import RETRAINING, SMALL
from frl_repro.basics.errors import UserError
from frl_repro.commands import cli, jobs
from frl_repro.models.compute import distributed
from frl_repro.models.compute.backends import TORCH
from frl_repro.runs import experiment
from support import ROOT, Other

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch is built without distributed")


def start_two(what, folder):
    """Do something in two processes, which keep what they found in the folder; return a code and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    about = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    each = [os.environ | about | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    processes = [Other(distributed_worker.act, what, folder, environment=environment) for environment in each]
    ends = [process.end() for process in processes]
    codes = [end.returncode for end in ends if end.returncode != 0]
    return codes[0] if codes else 0, "".join(end.stderr for end in ends)


def start_two_by_torchrun(what, folder):
    """Do it as a user would: torchrun starts the processes, and ends all of them where one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
        "PYTHONWARNINGS": "default",
    }  # fmt: skip
    return subprocess.run(
        [*command, str(ROOT / "tests" / "distributed_worker.py"), what, str(folder)],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes did everything."""
    folder = tmp_path_factory.mktemp("two")
    code, said = start_two("everything", folder)
    assert code == 0, said
    return folder


@pytest.fixture(scope="module")
def found(two):
    """What each process found."""
    return [torch.load(two / f"found{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run's folder of one process, and that of the model it starts from."""
    torch.set_num_threads(1)
    config = jobs.configure(*RETRAINING, f"output_dir={tmp_path_factory.mktemp('one')}")
    folder = experiment.run(config)
    return folder, config.base().folder


def same_in_two(one, two):
    """The folders of the same runs of two processes, in the order of those of one."""
    folder, base = one
    straight = two / "writer" / "straight"
    return [(folder, straight / folder.name), (base, straight / "bases" / base.name)]


def test_two_processes_train_the_model_of_one(one, two):
    """Retraining with class weights and plain adversarial training, both with a last batch that does not divide."""
    for alone, together in same_in_two(one, two):
        expected, weights = (load_file(folder / "model.safetensors") for folder in (alone, together))
        assert expected.keys() == weights.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)


def test_two_processes_count_what_one_counts(one, two):
    for alone, together in same_in_two(one, two):
        assert (together / "classwise.csv").read_bytes() == (alone / "classwise.csv").read_bytes()
        for table in ("history.csv", "policy.csv"):
            if (alone / table).exists():
                expected, given = (pd.read_csv(folder / table) for folder in (alone, together))
                pd.testing.assert_frame_equal(given, expected, rtol=0, atol=1e-5)
    policy = pd.read_csv(one[0] / "policy.csv")
    assert policy["weight_nat"].nunique() > 1  # classes do weigh differently


def test_the_best_checkpoint_is_the_same(one, two):
    (alone, together), _ = same_in_two(one, two)
    expected, weights = (load_file(folder / "best.safetensors") for folder in (alone, together))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_whole_batch_in_every_process(found):
    """Of two forward passes before the backward pass, in equal slices, in unequal ones, and with one image for two."""
    for each in found:
        for expected, shared in [*each["gradients"].values(), each["gradients in parts"]]:
            assert max(gradient.abs().max() for gradient in expected) > 0.1
            torch.testing.assert_close(shared, expected, rtol=1e-5, atol=1e-5)
    first, second = (each["gradients"][7][1] for each in found)
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # or their weights would part


def test_attacks_and_logits_are_those_of_the_whole_batch(found):
    for each in found:
        for (num_images, _), (expected, shared) in each["attacked"].items():
            assert [len(part) for part in shared] == [num_images, num_images]
            torch.testing.assert_close(shared, expected, rtol=0, atol=1e-5)


def test_a_run_that_was_stopped_continues_to_the_same_bytes(two, found):
    assert [each["stopped"] for each in found] == [True, True]
    assert "continuing after epoch 1 of 2" in found[0]["resumed"][1]
    (straight,), (resumed,) = ((two / "writer" / name).glob("synthetic-*") for name in ("straight", "resumed"))
    names = {path.name for path in straight.iterdir()}
    assert names == {path.name for path in resumed.iterdir()}
    for name in names - {"run.json", "done.json"}:
        assert (straight / name).read_bytes() == (resumed / name).read_bytes(), name


def test_the_first_process_alone_writes_and_speaks(two, found):
    assert list((two / "other").iterdir()) == []
    assert [said for result in found[1].values() if isinstance(result, tuple) for said in [result[1]] if said] == []


def test_a_finished_run_is_skipped_and_records_its_processes(one, two, found):
    assert found[0]["straight"][0] == found[0]["again"][0] == found[1]["again"][0] == 0
    assert "finished already" in found[0]["again"][1]
    (alone, together), _ = same_in_two(one, two)
    assert [json.loads((folder / "run.json").read_text())["num_processes"] for folder in (alone, together)] == [1, 2]


def test_a_sweep_goes_on_after_a_job_that_failed_in_all_processes(two, found):
    assert [each["sweep"][0] for each in found] == [1, 1]
    assert "1 of 2 jobs failed" in found[0]["sweep"][1]
    (failed,) = json.loads((two / "writer" / "sweep" / "failed.json").read_text())
    assert "training diverged" in failed["reason"]
    assert len(list((two / "writer" / "sweep").glob("*/done.json"))) == 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("batch norm", "batch norm over several processes needs GPUs"),
        ("fused", "hydra/launcher=fused and several processes cannot go together"),
        ("evaluate", "measure a checkpoint without torchrun"),
        ("no run", "straight holds files that are no run of frl_repro"),
    ],
)
def test_what_processes_cannot_share_is_refused_in_one_line(what, message, two, found):
    assert [each[what][0] for each in found] == [1, 1]
    assert message in found[0][what][1]
    assert found[0][what][1].count("\n") == 1
    assert not (two / "writer" / "refused").exists()


@pytest.fixture(scope="module")
def differing(tmp_path_factory):
    """What each of two processes said where they were not alike, and the folder of the first."""
    folder = tmp_path_factory.mktemp("differing")
    code, said = start_two("differing", folder)
    assert code == 0, said
    said = [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in (0, 1)]
    return said, folder / "writer"


@pytest.mark.parametrize(
    ("what", "difference"),
    [
        ("rate", "trainer.learning_rate is 0.5 there and 0.001 here"),
        ("seed", "seed is 1 there and 0 here"),
        ("num_train", "dataset.num_train is 123 there and 120 here"),
        ("force", "force is True there and False here"),
        ("typo", "the command is refused (unknown key trainer.learning_rat; did you mean trainer.learning_rate?)"),
        ("flag", "the command is refused ("),
        ("jobs", "number of jobs is 2 there and 1 here"),
        ("data", "the data's sha256 is "),
        ("backend", "backend is native there and torch here"),
    ],
)
def test_processes_that_are_not_alike_are_refused_in_one_line(what, difference, differing):
    said, folder = differing
    assert [each[what][0] for each in said] == [1, 1]
    assert said[0][what][1].startswith("error: process 1 of 2 is not like process 0: ")
    assert difference in said[0][what][1]
    assert said[0][what][1].count("\n") == 1
    assert said[1][what][1] == ""
    assert not list((folder / "again").rglob("done.json"))


def test_what_a_machine_may_have_otherwise_is_no_difference(differing):
    said, folder = differing
    assert [each["threads"][0] for each in said] == [0, 0]
    assert len(list((folder / "different").glob("*/done.json"))) == 1


def test_another_version_in_one_process_ends_all_of_them(tmp_path):
    code, said = start_two("other version", tmp_path)
    assert code != 0
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"process 1 of 2 is not like process 0: torch is 1.13.1 there and {version('torch')} here" in line
    assert not list(tmp_path.rglob("done.json"))


@pytest.mark.bench
def test_a_process_that_fails_alone_ends_all_of_them(tmp_path):
    done = start_two_by_torchrun("fail", tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: process 1 of 2, which ends them all: somewhere: No space left on device"]
    assert not list(tmp_path.rglob("done.json"))


def test_one_process_is_left_as_it_is(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.group():
        assert not torch.distributed.is_initialized()
        assert distributed.num_processes() == 1
        assert distributed.is_writer()
        assert distributed.shared(TORCH) is TORCH
        assert distributed.own_device(torch.device("cuda:1")) == torch.device("cuda:1")
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    assert type(distributed.synchronised(model, torch.device("cpu"))[0]) is torch.nn.BatchNorm2d
    with pytest.raises(UserError, match="diverged"):
        distributed.from_writer(diverge)


def diverge():
    raise UserError("training diverged")


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "num_processes", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two machines of two
    assert distributed.own_device(torch.device("cuda")) == torch.device("cuda:1")
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UserError, match="each of 4 processes takes a GPU of its own; use device=cuda"):
        distributed.own_device(torch.device("cuda:0"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes for 2 GPUs: give torchrun one process a GPU"):
        distributed.own_device(torch.device("cuda"))


def test_batch_norm_on_gpus_takes_its_statistics_from_all_processes(monkeypatch):
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    names = list(model.state_dict())
    converted = distributed.synchronised(model, torch.device("cuda"))
    assert isinstance(converted[1], torch.nn.SyncBatchNorm)
    assert list(converted.state_dict()) == names  # checkpoints fit both


def test_an_environment_that_is_not_torchruns_is_named(monkeypatch, capsys):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["train.py", *SMALL])
    assert cli.main() == 1
    assert "WORLD_SIZE=2: several processes need torchrun" in capsys.readouterr().err
