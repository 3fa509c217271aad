"""The registered study on the page: effects first, no verdict before the last run, and no part in the first study."""

import csv

import pytest

from frl_repro.commands import report
from frl_repro.results.registration import CELLS, SEEDS
from frl_repro.results.report.registered import load_registered
from frl_repro.results.report.registered_page import forest_numbers, summary, verdict_rows
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
    said = summary(study, answers)
    assert said.progress == "150 of 150 registered runs stand."
    assert said.sentences[0] == "reproduced: 1, 2, 3, 4, 5m; contradicted: 4b; mixed: 5."
    assert "\N{MINUS SIGN}12.1 [" in said.sentences[1]
    write_study(tmp_path, seeds=SEEDS[:3], outcomes=False)
    part = load_registered(tmp_path)
    said = summary(part, part.judge())
    assert said.progress.startswith(f"{3 * len(CELLS)} of 150 registered runs stand: no verdict is given before")
    assert not any("reproduced" in sentence for sentence in said.sentences)


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


def test_the_table_of_verdicts_holds_every_criterion(whole):
    rows = verdict_rows(whole[1])
    deciding = [row for row in rows if row["decides"]]
    assert len(deciding) == 29
    assert {row["outcome"] for row in deciding} >= {"holds", "opposite"}
    first = next(row for row in deciding if row["criterion"].endswith("natural error: reweight 5:1 below base"))
    assert (first["verdict"], first["unit"], len(first["values"].split())) == ("reproduced", "points", 10)


def test_the_page_shows_both_studies_and_neither_changes_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "_FIGURES", ())
    runs = tmp_path / "runs"
    runs.mkdir()
    write_first_study(runs)
    assert report.main([f"runs={runs}", f"out={tmp_path / 'alone'}"]) == 0
    write_study(runs / "registered", seeds=SEEDS[:3], outcomes=False)
    capsys.readouterr()
    assert report.main([f"runs={runs}", f"out={tmp_path / 'both'}"]) == 0
    assert "question 3: INCOMPLETE." in capsys.readouterr().out
    assert (tmp_path / "both/claims.csv").read_bytes() == (tmp_path / "alone/claims.csv").read_bytes()
    page = (tmp_path / "both/report.html").read_text(encoding="utf-8")
    assert page.index("What the registered study found") < page.index("The first study: seeds 0 to 2")
    assert "45 of 150 registered runs stand" in page
    assert 'id="forest' in page or "forest-" in page
    assert (
        "registered"
        not in (tmp_path / "alone/report.html").read_text(encoding="utf-8").lower().split("<main>")[1][:2000]
    )
    with (tmp_path / "both/verdicts.csv").open(newline="", encoding="utf-8") as opened:
        assert {row["verdict"] for row in csv.DictReader(opened)} == {"incomplete"}
    assert not (tmp_path / "alone/verdicts.csv").exists()
