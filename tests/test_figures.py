"""Figure 1 shows the table's numbers, reads well enough to test for, and comes out byte for byte the same."""

import io
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from frl_repro.basics.errors import UserError
from frl_repro.commands import plot
from frl_repro.results.figures import FIGURES, IMAGE_FIGURES, style
from frl_repro.results.figures.figure1 import figure1, figure1_numbers
from frl_repro.results.tables import schema, writing
from support import EPSILON, ERRORS, NAMES, ROOT, bars, make_rows


# Per class of 1,000: the report's worst class, an easy one and one between; columns natural and robust errors.
def frame(*parts):
    return pd.DataFrame([row for part in parts for row in part])


@pytest.fixture
def one_seed():
    return frame(make_rows("natural"), make_rows("adversarial"))


@pytest.fixture
def three_seeds():
    return frame(*(make_rows(m, seed=s, shift=10 * s) for m in ERRORS for s in range(3)))


@pytest.fixture
def runs(tmp_path, one_seed):
    """A folder of two runs, as training leaves them."""
    for run_id, rows in one_seed.groupby("run_id"):
        folder = tmp_path / "runs" / run_id
        folder.mkdir(parents=True)
        writing.write_table(folder / "classwise.csv", rows.to_dict("records"), schema.CLASSWISE_COLUMNS)
    return tmp_path / "runs"


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_bars_are_the_tables_errors(one_seed):
    figure = figure1(one_seed, epsilon=EPSILON)
    natural, adversarial = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["Natural training", "Adversarial training"]
    assert bars(natural) == [[0.32, 0.03, 0.04], [1.0, 0.96, 0.86]]
    assert bars(adversarial) == [[0.44, 0.04, 0.03], [0.89, 0.12, 0.09]]
    assert [label.get_text() for label in natural.get_yticklabels()] == NAMES
    assert natural.get_xlim() == (0, 1)
    assert "Test split, PGD-20, ε = 16/255, 1 seed" in texts(figure)


def test_lines_stand_at_the_overall_errors_and_stars_at_the_worst_class(one_seed):
    figure = figure1(one_seed, epsilon=EPSILON)
    adversarial = figure.axes[1]
    vertical = [line.get_xdata()[0] for line in adversarial.lines if list(line.get_ydata()) == [0, 1]]
    assert vertical == pytest.approx([510 / 3000, 1100 / 3000])
    stars = [line for line in adversarial.lines if line.get_marker() == "*"]
    assert [np.round(line.get_ydata()).tolist() for line in stars] == [[0], [0]]  # Shirt, for either quantity


def test_all_classes_that_tie_for_worst_are_marked(one_seed):
    df = frame(make_rows("natural", errors=[(10, 1000), (20, 1000), (20, 900)]), make_rows("adversarial"))
    stars = [line for line in figure1(df, epsilon=EPSILON).axes[0].lines if line.get_marker() == "*"]
    assert [np.round(line.get_ydata()).tolist() for line in stars] == [[1, 2], [0, 1]]


def test_numbers_of_a_single_seed_have_no_spread(one_seed):
    numbers = figure1_numbers(one_seed, epsilon=EPSILON)
    assert list(numbers.columns) == ["method", "quantity", "class_id", "class_name", "mean", "sd", "num_seeds"]
    assert numbers["sd"].isna().all()
    assert set(numbers["num_seeds"]) == {1}
    assert len(numbers) == 2 * 2 * (3 + 1)


def test_numbers_of_several_seeds_are_mean_and_sample_deviation(three_seeds):
    numbers = figure1_numbers(three_seeds, epsilon=EPSILON).set_index(["method", "quantity", "class_name"])
    shirt = numbers.loc[("adversarial", "robust", "Shirt")]
    assert shirt["mean"] == pytest.approx(0.90)
    assert shirt["sd"] == pytest.approx(0.01)
    assert shirt["num_seeds"] == 3
    assert numbers.loc[("natural", "robust", "Shirt"), "sd"] == 0
    whole = numbers.loc[("adversarial", "natural", "overall")]
    assert (whole["mean"], whole["sd"]) == pytest.approx((0.18, 0.01))
    assert pd.isna(whole["class_id"])


