"""Runs: tables, skipping, resuming, killing; the test split never steers."""

import csv
import dataclasses
import json
import random
import shutil
import signal
import time

import pytest
import torch

from frl_repro.basics.errors import UserError
from frl_repro.basics.folder_lock import held
from frl_repro.basics.progress import set_up_logging
from frl_repro.results.tables import reading, writing
from frl_repro.runs import experiment
from support import WARM, same_weights, table_contents, tiny_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    torch.set_num_threads(1)
    experiment.run(tiny_run(folder))
    return folder


def test_a_run_leaves_tidy_tables(finished):
    table = reading.read_classwise([finished / "classwise.csv"])
    assert set(table["split"]) == {"validation", "test"}
    assert sorted(table.loc[table["split"] == "validation", "epoch"].unique()) == [1, 2, 3]
    assert set(table.loc[table["split"] == "test", "epoch"]) == {3}
    assert len(table) == (3 + 1) * 2 * 3  # epochs and test, radii, classes
    assert table.loc[table["split"] == "test", "count"].sum() == 2 * 45
    with (finished / "history.csv").open() as opened:
        history = list(csv.DictReader(opened))
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    recorded = json.loads((finished / "run.json").read_text())
    assert recorded["config"]["attack"]["epsilon"] == 8 / 255
    assert {"git_commit", "git_dirty", "versions", "device", "backend", "command", "wall_seconds"} <= recorded.keys()
    done = json.loads((finished / "done.json").read_text())
    assert done["run_id"] == recorded["run_id"]
    assert not (finished / "state.pt").exists()


def test_a_finished_run_is_skipped_and_repeated_with_force(finished, monkeypatch):
    before, stamp = table_contents(finished), (finished / "done.json").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "fit", lambda *_, **__: pytest.fail("trained again"))
        experiment.run(tiny_run(finished))
    assert (finished / "done.json").stat().st_mtime_ns == stamp
    experiment.run(tiny_run(finished, force=True))
    assert (finished / "done.json").stat().st_mtime_ns > stamp
    assert table_contents(finished) == before


def test_a_run_that_another_process_finishes_meanwhile_is_left_as_it_is(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def load_while_another_process_finishes(config):
        shutil.copytree(finished, folder)
        return dataset

    dataset = experiment.load_dataset(tiny_run(folder).dataset)
    monkeypatch.setattr(experiment, "load_dataset", load_while_another_process_finishes)
    monkeypatch.setattr(experiment, "fit", lambda benches, **_: iter(pytest.fail("trained again") for _ in benches))
    assert experiment.run(tiny_run(folder)) == folder
    assert table_contents(folder) == table_contents(finished)
    assert (folder / "done.json").read_bytes() == (finished / "done.json").read_bytes()


def test_a_folder_of_another_run_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="holds another run"):
        experiment.run(tiny_run(finished, seed=1))
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds files that are no run"):
        experiment.run(tiny_run(tmp_path))
    with pytest.raises(UserError, match="is a file, not a folder"):
        experiment.run(tiny_run(tmp_path / "thesis.tex"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_state_is_named(tmp_path):
    config = tiny_run(tmp_path / "run")
    (tmp_path / "run").mkdir()
    writing.write_json(tmp_path / "run" / "run.json", {"config_hash": config.hash, "run_id": config.run_id})
    (tmp_path / "run" / "state.pt").write_bytes(b"half of a")
    with pytest.raises(UserError, match=r"state\.pt is not a readable training state: delete it"):
        experiment.run(config)


def test_force_on_a_finished_run_never_continues_from_a_leftover_state(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "state.pt").write_bytes(b"left behind by a kill between done.json and the end")
    experiment.run(tiny_run(folder, force=True))
    assert table_contents(folder) == table_contents(finished)


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    config = tiny_run(tmp_path / "run")
    config.folder.mkdir()
    with (
        held(config.folder, wait=False),
        pytest.raises(UserError, match="another process is working on this run"),
    ):
        experiment.run(config)


def test_the_test_split_never_steers(finished, tmp_path, monkeypatch):
    """Other test labels change the test rows and nothing else: not the weights, not the history, not validation."""
    load = experiment.load_dataset

    def load_with_other_test_labels(config):
        dataset = load(config)
        other = dataclasses.replace(dataset.test, labels=(dataset.test.labels + 1) % 3)
        return dataclasses.replace(dataset, test=other)

    monkeypatch.setattr(experiment, "load_dataset", load_with_other_test_labels)
    experiment.run(tiny_run(tmp_path / "run"))
    ours, other = (reading.read_classwise([folder / "classwise.csv"]) for folder in (finished, tmp_path / "run"))
    for name in ("history.csv", "split.safetensors"):
        assert (finished / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert same_weights(finished, tmp_path / "run")  # their headers name the data, which differ
    for split, is_same in (("validation", True), ("test", False)):
        columns = ["epoch", "epsilon", "class_id", "count", "num_natural_errors", "num_boundary_errors"]
        a, b = (table.loc[table["split"] == split, columns].reset_index(drop=True) for table in (ours, other))
        assert a.equals(b) is is_same


def test_the_seed_changes_the_run_but_not_the_split(finished, tmp_path):
    experiment.run(tiny_run(tmp_path / "run", seed=1))
    assert (tmp_path / "run" / "split.safetensors").read_bytes() == (finished / "split.safetensors").read_bytes()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != (finished / "model.safetensors").read_bytes()


def test_of_fewer_validation_images_than_asked_for_all_are_measured_and_a_line_says_so(finished, tmp_path, capsys):
    set_up_logging()
    folder = experiment.run(tiny_run(tmp_path / "run", evaluation__num_validation=31))
    assert "evaluation.num_validation=31: there are 30 images, all of them are taken" in capsys.readouterr().out
    assert rows_without_run(folder).equals(rows_without_run(finished))


def rows_without_run(folder):
    table = reading.read_classwise([folder / "classwise.csv"])
    return table.drop(columns=["run_id"])


def _run_in_child(folder, announce):
    torch.set_num_threads(1)
    announce.send(True)
    experiment.run(tiny_run(folder))


@pytest.mark.parametrize("enough", [5, pytest.param(20, marks=pytest.mark.bench)])
def test_killed_many_times_at_random_a_run_ends_with_the_same_bytes(enough, finished, tmp_path):
    """SIGKILL at random moments until each run gets through, run after run until enough kills are done."""
    chance = random.Random(0)
    num_kills, longest, round_number = 0, 1.0, 0
    while num_kills < enough:
        folder = tmp_path / f"run{round_number}"
        round_number += 1
        is_done = False
        while not is_done:
            receiver, sender = WARM.Pipe(duplex=False)
            child = WARM.Process(target=_run_in_child, args=(folder, sender))
            child.start()
            assert receiver.poll(120)
            started = time.monotonic()
            child.join(chance.uniform(0, longest) if num_kills < enough else None)
            if child.is_alive():
                child.kill()  # it may end by itself just now
                child.join()
                num_kills += child.exitcode == -signal.SIGKILL
            else:
                longest = max(0.2, time.monotonic() - started)
            is_done = child.exitcode == 0
            assert child.exitcode in (0, -signal.SIGKILL)
        assert table_contents(folder) == table_contents(finished)
        assert not list(folder.glob(".*.tmp"))
        assert not (folder / "state.pt").exists()
    assert num_kills >= enough
