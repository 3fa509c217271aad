"""The wheel: carries the YAML files, and its console script works in an empty folder."""

import configparser
import os
import subprocess
import sys
import zipfile

import pytest

from support import ROOT


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


def run_script(installed, folder, name, *arguments):
    entry_points = configparser.ConfigParser()
    entry_points.read(next(installed.glob("*.dist-info")) / "entry_points.txt")
    module, function = entry_points["console_scripts"][name].split(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
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
    for name in ("frl-repro", "frl-evaluate", "frl-plot"):
        assert name in run_script(installed, tmp_path, name, "--help").stdout
    assert list(tmp_path.iterdir()) == []