def test_several_seeds_show_spread_and_single_seeds(three_seeds):
    figure = figure1(three_seeds, epsilon=EPSILON)
    adversarial = figure.axes[1]
    np.testing.assert_allclose(bars(adversarial), [[0.45, 0.05, 0.04], [0.90, 0.13, 0.10]])
    dots = [line for line in adversarial.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(sorted(dots[0].get_xdata()), [0.03, 0.04, 0.04, 0.05, 0.05, 0.06, 0.44, 0.45, 0.46])
    whiskers = [c for c in adversarial.containers if not hasattr(c, "patches")]
    np.testing.assert_allclose(whiskers[0].lines[2][0].get_segments()[0][:, 0], [0.44, 0.46])
    assert any("3 seeds\nbars: mean, whiskers: ± 1 sd, dots: single seeds" in text for text in texts(figure))


def test_a_single_seed_shows_neither_whiskers_nor_dots(one_seed):
    natural = figure1(one_seed, epsilon=EPSILON).axes[0]
    assert len(natural.containers) == 2
    assert "o" not in [line.get_marker() for line in natural.lines]


def test_panels_may_have_different_numbers_of_seeds():
    df = frame(make_rows("natural"), make_rows("adversarial"), make_rows("adversarial", seed=1, shift=10))
    figure = figure1(df, epsilon=EPSILON)
    assert any("1 and 2 seeds" in text for text in texts(figure))


def test_only_the_last_epoch_the_test_split_and_the_two_methods_count(one_seed):
    df = frame(
        one_seed.to_dict("records"),
        make_rows("natural", epoch=14, shift=10),
        make_rows("natural", split="validation", epoch=16, shift=10),
        make_rows("natural", epsilon=8 / 255, shift=10),
        [{**row, "method": "reweight"} for row in make_rows("adversarial", run_id="reweight-0", shift=10)],
    )
    pd.testing.assert_frame_equal(figure1_numbers(df, epsilon=EPSILON), figure1_numbers(one_seed, epsilon=EPSILON))


@pytest.mark.parametrize("num_classes", [2, 17])
def test_any_number_of_classes_keeps_every_text_on_the_page(num_classes):
    names = [f"a class with a long name {i}" for i in range(num_classes)]
    errors = [(10 * i, 20 * i) for i in range(num_classes)]
    df = frame(*(make_rows(m, seed=s, errors=errors, names=names) for m in ERRORS for s in range(2)))
    figure = figure1(df, epsilon=EPSILON)
    with style.paper_style():
        figure.savefig(io.BytesIO(), format="png", dpi=figure.dpi)  # the layout is settled while drawing
    assert [len(widths) for widths in bars(figure.axes[0])] == [num_classes] * 2
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(set(labels)) == num_classes  # shortened names can still be told apart
    page = figure.bbox
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 >= page.x0 - 1, text
            assert box.x1 <= page.x1 + 1, text
            assert text.get_fontsize() >= 6.5


def test_figure_has_a_columns_width(one_seed):
    assert figure1(one_seed, epsilon=EPSILON).get_figwidth() == style.COLUMN_WIDTH == 3.4


def test_redrawing_gives_the_same_bytes(tmp_path, three_seeds):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        style.save(figure1(three_seeds, epsilon=EPSILON), folder, "f", ["svg", "png"])
    for name in ("f.svg", "f.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert sorted(path.name for path in first.iterdir()) == ["f.png", "f.svg"]


def test_style_leaves_the_users_settings_alone(one_seed):
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        figure = figure1(one_seed, epsilon=EPSILON)
        assert mpl.rcParams["font.size"] == 30
    assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([make_rows("natural")], "no model with method='adversarial', .*`python train.py -m experiment=exp1`"),
        ([make_rows("adversarial")], "no model with method='natural'"),
        (
            [make_rows("natural", dataset="cifar10"), make_rows("adversarial")],
            "one dataset, the tables have cifar10, fashion_mnist",
        ),
        ([make_rows("natural", model="wrn"), make_rows("adversarial")], "one model, the tables have lenet5, wrn"),
        (
            [make_rows("natural"), make_rows("adversarial"), make_rows("adversarial", attack="fgsm", epsilon=EPSILON)],
            "several attacks, fgsm, pgd-20: choose one with attack=",
        ),
        (
            [make_rows("natural"), make_rows("natural", run_id="demo"), make_rows("adversarial")],
            r"'natural' has several runs with seed 0 \(demo, natural-0\): narrow runs=",
        ),
        (
            [make_rows("natural"), make_rows("natural", seed=1, epoch=3), make_rows("adversarial")],
            r"'natural' end at different epochs \(natural-0 at 15, natural-1 at 3\)",
        ),
        (
            [make_rows("natural", names=["a", "b", "c"]), make_rows("adversarial")],
            "the runs do not share the same classes",
        ),
        (
            [make_rows("natural", names=["Shirt"], errors=[(1, 2)]), make_rows("adversarial")],
            "the runs do not share the same classes",
        ),
        (
            [make_rows("natural"), make_rows("adversarial", epsilon=8 / 255)],
            "method 'adversarial' was not evaluated at epsilon=16/255",
        ),
        (
            [make_rows("natural", split="validation"), make_rows("adversarial", split="validation")],
            "no rows with split='test'; the tables have validation",
        ),
    ],
)
def test_figure1_says_what_it_cannot_show(parts, message):
    with pytest.raises(UserError, match=message):
        figure1(frame(*parts), epsilon=EPSILON)


