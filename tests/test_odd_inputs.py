"""What other people's folders, names and checkpoints do to figures, tables and notes."""

import json
import os
import warnings

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from frl_repro.basics.errors import UserError, is_out_of_memory, reason
from frl_repro.commands import collect, status
from frl_repro.models import LeNet5, build_model
from frl_repro.models.checkpoints import load_weights
from frl_repro.results.figures import style
from frl_repro.results.figures.class_bars import OVERALL
from frl_repro.results.figures.figure1 import figure1
from frl_repro.results.figures.settings import settings_figure
from frl_repro.results.figures.tradeoff import tradeoff_figure
from frl_repro.results.figures.trajectory import trajectory_figure
from frl_repro.results.tables import reading, writing
from frl_repro.results.tables.variants import read_runs
from frl_repro.runs import sweeps
from support import EPSILON, NAMES, make_rows, make_run, policy_rows, run_rows

# --- figures ------------------------------------------------------------------------------------------------------


def points_of(figure):
    return [(line.get_marker(), line.get_markersize(), len(line.get_xdata())) for line in figure.axes[0].get_lines()]


def test_no_axis_of_the_tradeoff_leaves_0_to_100_percent():
    for gain in ((440, 890), (-560, -110)):  # the worst class all right, all wrong
        rows = [{**row, "epoch": epoch} for row in run_rows(1, 1, gain=gain) if row["epoch"] for epoch in (0, 10)]
        for row in rows:
            row.update(num_natural_errors=0, num_boundary_errors=1000 if gain[0] < 0 else 0)
            row.update(natural_error=0.0, boundary_error=float(gain[0] < 0), robust_error=float(gain[0] < 0))
        figure = tradeoff_figure(pd.DataFrame(rows), epsilon=EPSILON, attack=None)
        axes = figure.axes[0]
        for low, high in (axes.get_xlim(), axes.get_ylim()):
            assert 0 <= low < high <= 100
            assert high - low >= 0.5
        assert not any(line.get_clip_on() for line in axes.get_lines())  # marks at the ends are whole
    figure = tradeoff_figure(pd.DataFrame(run_rows(1, 1)), epsilon=EPSILON, attack=None)
    assert all(line.get_clip_on() for line in figure.axes[0].get_lines())


