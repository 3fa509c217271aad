"""What a program finds around it: streams, users, folders, clocks, environment variables, pipes in place of files."""

import errno
import getpass
import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import frl_repro
from frl_repro.basics import atomic, process, provenance, run_folder
from frl_repro.basics.errors import UserError
from frl_repro.commands import cli, collect, status
from frl_repro.data import cache
from frl_repro.models import checkpoints
from frl_repro.models.compute import distributed
from frl_repro.results.tables import reading, writing
from frl_repro.runs import sweeps
from support import ROOT, TINY, call

SOURCE = os.environ | {"PYTHONPATH": str(ROOT / "src")}
STATUS = [sys.executable, str(ROOT / "scripts" / "status.py")]


def closing(streams, *command):
    """Return a command that a shell starts without some streams: ``2>&-``."""
    return ["sh", "-c", f'exec "$@" {streams}', "sh", *command]


# ---------------------------------------------------------------------------------------------------------------
# Standard streams


def test_a_closed_stream_stops_nothing_and_no_file_takes_its_place(tmp_path):
    code = (
        "import sys; from frl_repro.basics import process; process.set_up(); process.set_up()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    print('said'); print('said', file=sys.stderr, flush=True); file.write(str(file.fileno() > 2))\n"
    )
    command = closing("<&- >&- 2>&-", sys.executable, "-c", code, str(tmp_path / "file"))
    done = subprocess.run(command, env=SOURCE, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "True"


def test_what_the_encoding_lacks_is_shown_by_its_code():
    code = "import sys; from frl_repro.basics import process; process.set_up(); print(sys.argv[1])"
    command = [sys.executable, "-c", code, b"caf\xe9 \xe7\x8c\xab"]
    done = subprocess.run(command, capture_output=True, env=SOURCE | {"PYTHONIOENCODING": "ascii"}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf\\udce9 \\u732b\n", b"")


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_reader_that_goes_away_is_no_mistake(options, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [STATUS[0], *options, STATUS[1], f"runs={tmp_path}"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_answer_that_finds_no_room_is_one_line_and_code_1(tmp_path):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*STATUS, f"runs={tmp_path}"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"error: standard output: No space left on device\n")


def test_a_sweep_runs_for_an_unknown_user_without_a_home_whose_reader_leaves_and_whose_stderr_is_closed(in_tmp):
    """`docker --user 12345 ... 2>&- | head -1` with an ASCII terminal and an output folder of other letters."""
    code = (
        "import pwd, sys\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from frl_repro.commands import cli\n"
        "sys.exit(cli.main())\n"
    )
    environment = {name: value for name, value in SOURCE.items() if name not in ("HOME", *USER_VARIABLES)}
    settings = ["seed=0,1", 'output_dir="r\u00e9su \u7d50\u679c"', *TINY]
    command = closing("2>&-", sys.executable, "-c", code, "-m", *settings)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | {"PYTHONIOENCODING": "ascii"}) as sweep:
        assert b"seed=0" in sweep.stdout.readline()
        sweep.stdout.close()
        assert sweep.wait(timeout=300) == 0
    assert len(list(Path("r\u00e9su \u7d50\u679c").glob("*/done.json"))) == 2


# ---------------------------------------------------------------------------------------------------------------
# Users, folders, parents

USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture
def nobody(monkeypatch):
    """A user whom the system does not know, without a home folder."""
    for name in ("HOME", "XDG_CACHE_HOME", *USER_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "")  # put back after the test, whatever the program sets

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("nobody")
def test_an_unknown_user_gets_a_name():
    process.set_up()
    assert getpass.getuser() == f"uid{os.getuid()}"


@pytest.mark.usefixtures("nobody")
def test_without_a_home_folder_data_are_prepared_and_not_kept(in_tmp, caplog):
    folder = cache.cache_folder(None)
    assert "no home folder" in caplog.text
    assert "XDG_CACHE_HOME=FOLDER" in caplog.text
    cache.store_tensors(folder / "some.safetensors", {"x": torch.zeros(1)}, identity="x")
    assert cache.load_tensors(folder / "some.safetensors", identity="x") is None
    assert len(caplog.records) == 1
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize("main", [cli.main, lambda: status.main([])])
def test_a_deleted_working_folder_is_one_line(main, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY])
    assert main() == 1
    assert capsys.readouterr().err == (
        "error: the folder that this command was started in has been deleted: go to another one\n"
    )


def test_a_worker_ends_with_its_parent():
    worker = (
        "import time; from frl_repro.basics.process import end_with_parent; "
        "end_with_parent(); print('up', flush=True); time.sleep(99)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=SOURCE) as process_:
        assert process_.stdout.readline() == b"up\n"
        killed = time.monotonic()
        process_.kill()
        assert process_.stdout.read() == b""  # until nobody holds the pipe
        assert time.monotonic() - killed < 30


@pytest.mark.slow
def test_workers_of_joblib_end_with_a_command_that_is_killed(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "-m", "seed=0,1", f"output_dir={tmp_path}", *TINY]
    command += ["trainer.num_epochs=100000", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as sweep:
        while len(list(tmp_path.glob("*/state.pt"))) < 2:
            assert sweep.poll() is None
            time.sleep(0.2)
        os.kill(sweep.pid, signal.SIGKILL)
        killed = time.monotonic()
        sweep.stdout.read()  # until no worker holds the pipe
        assert time.monotonic() - killed < 30


# ---------------------------------------------------------------------------------------------------------------
# Processes of torchrun


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "abc", "WORLD_SIZE=abc in the environment is not a whole number from 1"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0 in the environment is not a whole number from 1"),
        ("WORLD_SIZE", "9" * 5000, "in the environment is not a whole number from 1"),
        ("RANK", "x", "RANK=x in the environment is not a whole number from 0"),
        ("RANK", "2", "RANK=2 in the environment: there are 2 processes, numbered from 0"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK=-1 in the environment is not a whole number from 0"),
        ("MASTER_PORT", "99999", "MASTER_PORT=99999: a port is a number below 65536"),
    ],
)
def test_an_environment_that_no_torchrun_sets_is_one_line(name, value, message, monkeypatch, capsys, in_tmp):
    for variable, usual in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(variable, usual)
    monkeypatch.setenv(name, value)
    assert call(monkeypatch, *TINY) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not list(in_tmp.iterdir())


def test_a_taken_port_is_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with (
            pytest.raises(UserError, match=f"MASTER_PORT={port}: .*the port is taken.*choose another"),
            distributed.group(),
        ):
            pass


# ---------------------------------------------------------------------------------------------------------------
# Clocks


def test_a_clock_that_is_set_back_changes_no_time_left(tmp_path, monkeypatch):
    seconds = 5000.0
    about = {"reason": "", "run": None, "output_dir": "outputs"}
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(1e9 * seconds))
    for number in range(60):  # finished already
        sweeps.note_outcome(tmp_path, {**about, "job": str(number), "seconds": 0.1})
    for number in range(60, 100):  # one every ten seconds
        seconds += 10
        sweeps.note_outcome(tmp_path, {**about, "job": str(number), "seconds": 10.0})
    seconds += 1
    for number, path in enumerate(tmp_path.iterdir()):  # what the file system's clock says plays no part
        os.utime(path, (36000 * (number % 3), 36000 * (number % 3)))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    line = sweeps.progress_line(tmp_path, num_jobs=160)
    assert line.startswith("sweep: 100 of 160 jobs have ended, about 10 min left")
    assert sweeps.progress_line(tmp_path, num_jobs=100) == "sweep: 100 of 100 jobs have ended"
    assert [outcome["job"] for outcome in sweeps.read_outcomes(tmp_path)][60:] == [str(n) for n in range(60, 100)]


# ---------------------------------------------------------------------------------------------------------------
# Pipes in place of files


def read_outcomes(path):
    from frl_repro.results.tables.outcomes import read_outcomes as read

    return read(path)


def read_examples(path):
    from frl_repro.results.tables.examples import read_examples as read

    return read(path)


@pytest.mark.parametrize(
    "read",
    [
        run_folder.read_object,
        run_folder.sha256,
        reading.read_json,
        reading.read_classwise,
        lambda path: reading.read_policy([path]),
        sweeps.read_list,
        sweeps.read_plan,
        checkpoints.load_state,
        read_outcomes,
        read_examples,
    ],
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(read, tmp_path):
    os.mkfifo(tmp_path / "file")
    with pytest.raises((OSError, UserError), match="is no file but a pipe or a device: remove it"):
        read(tmp_path / "file")


def test_commands_name_a_pipe_in_place_of_a_runs_notes_or_table(in_tmp, monkeypatch, capsys):
    assert call(monkeypatch, *TINY) == 0
    (folder,) = (path.parent for path in in_tmp.glob("outputs/*/run.json"))
    for name in ("run.json", "classwise.csv"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    capsys.readouterr()
    assert status.main([]) == 3
    assert "damaged" in capsys.readouterr().out
    for command in (lambda: call(monkeypatch, *TINY), lambda: collect.main([])):
        assert command() == 1
        assert capsys.readouterr().err.endswith("is no file but a pipe or a device: remove it\n")


# ---------------------------------------------------------------------------------------------------------------
# File systems


def refusing_to_flush_folders(monkeypatch, number):
    flush = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_folders_is_written_to(number, tmp_path, monkeypatch):
    refusing_to_flush_folders(monkeypatch, number)
    atomic.write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_a_folder_that_fails_to_be_flushed_is_told(tmp_path, monkeypatch):
    refusing_to_flush_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.write_text(tmp_path / "file", "text")


def test_temporary_files_of_killed_processes_go_by_age(tmp_path):
    left = {name: tmp_path / name for name in (".a.json.7-00.tmp", ".a.json.8-11.tmp", ".b.json.7-22.tmp")}
    for path in left.values():
        path.write_text("half")
    os.utime(left[".a.json.7-00.tmp"], (0, time.time() - 2 * atomic.SECONDS_IN_USE))
    os.utime(left[".b.json.7-22.tmp"], (0, time.time() - 2 * atomic.SECONDS_IN_USE))
    atomic.write_text(tmp_path / "a.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".a.json.8-11.tmp", ".b.json.7-22.tmp"}


def test_names_that_are_no_utf8_are_kept_in_notes_and_tables(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    writing.write_json(tmp_path / "run.json", {"output_dir": name})
    assert run_folder.read_object(tmp_path / "run.json") == {"output_dir": name}
    assert reading.read_json(tmp_path / "run.json") == {"output_dir": name}
    writing.write_table(tmp_path / "table.csv", [{"file": name}], ["file"])
    assert (tmp_path / "table.csv").read_bytes() == b"file\ncaf\\udce9\n"


def test_an_output_folder_whose_name_is_no_utf8_holds_a_whole_run(in_tmp, monkeypatch, capsys):
    name = os.fsdecode(b"caf\xe9")
    assert call(monkeypatch, f"output_dir='{name}'", *TINY) == 0, capsys.readouterr().err
    (done,) = Path(name).glob("*/done.json")
    assert json.loads((done.parent / "run.json").read_bytes())["config"]["output_dir"] == name
    assert collect.main([f"runs={name}"]) == 0


# ---------------------------------------------------------------------------------------------------------------
# Provenance


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def provenance_of(file):
    """Return what the module says when it is loaded from this file."""
    spec = importlib.util.spec_from_file_location("loaded_provenance", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.describe(device=torch.device("cpu"), backend="torch", command="")


def test_the_commit_is_that_of_the_checkout_which_holds_the_package_and_no_others(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "another project")
    ours = provenance_of(provenance.__file__)["git_commit"]
    assert ours is None or len(ours) == 40
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert provenance_of(provenance.__file__)["git_commit"] == ours
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")

    # Installed into a folder of a repository that does not hold it.
    copy = other / "lib" / Path(provenance.__file__).relative_to(Path(frl_repro.__file__).parents[1])
    copy.parent.mkdir(parents=True)
    copy.write_bytes(Path(provenance.__file__).read_bytes())
    assert provenance_of(copy)["git_commit"] is None
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "now it does")
    assert provenance_of(copy)["git_commit"] == git(other, "rev-parse", "HEAD")
