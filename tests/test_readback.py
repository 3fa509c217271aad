"""What is read back from files is checked: a hostile or damaged value ends in one line, and no file is written."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError, one_line
from frl_repro.basics.readback import checked, entries, fields, file_name, items, maybe, number, one_of, text, whole
from frl_repro.basics.run_folder import check_finished, read_object
from frl_repro.commands import collect, status
from frl_repro.models import checkpoints
from frl_repro.results.tables import reading, writing
from frl_repro.results.tables.examples import read_examples, write_examples
from frl_repro.results.tables.outcomes import read_outcomes, write_outcomes
from frl_repro.results.tables.sanity_rules import read_sanity
from frl_repro.runs import sweeps
from frl_repro.runs.experiment import run
from support import make_rows, outcomes_of_three, stopped, tiny_run, two_examples


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (text(), ["", "ä b", "猫"], ["a\nb", "\x1b", "a" * 1001, 3, None]),
        (
            file_name(),
            ["a", "nat0.5-1e-05", "_x"],
            ["", ".", "..", ".a", "a/b", "/a", "a b", "a\n", "a\x00", "x" * 201],
        ),
        (readback.SHA256, ["0" * 64], ["0" * 63, "G" * 64, "0" * 65]),
        (whole(1, 9), [1, 9], [0, 10, 1.0, True, "1", 10**5000, None]),
        (number(0, 1), [0, 0.5, 1], [-0.1, 1.1, float("nan"), float("inf"), 10**5000, True, "0"]),
        (one_of("a", True), ["a", True], ["b", 1, []]),
        (maybe(whole()), [None, 3], [-1, "x"]),
        (items(whole(), min_length=1, max_length=2), [[1], (1, 2)], [[], [1, 2, 3], ["a"], "ab", {}]),
        (entries(file_name(), whole()), [{}, {"a": 1}], [{"../a": 1}, {"a": "b"}, [], {3: 1}]),
        (fields({"a": whole()}, {"b": whole()}), [{"a": 1}, {"a": 1, "b": 2, "c": "x"}], [{}, {"a": 1, "b": "x"}, []]),
        (readback.settings, [{"a": {"b": [1, None, True, "x"]}}], [{"a b": 1}, {"a": float("nan")}, {"a": object()}]),
    ],
)
def test_each_check_lets_through_what_is_right_alone(check, right, wrong):
    for value in right:
        assert checked(value, check, source="file", remedy="do") is value
    for value in wrong:
        with pytest.raises(UserError, match=r"^file is damaged: .*; do$") as caught:
            checked(value, check, source="file", remedy="do")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_a_message_names_the_field_and_nested_settings_end():
    check = fields({"a": items(fields({"b": whole(1)}))})
    with pytest.raises(UserError, match=r"^f is damaged: a\[1\]\.b must be a whole number from 1 to \d+, not 'x'; do$"):
        checked({"a": [{"b": 1}, {"b": "x"}]}, check, source="f", remedy="do")
    nested = 0
    for _ in range(50):
        nested = {"a": nested}
    with pytest.raises(UserError, match="is nested deeper than 12 levels"):
        checked(nested, readback.settings, source="f", remedy="do")


def test_messages_show_no_control_characters():
    assert one_line("a\nb\x1b[2J\tc\x9b") == r"a\nb\x1b[2J\tc\x9b"
    assert one_line("ä 猫") == "ä 猫"


# Notes of runs and sweeps

RUN = {"run_id": "a-run", "config_hash": "0123abcd", "config": {"trainer": {"num_epochs": 3}}}


def run_with(**changes):
    return {**RUN, **changes}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"run_id": "../../elsewhere"}, "run_id"),
        ({"run_id": "/elsewhere"}, "run_id"),
        ({"run_id": ["a"]}, "run_id"),
        ({"run_id": "a\x1b[2J"}, "run_id"),
        ({"config_hash": "../x"}, "config_hash"),
        ({"config": []}, ""),
        ({"config": {"dataset": {"a/b": 1}}}, "config.dataset"),
        ({"start": {"file": 3, "sha256": "0" * 64}}, "start.file"),
        ({"data": {"digest": "../x"}}, "data.digest"),
        ({"wall_seconds": "x"}, "wall_seconds"),
        ({"versions": ["torch"]}, "versions"),
        ({"git_commit": "a\nb"}, "git_commit"),
    ],
)
def test_a_hostile_run_json_is_named_by_every_reader(in_tmp, capsys, change, where):
    folder = in_tmp / "outputs" / "a-run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_with(**change)))
    writing.write_table(folder / "classwise.csv", make_rows("natural"), list(make_rows("natural")[0]))
    for read in (read_object, reading.read_json):
        with pytest.raises(UserError, match=rf"run\.json is damaged: {where}.* delete the folder .* repeat the run"):
            read(folder / "run.json")
    assert collect.main(["runs=outputs"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert status.main([]) == 3
    out = capsys.readouterr().out
    assert "1 damaged" in out
    assert out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"run_id": NaN}', '{"wall_seconds": Infinity}', "[" * 100_000, "\xff"]
)
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"run\.json is damaged.* delete the folder"):
        read_object(tmp_path / "run.json")


@pytest.mark.parametrize("name", ["run.json", "done.json"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="is no file but a pipe or a device: remove it"):
        read_object(tmp_path / name)


def test_a_note_that_never_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readback, "_MAX_BYTES", 1 << 20)
    (tmp_path / "run.json").write_text(" " * ((1 << 20) + 1))
    with pytest.raises(UserError, match="it has more than 1 MiB"):
        read_object(tmp_path / "run.json")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "a/b"])
def test_checksums_name_files_of_the_folder_alone(tmp_path, name):
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    done = {"run_id": RUN["run_id"], "config_hash": RUN["config_hash"], "sha256": {name: "0" * 64}}
    (tmp_path / "done.json").write_text(json.dumps(done))
    with pytest.raises(UserError, match=r"done\.json is damaged: sha256.* names a folder"):
        check_finished(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sweep-0.json", {"runs": "abc"}),
        ("sweep-0.json", {"runs": [3]}),
        ("sweep-0.json", {"runs": ["a\x1b[2J"]}),
        ("sweep-0.json", {"command": "x"}),
        ("failed.json", {}),
        ("failed.json", [3]),
        ("failed.json", [{"job": 3, "reason": "x", "run": "y"}]),
        ("failed.json", [{"job": "a", "reason": "x", "run": ["y"]}]),
    ],
)
def test_hostile_lists_of_a_sweep_are_damaged_and_no_more(in_tmp, capsys, name, content):
    (in_tmp / "outputs").mkdir()
    (in_tmp / "outputs" / name).write_text(json.dumps(content))
    read = sweeps.read_list if name == "failed.json" else sweeps.read_plan
    with pytest.raises(UserError, match=rf"{name} is damaged: .* delete it, runs do not need it"):
        read(in_tmp / "outputs" / name)
    assert status.main([]) == 3
    assert capsys.readouterr().out.replace("\n", "").isprintable()


# States


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 99}, "is the state of another training"),  # it would train for ever
        ({"epoch": -1}, r"epoch must be a whole number"),
        ({"epoch": "1"}, r"epoch must be a whole number"),
        ({"seconds": "x"}, r"seconds must be a number"),
        ({"seconds": -1.0}, r"seconds must be a number"),
        ({"machine": "\x1b[2J"}, r"machine must be a text"),
        ({"best": {"epoch": 1}}, r"best\.error is missing"),
        ({"history": [{"run_id": "another", "epoch": 1}]}, "is the state of another training"),
        ({"history": []}, "is the state of another training"),
        ({"rows": [3]}, r"rows\[0\] must be a mapping"),
        ({"rows": [{"run_id": ["x"]}]}, r"rows\[0\]\.run_id must be a number"),
        ({"policy_rows": {}}, r"policy_rows must be a list"),
    ],
)
def test_a_state_that_says_what_it_cannot_is_refused(tmp_path, monkeypatch, change, message):
    config = tiny_run(tmp_path / "run")
    with stopped(monkeypatch, after=1):
        run(config)
    path = config.folder / "state.pt"
    state = checkpoints.load_state(path)
    checkpoints.save_state(path, {**state, **change})
    if not isinstance(change.get("epoch", 1), int) or change.get("epoch", 1) < 1:  # its first line says so already
        message = r"is not a readable training state|epoch must be"
    path.with_name("state.previous.pt").unlink(missing_ok=True)
    with pytest.raises(UserError, match=message):
        run(config)
    assert not (config.folder / "classwise.csv").exists()


# Outcomes, examples, tables


def with_changed(path, about=None, **tensors):
    """Write a file of tensors again with something changed."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        said = json.loads(file.metadata()["about"])
    content = {**load_file(path), **tensors}
    save_file(content, path, metadata={"about": json.dumps({**said, **(about or {})})})


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        ({"wall_seconds": "x"}, {}),
        ({"wall_seconds": -5}, {}),
        ({"run_id": "\x1b[2J"}, {}),
        ({"run_id": ["a"]}, {}),
        ({"broken by": "abc"}, {}),
        ({"broken by": [3]}, {}),
        ({}, {"labels": np.full(6, np.nan)}),
        ({}, {"images": np.arange(-1, 5, dtype=np.int32)}),
        ({}, {"broken by 16/255": np.full(6, 77, dtype=np.uint8)}),
    ],
)
def test_hostile_outcomes_are_refused(tmp_path, about, tensors):
    write_outcomes(tmp_path / "x", outcomes_of_three())
    assert len(read_outcomes(tmp_path / "x").labels) == 6
    with_changed(tmp_path / "x", about, **tensors)
    with pytest.raises(UserError, match=r"is damaged: .*delete it and measure again"):
        read_outcomes(tmp_path / "x")


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        ({"class_names": "abc"}, {}),
        ({"class_names": []}, {}),
        ({"epsilon": "x"}, {}),
        ({"epsilon": 7}, {}),
        ({"worst": 3}, {}),
        ({"run_id": "\x1b[2J"}, {}),
        ({}, {"labels": np.array([0, 2])}),
        ({}, {"labels": np.array([-1, 0])}),
        ({}, {"attacked_predictions": np.array([0, 1, 1])}),
        ({}, {"clean": np.full((2, 1, 8, 8), np.nan, dtype=np.float32)}),
        ({}, {"attacked": np.zeros((2, 1, 9, 8), dtype=np.float32)}),
    ],
)
def test_hostile_examples_are_refused(tmp_path, about, tensors):
    write_examples(tmp_path / "x", two_examples())
    with_changed(tmp_path / "x", about, **tensors)
    with pytest.raises(UserError, match=r"is damaged: .*delete it and measure again"):
        read_examples(tmp_path / "x")