def test_points_at_one_place_are_seen_around_each_other():
    same = pd.DataFrame(run_rows(1, 1, gain=(0, 0)))
    assert points_of(tradeoff_figure(same, epsilon=EPSILON, attack=None)) == [("o", 7, 1), ("o", 4, 1)]
    apart = pd.DataFrame(run_rows(1, 1, gain=(0, 50)))
    assert points_of(tradeoff_figure(apart, epsilon=EPSILON, attack=None)) == [("o", 4, 1), ("o", 4, 1)]

    # The mean over classes that are all alike is not hidden by the worst one.
    alike = pd.DataFrame(make_rows("natural", errors=[(500, 900)] * 3)).assign(
        recipe="", alpha_nat=None, alpha_bndy=None, alpha_margin=None
    )
    figure = settings_figure(alike, epsilon=EPSILON, attack=None)
    sizes = [
        line.get_markersize()
        for line in figure.axes[1].get_lines()
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert sizes == [4, 7]

    last = pd.DataFrame(policy_rows(5, 1, 0)).query("epoch == 3")
    lines = {line.get_label(): line.get_markersize() for line in trajectory_figure(last).axes[0].get_lines()}
    assert lines == {"Shirt": 5, "Bag": 3, "other classes": 2}


def test_the_legend_of_the_tradeoff_has_room_and_marks_of_one_size():
    long = [dict(row, variant=f"num_steps={k}", base="") for k in (2, 20) for row in run_rows(0.05, 0.12, gain=(0, 0))]
    for row in long:
        row["run_id"] = f"{row['run_id']}-{row['variant']}"
        row["alpha_margin"] = 0.4
    figure = tradeoff_figure(pd.DataFrame(long), epsilon=EPSILON, attack=None)
    (legend,) = figure.legends
    assert {handle.get_markersize() for handle in legend.legend_handles} == {4}
    with style.paper_style():
        figure.draw_without_rendering()
        box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_no_error_outside_0_to_1_is_written_on_an_axis():
    rows = pd.DataFrame(make_rows("natural", errors=[(0, 0)] * 3)).assign(
        recipe="", alpha_nat=None, alpha_bndy=None, alpha_margin=None
    )
    for axes in settings_figure(rows, epsilon=EPSILON, attack=None).axes:
        assert all(0 <= tick <= 1 for tick in axes.get_xticks())
        assert axes.get_xlim()[0] == 0
        assert not any(line.get_clip_on() for line in axes.get_lines() if len(line.get_xdata()))  # marks are whole


def test_a_star_marks_a_class_that_is_the_worst_of_all():
    """Of many classes some are drawn alone: the largest of these, or the mean of the others, is not the worst class."""
    names = [f"class {k:02d}" for k in range(30)]
    adversarial = [(100, 900 - 20 * k) for k in range(30)]
    natural = [(990 if k == 15 else 10 * k, 1000 if k == 15 else 300 + k) for k in range(30)]  # class 15 is not drawn
    df = pd.DataFrame(
        make_rows("natural", errors=natural, names=names) + make_rows("adversarial", errors=adversarial, names=names)
    )
    figure = figure1(df, epsilon=EPSILON, attack=None, top=3)
    stars = [
        [y for line in axes.get_lines() if line.get_marker() == "*" for y in line.get_ydata()] for axes in figure.axes
    ]
    assert stars[0] == []
    assert [round(y) for y in stars[1]] == [0]  # of the robust error; natural errors all tie
    tied = pd.DataFrame(
        make_rows("natural", errors=[(500, 900)] * 2 + [(100, 200)] * 28, names=names)
        + make_rows("adversarial", errors=[(500, 900)] * 2 + [(100, 200)] * 28, names=names)
    )
    figure = figure1(tied, epsilon=EPSILON, attack=None, top=1)
    for axes in figure.axes:
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()][1] == "(28 between, mean)"
        assert {round(y) for line in axes.get_lines() if line.get_marker() == "*" for y in line.get_ydata()} == {0}
    assert OVERALL not in [label.get_text() for label in figure.axes[0].get_yticklabels()]


@pytest.mark.parametrize(
    "names",
    [
        ["x\ny", r"x\ny"],
        ["\x1b", r"\x1b", "a"],
        ["a" * 30 + "\n" + "b" * 30, "a" * 30 + r"\n" + "b" * 30],
        ["猫\n" * 9, r"猫\n" * 9],
    ],
)
def test_names_that_look_alike_get_labels_of_their_own(names):
    labels = style.shortened(names)
    assert len(set(labels)) == len(labels) == len(names)
    assert not any("\n" in label or "\x1b" in label for label in labels)


def test_a_label_tells_a_class_from_all_others_not_only_from_those_beside_it():
    names = ["2019_left_eye_image_benign_one_of", "2019_left_eye_image_malign_one_of", "other"]
    rows = [{**row, "class_name": names[NAMES.index(row["class_name"])]} for row in policy_rows(5, 1, 0)]
    for row in rows:  # the two do not end worst together
        row["boundary_error"] = {names[0]: 0.5, names[1]: 0.0, names[2]: 0.4}[row["class_name"]]
    labels = trajectory_figure(pd.DataFrame(rows)).axes[0].get_legend_handles_labels()[1]
    assert style.shortened(names)[0] in labels
    assert "benign" in style.shortened(names)[0]


def test_glyphs_that_no_font_has_are_named_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(style, "_told", set())
    missing = "\U0010fffd"  # private use: no font has it
    for name in ("a", "b"):
        with style.paper_style():
            figure = Figure()
            figure.suptitle(missing)
        style.save(figure, tmp_path, name, ("png", "svg"))
    assert caplog.text.count("no installed font has") == 1


