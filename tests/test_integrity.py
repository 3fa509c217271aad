"""Damage is told by checksum and named, the state before takes over, no pickle is run, disks may be full or closed."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from frl_repro.basics import atomic, run_folder
from frl_repro.basics.errors import UserError, reason
from frl_repro.commands import cli, collect
from frl_repro.models import build_model, checkpoints
from frl_repro.results.tables import reading
from frl_repro.runs import experiment
from support import TINY, call, stopped, table_contents, tiny_retraining, tiny_run


def flip(path, place=-20):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    return experiment.run(tiny_run(tmp_path_factory.mktemp("straight") / "run"))


@pytest.fixture
def damaged(finished, tmp_path):
    """Return a copy of a finished run, to be damaged."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in finished.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# ---------------------------------------------------------------------------------------------------------------
# Results


@pytest.mark.parametrize("name", ["model.safetensors", "classwise.csv", "history.csv", "split.safetensors", "run.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_finished_run_with_a_changed_file_is_named_when_it_is_asked_for_again(name, harm, damaged):
    path = damaged / name
    if harm == "flip":
        flip(path, len(path.read_bytes()) // 2)
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    with pytest.raises(UserError) as caught:
        experiment.run(tiny_run(damaged))
    assert name in str(caught.value) or "no run of frl_repro" in str(caught.value)  # run.json is what makes it a run
    assert "\n" not in str(caught.value)


def test_a_damaged_run_is_repeated_with_force_and_in_a_folder_that_was_deleted(finished, damaged):
    flip(damaged / "classwise.csv")
    with pytest.raises(UserError, match=r"classwise\.csv is damaged: its sha256 .* delete the folder .*run and repeat"):
        experiment.run(tiny_run(damaged))
    experiment.run(tiny_run(damaged, force=True))
    assert table_contents(damaged) == table_contents(finished)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sha256": 3}', "[" * 100_000, "\xff"])
def test_damaged_notes_are_named(content, damaged):
    for name in ("done.json", "run.json"):
        before = (damaged / name).read_bytes()
        (damaged / name).write_text(content, encoding="latin-1")
        with pytest.raises(UserError, match=rf"{name} is damaged|{name} .*another run|holds another run"):
            experiment.run(tiny_run(damaged))
        (damaged / name).write_bytes(before)


@pytest.mark.parametrize("key", ["run_id", "config_hash", "sha256"])
def test_a_done_file_of_another_run_is_named(key, damaged):
    recorded = json.loads((damaged / "done.json").read_text())
    for changed in ({**recorded, key: "another"}, {name: recorded[name] for name in recorded if name != key}):
        (damaged / "done.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"done\.json is damaged"):
            experiment.run(tiny_run(damaged))


def test_a_damaged_base_is_named_and_never_trained_from(tmp_path):
    config = tiny_retraining(tmp_path)
    base = experiment.run(config.base())
    flip(base / "model.safetensors")
    with pytest.raises(UserError, match=r"bases/.*/model\.safetensors is damaged"):
        experiment.run(config)
    assert not config.folder.exists()


def test_damaged_weights_and_tables_of_a_run_are_refused_by_every_reader(damaged, monkeypatch, capsys):
    flip(damaged / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        checkpoints.load_weights(damaged / "model.safetensors", model())
    table = (damaged / "classwise.csv").read_text()
    (damaged / "classwise.csv").write_text(table.replace("test,3,", "test,4,"))  # a table that is sound in itself
    with pytest.raises(UserError, match=r"classwise\.csv is damaged"):
        reading.read_classwise(damaged / "classwise.csv")
    assert collect.main([f"runs={damaged}"]) == 1
    assert "classwise.csv is damaged" in capsys.readouterr().err
    (damaged / "done.json").unlink()  # an unfinished run, or a table from elsewhere: nothing to compare with
    assert len(reading.read_classwise(damaged / "classwise.csv"))


# ---------------------------------------------------------------------------------------------------------------
# States


@pytest.mark.parametrize("harm", ["flip", "header", "truncate", "empty", "missing"])
def test_the_state_before_takes_over_from_a_damaged_one(harm, finished, tmp_path, monkeypatch, caplog):
    config = tiny_run(tmp_path / "run")
    with stopped(monkeypatch, after=2):
        experiment.run(config)
    path = config.folder / "state.pt"
    content = path.read_bytes()
    assert run_folder.state_header(path)["epoch"] == 2
    if harm == "flip":
        flip(path, len(content) // 2)
    elif harm == "header":
        flip(path, 3)
    elif harm == "missing":  # killed between two renames
        path.unlink()
    else:
        path.write_bytes(content[: -len(content) // 3] if harm == "truncate" else b"")
    caplog.set_level("INFO", "frl_repro")
    experiment.run(config)
    assert "continuing after epoch 1 of 3" in caplog.text
    assert caplog.text.count("state.pt is damaged (wrong sha256): continuing from the state of") == (harm != "missing")
    assert table_contents(config.folder) == table_contents(finished)
    assert not run_folder.has_state(config.folder)


def test_two_damaged_states_are_refused_and_a_state_of_other_code_too(tmp_path, monkeypatch):
    config = tiny_run(tmp_path / "run")
    with stopped(monkeypatch, after=2):
        experiment.run(config)
    state = checkpoints.load_state(config.folder / "state.pt")
    for name in ("state.pt", "state.previous.pt"):
        flip(config.folder / name)
    with pytest.raises(UserError, match=r"state\.previous\.pt is not a readable training state: delete it .*sha256 is"):
        experiment.run(config)
    checkpoints.save_state(config.folder / "state.pt", {**state, "model": {"w": torch.zeros(2)}})
    with pytest.raises(UserError, match=r"state\.pt is the state of another training: delete it"):
        experiment.run(config)
    del state["policy"]
    checkpoints.save_state(config.folder / "state.pt", state)
    with pytest.raises(UserError, match=r"state\.pt is the state of another training"):
        experiment.run(config)


def test_a_state_of_version_0_1_is_continued(finished, tmp_path, monkeypatch):
    config = tiny_run(tmp_path / "run")
    with stopped(monkeypatch, after=2):
        experiment.run(config)
    state = checkpoints.load_state(config.folder / "state.pt")
    torch.save(state, config.folder / "state.pt")
    (config.folder / "state.previous.pt").unlink()
    experiment.run(config)
    assert table_contents(config.folder) == table_contents(finished)


# ---------------------------------------------------------------------------------------------------------------
# Pickles


class RunsCode:
    """Unpickled by Python's own reader, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def model():
    return build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=0)


@pytest.mark.parametrize("kind", ["plain", "legacy", "zip", "hidden"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, made = tmp_path / "model.pt", tmp_path / "made"
    state = model().state_dict()
    harmful = {**state, "more": RunsCode(made)} if kind == "hidden" else RunsCode(made)
    if kind == "plain":
        path.write_bytes(pickle.dumps(harmful))
    else:
        torch.save(harmful, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(UserError, match="is not a checkpoint: neither safetensors nor a PyTorch state_dict of plain"):
        checkpoints.load_weights(path, model())
    for content in (path.read_bytes(), header_of(path) + path.read_bytes()):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"state\.pt is not a readable training state"):
            checkpoints.load_state(tmp_path / "state.pt")
    settings = [text for text in TINY if text.startswith(("dataset", "evaluation", "num", "backend"))]
    assert call(monkeypatch, "checkpoint=model.pt", *settings, main=cli.evaluate_main) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: model.pt is not a checkpoint")
    assert errors.count("\n") == 1
    assert not made.exists()
    # The same file does harm where it is unpickled: the test would see it.
    pickle.loads(path.read_bytes()) if kind == "plain" else torch.load(path, weights_only=False)
    assert made.exists()


def header_of(path):
    return json.dumps({"epoch": 1, "sha256": checkpoints._digest(1, path.read_bytes())}).encode() + b"\n"


def test_a_zip_of_something_else_is_refused(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    (tmp_path / "model.pt").write_bytes(content.getvalue())
    with pytest.raises(UserError, match=r"model\.pt"):
        checkpoints.load_weights(tmp_path / "model.pt", model())


# ---------------------------------------------------------------------------------------------------------------
# Disks


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["run.json", "state.pt", "model.safetensors", "classwise.csv", "done.json"])
def test_a_full_disk_is_one_line_naming_the_file_and_the_run_is_completed_later(
    name, finished, tmp_path, monkeypatch, capsys
):
    """The disk is full once a file is written to its end: where the system finds out."""
    flush = atomic._flush_to_disk
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_flush_to_disk", lambda path: full() if f".{name}." in str(path) else flush(path))
        with pytest.raises(OSError, match="No space left") as caught:
            experiment.run(tiny_run(tmp_path / "run"))
    assert reason(caught.value) == f"{tmp_path / 'run' / name}: No space left on device"
    assert not (tmp_path / "run" / "done.json").exists()
    assert not list((tmp_path / "run").glob(".*"))
    experiment.run(tiny_run(tmp_path / "run"))
    assert table_contents(tmp_path / "run") == table_contents(finished)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "table"
    atomic.write_text(path, "before")
    code = (
        "import resource, signal, sys, pathlib; from frl_repro.basics import atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: atomic.write_bytes(pathlib.Path(sys.argv[1]), bytes(5000))\n"
        "except OSError as problem: print(problem.filename)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("arguments", [["seed=0"], ["-m", "seed=0,1"]])
def test_an_output_folder_that_cannot_be_written_to_is_one_line_for_each_job(arguments, monkeypatch, capsys, in_tmp):
    # A file where the folder should be: permissions mean nothing to the superuser, who may run the tests.
    (in_tmp / "outputs").write_text("")
    assert call(monkeypatch, *arguments, *TINY) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.startswith("error: outputs")
    assert (in_tmp / "outputs").read_text() == ""
    assert [path.name for path in in_tmp.iterdir()] == ["outputs"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_output_folder_is_one_line(monkeypatch, capsys, in_tmp):
    (in_tmp / "outputs").mkdir(mode=0o500)
    assert call(monkeypatch, "seed=0", *TINY) == 1
    assert "Permission denied" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------
# Ctrl-C


def test_a_second_interrupt_ends_the_command_at_once():
    code = (
        "import os, signal, sys, time; from frl_repro.commands import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "def busy(*_):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    finally: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "cli._run_jobs = busy; sys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command continues where this one stopped\n"


@pytest.fixture
def pythons_interrupts():
    """Ctrl-C as in a terminal: a shell's background jobs, which tests may be among, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_after_a_command_interrupts_are_pythons_again(monkeypatch, pythons_interrupts):
    monkeypatch.setattr(cli, "_run_jobs", lambda *_: signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
    assert cli.main() is True
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
