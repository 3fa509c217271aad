"""The lines at the end of a command: they are commands, and they work on what was just made."""

import shlex
from pathlib import Path

import pytest

from frl_repro.commands import cli, collect, plot
from frl_repro.commands.next_steps import _where
from frl_repro.results.tables.reading import find_tables
from support import TINY, call, make_run

NATURAL = [setting for setting in TINY if not setting.startswith("attack.")]
RETRAIN = [
    *TINY, "dataset.validation_fraction=0.3", "retrain.trainer.num_epochs=1", "retrain.attack.num_steps=1",
]  # fmt: skip
FRL = [*RETRAIN, "frl.num_validation=12", "frl.num_steps=1"]
MIXTURE = [
    "-m", "experiment=theory", "row=mixture_natural,mixture_adversarial", "trainer.num_epochs=1",
    "dataset.num_train=200", "dataset.num_test=200", "dataset.deviation_ratio=2", "dataset.prior_ratio=1",
    "num_threads=1",
]  # fmt: skip

COMMANDS = {
    "a run": (TINY, ["evaluate", "sanity"]),
    "a natural run": ([*NATURAL, "attack=none"], ["evaluate"]),
    "a retraining": ([*FRL, "frl=remargin"], ["plot figure=3", "sanity"]),
    "another method": ([*RETRAIN, "frl=dafa"], ["plot figure=2", "sanity"]),
    "from scratch": ([*TINY, "frl=dafa", "recipe=scratch"], ["evaluate", "sanity"]),
    "natural and adversarial": (["-m", "attack=none,pgd", *NATURAL], ["collect", "plot figure=1"]),
    "seeds of a method": (["-m", "frl=reweight", "seed=0,1", *FRL], ["collect", "plot figure=2"]),
    "a grid": (["-m", "frl=reweight", "alpha.nat=1,2", "alpha.bndy=1,2", *FRL], ["collect", "plot figure=grid"]),
    "one alpha": (["-m", "frl=reweight", "alpha.nat=1,2", *FRL], ["collect", "plot figure=settings"]),
    "methods": (["-m", "frl=finetune,dafa", *RETRAIN], ["collect", "plot figure=settings"]),
    "radii": (["-m", "attack.epsilon=4/255,8/255", *TINY], ["collect", "plot figure=settings"]),
    "a mixture": (MIXTURE, ["collect", "plot figure=theory"]),
}
MAINS = {"evaluate": cli.evaluate_main, "sanity": cli.sanity_main, "plot": plot.main, "collect": collect.main}
SMALL = {"evaluate": ["evaluation.num_steps=1"], "sanity": ["num_images=9", "num_steps=1"], "plot": ["formats=png"]}


def next_commands(out):
    """Return the commands after ``next:`` in what was printed, as lists."""
    lines = out.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("next: ")]
    found = [shlex.split(line.removeprefix("next:")) for line in lines[start:]]
    assert 1 <= len(found) <= 3
    return found


def run_command(monkeypatch, words):
    """Run a command of another program of this package in this process; a check may fail, but not be mistaken."""
    name = words[0].removeprefix("frl-")
    code = call(monkeypatch, *words[1:], *SMALL.get(name, []), main=lambda: MAINS[name](*_argv(name, words)))
    assert code == 0 or (name == "sanity" and code == 1)


def _argv(name, words):
    return [[*words[1:], *SMALL.get(name, [])]] if name in ("plot", "collect") else []


FAST = ("a run", "another method", "natural and adversarial", "seeds of a method")


@pytest.mark.parametrize(
    "what", [what if what in FAST else pytest.param(what, marks=pytest.mark.bench) for what in COMMANDS]
)
def test_the_next_commands_fit_what_was_done_and_work(what, monkeypatch, capsys, in_tmp):
    arguments, expected = COMMANDS[what]
    fused = ["hydra/launcher=fused"] if "-m" in arguments else []
    assert call(monkeypatch, *arguments, *fused) == 0
    commands = next_commands(capsys.readouterr().out)
    said = [" ".join(word for word in command[:2] if "=" not in word or "figure=" in word) for command in commands]
    assert said == [f"frl-{command}" for command in expected]
    for command in commands:
        run_command(monkeypatch, command)
        errors = capsys.readouterr().err
        assert not errors.startswith("error: ") or " fails " in errors, errors


def test_after_a_measurement_its_images_are_offered(monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, *TINY) == 0
    (run,) = Path("outputs").glob("synthetic-*")
    for more, expected in (([], "frl-collect"), (["num_examples=1"], "frl-plot")):
        capsys.readouterr()
        arguments = [f"checkpoint={run}", "evaluation.num_steps=1", "num_threads=1", *more]
        assert call(monkeypatch, *arguments, main=cli.evaluate_main) == 0
        commands = next_commands(capsys.readouterr().out)
        assert [command[0] for command in commands] == [expected, "frl-sanity"]
        run_command(monkeypatch, commands[0])


def test_a_sweep_with_a_failed_job_offers_nothing(monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, "-m", "seed=0,1", *TINY, "dataset.num_test=2,30") == 1
    assert "next: " not in capsys.readouterr().out


def test_runs_are_named_without_their_neighbours(in_tmp):
    names = ["a-seed0", "a-seed1", "a-seed2", "a-seed3"]
    for name in names:
        make_run(in_tmp / "outputs" / name, is_done=True)
    folders = [Path("outputs") / name for name in names]
    assert _where(folders[:2]) == "outputs/a-seed0,outputs/a-seed1"
    assert _where(folders) == "outputs"
    make_run(in_tmp / "outputs" / "b-seed0", is_done=True)
    assert _where(folders) == "outputs/a-seed*"
    assert sorted(path.parent.name for path in find_tables(_where(folders))) == names
    assert _where([*folders[:3], Path("outputs/b-seed0")]) == "outputs"


def test_a_command_is_typed_as_this_one_was(monkeypatch, in_tmp):
    from frl_repro.commands.next_steps import _command
    from support import ROOT

    monkeypatch.setattr("sys.argv", [str(ROOT / "train.py")])
    monkeypatch.chdir(ROOT)
    assert _command("plot", "figure=1") == "python scripts/plot.py figure=1"
    monkeypatch.setattr("sys.argv", ["scripts/evaluate.py"])
    assert _command("sanity") == "python scripts/sanity.py"
    monkeypatch.setattr("sys.argv", ["/usr/bin/frl-repro"])
    assert _command("evaluate", "checkpoint=x") == "frl-evaluate checkpoint=x"
