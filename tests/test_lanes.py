"""``make lanes``: environments with other versions of PyTorch and Python; the tests in them are the slow lane."""

import subprocess
import sys
import tomllib

import pytest

from support import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import lanes

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_lanes_follow_what_the_project_declares():
    lowest = {one.partition(">=")[0]: one.partition(">=")[2] for one in PROJECT["dependencies"]}
    assert lanes.oldest() == (f"torch=={lowest['torch']}.*", f"torchvision=={lowest['torchvision']}.*")
    versions = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if "Python :: 3." in one]
    assert [f"python{version}" for version in versions] == [name for name in lanes.LANES if name.startswith("python")]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_a_lane_keeps_the_other_pins():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    left_out = [pin for pin in pins if pin not in lanes.constraints_of(lanes.LANES["newest"]).splitlines()]
    assert [pin.partition("==")[0] for pin in left_out] == ["torch", "torchvision"]
    assert lanes.constraints_of(lanes.LANES["python3.12"]).splitlines() == pins


def test_a_dry_call_prints_the_commands_and_makes_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(lanes, "FOLDER", tmp_path / "lanes")
    monkeypatch.setattr(lanes, "interpreter", lambda version: None if version == "3.13" else "python3")
    assert lanes.main(["dry=true", "lanes=newest,python3.13", "tests=tests/test_help.py -x"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[newest] python3 -m venv ")
    assert lines[1].endswith("[dev]' torch torchvision")
    assert lines[2].endswith("-m pytest tests/test_help.py -x")
    assert lines[3:] == ["[python3.13] no Python 3.13 here"]
    assert not (tmp_path / "lanes").exists()


def test_a_lane_that_fails_is_told_and_the_others_go_on(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(lanes, "FOLDER", tmp_path)
    ran = []

    def fails(command, **_):
        ran.append(command)
        return subprocess.CompletedProcess(command, 3 if "pytest" in command and "oldest" in command[0] else 0)

    monkeypatch.setattr(lanes.subprocess, "run", fails)
    assert lanes.main(["lanes=oldest,newest"]) == 1
    oldest, newest = capsys.readouterr().out.splitlines()[-2:]
    assert oldest.startswith("oldest  FAILED with exit code 3: ")
    assert newest.startswith("newest  passed in ")
    assert len(ran) == 6


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lanes=newst", "lanes=newst is unknown, did you mean 'newest'?"),
        ("tests='x", "cannot be read"),
        ("dry=1", "dry=1 is unknown; known: true, false"),
    ],
)
def test_a_mistake_is_one_line(argument, message, capsys):
    assert lanes.main([argument]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["oldest", "newest"])
def test_the_fast_tests_pass_in(lane):
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "lanes.py"), f"lanes={lane}"], cwd=ROOT, check=False)
    assert done.returncode == 0
