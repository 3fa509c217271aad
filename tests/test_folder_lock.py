"""One process at a time works in a folder, also where two machines see one folder and not each other's lock."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from frl_repro.basics import folder_lock
from frl_repro.basics.errors import UserError
from frl_repro.basics.folder_lock import LOCK_FILE, check_held, held, is_held, remove_leftover
from support import ROOT

SILENCE = 2.0

HOLD = f"""
import sys, time
from pathlib import Path
from frl_repro.basics import folder_lock
folder_lock.RENEWED_EVERY, folder_lock.SILENCE, folder_lock._SETTLED_AFTER = 0.3, {SILENCE}, 0.2
machine, folder, wait, seconds = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "wait", float(sys.argv[4])
if machine:  # another one: it neither sees the processes of this one, nor, where locks are not passed on, its locks
    folder_lock._machine = lambda: machine
if "--blind" in sys.argv:
    folder_lock.fcntl.flock = lambda *_: None
def say(*words):
    print(*words, flush=True)
try:
    with folder_lock.held(folder, wait=wait, log=lambda message: say("log:", message)):
        say("held")
        time.sleep(seconds)
        folder_lock.check_held(folder)
    say("given back")
except Exception as problem:
    say("refused:", problem)
"""


@pytest.fixture
def nodes(tmp_path):
    """The paths under which two nodes see one folder, and the arguments that make the second one blind.

    Two bindfs mounts, a FUSE file system that passes on no lock; where bindfs cannot be had, the second node's locks
    are granted whatever the first one holds, which comes to the same.
    """
    folder, mounts = tmp_path / "folder", [tmp_path / "first", tmp_path / "second"]
    folder.mkdir()
    mounted = []
    if shutil.which("bindfs"):
        for mount in mounts:
            mount.mkdir()
            if subprocess.run(["bindfs", folder, mount], capture_output=True, check=False).returncode == 0:
                mounted.append(mount)
    if len(mounted) == 2:
        yield mounts[0], mounts[1], []
    else:
        yield folder, folder, ["--blind"]
    for mount in mounted:
        subprocess.run(["umount", "--lazy", mount], check=True)


@pytest.fixture
def start():
    """Start a process that holds a folder; those that are left are killed."""
    processes = []

    def start_one(machine, folder, *, wait=False, seconds=60.0, more=()):
        command = [sys.executable, "-c", HOLD, machine, str(folder), "wait" if wait else "", str(seconds), *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def line(process):
    return process.stdout.readline().rstrip("\n")


def test_a_second_node_that_does_not_see_the_lock_is_refused(nodes, start):
    first, second, blind = nodes
    holder = start("", first)
    assert line(holder) == "held"
    other = start("another machine", second, more=blind)
    assert "waiting up to 2 s for a sign of it" in line(other)
    said = line(other)
    assert said.startswith(f"refused: {second}: another process is working on this run (process {holder.pid} of ")
    assert "this file system hides its lock from here, lock.json does not" in said
    assert is_held(second)


def test_two_mounts_on_one_machine_are_told_apart_at_once(nodes, start):
    first, second, blind = nodes
    holder = start("", first)
    assert line(holder) == "held"
    started = time.monotonic()
    other = start("", second, more=blind)
    assert line(other).startswith(f"refused: {second}: another process is working on this run (process {holder.pid} of")
    holder.kill()
    holder.wait()
    assert line(start("", second, more=blind)) == "held"
    assert time.monotonic() - started < 30  # two starts of Python; no silence is waited for


def test_of_two_nodes_that_wait_for_a_killed_process_one_at_a_time_takes_over(nodes, start):
    first, second, blind = nodes
    holder = start("a third machine", first)
    assert line(holder) == "held"
    holder.kill()
    holder.wait()
    waiting = [
        start(f"machine {number}", folder, wait=True, seconds=2, more=blind)
        for number, folder in enumerate((first, second))
    ]
    said = [process.communicate(timeout=60)[0].splitlines() for process in waiting]
    for lines in said:
        assert "waiting up to 2 s for a sign of it" in lines[0]
        assert lines[-2:] == ["held", "given back"]
    # Who comes second has seen the first at work.
    assert sum(any("waiting for another process that trains" in text for text in lines) for lines in said) == 1
    assert list(first.iterdir()) == []


def test_a_process_that_stood_still_leaves_the_folder_to_who_took_it_over(nodes, start):
    first, second, blind = nodes
    sleeper = start("", first, seconds=2)
    assert line(sleeper) == "held"
    os.kill(sleeper.pid, signal.SIGSTOP)
    other = start("another machine", second, more=blind)
    assert "for a sign of it" in line(other)
    assert line(other) == "held"
    os.kill(sleeper.pid, signal.SIGCONT)
    assert f"refused: {first}: process {other.pid} of " in (said := line(sleeper))
    assert "has taken this run over" in said
    assert json.loads((first / LOCK_FILE).read_text())["pid"] == other.pid


def test_a_file_system_without_locks_is_told_once_and_the_folder_is_held_all_the_same(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "flock", none)
    said = []
    with held(tmp_path, wait=False, log=said.append):
        assert len(said) == 1
        assert "this file system has no locks (No locks available); lock.json keeps other processes out" in said[0]
        assert is_held(tmp_path)
        with pytest.raises(UserError, match="another process is working on this run"), held(tmp_path, wait=False):
            pass
    assert not is_held(tmp_path)
    with held(tmp_path, wait=False):
        check_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"id": 3}', b"[" * 100_000])
def test_a_record_that_cannot_be_read_counts_as_ended_after_a_while(content, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "SILENCE", 0.5)
    monkeypatch.setattr(folder_lock, "_SETTLED_AFTER", 0.1)
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert not is_held(tmp_path)
    with held(tmp_path, wait=False):
        assert is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_was_given_to_another_process_holds_nothing(tmp_path):
    with held(tmp_path, wait=False):
        record = json.loads((tmp_path / LOCK_FILE).read_text())
    (tmp_path / LOCK_FILE).write_text(json.dumps({**record, "pid": 1, "started": "never"}))
    assert not is_held(tmp_path)
    with held(tmp_path, wait=False):
        pass


def test_what_a_killed_process_left_goes_and_what_a_live_one_holds_stays(tmp_path):
    with held(tmp_path, wait=False):
        record = json.loads((tmp_path / LOCK_FILE).read_text())
        remove_leftover(tmp_path)
        assert is_held(tmp_path)
    (tmp_path / LOCK_FILE).write_text(json.dumps({**record, "machine": "another", "started": "never"}))
    remove_leftover(tmp_path)
    assert (tmp_path / LOCK_FILE).exists()  # whether that process still runs is not known here
    (tmp_path / LOCK_FILE).write_text(json.dumps({**record, "started": "never"}))
    remove_leftover(tmp_path)
    assert list(tmp_path.iterdir()) == []
