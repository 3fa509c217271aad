"""Tables of retraining: before and after, choosing a setting on validation, collecting, and their figures."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from frl_repro.basics.errors import UserError
from frl_repro.commands import collect, plot
from frl_repro.results.figures import FIGURES
from frl_repro.results.figures.before_after import before_after_figure, before_after_numbers
from frl_repro.results.figures.grid import grid_figure, grid_numbers
from frl_repro.results.figures.settings import settings_figure, settings_numbers
from frl_repro.results.figures.tradeoff import tradeoff_figure, tradeoff_numbers
from frl_repro.results.figures.trajectory import trajectory_figure, trajectory_numbers
from frl_repro.results.tables import reading, schema, text_tables, writing
from frl_repro.results.tables.selection import BEFORE, best_setting, by_setting, summary
from frl_repro.results.tables.variants import with_variants
from frl_repro.results.tables.where import select_where
from support import EPSILON, bars, make_rows, policy_rows, run_rows


@pytest.fixture
def grid():
    return pd.DataFrame([row for n, b in itertools.product((1, 5), (1, 5)) for row in run_rows(n, b)])


@pytest.fixture
def runs(tmp_path):
    for nat, bndy, seed in itertools.product((1, 5), (1, 5), (0, 1)):
        folder = tmp_path / "runs" / f"{nat}-{bndy}-{seed}"
        folder.mkdir(parents=True)
        rows = run_rows(nat, bndy, seed=seed, gain=(10 * nat + seed, 10 * bndy))
        writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_HEADER)
        writing.write_table(folder / "policy.csv", policy_rows(nat, bndy, seed), schema.POLICY_COLUMNS)
    return tmp_path / "runs"


def test_tables_of_retraining_are_read_back_as_written(tmp_path):
    rows = run_rows(5, 1)
    writing.write_table(tmp_path / "classwise.csv", rows, schema.CLASSWISE_HEADER)
    table = reading.read_classwise(tmp_path / "classwise.csv")
    assert table["alpha_nat"].unique().tolist() == [5.0]
    assert table["alpha_margin"].isna().all()
    assert set(table["recipe"]) == {"report"}


def test_tables_without_settings_get_empty_ones(tmp_path):
    writing.write_table(tmp_path / "classwise.csv", make_rows("natural"), schema.CLASSWISE_COLUMNS)
    table = reading.read_classwise(tmp_path / "classwise.csv")
    assert set(table["recipe"]) == {""}
    assert table["alpha_nat"].isna().all()


def test_before_after_table_is_made_for_people():
    text = text_tables.before_after_table(pd.DataFrame(run_rows(5, 1)))
    lines = [line.split() for line in text.splitlines()]
    assert ["class", "natural", "before", "natural", "after", "robust", "before", "robust", "after"] in lines
    assert ["Shirt", "44.0*", "39.0*", "89.0*", "88.0*"] in lines
    assert ["overall", "17.0", "15.3", "36.7", "36.3"] in lines
    with pytest.raises(UserError, match="was not measured at epoch 0"):
        text_tables.before_after_table(pd.DataFrame(make_rows("natural")))


def test_a_setting_is_chosen_on_validation_even_where_test_says_otherwise():
    rows = run_rows(1, 1, gain=(300, 300), validation_gain=(0, 0)) + run_rows(
        5, 1, gain=(0, 0), validation_gain=(50, 10)
    )
    table = summary(pd.DataFrame(rows), epsilon=EPSILON)
    after = table[table["when"] == "after"]
    for criterion in ("worst_robust", "worst_natural", "sum"):
        assert best_setting(after[after["split"] == "validation"], criterion)["alpha_nat"] == 5
    with pytest.raises(UserError, match="never on test images"):
        best_setting(after[after["split"] == "test"], "sum")


def test_settings_are_compared_on_the_seeds_that_all_have():
    rows = run_rows(1, 1, gain=(50, 50)) + run_rows(5, 1, gain=(40, 40)) + run_rows(5, 1, seed=1, gain=(300, 300))
    after = summary(pd.DataFrame(rows), epsilon=EPSILON).query("when == 'after' and split == 'validation'")
    assert best_setting(after, "sum")["alpha_nat"] == 1
    with pytest.raises(UserError, match="2 settings share no seed"):
        best_setting(after[(after["alpha_nat"] == 1) | (after["seed"] == 1)], "sum")


def test_a_tie_goes_to_the_first_setting_whatever_the_rounding_of_sums():
    rows = run_rows(1, 1, gain=(140, 241)) + run_rows(5, 1, gain=(171, 210))  # .300 + .649 and .269 + .680
    after = summary(pd.DataFrame(rows), epsilon=EPSILON).query("when == 'after' and split == 'validation'")
    assert best_setting(after, "sum")["alpha_nat"] == 1
    assert best_setting(after.iloc[::-1], "sum")["alpha_nat"] == 1


def test_two_runs_of_a_seed_are_no_two_seeds():
    rows = run_rows(1, 1) + [{**row, "run_id": "again"} for row in run_rows(1, 1, gain=(90, 0))]
    after = summary(pd.DataFrame(rows), epsilon=EPSILON).query("when == 'after' and split == 'test'")
    message = r"'reweight nat 1 bndy 1' has several runs with seed 0 \(again, reweight-report-1-1-0\): narrow"
    with pytest.raises(UserError, match=message):
        by_setting(after)


def test_criteria_may_disagree(grid):
    rows = pd.concat([grid, pd.DataFrame(run_rows(10, 1, gain=(200, 0)))], ignore_index=True)
    after = summary(rows, epsilon=EPSILON).query("when == 'after' and split == 'validation'")
    assert best_setting(after, "worst_natural")["alpha_nat"] == 10
    assert best_setting(after, "worst_robust")["alpha_bndy"] == 5


def test_where_narrows_and_says_what_there_is(grid):
    assert set(select_where(grid, "alpha_nat=5, alpha_bndy=1")["run_id"]) == {"reweight-report-5-1-0"}
    with pytest.raises(UserError, match="no rows with alpha_nat=2; the tables have alpha_nat=1, 5"):
        select_where(grid, "alpha_nat=2")
    with pytest.raises(UserError, match="expected column=value; did you mean alpha_nat"):
        select_where(grid, "alpha=2")


@pytest.fixture
def controls(tmp_path):
    """A control with and without averaging, two seeds each, and a run that nothing is known of."""
    for ema, seed in itertools.product((None, 0.998), (0, 1)):
        folder = tmp_path / "controls" / f"{ema}-{seed}"
        folder.mkdir(parents=True)
        gain = (0, 0) if ema is None else (20 + 20 * seed, 0)
        rows = [{**row, "run_id": f"{ema}-{seed}"} for row in run_rows(0, 0, seed=seed, gain=gain, method="finetune")]
        for row in rows:
            row["alpha_nat"] = row["alpha_bndy"] = None
        writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_HEADER)
        config = {
            "seed": seed,
            "backend": "native" if seed else "torch",
            "attack": {"num_steps": 20},
            "frl": {"margin_bounds": [0.5, 2] if ema else None},
            "retrain": {"trainer": {"ema_decay": ema, "num_epochs": 10}},
        }
        writing.write_json(folder / "run.json", {"run_id": f"{ema}-{seed}", "config": config})
    return tmp_path / "controls"


def test_runs_that_tables_call_alike_are_told_apart_by_their_settings(controls, capsys):
    files = reading.find_tables(controls)
    table = with_variants(reading.read_classwise(files), files)
    variants = table.groupby("run_id")["variant"].first().to_dict()
    averaged = "margin_bounds=[0.5,2] ema_decay=0.998"
    plain = "margin_bounds=null ema_decay=null"
    assert variants == {"None-0": plain, "None-1": plain, "0.998-0": averaged, "0.998-1": averaged}
    assert set(select_where(table, "ema_decay=0.998,margin_bounds=[0.5,2]")["run_id"]) == {"0.998-0", "0.998-1"}
    with pytest.raises(UserError, match=r"no rows with ema_decay=0\.9; the tables have ema_decay=0\.998, null$"):
        select_where(table, "ema_decay=0.9")
    # By their keys, also where all runs are alike.
    assert set(select_where(table, "retrain.trainer.ema_decay=0.998")["run_id"]) == {"0.998-0", "0.998-1"}
    assert len(select_where(table, "num_steps=20,retrain.trainer.num_epochs=10")) == len(table)
    assert len(select_where(table, "trainer.precision=float32")) == len(table)  # before there was the key
    with pytest.raises(UserError, match=r"no rows with num_steps=7; the tables have num_steps=20$"):
        select_where(table, "num_steps=7")
    with pytest.raises(UserError, match=r"did you mean retrain\.trainer\.num_epochs\?"):
        select_where(table, "retrain.trainer.num_epoch=7")
    assert collect.main([f"runs={controls}"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:4] for line in shown.splitlines() if line.startswith(("before", "finetune"))][:3] == [
        ["before", "retraining", "2", "17.0"],
        ["finetune", *averaged.split(), "2"],
        ["finetune", *plain.split(), "2"],
    ]


def test_settings_figure_compares_settings_with_the_model_before(controls, tmp_path):
    files = reading.find_tables(controls)
    numbers = settings_numbers(with_variants(reading.read_classwise(files), files), epsilon=EPSILON, attack=None)
    assert numbers["setting"].str.split().str[-1].tolist() == ["retraining", "ema_decay=0.998", "ema_decay=null"]
    assert numbers["num_seeds"].tolist() == [2, 2, 2]
    assert numbers["worst_class_natural_error"].tolist() == pytest.approx([0.44, 0.41, 0.44])
    assert numbers["worst_class_natural_error_sd"].tolist() == pytest.approx([0, 0.02 / 2**0.5, 0])
    assert plot.main(["figure=settings", f"runs={controls}", f"out={tmp_path}", "formats=png"]) == 0
    assert (tmp_path / "settings.png").stat().st_size > 1000


def test_of_many_settings_the_worst_and_the_best_stand_beside_the_model_before():
    cells = [(nat, bndy) for nat in (1, 2, 5) for bndy in (1, 5)]
    df = pd.DataFrame([row for place, cell in enumerate(cells) for row in run_rows(*cell, gain=(0, -10 * place))])
    names = settings_numbers(df, epsilon=EPSILON, attack=None)["setting"].tolist()
    figure = settings_figure(df, epsilon=EPSILON, attack=None, top=1)
    errors = settings_numbers(df, epsilon=EPSILON, attack=None)["worst_class_robust_error"][1:]
    wanted = [names[0], names[errors.idxmax()], names[errors.idxmin()]]
    labels = [tick.get_text().replace("\n", " ") for tick in figure.axes[0].get_yticklabels()]
    assert names[0].startswith(BEFORE)
    assert labels == wanted
    assert "1 worst and 1 best of 6 settings" in figure.get_suptitle()


def test_a_run_without_its_settings_has_no_variant(grid, controls):
    assert set(with_variants(grid, reading.find_tables(controls))["variant"]) == {""}


def test_where_names_a_class_with_a_comma_in_double_quotes():
    names = ["cats, dogs", 'a "b", c', "[x,y]"]
    df = pd.DataFrame(make_rows("natural", names=names))
    for where, name in (
        ('class_name="cats, dogs"', names[0]),
        ('split=test, class_name="a ""b"", c",seed=0', names[1]),
        ("class_name=[x,y],epoch=15", names[2]),
    ):
        assert select_where(df, where)["class_name"].tolist() == [name]
    with pytest.raises(UserError, match=r"where='dogs': expected column=value; .* comma stands in double quotes"):
        select_where(df, "split=test, dogs")
    with pytest.raises(UserError, match=r'stands in double quotes: class_name="cats, dogs"$'):
        select_where(df, "class_name=cats, dogs")
    with pytest.raises(UserError, match=r"where='class.name=x': expected column=value; did you mean class_name\?"):
        select_where(df, "class.name=x")


def test_tied_cells_are_all_framed_and_none_where_all_tie():
    def drawn(gains):
        cells = zip(itertools.product((1, 5), (1, 5)), gains, strict=True)
        return pd.DataFrame([row for (nat, bndy), gain in cells for row in run_rows(nat, bndy, gain=gain)])

    two = drawn([(10, 10), (50, 50), (50, 50), (0, 0)])
    assert grid_numbers(two, epsilon=EPSILON, attack=None)["is_chosen"].tolist() == [False, True, True, False]
    figure = grid_figure(two, epsilon=EPSILON, attack=None)
    assert [len(axes.patches) for axes in figure.axes] == [2, 2]
    assert "frames: 2 tied on validation" in figure.get_suptitle()
    figure = grid_figure(drawn([(10, 10)] * 4), epsilon=EPSILON, attack=None)
    assert [len(axes.patches) for axes in figure.axes] == [0, 0]
    assert "no frame: all tied" in figure.get_suptitle()


def test_models_of_other_images_are_no_seeds_of_one_setting(tmp_path):
    for seed, fraction in ((0, 0.0), (1, 0.2)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rows = make_rows("adversarial", seed=seed, run_id=f"run{seed}")
        writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_COLUMNS)
        dataset = {
            "name": "fashion_mnist",
            "validation_fraction": fraction,
            "root": f"/data{seed}",
            "download": seed > 0,
        }
        writing.write_json(folder / "run.json", {"run_id": f"run{seed}", "config": {"dataset": dataset}})
    files = reading.find_tables(tmp_path)
    table = with_variants(reading.read_classwise(files), files)
    assert set(table["variant"]) == {"validation_fraction=0", "validation_fraction=0.2"}


def test_before_after_figure_shows_the_tables_numbers():
    rows = pd.DataFrame(run_rows(5, 1) + run_rows(5, 1, seed=1, gain=(70, 10)))
    arguments = {"method": "reweight", "command": "c", "epsilon": EPSILON, "attack": None}
    figure = before_after_figure(rows, **arguments)
    natural, robust = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["Natural error", "Robust error"]
    np.testing.assert_allclose(bars(natural), [[0.44, 0.04, 0.03], [0.38, 0.04, 0.03]])
    np.testing.assert_allclose(bars(robust)[1], [0.88, 0.12, 0.09])
    assert any("Before and after reweight nat 5 bndy 1" in text.get_text() for text in figure.findobj(Text))
    numbers = before_after_numbers(rows, **arguments).set_index(["when", "quantity", "class_name"])
    assert numbers.loc[("after", "natural", "Shirt"), "sd"] == pytest.approx(0.02 / 2**0.5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (make_rows("natural"), "no run of method 'reweight': run `the command`"),
        (run_rows(1, 1) + run_rows(5, 1), r"under 2 settings \(reweight nat 1 bndy 1; reweight nat 5 bndy 1\)"),
        (
            run_rows(1, 1) + [{**row, "run_id": "copy"} for row in run_rows(1, 1)],
            r"several runs with seed 0 \(copy, reweight-report-1-1-0\)",
        ),
        ([row for row in run_rows(1, 1) if row["epoch"]], "not measured at epoch 0"),
        (run_rows(1, 1) + run_rows(1, 1, recipe="paper"), r"reweight nat 1 bndy 1 \(paper\)"),
    ],
)
def test_before_after_says_what_it_cannot_show(rows, message):
    with pytest.raises(UserError, match=message):
        before_after_numbers(
            pd.DataFrame(
                [{"recipe": "", "alpha_nat": None, "alpha_bndy": None, "alpha_margin": None, **r} for r in rows]
            ),
            method="reweight",
            command="the command",
            epsilon=EPSILON,
            attack=None,
        )


def test_grid_shows_test_errors_and_frames_what_validation_prefers(grid):
    numbers = grid_numbers(grid, epsilon=EPSILON, attack=None)
    assert len(numbers) == 4
    (chosen,) = numbers[numbers["is_chosen"]].to_dict("records")
    assert (chosen["alpha_nat"], chosen["alpha_bndy"]) == (5, 5)
    figure = grid_figure(grid, epsilon=EPSILON, attack=None)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["43.0", "43.0", "39.0", "39.0"]
    (frame,) = figure.axes[0].patches
    assert (frame.get_x() + 0.47, frame.get_y() + 0.47) == pytest.approx((1, 1))


def test_grid_needs_a_grid(grid):
    with pytest.raises(UserError, match="the tables have none: run"):
        grid_numbers(grid[grid["alpha_nat"] == 1], epsilon=EPSILON, attack=None)
    with pytest.raises(UserError, match="no validation rows to choose"):
        grid_numbers(grid[grid["split"] == "test"], epsilon=EPSILON, attack=None)
    with pytest.raises(UserError, match="hold no retraining"):
        grid_numbers(pd.DataFrame(make_rows("natural")).assign(recipe=""), epsilon=EPSILON, attack=None)
    both = pd.concat([grid, pd.DataFrame(run_rows(1, 1, recipe="paper"))])
    with pytest.raises(UserError, match="shows one recipe, the tables have paper, report"):
        grid_numbers(both, epsilon=EPSILON, attack=None)


def test_grid_uses_the_seeds_that_all_cells_have(grid):
    more = pd.DataFrame(run_rows(5, 1, seed=1, gain=(400, 400)))
    numbers = grid_numbers(pd.concat([grid, more]), epsilon=EPSILON, attack=None)
    pd.testing.assert_frame_equal(numbers, grid_numbers(grid, epsilon=EPSILON, attack=None))


def test_tradeoff_has_a_point_for_each_run_and_one_for_each_base(grid):
    numbers = tradeoff_numbers(grid, epsilon=EPSILON, attack=None)
    settings = [f"reweight nat {nat} bndy {bndy}" for nat in (1, 5) for bndy in (1, 5)]
    assert numbers["label"].value_counts().to_dict() == {**dict.fromkeys(settings, 1), "before retraining": 1}
    larger = pd.concat([grid, pd.DataFrame(run_rows(10, 1) + run_rows(10, 5))])
    labels = tradeoff_numbers(larger, epsilon=EPSILON, attack=None)["label"]
    assert labels.value_counts().to_dict() == {"reweight": 6, "before retraining": 1}
    before = numbers[numbers["label"] == "before retraining"].iloc[0]
    assert before["worst_class_robust_accuracy"] == pytest.approx(0.11)
    figure = tradeoff_figure(grid, epsilon=EPSILON, attack=None)
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 5


def test_trajectory_draws_what_moved_and_colours_the_classes_that_end_worst():
    rows = pd.DataFrame(policy_rows(5, 1, 0) + policy_rows(5, 1, 1))
    numbers = trajectory_numbers(rows)
    assert len(numbers) == 3 * 3
    figure = trajectory_figure(rows)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["Natural error (validation)", "Boundary error (validation)", "Weight of the natural loss"]
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["other classes", "Shirt", "Bag"]
    with pytest.raises(UserError, match="one setting, the tables have reweight nat 1 bndy 1; reweight nat 5 bndy 1"):
        trajectory_numbers(pd.DataFrame(policy_rows(5, 1, 0) + policy_rows(1, 1, 0)))


def test_a_trajectory_of_one_epoch_shows_its_points():
    rows = pd.DataFrame(policy_rows(5, 1, 0))
    figure = trajectory_figure(rows[rows["epoch"] == rows["epoch"].max()])
    axes = figure.axes[0]
    assert {line.get_marker() for line in axes.lines} == {"o"}
    assert axes.get_xticks().tolist() == [rows["epoch"].max()]


def test_a_figure_of_one_setting_shows_the_one_with_most_seeds_that_validation_prefers():
    few, many = run_rows(5, 5, gain=(300, 300)), [row for seed in (0, 1) for row in run_rows(1, 1, seed=seed)]
    better = [row for s in (0, 1) for row in run_rows(1, 5, seed=s, gain=(0, 0), validation_gain=(0, 100))]
    drawing = FIGURES["2"].draw(pd.DataFrame(few + many + better), epsilon=EPSILON, attack=None, top=10)
    assert drawing.note.startswith("shown: reweight nat 1 bndy 5, of 3 settings the one with most seeds that does best")
    after = drawing.numbers.query("when == 'after' and quantity == 'robust' and class_name == 'Shirt'")
    assert after["mean"].tolist() == pytest.approx([0.89])
    assert FIGURES["2"].draw(pd.DataFrame(few), epsilon=EPSILON, attack=None, top=10).note == ""

    rows = policy_rows(5, 5, 0) + [row for seed in (0, 1) for nat in (1, 5) for row in policy_rows(nat, 1, seed)]
    for row in rows:
        row["natural_error"] += 0.01 * (row["alpha_nat"] == 1)
    drawing = FIGURES["trajectory"].draw(pd.DataFrame(rows), epsilon=EPSILON, attack=None, top=10)
    assert drawing.note.startswith("shown: reweight nat 5 bndy 1, of 3 settings")
    with pytest.raises(UserError, match="shows one dataset, the tables have cifar10, fashion_mnist"):
        FIGURES["trajectory"].draw(
            pd.DataFrame([*rows, {**rows[0], "dataset": "cifar10"}]), epsilon=EPSILON, attack=None, top=10
        )


def test_every_figure_is_drawn_by_the_command(runs, tmp_path, capsys):
    where = "where=alpha_nat=5,alpha_bndy=1"
    for figure, extra in (("2", []), ("grid", []), ("trajectory", [where]), ("tradeoff", [])):
        assert plot.main([f"figure={figure}", f"runs={runs}", f"out={tmp_path / 'o'}", "formats=svg", *extra]) == 0
    names = {"figure2", "grid", "trajectory", "tradeoff"}
    assert {path.name for path in (tmp_path / "o").iterdir()} == {f"{n}.{end}" for n in names for end in ("svg", "csv")}
    assert "shown: reweight nat 1 bndy 5, of 4 settings" in capsys.readouterr().out


def test_collect_prints_settings_grid_and_choice_and_writes_a_table(runs, tmp_path, capsys):
    out = tmp_path / "all.csv"
    assert collect.main([f"runs={runs}", f"out={out}"]) == 0
    text = capsys.readouterr().out
    lines = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["reweight nat 5 bndy 1", "2", "15.3 (0.0)", "36.3 (0.0)", "39.0 (0.1)", "88.0 (0.0)"] in cells
    assert "best reweight by validation (seeds 0, 1):\n  worst_robust  reweight nat 1 bndy 5" in text
    assert "  worst_natural reweight nat 5 bndy 1" in text
    assert "  sum           reweight nat 5 bndy 5" in text
    assert "alpha_nat \\ alpha_bndy     1     5" in text
    (runs / "1-5-1" / "classwise.csv").unlink()
    assert collect.main([f"runs={runs}", "where=split=validation"]) == 0
    grid = capsys.readouterr().out.split("worst-class natural error in percent, validation split\n")[1].splitlines()
    assert [line.split() for line in grid[2:4]] == [["1", "43.0", "43.0"], ["5", "39.0", "39.0"]]  # seed 0 alone
    table = pd.read_csv(out)
    assert len(table) == 8 * 2 * 2  # runs, splits, before and after
    assert {"run_id", "alpha_nat", "when", "worst_class_robust_error_name"} <= set(table.columns)


def test_collect_keeps_data_sets_and_recipes_apart_and_leaves_published_tables_alone(tmp_path, capsys):
    everything = [
        row
        for nat, bndy, recipe, dataset in itertools.product((1, 5), (1, 5), ("report", "paper"), ("a", "b"))
        for row in run_rows(nat, bndy, recipe=recipe)
        for row in [{**row, "dataset": dataset, "run_id": f"{dataset}-{row['run_id']}"}]
    ]
    other = run_rows(1, 2, seed=1)
    published = run_rows(1, 2, seed=1, gain=(0, 0))  # the run of `other` with other numbers
    for name, rows in (("all", everything), ("other", other), ("reference", published)):
        (tmp_path / name).mkdir()
        writing.write_table(tmp_path / name / "classwise.csv", rows, schema.CLASSWISE_HEADER)
    assert collect.main([f"runs={tmp_path}"]) == 0
    text = capsys.readouterr().out
    titles = [line.split(" split")[0] for line in text.splitlines() if "mean (sd)" in line]
    datasets = [name for name in ("a", "b", "fashion_mnist") for _ in range(2)]
    assert [title.split(",")[0] for title in titles] == datasets
    assert text.count("validation split, recipe paper\n") == text.count("validation split, recipe report\n") == 4

    assert collect.main([f"runs={tmp_path / 'reference'}"]) == 0
    assert collect.main([f"runs={tmp_path},{tmp_path / 'reference'}"]) == 1
    assert "has different numbers for the same class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("run=x", "unknown key 'run', did you mean 'runs'?"),
        ("runs=/nowhere", "nothing found at '/nowhere'"),
        ("where=alpha=1", "where='alpha=1': expected column=value"),
        ("epsilon=7", "epsilon=7 is outside [0, 1]"),
    ],
)
def test_collect_refuses_in_one_line(runs, capsys, argument, message):
    arguments = [argument] if argument.startswith("run") else [f"runs={runs}", argument]
    assert collect.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_collect_help_names_every_key(capsys):
    assert collect.main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("runs", "epsilon", "attack", "where", "out"):
        assert f"\n  {word}" in text


@pytest.mark.parametrize(
    ("runs", "variants"),
    [
        # (seed, split_seed) of each run: alike where each seed has a split of its own, or where all share one.
        ([(10, 10), (11, 11)], {""}),
        ([(0, 0), (1, 0), (2, 0)], {""}),
        ([(0, 0), (1, 0), (1, 1), (2, 2)], {"split_seed=0", "split_seed=seed"}),
        ([(0, 1), (1, 2)], {"split_seed=1", "split_seed=2"}),
    ],
)
def test_a_split_drawn_by_the_runs_own_seed_is_no_setting(tmp_path, runs, variants):
    for seed, split_seed in runs:
        run_id = f"run{seed}-{split_seed}"
        folder = tmp_path / run_id
        folder.mkdir()
        rows = make_rows("adversarial", seed=seed, run_id=run_id)
        writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_COLUMNS)
        config = {"dataset": {"name": "fashion_mnist", "split_seed": split_seed}}
        writing.write_json(folder / "run.json", {"run_id": run_id, "config": config})
    files = reading.find_tables(tmp_path)
    table = with_variants(reading.read_classwise(files), files)
    assert set(table["variant"]) == variants
    assert table["settings"].nunique() == len(variants)
    own = table[table["seed"] == table["run_id"].str.rsplit("-").str[-1].astype(int)]
    assert own.groupby("variant")["seed"].nunique().sum() == own["seed"].nunique()