@pytest.mark.parametrize("name", ["run_id", "dataset", "model", "method", "split", "attack"])
@pytest.mark.parametrize("num_tables", [1, 2])
def test_names_in_tables_are_one_line_without_control_characters(tmp_path, name, num_tables):
    files = [tmp_path / f"{place}.csv" for place in range(num_tables)]
    for place, file in enumerate(files):
        rows = [{**row, "run_id": f"run-{place}", name: "a\x1b[2J"} for row in make_rows("natural")]
        writing.write_table(file, rows, list(rows[0]))
    with pytest.raises(UserError, match=rf"0\.csv, column '{name}' is damaged: must be a text of one line") as caught:
        reading.read_classwise(files)
    assert str(caught.value).isprintable()


def test_names_in_a_table_of_sanity_checks_too(tmp_path):
    from frl_repro.results.tables.sanity_rules import COLUMNS

    path = tmp_path / "sanity.csv"
    writing.write_table(path, [{**dict.fromkeys(COLUMNS), "run_id": "a\x1b"}], COLUMNS)
    with pytest.raises(UserError, match=r"sanity\.csv, column 'run_id' is damaged"):
        read_sanity(path)


def test_numpy_values_in_a_state_are_not_taken_for_numbers(tmp_path):
    checkpoints.save_state(tmp_path / "state.pt", {"epoch": 1, "seconds": np.float64(3.0), "w": torch.zeros(2)})
    state = checkpoints.load_state(tmp_path / "state.pt")
    with pytest.raises(UserError, match="seconds must be a number"):
        checked(state, fields({"seconds": number()}), source="x", remedy="y")
