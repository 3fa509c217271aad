"""Whatever people leave in one folder is collected, drawn and judged: runs of all kinds and own checkpoints."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from frl_repro.commands import cli, collect, plot, report, status
from frl_repro.results.report.study import load_study
from frl_repro.results.tables import reading, schema, writing
from frl_repro.results.tables.selection import by_setting, comparable, main_evaluation, summary
from frl_repro.results.tables.variants import read_runs
from frl_repro.results.tables.where import select_where
from support import EPSILON, make_rows

DATA = ["dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=60", "dataset.num_test=30"]
MACHINE = ["num_threads=1", "backend=torch"]
TRAINING = ["trainer.num_epochs=1", "trainer.batch_size=30", "evaluation.num_steps=1", *MACHINE]


def call(main, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])
        return main()


def make_images(root, names, seed):
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for place, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 40, (32, 32)) + 60 * place
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What exp1, exp2, two image folders and two checkpoints of one's own leave behind."""
    folder = tmp_path_factory.mktemp("mixed")
    make_images(folder / "pics", ["a", "b"], seed=0)
    make_images(folder / "more" / "pics", ["a", "b"], seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(cli.main, "-m", "experiment=exp1", "seed=0,1", "hydra/launcher=fused", *DATA, *TRAINING) == 0
        retraining = ["dataset.validation_fraction=0.2", "frl.num_validation=12", "frl.num_steps=1", "alpha.bndy=1"]
        retraining += ["attack.num_steps=1", "retrain.trainer.num_epochs=1", "retrain.attack.num_steps=1"]
        sweep = ["-m", "experiment=exp2", "seed=0,1", "alpha.nat=1,5", "hydra/launcher=fused"]
        assert call(cli.main, *sweep, *DATA, *TRAINING, *retraining) == 0
        for seed, root in enumerate(("pics", "more/pics")):
            images = ["dataset=image_folder", f"dataset.root={root}", f"seed={seed}", "attack=none"]
            assert call(cli.main, *images, *TRAINING, "trainer.batch_size=8") == 0
        for name, run in zip(("mine", "other"), sorted((folder / "outputs/exp1").glob("*-pgd-*")), strict=True):
            torch.save(load_file(run / "model.safetensors"), f"{name}.pt")
            measured = [f"checkpoint={name}.pt", "evaluation.num_steps=1", *DATA, *MACHINE]
            assert call(cli.evaluate_main, *measured) == 0
    return folder


def test_everything_is_collected_in_its_place(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert collect.main(["out=all.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split(", errors")[0] for line in lines if "mean (sd)" in line]
    # Of PGD-20, by which the starting models alone were measured, there is nothing: they are "before retraining".
    of_synthetic = [f"synthetic, lenet5, {split} split, epsilon 16/255" for split in ("test", "validation")]
    assert titles == [
        "image_folder root=more/pics, lenet5, test split, epsilon 16/255",
        "image_folder root=pics, lenet5, test split, epsilon 16/255",
        *of_synthetic,
    ]
    start, end = (lines.index(next(line for line in lines if line.startswith(of_synthetic[k]))) for k in (0, 1))
    settings = {line.split("  ")[0]: line.split()[-5:] for line in lines[start + 3 : end] if line}
    assert set(settings) == {
        "adversarial", "natural", "before retraining",
        "reweight nat 1 bndy 1", "reweight nat 5 bndy 1", "external checkpoint=mine.pt", "external checkpoint=other.pt",
    }  # fmt: skip
    table = pd.read_csv("all.csv")
    assert (table["when"] == "before").sum() == 2 * 2 * 2  # retrained runs, two splits
    # The same weights under two names have the same errors, and are not each other's seeds.
    own = table[table["method"] == "external"].set_index("variant")["overall_natural_error"]
    run = table[(table["method"] == "adversarial") & (table["attack"] == "pgd-1")].set_index("seed")
    assert own["checkpoint=mine.pt"] == run.loc[0, "overall_natural_error"]


def test_every_figure_is_drawn_of_what_belongs_together(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for figure in ("1", "2", "settings", "trajectory", "tradeoff"):
        assert plot.main([f"figure={figure}", "formats=png"]) == 0, capsys.readouterr().err
    numbers = pd.read_csv("outputs/figures/figure1.csv")
    assert set(numbers["num_seeds"]) == {2}  # of exp1, not its seeds and those of exp2's bases
    printed = capsys.readouterr().out
    assert "shown: synthetic, lenet5; not shown: image_folder root=more/pics, lenet5; image_folder root=pics" in printed
    assert "left out" not in printed  # the starting models stand in the runs that start from them
    for figure, message in (("3", "no run of method 'remargin'"), ("grid", "none: run `python train.py")):
        assert plot.main([f"figure={figure}"]) == 1
        assert message in capsys.readouterr().err
    assert plot.main(["figure=settings", "where=dataset=image_folder root=pics", "formats=png"]) == 0
    assert pd.read_csv("outputs/figures/settings.csv")["num_seeds"].tolist() == [1]


def test_the_report_judges_each_claim_on_its_own_runs_and_writes_in_its_folder_alone(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(report, "_FIGURES", report._FIGURES[:1])  # drawn above
    before = {path for path in folder.rglob("*") if not path.is_relative_to(folder / "judged")}
    assert report.main(["out=judged"]) == 0
    printed = capsys.readouterr().out
    assert "question 1: EXPLORATORY" in printed
    assert printed.count("seeds 0, 1\n") >= 7  # questions 1 to 3; once there was one seed, or a clash
    assert {path for path in folder.rglob("*") if not path.is_relative_to(folder / "judged")} == before
    study = load_study("outputs")
    assert {"natural", "adversarial", "base", "reweight, chosen"} <= set(study.settings)
    assert all(study.seeds([role]) == (0, 1) for role in study.settings)
    page = (folder / "judged" / "report.html").read_text(encoding="utf-8")
    assert "external checkpoint=mine.pt" in page


def test_status_counts_runs_and_not_measurements(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert status.main([]) == 0
    assert capsys.readouterr().out.startswith("12 runs under outputs: 12 done")


def test_links_to_runs_are_followed_and_counted_once(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    first, second = sorted((folder / "outputs/exp1").glob("*-none-none-*"))
    shutil.copytree(second, tmp_path / "outputs" / "real")
    (tmp_path / "outputs" / "a_link").symlink_to(first)
    (tmp_path / "outputs" / "same").symlink_to(tmp_path / "outputs" / "real")
    (tmp_path / "outputs" / "real" / "loop").symlink_to(tmp_path / "outputs")
    assert status.main(["show=all"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 runs under outputs: 2 done")
    assert "outputs/real" in printed
    assert "outputs/a_link" in printed
    assert len(reading.find_tables("outputs")) == 2
    assert read_runs(reading.find_tables("outputs"))["seed"].nunique() == 2


# --- made-up tables ---------------------------------------------------------------------------------------------------


def write_run(root, name, method="adversarial", *, seed=0, dataset=None, digest=None, start=None, rows=None, **config):
    folder = root / name
    folder.mkdir(parents=True)
    about = {
        "run_id": name,
        "config_hash": "0123abcd",
        "config": {"dataset": dataset or {"name": "fashion_mnist"}, **config},
    }
    about |= {"data": {"digest": digest}} if digest else {}
    about |= {"start": {"file": "start.pt", "sha256": start}} if start else {}
    called = about["config"]["dataset"]["name"]
    rows = rows or make_rows(method, seed=seed, run_id=name, dataset=called, errors=[(440, 890), (40, 120), (30, 90)])
    writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_COLUMNS)
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def settings_of(root):
    df = read_runs(reading.find_tables(root))
    return df.drop_duplicates("run_id").set_index("run_id")[["dataset", "variant"]].apply(tuple, axis=1).to_dict()


def images(root, **changes):
    return {"name": "image_folder", "root": root, "validation_fraction": 0.0, **changes}


def test_image_folders_are_data_sets_of_their_own_by_what_they_hold(tmp_path):
    write_run(tmp_path, "a", dataset=images("/x/photos"), digest="1" * 64)
    write_run(tmp_path, "b", seed=1, dataset=images("photos"), digest="1" * 64)  # the same pictures elsewhere
    write_run(tmp_path, "c", seed=1, dataset=images("/y/photos"), digest="2" * 64)
    write_run(tmp_path, "d", seed=2, dataset=images("/x/photos", validation_fraction=0.2), digest="3" * 64)
    write_run(tmp_path, "e", seed=3, dataset=images("/x/photos"))  # before digests were recorded
    assert settings_of(tmp_path) == {
        "a": ("image_folder root=x/photos", "validation_fraction=0"),
        "b": ("image_folder root=x/photos", "validation_fraction=0"),
        "c": ("image_folder root=y/photos", ""),
        "d": ("image_folder root=x/photos", "validation_fraction=0.2"),
        "e": ("image_folder root=x/photos", "validation_fraction=0"),
    }


def test_a_folder_whose_pictures_changed_is_two_data_sets(tmp_path):
    write_run(tmp_path, "a", dataset=images("photos"), digest="1" * 64)
    write_run(tmp_path, "b", seed=1, dataset=images("photos"), digest="2" * 64)
    assert {name for name, _ in settings_of(tmp_path).values()} == {
        "image_folder root=photos@11111111",
        "image_folder root=photos@22222222",
    }


def test_fewer_test_images_are_other_data_and_fewer_training_images_another_setting(tmp_path):
    fashion = {"name": "fashion_mnist", "num_train": None, "num_test": None, "root": "/somewhere"}
    write_run(tmp_path, "a", dataset=fashion)
    write_run(tmp_path, "b", seed=1, dataset={**fashion, "num_test": 100})
    write_run(tmp_path, "c", seed=2, dataset={**fashion, "num_train": 500, "root": None})
    assert settings_of(tmp_path) == {
        "a": ("fashion_mnist num_test=null", "num_train=null"),
        "b": ("fashion_mnist num_test=100", ""),
        "c": ("fashion_mnist num_test=null", "num_train=500"),
    }


def test_starting_checkpoints_are_told_apart_by_content_and_radii_are_fractions(tmp_path):
    def retrained(name, seed, path, content, epsilon=4 / 255):
        write_run(tmp_path, name, "natural", seed=seed, start=content, init_from=path, attack={"epsilon": epsilon})

    retrained("a", 0, "start.pt", "1" * 64)
    retrained("b", 1, "start.pt", "2" * 64)
    retrained("c", 2, "copy.pt", "1" * 64, epsilon=8 / 255)
    assert {run: variant for run, (_, variant) in settings_of(tmp_path).items()} == {
        "a": "epsilon=4/255 init_from=start.pt@11111111",
        "b": "epsilon=4/255 init_from=start.pt@22222222",
        "c": "epsilon=8/255 init_from=start.pt@11111111",
    }
    df = read_runs(reading.find_tables(tmp_path))
    assert set(select_where(df, "init_from=start.pt@11111111,seed=2")["run_id"]) == {"c"}


def test_two_runs_of_a_seed_that_nothing_tells_apart_are_two_settings(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path, name)
    write_run(tmp_path, "c", seed=1)
    assert {run: variant for run, (_, variant) in settings_of(tmp_path).items()} == {"a": "", "b": "run=b", "c": ""}
    df = read_runs(reading.find_tables(tmp_path))
    assert sorted(by_setting(summary(df, epsilon=EPSILON))["num_seeds"]) == [1, 2]


def test_models_are_compared_that_were_trained_alike(tmp_path):
    plain, reduced = {"name": "fashion_mnist"}, {"name": "fashion_mnist", "validation_fraction": 0.2}
    for seed in range(3):
        write_run(tmp_path, f"nat{seed}", "natural", seed=seed, dataset=plain, attack={"name": "none"})
        write_run(tmp_path, f"adv{seed}", seed=seed, dataset=plain, attack={"name": "pgd"})
    for seed in range(4):
        write_run(tmp_path, f"base{seed}", seed=seed, dataset=reduced, attack={"name": "pgd"})
    df = comparable(read_runs(reading.find_tables(tmp_path)))
    assert set(df["run_id"]) == {f"{name}{seed}" for name in ("nat", "adv") for seed in range(3)}
    assert load_study(tmp_path).seeds(["natural", "adversarial"]) == (0, 1, 2)


def test_a_measurement_that_repeats_its_run_is_left_out_in_a_line(tmp_path, caplog):
    write_run(tmp_path, "a")
    again = make_rows("adversarial", run_id="a", errors=[(441, 890), (40, 120), (30, 90)])
    folder = write_run(tmp_path, "measured", rows=again)
    (folder / "run.json").write_text(
        json.dumps({"config": {"checkpoint": "a/model.safetensors", "dataset": {"name": "fashion_mnist"}}}),
        encoding="utf-8",
    )
    df = read_runs(reading.find_tables(tmp_path))
    assert df["num_natural_errors"].max() == 440
    assert len(df) == 3
    (message,) = caplog.messages
    assert message.startswith("left out, for their runs were measured alike with other numbers: ")
    assert message.endswith("measured/classwise.csv")


def test_runs_without_the_largest_radius_are_named(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, f"run{seed}", seed=seed)
    write_run(tmp_path, "small", rows=make_rows("adversarial", run_id="small", epsilon=8 / 255))
    df = read_runs(reading.find_tables(tmp_path))
    epsilon, attack, note = main_evaluation(df, epsilon=None, attack=None)
    assert (epsilon, attack) == (EPSILON, "pgd-20")
    assert note.startswith("left out, not measured by pgd-20 at epsilon 16/255: 1 of 3 runs (small)")