# --- tables -------------------------------------------------------------------------------------------------------


def run_folder(folder, run_id, rows, *, start=None, **config):
    folder.mkdir(parents=True)
    writing.write_frame(folder / "classwise.csv", pd.DataFrame([{**row, "run_id": run_id} for row in rows]))
    recorded = {"run_id": run_id, "config_hash": "0", "config": {"seed": 0, **config}, "start": start}
    writing.write_json(folder / "run.json", recorded)


def test_a_starting_models_own_measurement_is_no_row_beside_runs_that_were_measured_otherwise(tmp_path, capsys):
    outputs = tmp_path / "outputs"
    base = outputs / "bases" / "base"
    run_folder(base, "base", make_rows("adversarial", attack="pgd-20"))
    start = {"file": str(base / "model.safetensors"), "sha256": "0" * 64}
    retrained = [{**row, "attack": "pgd-2"} for row in run_rows(1, 1)]
    run_folder(outputs / "run", "run", retrained, start=start)
    assert set(read_runs(reading.find_tables(outputs))["run_id"]) == {"run"}
    assert collect.main([f"runs={outputs}"]) == 0
    shown = capsys.readouterr().out
    assert "PGD-20" not in shown
    assert "left out" not in shown
    assert "before retraining" in shown

    # By itself, beside a run measured alike, or measured once more, it counts; and as a start that somebody has named.
    assert set(read_runs(reading.find_tables(outputs / "bases"))["run_id"]) == {"base"}
    run_folder(outputs / "alike", "alike", make_rows("natural", attack="pgd-20"))
    assert set(read_runs(reading.find_tables(outputs))["run_id"]) == {"run", "alike", "base"}
    (outputs / "alike" / "classwise.csv").unlink()
    run_folder(outputs / "aa", "base", make_rows("adversarial", attack="autoattack"), checkpoint="x")
    recorded = json.loads((outputs / "aa" / "run.json").read_text())
    del recorded["config_hash"]
    (outputs / "aa" / "run.json").write_text(json.dumps(recorded))
    found = read_runs(reading.find_tables(outputs))
    assert set(found.loc[found["run_id"] == "base", "attack"]) == {"autoattack"}
    named = json.loads((outputs / "run" / "run.json").read_text())
    named["config"]["init_from"] = start["file"]
    (outputs / "run" / "run.json").write_text(json.dumps(named))
    assert "pgd-20" in set(read_runs(reading.find_tables(outputs))["attack"])


# --- notes of runs and sweeps ---------------------------------------------------------------------------------------


def test_a_run_is_done_only_where_both_its_notes_say_so(in_tmp, capsys):
    make_run(in_tmp / "outputs" / "done", is_done=True)
    for name in ("empty", "pipe", "other"):
        make_run(in_tmp / "outputs" / name, is_done=True)
    (in_tmp / "outputs" / "empty" / "run.json").write_text("{}")
    (in_tmp / "outputs" / "pipe" / "done.json").unlink()
    os.mkfifo(in_tmp / "outputs" / "pipe" / "done.json")
    (in_tmp / "outputs" / "other" / "done.json").write_text('{"run_id": "x", "config_hash": "0"}')
    assert status.main([]) == 3
    shown = capsys.readouterr().out
    assert shown.startswith("4 runs under outputs: 1 done, 3 damaged")
    assert "is no file but a pipe or a device" in shown
    with pytest.raises(UserError, match=r"pipe/done\.json: is no file but a pipe"):
        reading.read_classwise(in_tmp / "outputs" / "pipe" / "classwise.csv")


def test_folders_in_a_list_may_have_spaces_around_them(in_tmp, capsys):
    for name in ("a", "b"):
        make_run(in_tmp / name / "run", is_done=True)
    assert status.main(["runs=a , b"]) == 0
    assert capsys.readouterr().out == "2 runs under a , b: 2 done\n"


def outcome(run, reason="diverged"):
    return {"job": f"job of {run}", "output_dir": "outputs", "reason": reason, "run": run}


