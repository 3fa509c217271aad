"""The command line, end to end in this process: what is refused, what runs, what is left behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch

import frl_repro
from frl_repro.basics import paths
from frl_repro.basics.errors import UserError
from frl_repro.commands import cli, collect, jobs, plot, report, status
from frl_repro.commands.running import Task
from frl_repro.data import fashion_mnist
from frl_repro.results.tables import reading, subsets
from frl_repro.results.tables.examples import read_examples
from frl_repro.results.tables.outcomes import read_outcomes
from frl_repro.settings.config import RunConfig
from frl_repro.settings.lookup import path_keys
from support import ROOT, TINY, call, run_script

REFUSED = {
    "alpha.natt=5": "unknown key alpha.natt; did you mean alpha.nat?",
    "+alpha.natt=5": "unknown key alpha.natt; did you mean alpha.nat?",
    "alpha.nat=5": "alpha.nat has no effect with frl=none recipe=report; it belongs to",
    "frl=reweight alpha.margin=2": "alpha.margin has no effect with frl=reweight recipe=report; it belongs to",
    "frl=remargin recipe=paper departures.fixed_step=true": "it belongs to frl=remargin recipe=report_code",
    "recipe=paper": "recipe=paper has no effect with frl=none",
    "frl=reweight attack=none": "attack=none trains none",
    "frl.gamma": "frl.gamma is a setting of frl=cfol: frl.gamma=value",
    "frl.gamma=0.5": "it belongs to frl=cfol recipe=report",
    "frl=dafa frl.unknown=1": "unknown key frl.unknown; frl=dafa: smallest, start_epoch, strength",
    "frl.unknown=1": "these methods have keys of their own: baseline_reweight, bat, cfa, cfol, codat, combined, csr,",
    "sweep=alpha_grid frl=reweight": "sweep over alpha.nat=1,2,5,10 alpha.bndy=1,2,5,10: add -m",
    "++trainer.num_epoch=5": "unknown key trainer.num_epoch; did you mean trainer.num_epochs?",
    "num_epochs=3": "did you mean trainer.num_epochs?",
    "model=lenet": "model=lenet: unknown choice; did you mean lenet5?",
    "frl=reweigth": "frl=reweigth: unknown choice; did you mean reweight?",
    "frl=ema": "frl=ema: unknown choice; a running average of weights is a setting of training: frl=finetune ",
    "experiment=auditt": "experiment=auditt: unknown choice; did you mean audit?",
    "trainer.num_epochs=-1": "trainer.num_epochs=-1: must lie in [0, 2^31)",
    "attack.epsilon=abc": "attack.epsilon=abc: expected a number or a fraction such as 8/255",
    "attack=none attack.epsilon=0.1": "attack.epsilon has no effect with attack=none; it belongs to attack=pgd",
    "-m attack=pgd,none attack.num_steps=3": "attack.num_steps has no effect with attack=none",
    "-m seed=0,1,x": "seed=x: expected a whole number",
    "seed=0,1": "add -m to sweep over several values",
    "experiment=exp1": "sweep over attack=none,pgd: add -m",
    "seed": "an override has the form key=value",
    "attack.epsilon=[1": "cannot read 'attack.epsilon=[1'",
    "~seed": "keys cannot be removed",
    "+seed=1": "seed exists already, write it without +",
    "experiment=null": "experiment=null: unknown choice",
    "-m experiment=exp1,exp1_short": "exp1 is a sweep itself, run it on its own",
    "-m attack=glob(*)": "list the choices instead of glob()",
    "--seed=3": "settings are written key=value",
    "-x": "settings are written key=value",
    "-m seed=0,1 --cfg job": "--multirun and --cfg cannot go together",
    "--info config -m": "--multirun and --info cannot go together",
    "--multi seed=0,1": "settings are written key=value",
    "--resolve": "--resolve goes with --cfg alone",
    "--package alpha": "--package goes with --cfg alone",
    "-sc": "--shell-completion takes one of install=bash, ",
    "-sc query=bash": "--shell-completion query=bash is for the shell, which says in COMP_LINE what was typed",
    "-sc seed=3": "--shell-completion takes one of install=bash, ",
    "--info alpha.nat=5": "settings are written key=value",
    "alpha.natt=5 --info": "unknown key alpha.natt",
    "-cn evaluate": "--config-name is not supported: each program has its settings",
    "-cd mine": "--config-dir=mine: no such folder",
    "--experimental-rerun config.pickle": "--experimental-rerun is not supported: it reads a pickle",
    "~hydra.verbose": "keys cannot be removed",
    "dataset=synthetic hydra.verbose=[1]": "Hydra cannot work with hydra.verbose=[1] (TypeError: ",
    "hydra.run.dir=elsewhere": "hydra.run.dir is not a setting of this program; of Hydra's there are hydra/launcher,",
    "hydra.job.chdir=true": "hydra.job.chdir is not a setting of this program",
    "hydra/job_logging=default": "hydra/job_logging is not a setting of this program",
    "hydra.mode=MULTIRUN": "hydra.mode is not a setting of this program",
    "-m hydra.sweeper.params.seed='0,1'": "hydra.sweeper.params is for other sweepers",
    "-m seed=0,1 hydra.sweeper.max_batch_size=0": "hydra.sweeper.max_batch_size=0: must be at least 1",
    "-m seed=0,1 hydra/launcher=bogus": "hydra/launcher=bogus: unknown choice; known: basic, fused,",
    "-m seed=0,1 +hydra.launcher.bogus=1": "TypeError('SerialLauncher() takes no arguments')",
    "-m seed=0,1 hydra/launcher=slurm hydra.launcher.executor=local hydra.launcher.num_workers=-1": (
        "hydra.launcher.num_workers=-1: must be a whole number from 1, or null for all"
    ),
    "=3": "cannot read '=3': an override has the form key=value",
    "--cfg": "settings are written key=value",
    "trainer.batch_size=1": "nothing would be attacked",
    "-m seed=0,1 dataset.root=/nowhere dataset.download=false": "/nowhere",
    "dataset=synthetic dataset.validation_fraction=0.1 evaluation.num_validation=3": "too few for one image",
    "hydra.nonsense=1": "hydra.nonsense",
    "dataset.root=/nowhere dataset.download=false": "/nowhere",
    "device=cuda:99": "device=cuda:99: this machine offers",
    "dataset=synthetic dataset.num_classes=1": "dataset.num_classes=1: must lie in [2, 2^16)",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_mistake_is_one_line_with_exit_code_1_and_nothing_is_written(line, monkeypatch, capsys, in_tmp):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    assert call(monkeypatch, *line.split()) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert REFUSED[line] in errors
    if "root" in line and "-m" in line:  # both jobs fail, and only when they run: each is listed again at the end
        assert errors.count("\n") == 2 + 3
        assert [path.name for path in in_tmp.rglob("*")] == ["outputs", "failed.json"]
        return
    assert errors.count("\n") == 1
    assert list(in_tmp.iterdir()) == []


@pytest.mark.parametrize("line", ["output_dir=~/my (1) résumé", 'output_dir="~/my (1) résumé"'])
def test_a_path_may_begin_with_the_home_folder_and_hold_any_character(line, monkeypatch, in_tmp):
    home = in_tmp / "a home 結果"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert call(monkeypatch, line, *TINY) == 0
    (run,) = (home / "my (1) résumé").iterdir()
    assert (run / "done.json").exists()
    assert [path.name for path in in_tmp.iterdir()] == [home.name]


@pytest.mark.parametrize(
    ("program", "chosen"),
    [("config", ["dataset=image_folder", "frl=reweight"]), ("evaluate", ["dataset=image_folder"]), ("sanity", [])],
)
def test_every_key_that_takes_a_path_knows_the_home_folder(program, chosen, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = {key for key in path_keys(jobs.KINDS[program]) if not key.startswith("dataset.root") or chosen}
    (config,) = jobs.check_command_line([*chosen, *(f"{key}=~/x" for key in sorted(keys))], program)
    flat = {**vars(config.keys), **{f"dataset.{name}": value for name, value in vars(config.dataset).items()}}
    assert {flat[key] for key in keys} == {str(tmp_path / "x")}
    assert {"checkpoint", "output_dir", "run_dir", "base_dir", "init_from", "other"} & set(flat) <= keys


def test_a_sweep_over_files_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a,b.pt").write_text("")
    for typed, names in (("~/a.pt,~/b.pt", ["a.pt", "b.pt"]), ("~/a,b.pt", ["a,b.pt"])):
        configs = jobs.check_command_line(["-m", "frl=reweight", f"init_from={typed}"], "config")
        assert [config.keys.init_from for config in configs] == [str(tmp_path / name) for name in names]


def test_a_home_folder_that_nobody_has_is_one_line():
    with pytest.raises(UserError, match=r"~nobody-here/x: this home folder is not known here, write the path in full"):
        jobs.configure("output_dir=~nobody-here/x")


@pytest.mark.parametrize(
    ("script", "line"),
    [
        *((script, "runs=~nobody-here/x") for script in (status, collect, plot, report)),
        *((script, "out=~nobody-here/x") for script in (plot, report)),
    ],
)
def test_scripts_that_read_tables_say_so_too(script, line, capsys):
    assert script.main(line.split()) == 1
    assert capsys.readouterr().err.startswith("error: ~nobody-here/x: this home folder is not known here, write the")


@pytest.mark.parametrize("line", ["frl=reweight", "frl=none"])
def test_beside_a_class_policy_a_line_says_whose_trainer_was_typed(line, monkeypatch, capsys, in_tmp):
    steered = ["dataset.validation_fraction=0.3", "retrain.trainer.num_epochs=1", "retrain.attack.num_steps=1"]
    more = [*steered, "frl.num_steps=1"] if line == "frl=reweight" else []
    assert call(monkeypatch, line, *more, *TINY) == 0
    said = (
        "trainer.num_epochs, attack.num_steps with frl=reweight: of the model that retraining starts from; "
        "retraining has retrain.*\n"
    )
    assert capsys.readouterr().out.count(said) == (line == "frl=reweight")


def test_a_job_that_another_process_did_shows_its_table(monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, "run_dir=outputs/run", *TINY) == 0
    capsys.readouterr()
    two = jobs.checked_jobs(jobs.read(["-m", "seed=0,1", *TINY], "config"), "config")
    (in_tmp / "scratch").mkdir()
    task = Task(print, str(in_tmp / "scratch"), two, RunConfig)
    task.note([{"job": "seed=0", "output_dir": "outputs", "reason": "", "run": "run"}])
    task.note([{"job": "seed=1", "output_dir": "outputs", "reason": "no data", "run": None}])
    out = capsys.readouterr().out
    assert "done: outputs/run\nsynthetic-lenet5" in out
    assert "overall" in out
    assert "failed: seed=1: no data\nsweep: 2 of 2 jobs have ended" in out


def test_settings_composed_from_python_are_those_of_the_command_line(monkeypatch, in_tmp):
    config = jobs.configure("dataset=synthetic", "frl=reweight", "alpha.nat=5", "attack.epsilon=${px:4}")
    assert (config.frl.name, config.alpha.nat, config.attack.epsilon) == ("reweight", 5.0, 4 / 255)
    assert call(monkeypatch, *TINY) == 0
    (folder,) = Path("outputs").iterdir()
    assert jobs.configure(*TINY).folder == Path("outputs") / folder.name
    evaluation = jobs.configure_evaluation(f"checkpoint={folder}/model.safetensors", "dataset=synthetic")
    assert (evaluation.keys.checkpoint, evaluation.dataset.name) == (f"{folder}/model.safetensors", "synthetic")


@pytest.mark.parametrize("line", ["alpha.natt=5", "alpha.nat=5", "frl=reweigth", "seed=0,1", "trainer.num_epochs=-1"])
def test_settings_composed_from_python_are_refused_alike(line):
    with pytest.raises(UserError) as refused:
        jobs.configure(*line.split())
    assert REFUSED[line] in str(refused.value)


@pytest.mark.parametrize("flag", ["-m", "--help", "--cfg=job"])
def test_flags_configure_no_run(flag):
    with pytest.raises(UserError, match=f"'{flag}' is a flag of the command line: only settings key=value"):
        jobs.configure(flag, "seed=0,1")


def test_a_truncated_image_file_is_refused_by_name_and_never_cached(monkeypatch, capsys, in_tmp):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", in_tmp / "no system copy")
    raw = in_tmp / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in fashion_mnist.KNOWN_CONTENT:
        (raw / name).write_bytes(b"\0\0\x08\x03 truncated")
    assert call(monkeypatch, "dataset.root=data", "dataset.download=false") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "idx" in errors
    assert sorted(path.name for path in in_tmp.iterdir()) == ["data"]


def test_a_text_file_is_no_checkpoint(monkeypatch, capsys, in_tmp):
    Path("notes.txt").write_text("not a checkpoint")
    arguments = [argument for argument in TINY if argument.startswith(("dataset", "evaluation", "num"))]
    assert call(monkeypatch, "checkpoint=notes.txt", *arguments, main=cli.evaluate_main) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: notes.txt is not a checkpoint")
    assert errors.count("\n") == 1
    assert [path.name for path in in_tmp.iterdir()] == ["notes.txt"]


def test_a_sweep_reports_each_failed_job_and_finishes_the_others(monkeypatch, capsys, in_tmp):
    # Two runs cannot share a folder: the second is refused.
    assert call(monkeypatch, "-m", "seed=0,1", "run_dir=here", *TINY) == 1
    out, errors = capsys.readouterr()
    assert "holds another run" in errors
    assert "Traceback" not in errors + out
    assert (in_tmp / "here" / "done.json").exists()
    (failed,) = json.loads((in_tmp / "outputs" / "failed.json").read_text())
    assert "seed=1" in failed["job"]
    assert "holds another run" in failed["reason"]
    assert f"1 of 2 jobs failed:\n  {failed['job']}: {failed['reason']}" in errors


def test_flags_may_stand_among_settings_and_a_sweep_leaves_only_its_runs(monkeypatch, in_tmp):
    assert call(monkeypatch, *TINY, "-m", "seed=0,1") == 0
    assert len(list((in_tmp / "outputs").iterdir())) == 2
    assert [path.name for path in in_tmp.iterdir()] == ["outputs"]


def test_an_unexpected_error_is_one_line_and_the_other_jobs_go_on(monkeypatch, capsys, in_tmp):
    from frl_repro.runs import experiment

    load = experiment.load_dataset
    calls = []

    def fails_first(config):
        calls.append(config)
        if len(calls) == 1:
            raise RuntimeError("out of something\nand more lines")
        return load(config)

    monkeypatch.setattr(experiment, "load_dataset", fails_first)
    assert call(monkeypatch, *TINY, "-m", "seed=0,1") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: unexpected RuntimeError: out of something (please report")
    assert "1 of 2 jobs failed" in errors
    assert errors.count("\n") == 3
    assert len(list((in_tmp / "outputs").glob("*/done.json"))) == 1


def test_evaluate_without_a_checkpoint_asks_for_one(monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, main=cli.evaluate_main) == 1
    assert capsys.readouterr().err == "error: checkpoint is missing: give checkpoint=FILE\n"


def test_train_then_evaluate_gives_the_same_table(monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, "run_dir=run", "seed=3", *TINY) == 0
    trained = (in_tmp / "run" / "classwise.csv").read_text()
    assert "overall" in capsys.readouterr().out
    arguments = [argument for argument in TINY if argument.startswith(("dataset", "evaluation", "num", "backend"))]
    arguments += ["checkpoint=run/model.safetensors", "num_examples=2"]
    assert call(monkeypatch, *arguments, main=cli.evaluate_main) == 0
    (measured,) = (in_tmp / "outputs" / "evaluate").glob("*/classwise.csv")
    assert measured.read_text() == trained

    outcomes = read_outcomes(measured.with_name("outcomes.safetensors"))
    table = reading.read_classwise([measured])
    assert outcomes.about["run_id"] == table["run_id"].iloc[0]
    assert len(outcomes.is_robust_error) == table["epsilon"].nunique() > 1
    for epsilon, is_error in outcomes.is_robust_error.items():
        rows = subsets.select_epsilon(table, epsilon).sort_values("class_id")
        assert np.bincount(outcomes.labels).tolist() == rows["count"].tolist()
        natural = np.bincount(outcomes.labels[outcomes.is_natural_error], minlength=len(rows))
        robust = np.bincount(outcomes.labels[is_error], minlength=len(rows))
        assert natural.tolist() == rows["num_natural_errors"].tolist()
        assert robust.tolist() == (rows["num_natural_errors"] + rows["num_boundary_errors"]).tolist()

    examples = read_examples(measured.with_name("examples.safetensors"))
    largest = subsets.select_epsilon(table, table["epsilon"].max()).set_index("class_name")["robust_error"]
    names = examples.about["class_names"]
    assert largest[examples.about["worst"]] == largest.max()
    assert largest[examples.about["best"]] == largest.min()
    assert [names[label] for label in examples.labels] == [examples.about["worst"]] * 2 + [examples.about["best"]] * 2
    assert np.abs(examples.attacked - examples.clean).max() <= table["epsilon"].max() + 1e-6


def test_train_py_runs_from_another_folder_by_path(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--cfg", "job", "--resolve", "attack.epsilon=${px:4}", "seed=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "seed: 3" in done.stdout
    assert "epsilon: 0.01568627450980392" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_completion_offers_groups_and_keys_without_torch():
    code = (
        "import os, sys; from frl_repro.commands.cli import main\n"
        "sys.argv = ['train.py', '-sc', 'query=bash']\n"
        "os.environ.update(COMP_LINE='train.py attack=', COMP_POINT='16')\n"
        "main(); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["attack=fgsm", "attack=none", "attack=pgd", "attack=trades"]


@pytest.mark.slow
def test_a_parallel_grid_that_is_killed_and_started_again_trains_one_base_and_repeats_nothing(in_tmp):
    """Sixteen jobs on two workers; SIGKILL once some are done, then the same command again."""
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", "frl=reweight", "sweep=alpha_grid", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2", "retrain.trainer.num_epochs=1", "retrain.trainer.batch_size=30",
        "retrain.attack.num_steps=2", "frl.num_validation=12", "frl.num_steps=2", "dataset.validation_fraction=0.25",
        *[argument.replace("num_train=90", "num_train=120") for argument in TINY],
    ]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    outputs = in_tmp / "outputs"
    deadline = time.monotonic() + 300
    while len(list(outputs.glob("*/done.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    first.kill()
    first.wait()
    stamps = {path: path.stat().st_mtime_ns for path in outputs.glob("*/done.json")}
    assert 5 <= len(stamps) < 16
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert len(list(outputs.glob("*/done.json"))) == 16
    assert len(list((outputs / "bases").iterdir())) == 1
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert not (outputs / "failed.json").exists()


BROKEN_SETTINGS = {
    b"\xb7": "is not UTF-8 text",
    b"\t- x": "is no valid YAML",
    b"? :": "is no valid YAML",
    b"a: 1\na: 2": "line 2 is no valid YAML: found duplicate key a",
}


@pytest.mark.parametrize("content", BROKEN_SETTINGS)
@pytest.mark.parametrize("arguments", [["attack=pgd"], ["--help", "all"]])
def test_a_file_of_settings_that_cannot_be_read_is_named(content, arguments, monkeypatch, capsys, in_tmp):
    shutil.copytree(ROOT / "conf", in_tmp / "conf")
    path = in_tmp / "conf" / "attack" / "pgd.yaml"
    path.write_bytes(content)
    monkeypatch.setattr(paths, "CONFIG_DIR", in_tmp / "conf")
    if "--help" in arguments and content != b"\xb7":  # help shows comments and keys of what is no YAML as well
        assert call(monkeypatch, *arguments) == 0
        return
    assert call(monkeypatch, *arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {path}")
    assert BROKEN_SETTINGS[content] in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--hydra-help", "seed=x"], ["-sc", "query=bash"], ["--info", "searchpath"]])
def test_hydra_answers_what_it_is_asked(arguments):
    environment = {**os.environ, "COMP_LINE": "train.py frl=rew", "COMP_POINT": "16"}
    done = run_script("train.py", *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    expected = {"--hydra-help": "Hydra", "-sc": "frl=reweight", "--info": "file://"}[arguments[0]]
    assert expected in done.stdout


def test_versions_are_shown(monkeypatch, capsys):
    assert call(monkeypatch, "--version", "seed=x") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"frl_repro {frl_repro.__version__} (PyTorch {torch.__version__.split('+')[0]}")
    assert f"Hydra {hydra.__version__}" in out


def test_a_sweep_over_methods_takes_settings_that_only_they_have(monkeypatch, in_tmp):
    steered = ["dataset.validation_fraction=0.25", "frl.num_validation=null", "frl.num_steps=1", "frl.update_every=2"]
    short = ["retrain.trainer.num_epochs=1", "retrain.trainer.batch_size=30", "retrain.attack.num_steps=1"]
    assert call(monkeypatch, "-m", "frl=reweight,remargin", *steered, *short, *TINY) == 0
    runs = [json.loads(path.read_text())["config"] for path in Path("outputs").glob("*/run.json")]
    assert sorted(run["frl"]["name"] for run in runs) == ["remargin", "reweight"]
    assert [run["retrain"]["trainer"]["num_epochs"] for run in runs] == [1, 1]


def test_flags_typed_in_one_ask_for_help_too(monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, "-hm") == 0
    assert capsys.readouterr().out.startswith("Train an image classifier, naturally or adversarially")
    assert list(in_tmp.iterdir()) == []


@pytest.mark.parametrize("sweeper", ["checked", "basic"])
def test_a_sweep_runs_the_jobs_that_were_checked_in_batches_too(sweeper, monkeypatch, capsys, in_tmp):
    batches = ["hydra.sweeper.max_batch_size=2", "hydra/hydra_logging=disabled"]
    assert call(monkeypatch, "-m", "seed=2,0,1", f"hydra/sweeper={sweeper}", *batches, *TINY) == 0
    out = capsys.readouterr().out
    seeds = [json.loads(path.read_text())["config"]["seed"] for path in Path("outputs").glob("*/run.json")]
    assert sorted(seeds) == [0, 1, 2]
    assert "sweep: 3 of 3 jobs have ended" in out
