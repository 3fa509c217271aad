"""Loggers: TensorBoard repeats the tables, each epoch once, and changes nothing; a missing package is named."""

import csv
import json
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from frl_repro.basics.errors import UserError
from frl_repro.results.tables import writing
from frl_repro.runs import experiment
from frl_repro.training import fitting, loggers
from support import TINY, call, tiny_retraining, tiny_run

HISTORY_ROW = {"learning_rate": 0.1, "train_loss": 2.0, "train_clean_error": 0.5, "train_attacked_error": None}


def read(folder):
    """Return every scalar in a run's folder, ``(tag, step)`` to value; a step that is there twice fails."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert (tag, event.step) not in found
            found[tag, event.step] = event.value
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(steps)
    return found


def tables(folder):
    """Return the bytes of a finished run's tables and weights."""
    names = [name for name in experiment.RESULT_FILES if name != "run.json"]
    return {name: (folder / name).read_bytes() for name in names}


def expected(folder):
    """Work the scalars out from a run's tables, number by number."""

    def rows(name):
        path = folder / name
        return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []

    found = {}

    def note(tag, row, text):
        if text != "":
            found[tag, int(row["epoch"])] = np.float32(text)

    for row in rows("history.csv"):
        note("train/learning_rate", row, row["learning_rate"])
        for name in ("loss", "clean_error", "attacked_error"):
            note(f"train/{name}", row, row[f"train_{name}"])
    for row in rows("policy.csv"):
        for name in ("weight_nat", "weight_bndy", "margin", "natural_error", "boundary_error"):
            note(f"policy_{name}/{row['class_name'].replace(' ', '_')}", row, row[name])
    groups = {}
    for row in rows("classwise.csv"):
        radius = {8 / 255: "_8_255", 16 / 255: "_16_255"}[float(row["epsilon"])]
        for name, at in (("natural_error", ""), ("boundary_error", radius), ("robust_error", radius)):
            note(f"{row['split']}_{name}{at}/{row['class_name'].replace(' ', '_')}", row, row[name])
            groups.setdefault((row["split"], f"{name}{at}", row["epoch"]), {})[row["class_id"]] = row
    for (split, name, _), by_class in groups.items():
        of_class = list(by_class.values())
        column = name.split("_error")[0] + "_error"
        counts = {"natural_error": ["natural"], "boundary_error": ["boundary"], "robust_error": ["natural", "boundary"]}
        errors = sum(int(row[f"num_{kind}_errors"]) for row in of_class for kind in counts[column])
        overall = errors / sum(int(row["count"]) for row in of_class)
        note(f"{split}/overall_{name}", of_class[0], overall)
        note(f"{split}/worst_class_{name}", of_class[0], max(float(row[column]) for row in of_class))
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, bases):
    return experiment.run(tiny_retraining(tmp_path_factory.mktemp("plain"), base_dir=str(bases), num_threads=1))


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A retraining whose base is trained on the way, both with TensorBoard."""
    return experiment.run(tiny_retraining(tmp_path_factory.mktemp("logged"), logger="tensorboard", num_threads=1))


def test_the_scalars_are_those_of_the_tables(logged):
    (base,) = (logged.parent / "bases").iterdir()
    for folder, num_epochs in ((logged, 2), (base, 1)):
        assert read(folder) == expected(folder)
        assert {step for tag, step in read(folder) if tag == "train/loss"} == set(range(1, num_epochs + 1))
    tags = {tag for tag, _ in read(logged)}
    assert {"validation/worst_class_robust_error_16_255", "test_natural_error/class_2", "policy_margin/class_0"} <= tags
    assert {step for tag, step in read(logged) if tag == "test/overall_natural_error"} == {0, 2}


def test_the_settings_are_there_as_text(logged):
    events = EventAccumulator(str(logged / "tensorboard"))
    events.Reload()
    (text,) = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("settings/text_summary")]
    assert json.loads(text) == json.loads((logged / "run.json").read_text())["config"]


def test_a_logger_changes_no_name_no_table_and_no_weights(plain, logged):
    assert logged.name == plain.name
    assert tables(logged) == tables(plain)
    checksums = [json.loads((folder / "done.json").read_text())["sha256"] for folder in (plain, logged)]
    assert checksums[0].keys() == checksums[1].keys()
    assert not (plain / "tensorboard").exists()


def test_a_finished_run_is_skipped_with_its_event_files_and_repeated_anew_with_force(tmp_path):
    def config(**changes):
        return tiny_run(tmp_path / "run", trainer__num_epochs=1, **changes)

    folder = experiment.run(config(logger="tensorboard"))
    (first,) = (folder / "tensorboard").iterdir()
    experiment.run(config(logger="tensorboard"))
    assert list((folder / "tensorboard").iterdir()) == [first]
    experiment.run(config(logger="tensorboard", force=True))
    assert first not in (folder / "tensorboard").iterdir()
    assert read(folder) == expected(folder)
    experiment.run(config(force=True))  # what it would show is no longer this run
    assert list((folder / "tensorboard").iterdir()) == []


@pytest.mark.parametrize("moment", ["before the epoch is shown", "after the epoch is shown"])
def test_an_interrupted_run_has_each_epoch_once(moment, bases, tmp_path, monkeypatch, plain):
    update = loggers.TensorBoard.update

    def update_and_stop(self, *rows):
        if moment.startswith("after"):
            update(self, *rows)
        raise KeyboardInterrupt

    config = tiny_retraining(tmp_path, base_dir=str(bases), logger="tensorboard", num_threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(loggers.TensorBoard, "update", update_and_stop)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config)
    assert fitting.checkpoints.load_state(config.folder / "state.pt")["epoch"] == 1
    experiment.run(config)
    assert read(config.folder) == expected(config.folder)
    assert tables(config.folder) == tables(plain)


def test_a_logger_that_fails_loses_no_training(bases, tmp_path, monkeypatch, plain, caplog):
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    caplog.set_level("INFO", "frl_repro")
    folder = experiment.run(tiny_retraining(tmp_path, base_dir=str(bases), logger="tensorboard", num_threads=1))
    assert caplog.text.count("TensorBoard gets no more of this run, which goes on: no space left") == 1
    assert tables(folder) == tables(plain)


@pytest.mark.parametrize("method", ["__init__", "add_text", "flush", "close"])
def test_whatever_fails_is_said_once(method, tmp_path, monkeypatch, caplog):
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_, **__):
        raise OSError("no space left")

    caplog.set_level("INFO", "frl_repro")
    logger = loggers.TensorBoard(tmp_path, {})
    with monkeypatch.context() as patched:
        patched.setattr(SummaryWriter, method, fail)
        for epoch in (1, 2):
            logger.update([HISTORY_ROW | {"epoch": e} for e in range(1, epoch + 1)], [], [])
        logger.close()
    assert caplog.text.count("no space left") == 1
    logger.close()


def test_fused_runs_have_a_folder_each(monkeypatch, in_tmp):
    arguments = ["-m", "seed=0,1", "hydra/launcher=fused", "logger=tensorboard", *TINY]
    assert call(monkeypatch, *arguments) == 0
    folders = sorted((in_tmp / "outputs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert len(list((folder / "tensorboard").iterdir())) == 1
        assert read(folder) == expected(folder)
    assert read(folders[0]) != read(folders[1])


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch, capsys, in_tmp):
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(experiment, "load_dataset", lambda _: pytest.fail("data was read"))
    assert call(monkeypatch, "frl=reweight", "logger=tensorboard", "dataset=synthetic") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: logger=tensorboard needs the package tensorboard")
    assert "pip install 'tensorboard>=2.18'" in error
    assert list(in_tmp.iterdir()) == []
    with pytest.raises(UserError, match="needs the package tensorboard"):
        experiment.run(tiny_run(in_tmp / "run", logger="tensorboard"))


def test_tags_keep_classes_and_radii_apart():
    keys = {"run_id": "a", "dataset": "d", "model": "m", "method": "x", "seed": 0, "split": "test", "epoch": 3}
    rows = []
    for epsilon in (8 / 255, 0.3):
        rows += writing.classwise_rows(
            {**keys, "attack": "pgd-20", "epsilon": epsilon}, ["T-shirt/top", "Bag"], [4, 2], [1, 1], [1, 0]
        )
    found = loggers.scalars([], rows, [])
    assert found["test_robust_error_8_255/T-shirt_top", 3] == 0.5
    assert found["test_boundary_error_0.3/T-shirt_top", 3] == 0.25
    assert found["test/overall_natural_error", 3] == 2 / 6
    assert found["test/worst_class_robust_error_0.3", 3] == 0.5
    assert len(found) == 2 * (1 + 2 + 2) + 2 * (1 + 2 + 2)