def test_figure1_chooses_among_attacks(one_seed):
    df = frame(one_seed.to_dict("records"), *(make_rows(m, attack="fgsm", shift=-10) for m in ERRORS))
    assert bars(figure1(df, epsilon=EPSILON, attack="fgsm").axes[1])[0] == [0.43, 0.03, 0.02]
    with pytest.raises(UserError, match="no rows with attack='pgd'; the tables have fgsm, pgd-20"):
        figure1(df, epsilon=EPSILON, attack="pgd")


def test_command_writes_the_figure_and_its_numbers(runs, tmp_path, capsys):
    out = tmp_path / "new" / "figures"
    assert plot.main(["figure=1", f"runs={runs}", f"out={out}", "table=true"]) == 0
    printed = capsys.readouterr()
    names = ["figure1.png", "figure1.svg", "figure1.pdf", "figure1.csv"]
    assert printed.out.splitlines()[-4:] == [f"wrote {out / name}" for name in names]
    assert "adversarial-0: errors in percent" in printed.out
    assert printed.err == ""
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert (out / "figure1.csv").read_text().splitlines()[:5] == [
        "method,quantity,class_id,class_name,mean,sd,num_seeds",
        "natural,natural,0,Shirt,0.32,,1",
        "natural,natural,1,Bag,0.03,,1",
        "natural,natural,2,Trouser,0.04,,1",
        "natural,natural,,overall,0.13,,1",
    ]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert plot.main(["figure=1", f"runs={runs}", f"out={out}"]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_command_draws_the_largest_epsilon_unless_told(tmp_path, capsys):
    rows = [row for m in ERRORS for e in (8, 16) for row in make_rows(m, epsilon=e / 255, shift=e)]
    writing.write_table(tmp_path / "classwise.csv", rows, schema.CLASSWISE_COLUMNS)
    shirt = {}
    for extra in ([], ["epsilon=8/255"]):
        assert plot.main(["figure=1", f"runs={tmp_path}", f"out={tmp_path / 'o'}", "formats=svg,svg", *extra]) == 0
        shirt[len(extra)] = (tmp_path / "o" / "figure1.csv").read_text().splitlines()[1]
    assert shirt == {0: "natural,natural,0,Shirt,0.336,,1", 1: "natural,natural,0,Shirt,0.328,,1"}
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["figure1.csv", "figure1.svg"]
    capsys.readouterr()


@pytest.mark.parametrize("arguments", [["--help"], ["figure=1", "-h"]])
def test_help_shows_every_key_figure_and_examples(arguments, capsys):
    assert plot.main(arguments) == 0
    text = capsys.readouterr().out
    for word in ("figure", "runs", "epsilon", "attack", "out", "formats", "table"):
        assert f"\n  {word}" in text
    for name in (*FIGURES, *IMAGE_FIGURES):
        assert f"figure={name}" in text
    assert "figure=1 runs=outputs/reference" in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("run=outputs", "unknown key 'run', did you mean 'runs'?; keys are figure, runs, "),
        ("--figure=1", "unknown key '--figure', did you mean 'figure'?"),
        ("runs", "'runs' is not of the form key=value; keys are "),
        ("runs=", "runs= has no value; it takes: folder"),
        ("figure=2", "figure= is given twice"),
        ("epsilon=abc", "epsilon=abc: 'abc' is not a number"),
        ("epsilon=8", "epsilon=8 is outside [0, 1]: give it in pixel units, for example 8/255"),
        ("epsilon=4/255", "no rows with epsilon=4/255; the tables have 16/255"),
        ("attack=pgd", "no rows with attack='pgd'; the tables have pgd-20"),
        ("formats=png,svgg", "formats=svgg is unknown, did you mean 'svg'?; known: png, svg, pdf"),
        ("table=yes", "table=yes is unknown; known: true, false"),
        ("runs=/nowhere", "nothing found at '/nowhere'"),
    ],
)
def test_command_refuses_in_one_line(runs, tmp_path, capsys, argument, message):
    arguments = ["figure=1", *([] if argument.startswith("runs") else [f"runs={runs}"]), argument]
    assert plot.main([*arguments, f"out={tmp_path / 'o'}"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "o").exists()


def test_command_refuses_an_unknown_figure(capsys):
    assert plot.main(["figure=12"]) == 1
    known = "1, 2, 3, 4, grid, trajectory, settings, tradeoff, theory, examples"
    assert capsys.readouterr().err == f"error: figure=12 is unknown, did you mean '2'?; known: {known}\n"


def test_the_published_figure_is_redrawn_from_the_published_tables(tmp_path, capsys):
    reference = ROOT / "outputs" / "reference"
    assert plot.main([f"runs={reference / 'registered'}", f"out={tmp_path}"]) == 0
    assert (tmp_path / "figure1.csv").read_text() == (reference / "figures" / "figure1.csv").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".svg", ".pdf", ".csv"}
    capsys.readouterr()


