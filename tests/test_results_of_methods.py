"""Figures, tables and pages of methods with settings of their own, beside those of FRL's family."""

import pandas as pd
import pytest

from frl_repro.basics.errors import UserError
from frl_repro.commands import collect, plot, report
from frl_repro.results.figures import FIGURES
from frl_repro.results.figures.trajectory import trajectory_figure
from frl_repro.results.registration import DEVELOPMENT_SEEDS, registered_runs
from frl_repro.results.tables import reading, schema, writing
from frl_repro.results.tables.text_tables import is_worst
from frl_repro.results.tables.variants import read_runs
from frl_repro.results.tables.where import select_where
from support import EPSILON, ROOT, policy_rows, run_rows

TRAINER = {"name": "adam", "num_epochs": 15, "learning_rate": 1e-3}


def write(root, rows, *, policy=(), **config):
    """Lay out a run with what ``run.json`` says of its settings."""
    run_id = rows[0]["run_id"]
    (root / run_id).mkdir(parents=True)
    empty = dict.fromkeys(schema.SETTING_COLUMNS)
    writing.write_table(root / run_id / "classwise.csv", [{**empty, **row} for row in rows], schema.CLASSWISE_HEADER)
    if policy:
        columns = (*schema.POLICY_COLUMNS, *(set(policy[0]) - set(schema.POLICY_COLUMNS)))
        writing.write_table(root / run_id / "policy.csv", policy, columns)
    config = {"dataset": {"name": "fashion_mnist", "num_train": None}, "trainer": TRAINER, **config}
    writing.write_json(root / run_id / "run.json", {"run_id": run_id, "config": config})


def new_method(root, rate, *, recipe="report", seed=0):
    """A run of a method that is not FRL's, whose only number is ``frl.rate``; it keeps its weights in a column."""
    name = {"run_id": f"new-{recipe}-{rate}-{seed}", "method": "new", "recipe": recipe, "seed": seed}
    rows = [{**row, **name, "alpha_nat": None, "alpha_bndy": None} for row in run_rows(0, 0, gain=(10 * rate, 0))]
    if recipe == "scratch":
        rows = [row for row in rows if row["epoch"] > 0]
    still = {"natural_error": None, "boundary_error": None, "weight_nat": 1.0, "alpha_nat": None, "alpha_bndy": None}
    policy = [
        {**row, **name, **still, "new_share": 0.1 * row["class_id"] + 0.01 * row["epoch"]}
        for row in policy_rows(0, 0, 0)
    ]
    retrain = {} if recipe == "scratch" else {"retrain": {"objective": "split", "trainer": TRAINER}}
    write(root, rows, policy=policy, frl={"name": "new", "rate": rate}, recipe={"name": recipe}, **retrain)


@pytest.fixture
def runs(tmp_path):
    for recipe, rates in {"report": (1, 2, 3, 4, 5, 6), "paper": (1, 2, 3, 4, 5, 6), "scratch": (1,)}.items():
        for rate in rates:
            new_method(tmp_path / "runs", rate, recipe=recipe)
    return tmp_path / "runs"


def labels_of(drawing):
    return [text.get_text().replace("\n", " ") for text in drawing.figure.legends[0].get_texts()]


def test_recipes_of_a_method_are_told_apart_where_it_has_many_settings(runs):
    drawing = FIGURES["tradeoff"].draw(read_runs(reading.find_tables(runs)), epsilon=EPSILON, attack=None)
    assert labels_of(drawing) == [
        "before retraining (paper), n = 1",
        "before retraining, n = 1",
        "new (paper), n = 6",
        "new, n = 6",
        "new (scratch), n = 1",
    ]
    (axes,) = drawing.figure.axes
    looks = {line.get_label().replace("\n", " "): (line.get_color(), line.get_marker()) for line in axes.get_lines()}
    of_new = {look for label, look in looks.items() if label.startswith("new")}
    assert len({colour for colour, _ in of_new}) == 1  # a method's own
    assert len({marker for _, marker in of_new}) == 3


def test_a_run_from_scratch_leaves_the_names_of_bases_as_they_are(runs):
    table = read_runs(reading.find_tables(runs))
    assert set(table["base"]) == {""}  # all bases are alike
    other = {**TRAINER, "num_epochs": 3}
    rows = [{**row, "run_id": "other"} for row in run_rows(1, 1, seed=1)]
    write(runs, rows, recipe={"name": "report"}, trainer=other, retrain={"objective": "split"})
    table = read_runs(reading.find_tables(runs))
    assert set(table.loc[table["recipe"] == "scratch", "base"]) == {""}
    assert set(table.loc[table["recipe"] != "scratch", "base"]) == {"num_epochs=15", "num_epochs=3"}


