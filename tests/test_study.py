"""The command that runs everything: its command lines are ones that train.py and plot.py accept."""

import runpy
import subprocess
import sys

import pytest

from frl_repro.commands.jobs import check_command_line
from frl_repro.results.figures import FIGURES
from frl_repro.results.registration import registered_runs
from support import ROOT

STUDY = runpy.run_path(str(ROOT / "scripts" / "study.py"))["STUDY"]


def study(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "study.py"), *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def commands():
    """Every command of the study but the grid's, which sweeps the same keys as exp2 over 16 values."""
    done = study("dry=true", "seeds=0", "parts=exp1,exp2,exp3,exp4,controls,audit,cadence,longer,split,published")
    assert done.returncode == 0, done.stderr
    return [line.split("python ", 1)[1].replace("'", "").split() for line in done.stdout.splitlines()]


@pytest.mark.bench
def test_every_sweep_is_one_that_train_accepts(commands):
    sweeps = [command for command in commands if command[0] == "train.py"]
    assert len(sweeps) >= 7
    for sweep in sweeps:
        assert sweep[-1] == "seed=0"
        check_command_line(sweep[1:], "config")


def test_every_figure_is_one_that_plot_knows(commands):
    figures = [command[1] for command in commands if command[0] == "scripts/plot.py"]
    assert {figure.removeprefix("figure=") for figure in figures} >= {"1", "2", "3", "4", "settings"}
    assert all(figure.removeprefix("figure=") in FIGURES for figure in figures)


def test_parallel_jobs_and_settings_reach_every_sweep():
    done = study("dry=true", "parts=exp1,grid", "jobs=4", "set=device=cpu backend=torch")
    exp1, grid = (line for line in done.stdout.splitlines() if "train.py" in line)
    assert exp1.endswith("hydra.launcher.n_jobs=4 num_threads=1 device=cpu backend=torch")
    assert "seed=0,1,2 " in exp1
    assert "seed=0,1,2 " in grid
    done = study("dry=true", "parts=grid", "seeds=3,4", "launcher=fused")
    assert "seed=3,4 hydra/launcher=fused" in done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("parts=exp9", "did you mean"),
        ("jobs=0", "jobs=0 is not a whole number from 1"),
        ("part=exp1", "did you mean 'parts'"),
        ("dry=yes", "dry=yes is unknown"),
        ("seeds=0,a", "seeds=a is not a whole number from 0"),
        ("jobs=2 launcher=fused", "jobs=2 has no effect with launcher=fused"),
    ],
)
def test_mistakes_are_one_line(argument, message):
    done = study(*argument.split())
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_settings_with_an_open_quote_are_one_line():
    done = study("dry=true", 'set=dataset.root="x')
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'error: set=dataset.root="x cannot be read (No closing quotation): close the quotes\n'


def test_committed_runs_are_not_run_again(tmp_path, monkeypatch, capsys):
    module = runpy.run_path(str(ROOT / "scripts" / "study.py"))
    names = module["study"].__globals__
    monkeypatch.setitem(names, "_OUTPUTS", tmp_path)
    monkeypatch.setitem(names, "_REFERENCE", tmp_path / "reference")
    first, *others = [name for name, run in registered_runs().items() if run.seed == 11]
    sweep = STUDY["longer"].sweeps[0]
    longer = [run.run_id for run in check_command_line(["-m", *sweep.split(), "seed=1"], "config")]
    assert len(longer) == 2
    for name in (f"registered/{first}", "registered/a-development-run", *(f"longer/{name}" for name in longer)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in ("classwise.csv", "run.json", "done.json", "model.safetensors"):
            (folder / file).write_text("{}")
    said = module["publish"]()
    assert f"1 runs stand in {tmp_path / 'reference' / 'registered'}\n" in said
    assert f"2 runs stand in {tmp_path / 'reference' / 'longer'}\n" in said
    for folder in (tmp_path / "reference" / "registered" / first, tmp_path / "reference" / "longer" / longer[0]):
        assert sorted(path.name for path in folder.iterdir()) == ["classwise.csv", "run.json"]
    assert module["study"]({"parts": "registered", "seeds": "11", "dry": "true"}) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(others)
    # The part has a second sweep, of the control, of which no run is committed here.
    left = [("skip", ["seed=0", "seed=0", "seed=1", "seed=2", "seed=2"]), ("run", ["seed=0,1,2", "seed=0,1,2"])]
    for committed, seeds in left:
        assert module["study"]({"parts": "longer", "committed": committed, "dry": "true"}) == 0
        lines = capsys.readouterr().out.splitlines()[:-1]  # the last draws a figure
        assert [line.rsplit(" ", 1)[1] for line in lines] == seeds