def test_the_failures_of_one_sweep_stay_when_another_ends(in_tmp):
    for name in ("a", "b", "c", "done"):
        make_run(in_tmp / "outputs" / name, is_done=name == "done")
    noted = in_tmp / "outputs" / "failed.json"
    sweeps.note_failures([outcome("a"), outcome("b"), outcome("done"), outcome("gone"), outcome(None)])
    sweeps.note_failures([outcome("b", reason=""), outcome("c")])
    assert [entry["run"] for entry in sweeps.read_list(noted)] == ["a", "c"]
    sweeps.note_failures([outcome("a", reason=""), outcome("c", reason="")])
    assert not noted.exists()
    assert not (in_tmp / "outputs" / "lock.json").exists()
    sweeps.note_failures([{**outcome("x", reason=""), "output_dir": "nowhere"}])
    assert not (in_tmp / "nowhere").exists()


def begin_nothing(runs, *, change=""):
    """A sweep that is given up before its first job, while the same command, started again, has written its list."""
    with sweeps.planned(runs, command="first"):
        for path in runs[0][1].parent.glob("sweep-*.json") if change else ():
            path.write_text(path.read_text().replace("first", change))
        raise ValueError("began nothing")


def test_a_sweep_that_began_nothing_leaves_the_list_of_another_with_the_same_runs(in_tmp):
    runs = [("outputs", in_tmp / "outputs" / "run")]
    with pytest.raises(ValueError, match="began nothing"):
        begin_nothing(runs, change="second")
    (path,) = (in_tmp / "outputs").glob("sweep-*.json")
    assert sweeps.read_plan(path) == ["run"]
    with pytest.raises(ValueError, match="began nothing"):
        begin_nothing(runs)
    assert not path.exists()


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "shown"), [(torch.bool, "bool"), (torch.int8, "int8"), (torch.int64, "int64")])
def test_whole_numbers_in_place_of_weights_are_refused(tmp_path, kind, shown):
    model = LeNet5(num_classes=10)
    torch.save({name: (10 * value).to(kind) for name, value in model.state_dict().items()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"a\.pt: conv1\.weight holds no weights but values of type {shown}$"):
        load_weights(tmp_path / "a.pt", model)


def test_counters_and_the_mean_of_images_may_be_whole_numbers(tmp_path):
    model = build_model(
        "preact_resnet18", num_classes=3, image_shape=(1, 8, 8), seed=0, width=2, mean=[0.5], std=[0.25]
    )
    state = model.state_dict()
    state["normalise.mean"], state["normalise.std"] = (
        torch.full_like(state["normalise.mean"], k, dtype=torch.int64) for k in (0, 1)
    )
    torch.save(state, tmp_path / "a.pt")
    load_weights(tmp_path / "a.pt", model)
    assert model.state_dict()["normalise.std"].flatten().tolist() == [1.0]


def test_a_torchscript_archive_is_refused_with_what_to_do(tmp_path):
    class Scaled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own successor writes no such archives
        torch.jit.save(torch.jit.trace(Scaled(), torch.zeros(1)), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"it is a TorchScript archive, .*torch\.jit\.load\(path\)\.state_dict\(\)"):
        load_weights(tmp_path / "a.pt", LeNet5(num_classes=10))


def test_lenet5_on_images_of_another_size_says_first_how_to_keep_it():
    with pytest.raises(UserError, match=r"28x28: for images of your own give dataset\.image_size=32 .*, or a network"):
        build_model("lenet5", num_classes=10, image_shape=(1, 28, 28), seed=0)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_every_way_of_saying_that_memory_ran_out_is_understood():
    assert is_out_of_memory(RuntimeError("could not create a primitive"))  # oneDNN, whose descriptors fail otherwise
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    loading = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert reason(loading).startswith("not enough memory to load libtorch_cpu.so: raise the limit (ulimit -v)")
    assert reason(RuntimeError("can't start new thread")).startswith("no thread can be started: the limit of memory")
    assert reason(ImportError("no module named x")).startswith("unexpected ImportError")