def test_where_takes_keys_of_settings_in_every_recipe(runs):
    table = read_runs(reading.find_tables(runs))
    ones = {"new-report-1-0", "new-paper-1-0", "new-scratch-1-0"}  # of scratch there is no other: it is no variant
    for where in ("rate=1", "frl.rate=1", "frl.rate=1.0"):
        assert set(select_where(table, where)["run_id"]) == ones
    with pytest.raises(UserError, match=r"no rows with frl\.rate=9; the tables have frl\.rate=1, 2, 3, 4, 5, 6$"):
        select_where(table, "frl.rate=9")
    with pytest.raises(
        UserError, match=r"where=num_epochs: several settings end so, write one of retrain\.trainer\.num"
    ):
        select_where(table, "num_epochs=15")
    with pytest.raises(UserError, match=r"where='frl\.rat=1': .*did you mean frl\.rate\?"):
        select_where(table, "frl.rat=1")


def test_where_reads_a_key_as_the_column_that_holds_it():
    grid = pd.DataFrame(run_rows(1, 1) + run_rows(5, 1))
    assert set(select_where(grid, "alpha.nat=5")["run_id"]) == {"reweight-report-5-1-0"}


def test_a_trajectory_draws_the_columns_of_a_method(runs, tmp_path, capsys):
    assert plot.main(["figure=trajectory", f"runs={runs}", f"out={tmp_path}", "formats=png", "where=rate=2"]) == 0
    table = pd.read_csv(tmp_path / "trajectory.csv")
    assert table.query("epoch == 3 and class_id == 2")["new_share"].tolist() == pytest.approx([0.23])
    assert "shown: new (paper)" in capsys.readouterr().out
    rows = pd.DataFrame([{**row, "new_share": 0.1 * row["class_id"]} for row in policy_rows(5, 1, 0)])
    assert trajectory_figure(rows).axes[3].get_title() == "New share"


def test_a_trajectory_shows_a_setting_in_which_something_moved():
    still = {"natural_error": None, "boundary_error": None, "weight_nat": 1.0}
    name = {"run_id": "control", "method": "finetune"}
    control = [{**row, **still, **name, "seed": seed} for seed in (0, 1) for row in policy_rows(0, 0, seed)]
    drawing = FIGURES["trajectory"].draw(pd.DataFrame(policy_rows(5, 1, 0) + control), epsilon=EPSILON, attack=None)
    assert "reweight nat 5 bndy 1" in drawing.figure.get_suptitle()
    assert drawing.note == "left out, nothing moved in it: finetune nat 0 bndy 0"
    with pytest.raises(UserError, match=r"nothing to draw of finetune nat 0 bndy 0: .*where= chooses others"):
        FIGURES["trajectory"].draw(pd.DataFrame(control), epsilon=EPSILON, attack=None)


def test_a_folder_of_a_new_method_alone_gives_a_page(tmp_path, capsys):
    for rate in (1, 2):
        new_method(tmp_path / "runs", rate, recipe="scratch")
    assert report.main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'page'}"]) == 0
    said = capsys.readouterr().out
    assert "plays a part in the questions: natural, adversarial" in said
    assert "UNDECIDED" not in said
    page = (tmp_path / "page" / "report.html").read_text()
    assert "new (scratch) rate=2" in page
    assert 'id="answers"' not in page
    assert 'href="#answers"' not in page
    written = {path.name for path in (tmp_path / "page").glob("*.png")}
    assert written == {"settings.png", "trajectory.png", "tradeoff.png"}


def test_a_grid_leaves_out_what_one_cell_has_beside_the_others(tmp_path):
    frl = {"frl": {"name": "reweight", "num_steps": 20}, "recipe": {"name": "report"}}
    for nat, bndy in ((1, 1), (1, 5), (5, 1), (5, 5)):
        # One was run before there was the key.
        trainer = {"num_epochs": 10, "ema_decay": None} | ({"num_accumulation": 1} if nat == 5 else {})
        write(tmp_path, run_rows(nat, bndy), **frl, retrain={"trainer": trainer})
    extra = [{**row, "run_id": "extra"} for row in run_rows(5, 1, gain=(300, 300))]
    write(tmp_path, extra, **frl, retrain={"trainer": {"num_epochs": 10, "ema_decay": 0.9}})
    drawing = FIGURES["grid"].draw(read_runs(reading.find_tables(tmp_path)), epsilon=EPSILON, attack=None)
    assert drawing.note == (
        "shown: reweight recipe=report ema_decay=null, as most cells; left out: recipe=report ema_decay=0.9"
    )
    assert drawing.numbers["worst_class_natural_error"].tolist() == pytest.approx([0.43, 0.43, 0.39, 0.39])