def test_command_reports_an_unwritable_folder(runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert plot.main(["figure=1", f"runs={runs}", f"out={tmp_path / 'file' / 'o'}"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_script_runs_by_path_from_elsewhere_with_relative_runs(runs, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "plot.py", "figure=1", "runs=runs", "formats=svg"]
    done = subprocess.run(command, cwd=runs.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "outputs" / "figures" / "figure1.svg").is_file()


def test_figures_need_neither_torch_nor_hydra_and_help_needs_no_pandas():
    code = (
        "import sys, frl_repro.commands.plot, frl_repro.results.figures\n"
        "assert frl_repro.commands.plot.main(['--help']) == 0\n"
        "assert not {'pandas', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "import frl_repro.results.tables.reading, frl_repro.results.figures.style, frl_repro.results.figures.figure1\n"
        "assert not {'torch', 'torchvision', 'hydra', 'omegaconf', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("chosen", "backend"), [("no_such_backend", None), ("svg", "svg")])
def test_figures_are_drawn_whatever_backend_the_environment_names(chosen, backend, tmp_path):
    code = (
        "import os, frl_repro.results.figures, matplotlib as mpl; from matplotlib.figure import Figure\n"
        "from frl_repro.results.figures.style import save\n"
        "save(Figure(), '.', 'drawn', ('svg',))\n"
        "print(os.environ['MPLBACKEND'], mpl.get_backend(auto_select=False))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": chosen}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{chosen} {backend}\n", "")
    assert (tmp_path / "drawn.svg").is_file()


def test_names_are_shown_as_they_are(tmp_path):
    names = ["US$ 5 to $ 10", "_background", r"$\frac$"]
    figure = figure1(frame(make_rows("natural", names=names), make_rows("adversarial", names=names)), epsilon=EPSILON)
    (path,) = style.save(figure, tmp_path, "figure", ["svg"])
    svg = path.read_text(encoding="utf-8")
    for name in names:
        assert f"<!-- {name} -->" in svg  # matplotlib writes what a text shows before its outlines


def test_a_legend_names_what_begins_with_an_underscore():
    figure = Figure()
    style.add_legend(figure, [Line2D([], [], label=name) for name in ("_cat", "_", "dog")], num_columns=3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["_cat", "_", "dog"]


def test_shortened_names_stay_apart():
    names = ["2019_left_lateral_a_benign", "2019_left_lateral_b_benign", "short", "2019_left_lateral_b_benign!"]
    labels = style.shortened(names)
    assert len(set(labels)) == 4
    assert max(map(len, labels)) <= 18
    assert labels[2] == "short"
    same = ["x" * 40 + str(k) + "y" * 40 for k in range(30)]
    assert len(set(style.shortened(same))) == 30
    assert style.shortened(["a\x1bb\nc"]) == [r"a\x1bb\nc"]


def test_characters_that_no_font_has_are_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(style, "_fonts_with", lambda missing: ((), missing))
    monkeypatch.setattr(style, "_told", set())
    names = ["猫", "犬", "Bag"]
    style.save(figure1(frame(make_rows("natural", names=names), make_rows("adversarial", names=names)),
                       epsilon=EPSILON), tmp_path, "figure")  # fmt: skip
    (message,) = [record.getMessage() for record in caplog.records if record.name == style.LOGGER.name]
    assert message.startswith("no installed font has 犬 猫: boxes stand for them in figures")


def test_of_many_classes_the_worst_and_the_best_are_drawn():
    names = [f"class {k:02d}" for k in range(60)]
    errors = [(10 * k, 10 * k + 100) for k in range(60)]
    df = frame(*(make_rows(m, seed=s, names=names, errors=errors) for m in ERRORS for s in range(2)))
    figure = figure1(df, epsilon=EPSILON, top=3)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["class 59", "class 58", "class 57", "(54 between, mean)", "class 02", "class 01", "class 00"]
    natural, _ = bars(figure.axes[0])
    assert natural[3] == pytest.approx(np.mean([0.01 * k for k in range(3, 57)]))
    assert "3 worst and 3 best of 60 classes, by adversarial robust error" in figure.get_suptitle()
    assert figure.get_size_inches()[1] < 4
    assert len(figure1_numbers(df, epsilon=EPSILON)) == 2 * 2 * 61  # the numbers are those of all
