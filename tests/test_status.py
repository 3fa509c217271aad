"""``frl-status``: what it says of folders in every state, its exit codes, its speed; lists of sweeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frl_repro.basics import folder_lock
from frl_repro.basics.folder_lock import held
from frl_repro.basics.time_left import duration
from frl_repro.commands import cli, following, jobs
from frl_repro.commands.status import main
from frl_repro.runs import sweeps
from support import ROOT, TINY, call, make_run


def lines_of(capsys, *arguments):
    code = main(arguments)
    out, errors = capsys.readouterr()
    assert errors == ""
    return code, out.splitlines()


def state_of(lines, name):
    (line,) = [line for line in lines if line.endswith(name)]
    return line.split()[:2]


def test_every_state_is_told_and_the_exit_code_says_the_worst(in_tmp, capsys):
    outputs = in_tmp / "outputs"
    make_run(outputs / "finished", is_done=True)
    make_run(outputs / "bases" / "base", is_done=True)
    make_run(outputs / "reference" / "published", epoch=1)
    assert lines_of(capsys) == (0, ["2 runs under outputs: 2 done"])

    make_run(outputs / "halfway", epoch=7)
    make_run(outputs / "begun")
    make_run(outputs / "busy", epoch=3)
    (outputs / "busy" / "state.pt").rename(outputs / "busy" / "state.previous.pt")  # between two renames
    with sweeps.planned([("outputs", Path("outputs/later")), ("outputs", Path("outputs/halfway"))], command="x"):
        with held(outputs / "busy", wait=False):
            code, lines = lines_of(capsys)
        assert code == 2
        assert lines[0] == "6 runs under outputs: 2 done, 1 running, 2 stopped, 1 waiting"
        assert state_of(lines, "outputs/busy") == ["running", "3/15"]
        assert state_of(lines, "outputs/halfway") == ["stopped", "7/15"]
        assert state_of(lines, "outputs/begun") == ["stopped", "0/15"]
        assert state_of(lines, "outputs/later")[0] == "waiting"
        assert not any("finished" in line for line in lines)
    assert "waiting" not in lines_of(capsys)[1][0]

    outcomes = [
        {"job": "seed=1", "output_dir": "outputs", "reason": "training\ndiverged", "run": "halfway"},
        {"job": "seed=2", "output_dir": "outputs", "reason": "trained again since", "run": "finished"},
    ]
    sweeps.note_failures(outcomes)
    code, lines = lines_of(capsys, "show=all")
    assert code == 3
    assert lines[0] == "5 runs under outputs: 2 done, 1 failed, 2 stopped"
    assert state_of(lines, "outputs/halfway") == ["failed", "7/15"]
    assert r"  training\ndiverged" in lines[lines.index(next(x for x in lines if x.startswith("failed"))) + 1]
    assert state_of(lines, "outputs/finished") == ["done", "15/15"]
    assert lines_of(capsys, "show=none") == (3, lines[:1])


def test_committed_tables_are_those_of_runs_that_are_done(in_tmp, capsys):
    for place in ("reference/exp2", "exp2"):
        make_run(in_tmp / "outputs" / place / "tables")
        (in_tmp / "outputs" / place / "tables" / "classwise.csv").write_text("")
    assert lines_of(capsys, "runs=outputs/reference") == (0, ["1 runs under outputs/reference: 1 done"])
    assert lines_of(capsys, "runs=outputs/exp2")[1][0].endswith("1 stopped")  # it may go on


def test_damage_is_told(in_tmp, capsys):
    make_run(in_tmp / "outputs" / "finished", is_done=True)
    make_run(in_tmp / "outputs" / "garbled")
    (in_tmp / "outputs" / "garbled" / "run.json").write_text("[1, ")
    (in_tmp / "outputs" / "failed.json").write_text("{")
    code, lines = lines_of(capsys)
    assert code == 3
    assert lines[0] == "3 runs under outputs: 1 done, 2 damaged"
    code, lines = lines_of(capsys, "verify=true")
    assert lines[0] == "3 runs under outputs: 3 damaged"
    assert any("outputs/finished/classwise.csv is damaged: its sha256 is not the one" in line for line in lines)
    (in_tmp / "outputs" / "finished" / "classwise.csv").unlink()
    assert any("classwise.csv is missing" in line for line in lines_of(capsys, "verify=true")[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=nowhere"], "runs=nowhere: no such folder"),
        (["show=som"], "show=som is unknown"),
        (["verify=yes"], "verify=yes is unknown; known: true, false"),
        (["follow=maybe"], "follow=maybe is unknown; known: true, false"),
        (["follow=true", "verify=true"], "verify=true and follow=true cannot go together"),
        (["folow=true"], "unknown key 'folow', did you mean 'follow'?"),
        (["follow"], "'follow' is not of the form key=value; keys are runs, show, verify, follow"),
        (["run=x"], "unknown key 'run', did you mean 'runs'?"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, in_tmp, capsys):
    (in_tmp / "outputs").mkdir()
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1


def test_a_look_at_the_lock_never_refuses_a_run(tmp_path):
    """Who looks holds the lock for microseconds; who wants it asks again."""
    looking = (
        "import sys, pathlib; from frl_repro.basics.folder_lock import is_held\n"
        "print(flush=True)\nwhile True: is_held(pathlib.Path(sys.argv[1]))"
    )
    looker = subprocess.Popen([sys.executable, "-c", looking, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        looker.stdout.readline()
        for _ in range(200):
            with held(tmp_path, wait=False):
                pass
    finally:
        looker.kill()
        looker.wait()
        looker.stdout.close()


def test_a_thousand_runs_are_listed_in_less_than_five_seconds_without_torch_and_pandas(in_tmp):
    for number in range(1000):
        make_run(in_tmp / "outputs" / f"run{number}", epoch=3, is_done=number % 2 == 0)
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1]]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as done: assert done.code == 2\n"
        "slow = {'torch', 'hydra', 'omegaconf', 'pandas', 'numpy'} & set(sys.modules); assert not slow, slow"
    )
    started = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "scripts" / "status.py")], capture_output=True, text=True, check=True
    )
    ended = os.times()
    assert done.stdout.startswith("1000 runs under outputs: 500 done, 500 stopped")
    # Processor time: the machine that tests may be busy.
    assert ended.children_user - started.children_user + ended.children_system - started.children_system < 5


def test_a_sweep_keeps_its_list_while_it_runs_and_where_it_is_killed(monkeypatch, in_tmp, capsys):
    from frl_repro.runs import experiment

    seen = []
    train = experiment.run_all

    def looks_first(configs, **settings):
        (plan,) = (in_tmp / "outputs").glob("sweep-*.json")
        seen.append(sweeps.read_plan(plan))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return train(configs, **settings)

    monkeypatch.setattr(experiment, "run_all", looks_first)
    monkeypatch.setattr(cli.threading, "active_count", lambda: 1)  # with others, it ends this process at once
    assert call(monkeypatch, "-m", "seed=0,1", *TINY) == 130
    assert len(seen[0]) == 2
    assert "1 done, 1 waiting" in lines_of(capsys_cleared(capsys), "show=none")[1][0]
    monkeypatch.setattr(experiment, "run_all", train)
    assert call(monkeypatch, "-m", "seed=0,1", *TINY) == 0
    out = capsys.readouterr().out
    assert "sweep: 1 of 2 jobs have ended" in out
    assert "sweep: 2 of 2 jobs have ended" in out
    assert not list((in_tmp / "outputs").glob("sweep-*.json"))


def capsys_cleared(capsys):
    capsys.readouterr()
    return capsys


def test_a_sweep_that_a_launcher_gives_up_is_one_line_and_its_list_stays_only_if_something_was_begun(
    monkeypatch, in_tmp, capsys
):
    from hydra.core.plugins import Plugins

    Plugins.instance()  # loads the launchers' modules anew, whoever has imported them before
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    def breaks(*_, **__):
        raise RuntimeError("a worker was killed\nand more lines")

    monkeypatch.setattr(BasicLauncher, "launch", breaks)
    assert call(monkeypatch, "-m", "seed=0,1", "hydra/launcher=basic", *TINY) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: the launcher gave up: unexpected RuntimeError: a worker was killed")
    assert errors.count("\n") == 1
    assert not list(in_tmp.glob("outputs/*.json"))
    (configs,) = {tuple(map(str, jobs.check_command_line(["-m", "seed=0,1", *TINY], "config")[0].folder.parts))}
    Path(*configs).mkdir(parents=True)
    assert call(monkeypatch, "-m", "seed=0,1", "hydra/launcher=basic", *TINY) == 1
    assert len(list(in_tmp.glob("outputs/sweep-*.json"))) == 1


def test_time_spans_are_said_as_people_say_them():
    assert [duration(s) for s in (40, 720, 12600, 180000)] == ["40 s", "12 min", "3.5 h", "2.1 days"]


# ---------------------------------------------------------------------------------------------------------------
# Watching


def sight(text, states, progress=None, *, is_under_way=True, code=2):
    return following.Sight(text, states, progress or dict.fromkeys(states, "1/3"), is_under_way, code)


A, B = Path("outputs/a"), Path("outputs/b")
STORY = [
    sight("2 runs: 1 running, 1 waiting\n", {A: "running", B: "waiting"}, {A: "1/3", B: ""}),
    sight("2 runs: 1 running, 1 waiting\n", {A: "running", B: "waiting"}, {A: "2/3", B: ""}),
    sight("2 runs: 1 running, 1 waiting\n", {A: "running", B: "waiting"}, {A: "2.5/3", B: ""}),
    sight("2 runs: 1 done, 1 waiting\n", {A: "done", B: "waiting"}, is_under_way=False),  # between two jobs
    sight("2 runs: 1 done, 1 running\n", {A: "done", B: "running"}),
    *[sight("2 runs: 1 done, 1 failed\n", {A: "done", B: "failed"}, is_under_way=False, code=3)] * 3,
]


@pytest.fixture
def story(monkeypatch):
    """Looks that tell a story, one a second."""
    slept = []
    monkeypatch.setattr(following.time, "sleep", slept.append)
    told = iter(STORY)
    return lambda: next(told)


def test_a_pipe_gets_changes_alone_and_following_ends_when_nothing_runs(story, capsys):
    text, code = following.follow(story, "outputs")
    assert code == 3
    assert text == "nothing is running under outputs any more\n2 runs: 1 done, 1 failed\n"
    first, *changes = capsys.readouterr().out.splitlines()
    assert first == "2 runs: 1 running, 1 waiting"
    assert [line.split("  ", 1)[1] for line in changes] == [
        "running 2/3  outputs/a",  # and the next epoch within a minute is left out
        "running -> done  outputs/a",
        "waiting -> running  outputs/b",
        "running -> failed  outputs/b",
    ]


def test_a_terminal_is_redrawn_within_its_size(story, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "5")
    text, code = following.follow(story, "outputs")
    assert (text, code) == ("nothing is running under outputs any more\n", 3)
    out = capsys.readouterr().out
    assert out.count("\x1b[1A\x1b[J") == len(STORY) - 1
    screen = following._Screen()
    screen.show(sight("a long line of more than twenty\n" * 9, {A: "running"}))
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["a long line of more"] * 2 + ["... and 7 more line"]


def test_nothing_to_follow_is_said_at_once(in_tmp, capsys):
    make_run(in_tmp / "outputs" / "halfway", epoch=7)
    assert main(["follow=true"]) == 2
    assert capsys.readouterr().out.startswith("nothing is running under outputs\n1 runs under outputs: 1 stopped\n")


def test_ctrl_c_ends_following_quietly(monkeypatch, capsys):
    def interrupted(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupted)
    assert following.follow(lambda: STORY[0], "outputs") == ("\n", 130)
    assert capsys.readouterr().err == ""


def test_following_ends_with_its_reader(in_tmp):
    make_run(in_tmp / "outputs" / "busy", epoch=3)
    with held(in_tmp / "outputs" / "busy", wait=False):
        done = subprocess.run(
            f"{sys.executable} {ROOT / 'scripts' / 'status.py'} follow=true | head -1",
            shell=True, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.stdout == "1 runs under outputs: 1 running\n"
    assert done.stderr == ""


def test_the_time_left_of_a_run_is_shown(in_tmp, capsys, monkeypatch):
    monkeypatch.setattr(folder_lock, "RENEWED_EVERY", 0.02)
    make_run(in_tmp / "outputs" / "busy", epoch=3)
    folder_lock.tell(Path("outputs/busy"), epochs=3.41, left=7200.0)
    with held(Path("outputs/busy"), wait=False):
        while not folder_lock.told(Path("outputs/busy")):
            pass
        _, lines = lines_of(capsys)
    assert lines[2].split() == ["state", "epoch", "left", "changed", "run"]
    assert lines[3].split()[:4] == ["running", "3.4/15", "2.0", "h"]


def test_a_sweep_between_two_jobs_is_under_way(in_tmp):
    with sweeps.planned([("outputs", Path("outputs/later"))], command="x"):
        (plan,) = (in_tmp / "outputs").glob("sweep-*.json")
        assert sweeps.is_under_way(plan)
        text = plan.read_text()
        for process in (
            "elsewhere 1",
            f"{os.uname().nodename} 0",
            f"{os.uname().nodename} 99999999999999999999",
            "x",
            "",
        ):
            plan.write_text(json.dumps({**json.loads(text), "process": process}))
            assert not sweeps.is_under_way(plan), process
        plan.write_text("[")
        assert not sweeps.is_under_way(plan)
