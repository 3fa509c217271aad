"""The walkthrough: a valid notebook without outputs, whose setup finds the repository, and which runs to its end."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from support import ROOT

NOTEBOOK = ROOT / "notebooks" / "walkthrough.ipynb"
WITH_FIGURES = {"data", "measure", "examples", "weights", "before-after", "theory"}


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def setup_cell(notebook):
    """Source of the cell that finds the repository and installs the package where it is missing."""
    return next(cell.source for cell in notebook.cells if cell.id == "setup")


def test_it_is_valid_and_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= len(WITH_FIGURES)
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert nbformat.writes(notebook, ensure_ascii=False) + "\n" == NOTEBOOK.read_text(encoding="utf-8")


def test_setup_installs_the_package_from_a_clone_below_where_it_is_missing(tmp_path, monkeypatch, setup_cell):
    clone = tmp_path / "clone"
    (clone / "outputs" / "reference" / "models").mkdir(parents=True)
    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)  # finds no package
    monkeypatch.setattr(subprocess, "run", lambda command, *, check: commands.append((Path.cwd(), command, check)))
    exec(setup_cell, {})
    assert commands == [(clone, [sys.executable, "-m", "pip", "install", "--quiet", "--editable", "."], True)]
    assert sys.path[0] == str(clone / "src")


def test_setup_only_finds_the_repository_where_the_package_is_there(monkeypatch, setup_cell):
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(subprocess, "run", None)  # would fail if it were called
    exec(setup_cell, {})
    assert Path.cwd() == ROOT


def test_setup_says_what_to_do_far_from_any_clone(tmp_path, monkeypatch, setup_cell):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no checkout of the repository at, above or in .*: clone it and start"
    ):
        exec(setup_cell, {})


@pytest.mark.data
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, notebook):
    from nbclient import NotebookClient

    monkeypatch.setenv("FRL_REPRO_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):  # nothing of the user's
        monkeypatch.setenv(name, str(tmp_path / name))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()  # raises on the first cell that fails

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    shown = {name for name, parts in outputs.items() if any("image/png" in part.get("data", {}) for part in parts)}
    assert shown == WITH_FIGURES
    complaints = {name: part.text for name, parts in outputs.items() for part in parts if part.get("name") == "stderr"}
    assert complaints == {}
    assert not list(tmp_path.rglob("run.json"))  # nothing is left

    printed = "".join(part.text for part in outputs["claims"] if part.output_type == "stream").splitlines()
    verdicts = pd.read_csv(ROOT / "outputs" / "reference" / "verdicts.csv").drop_duplicates("question")
    assert [(line.partition(".")[0], line.rpartition("->  ")[2].lower()) for line in printed] == [
        (question, verdict) for question, verdict in zip(verdicts["question"], verdicts["verdict"], strict=True)
    ]
