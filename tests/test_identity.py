"""Runs know their data and their starting weights by content, say which process trained what, and stay in one place."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from frl_repro.basics.errors import UserError, reason
from frl_repro.commands import jobs
from frl_repro.data import load_dataset
from frl_repro.evaluation.measure import measure_checkpoint
from frl_repro.models import checkpoints
from frl_repro.models.identity import differences
from frl_repro.results.tables import reading, writing
from frl_repro.results.tables.outcomes import are_of_same_images, read_outcomes
from frl_repro.runs import experiment, opening
from support import stopped

SMALL = [
    "trainer.batch_size=8", "attack.num_steps=1", "evaluation.num_steps=1", "num_threads=1", "backend=torch",
]  # fmt: skip
SYNTHETIC = [
    *SMALL, "dataset=synthetic", "dataset.num_train=40", "dataset.num_test=10", "dataset.num_classes=2",
    "dataset.validation_fraction=0.25", "trainer.num_epochs=1",
]  # fmt: skip
RETRAIN = ["frl=finetune", "retrain.trainer.num_epochs=2", "retrain.trainer.batch_size=8", "retrain.attack.num_steps=1"]


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def photos(root, *, classes=("a", "b"), num_train=10, num_test=3, seed=0):
    for split, num in (("train", num_train), ("test", num_test)):
        for place, name in enumerate(classes):
            for n in range(num):
                picture(root / split / name / f"{n}.png", [seed, num, place, n])
    return root


def on(root, *settings, epochs=1):
    """The settings of a small run on a folder of pictures."""
    data = ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=32"]
    return jobs.configure(*data, *SMALL, f"trainer.num_epochs={epochs}", *settings)


def with_keys(config, **keys):
    """The same run with other machine settings."""
    return dataclasses.replace(config, keys=dataclasses.replace(config.keys, **keys))


def swap(one, other):
    for mine in sorted(one.iterdir()):
        theirs = other / mine.name
        before = mine.read_bytes()
        mine.write_bytes(theirs.read_bytes())
        theirs.write_bytes(before)


def recorded(folder, name="run.json"):
    return json.loads((folder / name).read_text())


def old(folder):
    """Make a finished run one of a version that kept no digests."""
    run = {name: value for name, value in recorded(folder).items() if name not in ("data", "segments")}
    writing.write_json(folder / "run.json", run)
    done = {name: value for name, value in recorded(folder, "done.json").items() if name not in ("data", "start")}
    done["sha256"]["run.json"] = experiment.sha256(folder / "run.json")
    writing.write_json(folder / "done.json", done)


# ---------------------------------------------------------------------------------------------------------------
# Data


def add_a_test_picture(root):
    picture(root / "test" / "a" / "9.png", 1)


def swap_test_classes(root):
    swap(root / "test" / "a", root / "test" / "b")


def change_a_training_pixel(root):
    picture(root / "train" / "b" / "1.png", 1)


def remove_two_training_pictures(root):
    for name in ("1", "2"):
        (root / "train" / "a" / f"{name}.png").unlink()


def move_a_test_picture(root):
    (root / "test" / "b" / "0.png").rename(root / "test" / "a" / "9.png")


def rename_a_class(root):
    for split in ("train", "test"):
        (root / split / "b").rename(root / split / "c")


CHANGES = {
    add_a_test_picture: "the data (7 test images, were 6)",
    swap_test_classes: "the data (pixels of test images)",
    change_a_training_pixel: "the data (pixels of train images)",
    remove_two_training_pictures: "the data (18 train images, were 20)",
    move_a_test_picture: "the data (labels of test images)",
    rename_a_class: "the data (classes a, c, were a, b)",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_of_pictures_is_a_change_of_the_data_and_said_in_words(change, tmp_path):
    config = on(photos(tmp_path / "photos")).dataset
    before = load_dataset(config)
    change(tmp_path / "photos")
    after = load_dataset(config)
    assert differences({"data": before.content}, {"data": after.content}) == [CHANGES[change]]
    assert before.digest != after.digest


def test_a_finished_run_on_other_pictures_is_refused_by_what_changed_and_repeated_with_force(tmp_path):
    config = on(photos(tmp_path / "photos"))
    folder = experiment.run(config)
    before, first = (folder / "classwise.csv").read_bytes(), recorded(folder)["data"]["digest"]
    add_a_test_picture(tmp_path / "photos")
    message = r"was made before a change of the data \(7 test images, were 6\): force=true repeats it"
    with pytest.raises(UserError, match=message) as said:
        experiment.run(config)
    assert "\n" not in str(said.value)
    assert (folder / "classwise.csv").read_bytes() == before
    experiment.run(with_keys(config, force=True))
    assert recorded(folder)["data"]["digest"] != first
    assert recorded(folder, "done.json")["data"] == {"digest": recorded(folder)["data"]["digest"]}
    assert (folder / "classwise.csv").read_bytes() != before
    experiment.run(config)  # finished, on what there is now


def test_an_unfinished_run_never_continues_on_other_pictures(tmp_path, monkeypatch):
    config = on(photos(tmp_path / "photos"), epochs=2)
    with stopped(monkeypatch, after=1):
        experiment.run(config)
    remove_two_training_pictures(tmp_path / "photos")
    message = r"was begun before a change of the data \(18 train images, were 20\): force=true begins it anew"
    with pytest.raises(UserError, match=message):
        experiment.run(config)
    folder = experiment.run(with_keys(config, force=True))
    fresh = experiment.run(with_keys(config, output_dir="fresh"))
    for name in ("history.csv", "classwise.csv", "model.safetensors"):
        assert (folder / name).read_bytes() == (fresh / name).read_bytes()


def test_touched_copied_and_renamed_pictures_are_the_same_data(tmp_path, caplog):
    root = photos(tmp_path / "photos")
    config = on("photos")
    folder = experiment.run(config)
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(root)
    (tmp_path / "copy").rename(root)
    (root / "test" / "a" / "2.png").rename(root / "test" / "a" / "3.png")
    caplog.set_level("INFO", "frl_repro")
    assert experiment.run(config) == folder
    assert "finished already" in caplog.text


def test_a_relative_root_from_two_working_folders_gives_no_table_of_the_other(tmp_path, monkeypatch):
    photos(tmp_path / "one" / "photos", classes=("a", "b", "c"))
    photos(tmp_path / "two" / "photos", seed=1)
    configs = [on("photos", f"output_dir={tmp_path / 'results'}")] * 2
    monkeypatch.chdir(tmp_path / "one")
    first = experiment.run(configs[0])
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(UserError, match=r"classes a, b, were a, b, c; .*another output_dir or run_dir keeps both"):
        experiment.run(configs[1])
    second = experiment.run(on("photos", f"output_dir={tmp_path / 'others'}"))
    assert set(reading.read_classwise(first / "classwise.csv")["class_name"]) == {"a", "b", "c"}
    assert set(reading.read_classwise(second / "classwise.csv")["class_name"]) == {"a", "b"}


def test_a_finished_run_whose_data_are_gone_is_shown_with_a_line_that_says_so(tmp_path, caplog):
    config = on(photos(tmp_path / "photos"))
    folder = experiment.run(config)
    shutil.rmtree(tmp_path / "photos")
    caplog.set_level("INFO", "frl_repro")
    assert experiment.run(config) == folder
    assert "not compared with its data: dataset.root=" in caplog.text
    assert "photos does not exist" in caplog.text
    assert "worst" in caplog.text  # the table


def test_a_run_of_a_version_that_kept_no_digest_is_taken_as_it_is(tmp_path, monkeypatch, caplog):
    config = on(photos(tmp_path / "photos"))
    folder = experiment.run(config)
    old(folder)
    caplog.set_level("INFO", "frl_repro")
    monkeypatch.setattr(experiment, "load_dataset", lambda _: pytest.fail("there is nothing to compare the data with"))
    assert experiment.run(config) == folder
    assert "finished already" in caplog.text


def test_a_state_of_other_data_is_refused_wherever_it_comes_from(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    with stopped(monkeypatch, after=1):
        experiment.run(on("photos", epochs=2))
    swap(tmp_path / "photos" / "train" / "a", tmp_path / "photos" / "train" / "b")
    other = on("photos", "run_dir=other", epochs=2)
    with stopped(monkeypatch, after=1):
        experiment.run(other)
    shutil.copy(on("photos", epochs=2).folder / "state.pt", other.folder / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt is the state of a training with another data: delete the folder"):
        experiment.run(other)


def test_what_has_changed_is_said_of_records_of_any_content():
    data = {"digest": "1", "class_names": ["a"], "splits": {}}
    assert differences({}, {"data": data}) == []
    assert differences({"data": None}, {"data": data}) == []
    assert differences({"data": {"digest": "1"}}, {"data": data}) == []
    for odd in (
        {},
        {"digest": 3},
        {"digest": "2", "splits": 3, "class_names": 2},
        {"class_names": ["a"], "splits": []},
    ):
        (change,) = differences({"data": odd}, {"data": data})
        assert change.startswith("the data")


# ---------------------------------------------------------------------------------------------------------------
# Starting weights


def nudge(path):
    """Overwrite weights by others of the same shapes."""
    weights = {name: tensor + 0.1 for name, tensor in load_file(path).items()}
    save_file(weights, path)


@pytest.fixture
def start(tmp_path):
    """Weights to start from, outside every run."""
    base = experiment.run(on(photos(tmp_path / "photos"), "dataset.validation_fraction=0.25", "run_dir=base"))
    save_file(load_file(base / "model.safetensors"), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def from_start(*settings):
    return on("photos", "dataset.validation_fraction=0.25", *RETRAIN, "init_from=start.safetensors", *settings)


def test_overwritten_starting_weights_are_noticed(start, monkeypatch, caplog):
    with stopped(monkeypatch, after=1):
        experiment.run(from_start())
    weights = start.read_bytes()
    nudge(start)
    said = (
        r"begun before a change of the weights in start\.safetensors that it starts from \(sha256 \w{12}, was \w{12}\)"
    )
    with pytest.raises(UserError, match=said):
        experiment.run(from_start())
    start.write_bytes(weights)
    folder = experiment.run(from_start())
    nudge(start)
    with pytest.raises(UserError, match=r"made before a change of the weights in start\.safetensors"):
        experiment.run(from_start())
    old(folder)  # older versions kept the starting weights' sha256 as well
    with pytest.raises(UserError, match=r"made before a change of the weights in start\.safetensors"):
        experiment.run(from_start())
    before = (folder / "model.safetensors").read_bytes()
    experiment.run(from_start("force=true"))
    assert (folder / "model.safetensors").read_bytes() != before
    start.unlink()
    caplog.set_level("INFO", "frl_repro")
    experiment.run(from_start())
    assert "finished already" in caplog.text
    assert "not compared with its data: init_from=start.safetensors: no such file" in caplog.text


# ---------------------------------------------------------------------------------------------------------------
# The store of base models


def retraining(root, *settings):
    return on(root, "dataset.validation_fraction=0.25", *RETRAIN, *settings)


def test_a_base_serves_no_other_data_and_bases_of_one_name_do_not_collide(tmp_path, monkeypatch):
    for place, seed in (("one", 0), ("two", 1)):
        photos(tmp_path / place / "photos", seed=seed)
    runs = {}
    for place in ("one", "two", "one", "two"):
        monkeypatch.chdir(tmp_path / place)
        folder = experiment.run(retraining("photos", f"base_dir={tmp_path / 'bases'}"))
        runs.setdefault(place, (tmp_path / place / folder, recorded(folder)))
    bases = sorted((tmp_path / "bases").iterdir())
    assert len(bases) == 2
    digests = {base.name: recorded(base)["data"]["digest"] for base in bases}
    assert bases[1].name == f"{bases[0].name}-data_{digests[bases[1].name][:8]}"
    used = {place: recorded(folder)["start"] for place, (folder, _) in runs.items()}
    assert {place: start["sha256"] for place, start in used.items()} == {
        "one": experiment.sha256(bases[0] / "model.safetensors"),
        "two": experiment.sha256(bases[1] / "model.safetensors"),
    }
    for place, (folder, run) in runs.items():
        assert run["data"]["digest"] == digests[(tmp_path / place / used[place]["file"]).parent.name]
        assert recorded(folder) == run  # the second time it was finished already


def test_an_unfinished_base_of_other_data_is_left_to_its_owner(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    config = retraining("photos", "trainer.num_epochs=2")
    with stopped(monkeypatch, after=1):
        experiment.run(config)
    swap(tmp_path / "photos" / "train" / "a", tmp_path / "photos" / "train" / "b")
    experiment.run(config)
    unfinished, own = sorted((tmp_path / "outputs" / "bases").iterdir())
    assert (unfinished / "state.pt").exists()
    assert own.name.startswith(f"{unfinished.name}-data_")
    assert (own / "done.json").exists()


def test_a_run_beside_the_store_serves_as_base_of_its_own_training_images_alone(tmp_path):
    """The row of a table, and as base; other test images make it no other model."""
    root = photos(tmp_path / "photos")
    row = experiment.run(on("photos", "dataset.validation_fraction=0.25"))
    swap(root / "test" / "a", root / "test" / "b")
    first = experiment.run(retraining("photos"))
    assert recorded(first)["start"]["file"] == str(row / "model.safetensors")
    swap(root / "train" / "a", root / "train" / "b")
    second = experiment.run(retraining("photos", "run_dir=second"))
    assert (tmp_path / recorded(second)["start"]["file"]).parent.parent == tmp_path / "outputs" / "bases"


def test_a_base_of_own_pictures_without_a_digest_serves_no_longer_but_one_of_known_data_does(tmp_path):
    photos(tmp_path / "photos")
    synthetic = jobs.configure(*SYNTHETIC, *RETRAIN)
    for config, num_bases in ((retraining("photos"), 1), (synthetic, 0)):
        base = config.base()
        experiment.run(base)
        old(base.folder)
        experiment.run(config)
        others = [path for path in base.folder.parent.iterdir() if path.name.startswith(f"{base.folder.name}-data_")]
        assert len(others) == num_bases


def test_a_base_trained_anew_elsewhere_is_another_start(tmp_path):
    photos(tmp_path / "photos")
    config = retraining("photos")
    folder = experiment.run(config)
    (base,) = (tmp_path / "outputs" / "bases").iterdir()
    nudge(base / "model.safetensors")
    done = recorded(base, "done.json")
    done["sha256"]["model.safetensors"] = experiment.sha256(base / "model.safetensors")
    writing.write_json(base / "done.json", done)
    with pytest.raises(UserError, match=r"made before a change of the weights in .*bases.* that it starts from"):
        experiment.run(config)
    shutil.rmtree(base)
    assert experiment.run(config) == folder  # no base, no question


# ---------------------------------------------------------------------------------------------------------------
# Measurements of checkpoints


def evaluation(root, *settings):
    chosen = [setting for setting in SMALL if setting.startswith(("backend", "num"))]
    if not any(setting.startswith("evaluation") for setting in settings):
        chosen.append("evaluation.num_steps=1")
    data = ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=32"]
    where = ["checkpoint=run/model.safetensors", "output_dir=measured"]
    return jobs.configure_evaluation(*data, *where, *chosen, *settings)


def errors(folder):
    table = reading.read_classwise(folder / "classwise.csv")
    return table.groupby("class_id")[["num_natural_errors", "count"]].first().to_numpy().tolist()


def test_a_measurement_is_of_the_pictures_that_there_are(tmp_path, caplog):
    root = photos(tmp_path / "photos", num_test=8)
    experiment.run(on("photos", "run_dir=run"))
    folder = measure_checkpoint(evaluation("photos", "num_examples=1"))
    before, outcomes = errors(folder), read_outcomes(folder / "outcomes.safetensors")
    swap(root / "test" / "a", root / "test" / "b")
    caplog.set_level("INFO", "frl_repro")
    measure_checkpoint(evaluation("photos"))
    assert "was measured before a change of the data (pixels of test images): measured anew" in caplog.text
    assert errors(folder) == [[8 - wrong, 8] for wrong, _ in reversed(before)]
    assert not (folder / "examples.safetensors").exists()  # of pictures that are gone
    assert not are_of_same_images(outcomes, read_outcomes(folder / "outcomes.safetensors"))
    caplog.clear()
    nudge(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "done.json").unlink()
    again = measure_checkpoint(evaluation("photos"))
    assert (again == folder) is ("measured before a change of the weights in run/model.safetensors" in caplog.text)


# ---------------------------------------------------------------------------------------------------------------
# Provenance


def test_a_run_records_which_process_trained_which_epochs(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    config = on("photos", epochs=4)
    with stopped(monkeypatch, after=1):
        experiment.run(config, command="first")
    with stopped(monkeypatch, after=3), monkeypatch.context() as patched:
        patched.setattr(opening, "describe", lambda **_: {"command": "second", "git_commit": "abc"})
        experiment.run(config)
    assert [part["command"] for part in recorded(config.folder)["segments"]] == ["first"]
    with monkeypatch.context() as patched:  # killed before it has trained an epoch: no part of the result
        patched.setattr(checkpoints, "load_weights", None)
        patched.setattr(experiment, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, command="third")
    folder = experiment.run(config, command="fourth")
    run = recorded(folder)
    assert [(part["command"], part["epochs"]) for part in run["segments"]] == [
        ("first", [1, 1]),
        ("second", [2, 3]),
        ("fourth", [4, 4]),
    ]
    assert run["segments"][1]["git_commit"] == "abc"
    assert {"versions", "git_commit", "device", "backend", "platform"} <= run["segments"][0].keys()
    assert run["command"] == "fourth"
    straight = experiment.run(on("photos", "run_dir=straight", epochs=4), command="once")
    assert [(part["command"], part["epochs"]) for part in recorded(straight)["segments"]] == [("once", [1, 4])]
    assert (straight / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_lost_epoch_is_recorded_for_the_process_that_trained_it_again(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    config = on("photos", epochs=3)
    with stopped(monkeypatch, after=2):
        experiment.run(config, command="first")
    state = config.folder / "state.pt"
    state.write_bytes(state.read_bytes()[:-50])
    folder = experiment.run(config, command="second")
    assert [(part["command"], part["epochs"]) for part in recorded(folder)["segments"]] == [
        ("first", [1, 1]),
        ("second", [2, 3]),
    ]


# ---------------------------------------------------------------------------------------------------------------
# A folder that goes while its run works


@pytest.fixture
def disturbed(tmp_path, monkeypatch):
    """Return a function: run, and do something to the folder once the state of an epoch is written."""
    photos(tmp_path / "photos")

    def run(config, harm, *, after=1):
        save = checkpoints.save_state

        def save_and_harm(path, state):
            save(path, state)
            if state["epoch"] == after:
                harm(path.parent)

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "save_state", save_and_harm)
            (outcome,) = experiment.run_all([config])
        return outcome

    return run


def move(folder):
    folder.rename(folder.with_name("moved"))


def replace(folder):
    move(folder)
    folder.mkdir()


@pytest.mark.parametrize(("harm", "epochs"), [(move, 1), (move, 2), (shutil.rmtree, 1), (replace, 2)])
def test_a_folder_that_goes_while_its_run_works_ends_it_in_one_line(harm, epochs, disturbed, tmp_path):
    config = on("photos", epochs=epochs)
    outcome = disturbed(config, harm)
    assert isinstance(outcome, Exception)
    said = reason(outcome)
    assert said.startswith(f"{config.folder}: the folder was moved, deleted or replaced while the run worked in it")
    assert "\n" not in said
    assert not config.folder.exists() or list(config.folder.iterdir()) == []
    fresh = experiment.run(config)  # the same command
    assert experiment.run(config) == fresh
    moved = config.folder.with_name("moved")
    if moved.exists():
        assert not (moved / "done.json").exists()
        experiment.run(with_keys(config, run_dir=str(moved)))
        assert (moved / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "mended_by"),
    [("split.safetensors", "repeating"), ("best.safetensors", "deleting"), ("run.json", ""), ("state.pt", "")],
)
def test_no_run_is_done_without_its_files(name, mended_by, disturbed):
    config = on("photos", "dataset.validation_fraction=0.25", "evaluation.keep_best_by=overall_robust", epochs=2)
    folder = config.folder
    outcome = disturbed(config, lambda folder: (folder / name).unlink(), after=2)
    if not mended_by:
        assert outcome == folder
    else:
        assert name in reason(outcome)
        assert not (folder / "done.json").exists()
        if mended_by == "deleting":
            with pytest.raises(UserError, match=r"best\.safetensors is missing, .*: delete the folder .* and repeat"):
                experiment.run(config)
            shutil.rmtree(folder)
        experiment.run(config)
    for file in ("split.safetensors", "best.safetensors", "run.json", "model.safetensors", "classwise.csv"):
        assert (folder / file).exists()
        assert file in recorded(folder, "done.json")["sha256"]


def test_of_fused_runs_the_one_whose_folder_goes_ends_alone(tmp_path, monkeypatch):
    configs = [jobs.configure(*SYNTHETIC, "trainer.num_epochs=3", f"seed={seed}") for seed in (0, 1)]
    save = checkpoints.save_state

    def save_and_remove(path, state):
        save(path, state)
        if state["epoch"] == 2 and path.parent == configs[0].folder:
            shutil.rmtree(path.parent)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_state", save_and_remove)
        first, second = experiment.run_all(configs)
    assert "was moved, deleted or replaced" in reason(first)
    assert not configs[0].folder.exists()
    assert second == configs[1].folder
    assert (second / "done.json").exists()
