"""The wheel: carries the YAML files, and its console script works in an empty folder."""

import configparser
import os
import subprocess
import sys
import zipfile

import pytest

from support import ROOT, TINY


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel and unpack it, which is all that installing a pure Python wheel does."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def names_of(installed):
    return sorted(entry_points_of(installed))


def entry_points_of(installed):
    entry_points = configparser.ConfigParser()
    entry_points.read(next(installed.glob("*.dist-info")) / "entry_points.txt")
    return entry_points["console_scripts"]


def run_script(installed, folder, name, *arguments, **environment):
    module, function = entry_points_of(installed)[name].split(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_console_script_composes_from_the_wheels_own_files(installed, tmp_path):
    where = "import frl_repro; print(frl_repro.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    shown = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith(str(installed))  # not the checkout
    done = run_script(installed, tmp_path, "frl-repro", "--cfg", "job", "--resolve", "attack=fgsm", "seed=4")
    assert done.returncode == 0, done.stderr
    assert "name: fgsm" in done.stdout
    done = run_script(installed, tmp_path, "frl-repro", "model=lenet")
    assert done.returncode == 1
    assert "did you mean lenet5?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_command_has_help_that_names_it_on_one_screen(installed, tmp_path):
    assert len(names_of(installed)) == 8
    for name in names_of(installed):
        text = run_script(installed, tmp_path, name, "--help", COLUMNS="100").stdout
        assert f"{name} " in text
        assert len(text.splitlines()) <= 40
    assert "frl.gamma=0.5" in run_script(installed, tmp_path, "frl-repro", "--help", "frl=cfol").stdout
    assert list(tmp_path.iterdir()) == []


COMMANDS = {
    "frl-repro": [*TINY, "dataset.validation_fraction=0.3", "attack.fraction=1"],
    "frl-status": [],
    "frl-collect": [],
    "frl-plot": ["figure=settings", "formats=svg"],
    "frl-report": ["figures=false"],
    "frl-bench": ["dry=true", "seeds=20", "methods=finetune"],
    "frl-evaluate": ["checkpoint={run}", "num_threads=1", "evaluation.num_steps=1"],
    "frl-sanity": ["checkpoint={run}", "num_threads=1", "num_images=9", "num_steps=1"],
}


@pytest.mark.bench
def test_every_command_works_from_an_empty_folder(installed, tmp_path):
    assert sorted(COMMANDS) == names_of(installed)
    for name, arguments in COMMANDS.items():
        run = next(tmp_path.glob("outputs/synthetic-*"), None)
        done = run_script(installed, tmp_path, name, *(argument.format(run=run) for argument in arguments))
        failed = name == "frl-sanity" and " fails " in done.stderr  # the answer of a check: a model of one epoch
        assert done.returncode == (1 if failed else 0), f"{name}: {done.stderr}"
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"outputs/figures/settings.svg", "outputs/report/report.html"} <= made
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
