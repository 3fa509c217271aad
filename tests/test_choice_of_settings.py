"""Settings are chosen on images that no class policy has seen, where there are any; and what a choice of classes is."""

import itertools

import pandas as pd
import pytest

from frl_repro.basics.errors import UserError
from frl_repro.commands import collect, plot, report
from frl_repro.results.figures import FIGURES
from frl_repro.results.figures.grid import grid_figure, grid_numbers
from frl_repro.results.report.study import load_study
from frl_repro.results.tables import writing
from frl_repro.results.tables.selection import best_setting, choice_rows, summary
from support import EPSILON, make_rows, run_rows

CELLS = list(itertools.product((1, 5), (1, 5)))


def with_selection(nat, bndy, *, seed=0, gain, validation_gain):
    """Rows of a retraining whose selection images say what ``gain`` says, and its validation images otherwise."""
    rows = run_rows(nat, bndy, seed=seed, gain=gain, validation_gain=validation_gain)
    return rows + [{**row, "split": "selection"} for row in rows if row["split"] == "test"]


def opposed(*, seeds=(0,)):
    """A grid in which validation images prefer 1:1 and selection images prefer 5:5."""
    return [
        row
        for (nat, bndy), seed in itertools.product(CELLS, seeds)
        for row in with_selection(
            nat, bndy, seed=seed, gain=(10 * nat, 10 * bndy), validation_gain=(100 - 10 * nat, 100 - 10 * bndy)
        )
    ]


def write(folder, rows):
    for run_id, part in pd.DataFrame(rows).groupby("run_id"):
        (folder / run_id).mkdir(parents=True)
        writing.write_frame(folder / run_id / "classwise.csv", part)
    return folder


def test_selection_images_choose_where_every_run_has_them():
    after = summary(pd.DataFrame(opposed()), epsilon=EPSILON).query("when == 'after'")
    chosen = choice_rows(after)
    assert set(chosen["split"]) == {"selection"}
    assert best_setting(chosen, "worst_robust")["alpha_bndy"] == 5
    assert best_setting(after[after["split"] == "validation"], "worst_robust")["alpha_bndy"] == 1

    # A run without them cannot be compared on them: then the images that all have decide.
    mixed = summary(pd.DataFrame(opposed() + run_rows(10, 10)), epsilon=EPSILON).query("when == 'after'")
    assert set(choice_rows(mixed)["split"]) == {"validation"}
    assert choice_rows(after[after["split"] == "test"]).empty
    with pytest.raises(UserError, match="never on test images"):
        best_setting(after, "worst_robust")


def test_grid_and_figures_of_one_setting_follow_selection_images():
    df = pd.DataFrame(opposed())
    (framed,) = grid_numbers(df, epsilon=EPSILON, attack=None).query("is_chosen").to_dict("records")
    assert (framed["alpha_nat"], framed["alpha_bndy"]) == (5, 5)
    assert "frame: chosen on selection" in grid_figure(df, epsilon=EPSILON, attack=None).get_suptitle()
    drawing = FIGURES["2"].draw(df, epsilon=EPSILON, attack=None, top=10)
    assert drawing.note.startswith(
        "shown: reweight nat 1 bndy 5, of 4 settings the one with most seeds that does best on"
    )
    assert "on selection images" in drawing.note


def test_collect_and_report_name_what_selection_images_prefer(tmp_path, capsys):
    runs = write(tmp_path / "runs", opposed() + make_rows("adversarial"))
    assert collect.main([f"runs={runs}"]) == 0
    shown = capsys.readouterr().out
    assert "best reweight by selection (seed 0):\n  worst_robust  reweight nat 1 bndy 5" in shown
    assert "worst-class natural error in percent, selection split" in shown
    assert "by validation" not in shown
    assert load_study(runs).settings["reweight, chosen"] == "reweight nat 1 bndy 5 (1 seed)"

    more = write(tmp_path / "more", opposed(seeds=(0, 1)))
    for run_id in ("reweight-report-1-5-1", "reweight-report-5-5-1"):
        (more / run_id / "classwise.csv").unlink()
    study = load_study(more)
    assert study.settings["reweight, chosen"] == "reweight nat 1 bndy 1 (2 seeds)"
    assert study.notes[-1].endswith("reweight nat 1 bndy 5 (1), reweight nat 5 bndy 5 (1)")


def test_of_some_classes_nothing_is_called_overall(tmp_path, capsys):
    runs = write(tmp_path / "runs", opposed())
    assert collect.main([f"runs={runs}", "where=class_name=Bag", "errors=robust"]) == 0
    shown = capsys.readouterr().out
    assert "classes Bag alone, test split" in shown
    assert "these classes robust  worst of these robust" in shown
    assert "overall" not in shown
    assert "best reweight by selection, by classes Bag alone (seed 0)" in shown
    arguments = [f"runs={runs}", f"out={tmp_path}", "formats=png"]
    assert plot.main(["figure=2", "where=class_name=Bag,alpha_nat=1,alpha_bndy=1", *arguments]) == 0
    assert "of classes Bag alone: what is called overall or worst is so among these" in capsys.readouterr().out
    assert report.main([f"runs={runs}", "where=class_name=Bag", f"out={tmp_path}"]) == 1
    assert "where='class_name=Bag': questions compare the classes with each other" in capsys.readouterr().err
    assert plot.main(["figure=2", "where=alpha_nat=1,alpha_bndy=1", *arguments]) == 0
    assert "alone" not in capsys.readouterr().out


def test_a_number_that_is_none_is_refused_with_its_key(tmp_path, capsys):
    runs = write(tmp_path / "runs", make_rows("adversarial"))
    for argument, message in (
        ("where=epoch=abc", "where='epoch=abc': 'abc' is not a number"),
        ("where=split=test,seed=x", "where='seed=x': 'x' is not a number"),
        ("epsilon=8//255", "epsilon=8//255: '8//255' is not a number"),
    ):
        assert collect.main([f"runs={runs}", argument]) == 1
        assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_table_without_rows_is_not_written(tmp_path, capsys):
    by_pgd = make_rows("adversarial", epsilon=1 / 255)
    runs = write(tmp_path / "runs", by_pgd + make_rows("adversarial", attack="autoattack", epsilon=2 / 255))
    assert collect.main([f"runs={runs}", "epsilon=2/255", f"out={tmp_path / 'all.csv'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"error: out={tmp_path / 'all.csv'}: nothing to write. fashion_mnist, lenet5, pgd-20: no rows"
    )
    assert said.count("\n") == 1
    assert not (tmp_path / "all.csv").exists()