@pytest.mark.parametrize(("errors", "marks"), [([0, 0], 0), ([0.1, 0.1, 0.1], 0), ([0.2, 0.1, 0.2], 2), ([0.3], 0)])
def test_no_class_is_worst_where_all_are_alike(errors, marks):
    assert sum(is_worst(errors)) == marks


def test_registered_runs_are_not_mixed_with_those_of_the_first_study(tmp_path, capsys):
    reference = ROOT / "outputs" / "reference"
    seeds = {run.seed for run in registered_runs().values()}
    where = [f"runs={reference}", f"out={tmp_path}", "formats=svg"]
    assert plot.main(["figure=1", *where]) == 0
    said = capsys.readouterr().out
    assert f"runs={reference / 'registered'} shows them" in said
    apart = pd.read_csv(tmp_path / "figure1.csv")
    assert set(apart["num_seeds"]) == {len(DEVELOPMENT_SEEDS)}
    assert plot.main(["figure=1", f"runs={reference / 'registered'}", *where[1:]]) == 0
    assert "left out" not in capsys.readouterr().out
    assert (tmp_path / "figure1.csv").read_bytes() == (reference / "figures" / "figure1.csv").read_bytes()
    assert collect.main([f"runs={reference}", f"out={tmp_path / 'all.csv'}"]) == 0
    assert not seeds & set(pd.read_csv(tmp_path / "all.csv")["seed"])


def test_figure_2_shows_a_method_of_ones_own_where_it_is_alone(tmp_path, capsys):
    for seed in (0, 1):
        new_method(tmp_path / "runs", 2, seed=seed)
    arguments = ["figure=2", f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "formats=svg"]
    assert plot.main(arguments) == 0
    assert "shown: new, the only method here" in capsys.readouterr().out
    assert (tmp_path / "figure2.csv").read_text().count("after") == 2 * 4  # three classes and all together
    others = [{**row, "run_id": "other", "method": "other"} for row in run_rows(1, 1)]
    write(tmp_path / "runs", others, recipe={"name": "report"}, retrain={"objective": "split", "trainer": TRAINER})
    assert plot.main(arguments) == 1
    assert "no run of method 'reweight'; of new, other choose one with where=method=" in capsys.readouterr().err
    assert plot.main([*arguments, "where=method=new"]) == 0
    assert plot.main(["figure=3", *arguments[1:]]) == 1
    assert "no run of method 'remargin': run `python train.py -m experiment=exp3`" in capsys.readouterr().err


def test_a_grid_of_two_numbers_of_ones_own_method_is_a_heat_map(tmp_path, capsys):
    for rate in (1, 2):
        for share in (0.1, 0.5, 0.9):
            rows = [
                {**row, "run_id": f"{rate}-{share}", "method": "new", "alpha_nat": None, "alpha_bndy": None}
                for row in run_rows(0, 0, gain=(10 * rate, round(10 * share)))
            ]
            frl = {"name": "new", "rate": rate, "share": share}
            write(tmp_path / "runs", rows, frl=frl, recipe={"name": "report"}, retrain={"trainer": TRAINER})
    arguments = ["figure=grid", f"runs={tmp_path / 'runs'}", f"out={tmp_path}", "formats=svg"]
    assert plot.main(arguments) == 0, capsys.readouterr().err
    table = pd.read_csv(tmp_path / "grid.csv")
    axes = [name for name in table.columns if name in ("rate", "share", "frl.rate", "frl.share")]
    assert sorted(map(tuple, table[axes].to_numpy().tolist())) == [(r, s) for r in (1, 2) for s in (0.1, 0.5, 0.9)]
    assert table["is_chosen"].sum() >= 1
    assert plot.main([*arguments, "where=rate=1"]) == 1
    assert "a grid of two alphas, or of two numbers of its own; the tables have none" in capsys.readouterr().err
