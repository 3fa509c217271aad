"""Wrong input gets one line: a few hundred inputs of the fuzz command, and properties of what it tests less of."""

import contextlib
import io
import json
import string
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_repro.basics import run_folder
from frl_repro.basics.errors import UserError, one_line, reason
from frl_repro.commands import keyvalue, status
from frl_repro.models import checkpoints
from frl_repro.results.tables import reading
from frl_repro.runs import sweeps
from frl_repro.settings import config
from frl_repro.settings.parse import parse

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import fuzz  # (a command, in its own folder)

ANYTHING = st.text(max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANYTHING,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANYTHING, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kinds", ["script,settings,table,checkpoint,notes", "train,evaluate,yaml"])
def test_wrong_input_gets_one_line_and_touches_nothing_outside(kinds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    num = 200 if "table" in kinds else 16
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        found, counts, outside = fuzz.feed(num, 7, kinds.split(","), tmp_path)
    assert counts.total() == num
    assert found.found == []
    assert outside == set()
    assert found.num_refused.total() > num / 3


def test_what_goes_wrong_is_found(tmp_path, monkeypatch):
    """A reader that breaks, a program that shows a traceback and one that writes elsewhere are noticed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    fence = fuzz.Fence(tmp_path / "inside")
    with fuzz._prepared(tmp_path / "inside") as found:
        found.read("table", lambda: {}["x"], "a")
        found.call("train", lambda: sys.stderr.write("Traceback (most recent call last):\n") and 1, "b")
        found.call("train", lambda: 1, "c")
        found.call("train", lambda: 77, "d")
        assert len(found.found) == 4
        assert fence.outside == set()
        (tmp_path / "elsewhere").write_text("")
    fence.is_up = False
    assert fence.outside == {str(tmp_path / "elsewhere")}


@given(st.lists(ANYTHING | st.from_regex(r"[a-z]{1,4}=.{0,5}", fullmatch=True), max_size=4))
def test_arguments_are_read_or_refused(arguments):
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
        code = keyvalue.run(arguments, keys={"runs": "x", "out": "y"}, usage=lambda: "", act=str)
    assert code in (0, 1)
    said = out.getvalue()
    assert said == "" if code == 0 else said.startswith("error: ") and len(said.splitlines()) == 1


@given(ANYTHING | st.text(string.digits + "/.e+-", max_size=12))
def test_a_radius_is_a_number_in_its_range_or_refused(text):
    try:
        assert 0 <= keyvalue.parse_epsilon(text) <= 1
    except UserError as problem:
        assert repr(text) in str(problem) or text in str(problem)  # noqa: PT017


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["name", "epsilon", "seed", "num_steps"]) | ANYTHING, JSON, max_size=5))
def test_settings_are_read_or_refused(values):
    for kind in (config.RunConfig, config.EvaluateConfig):
        with pytest.raises(UserError):
            parse({"model": {"name": "lenet5"}, "attack": values, **values}, kind)


@given(JSON)
def test_notes_of_any_content_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    for name in ("run.json", "done.json"):
        (folder / name).write_text(json.dumps(content))
    (folder / "list.json").write_text(json.dumps(content))
    for read in (
        lambda: run_folder.check_finished(folder),
        lambda: sweeps.read_plan(folder / "list.json"),
        lambda: sweeps.read_list(folder / "list.json"),
    ):
        with contextlib.suppress(UserError):
            read()
    with contextlib.redirect_stdout(io.StringIO()):
        assert status.main([f"runs={folder.parent}", "show=none"]) in (0, 2, 3)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_files_of_any_content_are_no_table_and_no_state(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("files")
    (folder / "classwise.csv").write_bytes(content)
    (folder / "state.pt").write_bytes(content)
    with pytest.raises(UserError):
        reading.read_classwise(folder / "classwise.csv")
    with pytest.raises(UserError):
        checkpoints.load_state(folder / "state.pt")


@given(st.text())
def test_a_reason_is_one_line(text):
    for problem in (UserError(text), RuntimeError(text), OSError(5, text), MemoryError(text)):
        assert len(reason(problem).splitlines()) <= 1
    assert len(one_line(text).splitlines()) <= 1
