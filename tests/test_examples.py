"""Example images: kept by a measurement, drawn, refused."""

import dataclasses
import io
import types

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from safetensors.numpy import save_file

from frl_repro.basics.errors import UserError
from frl_repro.commands import plot, report
from frl_repro.evaluation.measure import worst_and_best_class
from frl_repro.results.figures import IMAGE_FIGURES
from frl_repro.results.figures.examples import examples_figure, examples_numbers
from frl_repro.results.figures.style import paper_style
from frl_repro.results.tables.examples import EXAMPLES_FILE, read_examples, write_examples
from support import ABOUT_EXAMPLES, two_examples


def test_examples_come_back_and_equal_ones_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_examples(tmp_path / name, two_examples())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_examples(tmp_path / "a")
    assert read.about == ABOUT_EXAMPLES
    np.testing.assert_array_equal(read.attacked, two_examples().attacked)
    np.testing.assert_array_equal(read.attacked_predictions, [1, 1])


def test_other_files_are_refused(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "x")
    with pytest.raises(UserError, match="holds no examples"):
        read_examples(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot read"):
        read_examples(tmp_path / "y")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_figure_shows_images_and_predictions(channels):
    figure = examples_figure(two_examples(channels))
    rows = np.reshape(figure.axes, (2, 3))
    shown = rows[0, 0].images[0].get_array()
    np.testing.assert_allclose(
        shown if channels == 3 else shown[..., None], two_examples(channels).clean[0].transpose(1, 2, 0)
    )
    assert [axes.get_title() for axes in rows[0]] == ["“Shirt”", "perturbation", "“Bag”"]
    assert rows[0, 2].title.get_color() != rows[1, 2].title.get_color() == "black"  # fooled, not fooled
    perturbation = np.asarray(rows[0, 1].images[0].get_array())
    change = (two_examples(channels).attacked[0] - two_examples(channels).clean[0]).transpose(1, 2, 0)
    np.testing.assert_allclose(
        perturbation if channels == 3 else perturbation[..., None], change * 255 / 32 + 0.5, atol=1e-6
    )
    assert any("16/255" in text.get_text() for text in figure.findobj(Text))


def test_logits_that_are_not_finite_are_called_no_class():
    examples = dataclasses.replace(two_examples(), attacked_predictions=np.array([-1, -1]))
    assert examples_numbers(examples)["predicted_after"].tolist() == ["no class", "no class"]
    titles = [axes.get_title() for axes in examples_figure(examples).axes]
    assert titles.count("“no class”") == 2


def test_every_text_stays_on_the_page():
    figure = examples_figure(two_examples())
    with paper_style():
        figure.savefig(io.BytesIO(), format="png", dpi=figure.dpi)  # the layout is settled while drawing
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert figure.bbox.x0 - 1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1, text
            assert figure.bbox.y0 - 1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1, text


def test_the_numbers_say_it_in_words():
    assert examples_numbers(two_examples()).to_dict("records") == [
        {"class_name": "Shirt", "predicted_before": "Shirt", "predicted_after": "Bag"},
        {"class_name": "Bag", "predicted_before": "Bag", "predicted_after": "Bag"},
    ]


@pytest.fixture
def kept(tmp_path):
    """A folder of a measurement that kept images."""
    folder = tmp_path / "kept" / "a"
    folder.mkdir(parents=True)
    write_examples(folder / EXAMPLES_FILE, two_examples())
    return folder


def test_the_command_draws_them(kept, tmp_path, capsys):
    assert IMAGE_FIGURES["examples"].file == EXAMPLES_FILE
    for runs in (kept.parent, kept / EXAMPLES_FILE):
        out = tmp_path / f"of {runs.name}"
        assert plot.main(["figure=examples", f"runs={runs}", f"out={out}", "formats=png"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"wrote {out / name}" for name in ("examples.png", "examples.csv")
        ]
        assert (out / "examples.csv").read_text().splitlines() == [
            "class_name,predicted_before,predicted_after", "Shirt,Shirt,Bag", "Bag,Bag,Bag",
        ]  # fmt: skip
        assert (out / "examples.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_and_the_report_write_the_same_bytes(kept, tmp_path, capsys):
    assert plot.main(["figure=examples", f"runs={kept}", f"out={tmp_path / 'o'}"]) == 0
    study = types.SimpleNamespace(is_about=lambda about: about == ABOUT_EXAMPLES)
    _, written = report._examples(str(kept.parent), study, tmp_path / "report")
    names = ["examples.png", "examples.svg", "examples.pdf"]
    assert written == [tmp_path / "report" / kept.name / name for name in names]  # nothing beside the runs
    for path in written:
        assert path.read_bytes() == (tmp_path / "o" / path.name).read_bytes(), path.name
    capsys.readouterr()


@pytest.mark.parametrize("key", ["epsilon=8/255", "where=seed=0", "attack=pgd-20", "table=true"])
def test_the_command_refuses_keys_that_choose_rows_of_tables(kept, tmp_path, capsys, key):
    assert plot.main(["figure=examples", f"runs={kept}", f"out={tmp_path / 'o'}", key]) == 1
    assert capsys.readouterr().err.startswith(f"error: {key.split('=')[0]}= has no effect with figure=examples: ")
    assert not (tmp_path / "o").exists()


def test_the_command_says_how_to_keep_some_and_which_to_choose(kept, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert plot.main(["figure=examples", f"runs={tmp_path / 'none'}", f"out={tmp_path / 'o'}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: no {EXAMPLES_FILE} under ")
    assert message.endswith("keep one with `python scripts/evaluate.py checkpoint=FILE num_examples=2`\n")
    other = kept.with_name("b")
    other.mkdir()
    write_examples(other / EXAMPLES_FILE, two_examples())
    assert plot.main(["figure=examples", f"runs={kept.parent}", f"out={tmp_path / 'o'}"]) == 1
    expected = f"error: figure=examples shows one {EXAMPLES_FILE}, there are 2: runs= one of {kept}, {other}\n"
    assert capsys.readouterr().err == expected


def test_colour_perturbations_are_not_called_white_and_black():
    assert "perturbation: white +ε, black -ε, grey none" in examples_figure(two_examples(1)).get_suptitle()
    assert "perturbation: each channel bright +ε, dark -ε, grey none" in examples_figure(two_examples(3)).get_suptitle()


@pytest.mark.parametrize(
    ("errors", "ends"),
    [([0.2, 0.9, 0.1], (1, 2)), ([1.0, 1.0, 1.0], (0, 1)), ([0.0, 0.0], (0, 1)), ([1, 0, 0], (0, 1))],
)
def test_the_best_class_is_another_than_the_worst_even_where_all_are_alike(errors, ends):
    assert worst_and_best_class(torch.tensor(errors, dtype=torch.float64)) == ends
