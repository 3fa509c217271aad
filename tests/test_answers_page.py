"""The registered study on the page: effects first, no verdict before the last run, and no part in the first study."""

import csv
from dataclasses import replace

import pytest

from frl_repro.commands import report
from frl_repro.results.registration import CELLS, SEEDS
from frl_repro.results.report.answers_page import forest, forest_numbers, registered_section, verdict_rows
from frl_repro.results.report.registered import load_registered
from support import write_study as write_first_study
from test_registration import write_study


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_study(root, outcomes=False)
    study = load_registered(root)
    return study, study.judge()


def test_sentences_give_verdicts_only_of_a_whole_study(whole, tmp_path):
    study, answers = whole
    said = registered_section(study, answers, ["0123456789"])
    assert said.progress == "150 of 150 registered runs are finished."
    assert said.sentences[0] == "Questions 1, 2, 3, 4, 5m: reproduced; question 4b: contradicted; question 5: mixed."
    assert said.origin.endswith("the runs were made by commits 0123456.")
    assert "\N{MINUS SIGN}12.1 [" in said.sentences[1]
    write_study(tmp_path, seeds=SEEDS[:3], outcomes=False)
    part = load_registered(tmp_path)
    said = registered_section(part, part.judge(), [])
    assert said.progress.startswith(f"{3 * len(CELLS)} of 150 registered runs are finished. Until the last one")
    assert not any("reproduced" in sentence for sentence in said.sentences)


def test_the_class_that_pays_most_is_named_with_its_rise(whole):
    study, answers = whole
    rows = study.rows.copy()
    paying = (rows["role"] == "reweight 5:1") & (rows["class_name"] == "bag") & (rows["split"] == "test")
    rows.loc[paying, ["natural_error", "robust_error"]] += 0.1
    said = registered_section(replace(study, rows=rows), answers, []).sentences[-1]
    assert said.startswith(
        'The class that pays most, against equal weights: "bag" +10.0 [10.0, 10.0] points (natural), '
    )
    assert said.endswith("(robust at 16/255). 10 seeds.")


def test_every_difference_stands_on_one_axis_in_points(whole):
    _, answers = whole
    numbers = forest_numbers(answers)
    falls = numbers[numbers["comparison"] == "worst class: reweight 5:1 \N{MINUS SIGN} base"]
    assert falls["quantity"].tolist() == ["natural", "8/255", "16/255"]
    # Errors of 480, 690 and 880 of 1,000 images fall by 120, a few more or less by seed.
    assert falls["estimate"].tolist() == pytest.approx([-12.1] * 3, abs=0.3)
    assert set(numbers["num_seeds"]) == {10}
    assert numbers["comparison"].str.startswith("all classes: ").any()  # who pays
    assert not numbers["comparison"].str.contains("ERROR|error").any()
    assert numbers.loc[numbers["comparison"].str.startswith("adversarial"), "threshold"].unique().tolist() == [5.0]


def test_the_forest_prints_every_difference_with_its_interval(whole):
    answers = whole[1]
    texts = [text.get_text() for text in forest(answers).axes[0].texts]
    numbers = forest_numbers(answers).drop_duplicates(["question", "comparison", "quantity", "estimate"])
    assert len(texts) == len(numbers)
    first = numbers[numbers["comparison"] == "worst class: reweight 5:1 \N{MINUS SIGN} base"].iloc[0]
    said = f"{first['estimate']:+.1f} [{first['low']:.1f}, {first['high']:.1f}]"
    assert said.replace("-", "\N{MINUS SIGN}") in texts


def test_the_table_of_verdicts_holds_every_criterion(whole):
    rows = verdict_rows(whole[1])
    deciding = [row for row in rows if row["decides"]]
    assert len(deciding) == 29
    assert {row["outcome"] for row in deciding} >= {"holds", "opposite"}
    first = next(row for row in deciding if row["criterion"].endswith("natural error: reweight 5:1 below base"))
    assert (first["verdict"], first["unit"], len(first["values"].split())) == ("reproduced", "points", 10)


def test_the_page_shows_registered_runs_alone_where_there_are_any(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "_FIGURES", ())
    runs = tmp_path / "runs"
    runs.mkdir()
    write_first_study(runs)
    assert report.main([f"runs={runs}", f"out={tmp_path / 'alone'}"]) == 0
    assert "question 3: EXPLORATORY." in capsys.readouterr().out
    with (tmp_path / "alone/verdicts.csv").open(newline="", encoding="utf-8") as opened:
        assert {row["verdict"] for row in csv.DictReader(opened)} == {"exploratory"}
    write_study(runs / "registered", seeds=SEEDS[:3], outcomes=False)
    assert report.main([f"runs={runs}", f"out={tmp_path / 'both'}"]) == 0
    printed = capsys.readouterr().out
    assert "question 3: INCOMPLETE." in printed
    num_others = len(list(runs.glob("*/classwise.csv")))
    assert f"left out: {num_others} tables of no registered run" in printed
    page = (tmp_path / "both/report.html").read_text(encoding="utf-8")
    assert "What the registered study found" in page
    assert "45 of 150 registered runs are finished" in page
    assert "forest-" in page
    assert "What these runs show" in (tmp_path / "alone/report.html").read_text(encoding="utf-8")
    with (tmp_path / "both/verdicts.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["verdict"] for row in rows} == {"incomplete"}
    assert {row["num_seeds"] for row in rows} == {"3"}  # none of the others' seeds
