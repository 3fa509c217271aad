"""Answers from anyone's runs, the documentation's tables and the HTML page, from small made-up tables."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from frl_repro.basics.errors import UserError
from frl_repro.commands import report
from frl_repro.results.report import answers_page, markdown
from frl_repro.results.report.autoattack import autoattack_grids
from frl_repro.results.report.page import Cell, Grid, alt_text
from frl_repro.results.report.study import load_study
from frl_repro.results.tables import reading, schema, writing
from frl_repro.results.tables.components import COMPONENT_COLUMNS, class_rows, component_rows
from frl_repro.results.tables.outcomes import Outcomes, write_outcomes
from support import EPSILON, NAMES, STUDY_AFTER, STUDY_BASE, STUDY_NATURAL, shifted, write_run, write_study

COUNT = 1000


@pytest.fixture
def runs(tmp_path):
    return write_study(tmp_path / "runs")


def change(path, **values):
    """Rewrite the row of the first class, test split, last epoch."""
    table = reading.read_classwise(path)
    last = table["epoch"] == table["epoch"].max()
    place = table.index[last & (table["split"] == "test") & (table["class_id"] == 0)]
    for name, value in values.items():
        table.loc[place, name] = value
    for quantity in ("natural", "boundary"):
        table[f"{quantity}_error"] = table[f"num_{quantity}_errors"] / table["count"]
    table["robust_error"] = (table["num_natural_errors"] + table["num_boundary_errors"]) / table["count"]
    writing.write_frame(path, table)


def evidence_of(study):
    """Every criterion that decides, by its text."""
    return {one.criterion.text: one for answer in study.judge() for one in answer.evidence}


def test_runs_that_nothing_registered_show_effects_and_get_no_verdict(runs):
    study = load_study(runs)
    assert {answer.verdict for answer in study.judge()} == {"exploratory"}
    found = evidence_of(study)
    falls = found["worst class's natural error: reweight 5:1 below base"]
    assert falls.seeds == (0, 1, 2)
    assert falls.over_seeds.estimate == pytest.approx(-0.12)
    assert falls.values == pytest.approx([-0.12] * 3)
    relative = found["relative change against the base: natural error below robust error at 16/255"].values
    assert relative[1] == pytest.approx((360 / 480 - 1) - (790 / 900 - 1))
    by_control = found["worst class's robust error at 16/255: remargin, chosen below equal margins"]
    assert by_control.values == pytest.approx([-0.025] * 3)
    gap = found[
        "adversarial training: worst class's robust error at 16/255 more than 5 points above that of all classes"
    ]
    assert gap.values[1] == pytest.approx(0.9 - (900 + 120 + 90) / 3000)
    assert found["worst class's robust error at 16/255: margins, chosen below reweight, chosen"].outcome == "not run"


@pytest.mark.parametrize(
    ("seed_effect", "outcome"),
    [([-30, -30, -31], "holds"), ([30, 30, 31], "opposite"), ([-90, 0, 60], "uncertain"), ([0, 1, 0], "no difference")],
)
def test_the_outcome_follows_the_interval_over_seeds(runs, seed_effect, outcome):
    for seed, effect in enumerate(seed_effect):
        natural, robust = shifted(STUDY_BASE, seed)[0]
        change(runs / f"remargin-None-None-5.0-{seed}" / "classwise.csv", num_boundary_errors=robust + effect - natural,
               num_natural_errors=natural)  # fmt: skip
    found = evidence_of(load_study(runs))
    assert found["worst class's robust error at 16/255: remargin, chosen below base"].outcome == outcome


def test_what_is_not_run_is_named_with_its_command(runs, tmp_path, capsys):
    for folder in {*runs.glob("*-2"), *runs.glob("combined*")}:
        (folder / "classwise.csv").unlink()
    answers = load_study(runs).judge()
    missing = answers_page.missing_runs(answers)
    assert missing["combined 5:1"] == (
        "train.py -m experiment=study frl=combined alpha.nat=5 alpha.bndy=1 alpha.margin=5 seed=0,1,2"
    )
    assert "reweight 5:1" not in missing
    assert "base" not in missing
    rows = answers_page.verdict_rows(answers)
    assert {row["num_seeds"] for row in rows} == {0, 2}


def test_held_back_images_name_each_models_class(runs):
    """On test images of one run another class is worse after retraining: the named class stays, the maximum moves."""
    path = runs / "reweight-5.0-1.0-None-0" / "classwise.csv"
    table = reading.read_classwise(path)
    of_other = (table["epoch"] == 10) & (table["split"] == "test") & (table["class_id"] == 1)
    table.loc[of_other, ["num_natural_errors", "num_boundary_errors"]] = [700, 250]
    table["natural_error"] = table["num_natural_errors"] / table["count"]
    table["boundary_error"] = table["num_boundary_errors"] / table["count"]
    table["robust_error"] = (table["num_natural_errors"] + table["num_boundary_errors"]) / table["count"]
    writing.write_frame(path, table)
    evidence = evidence_of(load_study(runs))["worst class's natural error: reweight 5:1 below base"]
    assert evidence.values[0] == pytest.approx(-0.12)
    assert evidence.of_maximum.estimate == pytest.approx((-0.12 - 0.12 + 0.70 - 0.477) / 3)


def test_without_held_back_images_test_errors_name_the_class_and_a_note_says_so(runs):
    assert not any("biased" in note for note in load_study(runs).notes)
    for path in runs.glob("*/classwise.csv"):
        table = reading.read_classwise(path)
        writing.write_frame(path, table[table["split"] == "test"])
    study = load_study(runs)
    assert "no images were held back" in study.notes[-1]
    found = evidence_of(study)["worst class's natural error: reweight 5:1 below base"]
    assert found.values == pytest.approx([found.of_maximum.estimate] * 3)


def test_a_setting_with_fewer_seeds_is_no_candidate_and_a_note_says_so(runs):
    better = [(300, 700), (60, 130), (40, 100)]
    write_run(runs, "reweight", better, seed=0, alphas=(5.0, 5.0, None), base=shifted(STUDY_BASE, 0))
    study = load_study(runs)
    assert study.settings["reweight, chosen"] == "reweight nat 5 bndy 1"
    assert study.settings["reweight 5:5"] == "reweight nat 5 bndy 5"
    assert study.notes == (
        "reweight, chosen: left out, with fewer seeds than reweight nat 5 bndy 1 (3): reweight nat 5 bndy 5 (1)",
    )
    for seed in (1, 2):
        write_run(runs, "reweight", better, seed=seed, alphas=(5.0, 5.0, None), base=shifted(STUDY_BASE, seed))
    study = load_study(runs)
    assert (study.settings["reweight, chosen"], study.notes) == ("reweight nat 5 bndy 5 (3 seeds)", ())


def outcome(errors, seed, generator):
    """Outcomes whose counts are ``errors``, on random images of each class."""
    natural, robust = np.zeros((2, len(errors), COUNT), dtype=bool)
    for class_id, (num_natural, num_robust) in enumerate(errors):
        order = generator.permutation(COUNT)
        natural[class_id, order[:num_natural]] = True
        robust[class_id, order[:num_robust]] = True
    labels = np.repeat(np.arange(len(errors)), COUNT)
    about = {"seed": seed, "method": "reweight"}
    return Outcomes(labels, natural.ravel(), {EPSILON: robust.ravel()}, about)


def test_runs_that_differ_in_the_seed_alone_share_their_settings_on_the_page(runs, tmp_path):
    for seed, (epochs, split) in enumerate([(10, "0"), (10, "1"), (12, "2")]):
        name = f"reweight-5.0-1.0-None-{seed}"
        config = {"seed": seed, "dataset": {"name": "d", "split_seed": int(split)}, "trainer": {"num_epochs": epochs}}
        about = {
            "run_id": f"reweight-seed{seed}-0{seed}",
            "config": config,
            "config_hash": "ab",
            "command": f"run {seed}",
        }
        (runs / name / "run.json").write_text(json.dumps(about))
    assert report.main([f"runs={runs}", f"out={tmp_path / 'out'}", "figures=false"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    section = page[page.index('id="runs-title"') : page.index("<script>")]
    assert "of the 3 runs behind this page" in section
    settings = re.findall(r"<summary><code>(.*?)</code>(.*?)</summary>", section)
    assert settings == [("reweight", " (2 runs)"), ("reweight-seed2-02", "")]
    assert all(section.count(f"<code>run {seed}</code>") == 1 for seed in range(3))


def test_outcomes_give_intervals_over_images_for_the_models_they_belong_to(runs):
    generator = np.random.default_rng(0)
    for seed in range(3):
        for name, errors in (("base", STUDY_BASE), ("reweight", STUDY_AFTER["reweight", 5.0, 1.0, None])):
            one = outcome(shifted(errors, seed), seed, generator)
            write_outcomes(runs / "models" / name / f"seed{seed}.outcomes.safetensors", one)
    write_outcomes(runs / "strange.outcomes.safetensors", outcome(STUDY_NATURAL, 5, generator))  # belongs to no model
    study = load_study(runs)
    # The adversarial models count the same errors as the bases here: their outcomes serve both.
    assert {role for role, _ in study.outcomes} == {"adversarial", "base", "reweight 5:1", "reweight, chosen"}
    found = evidence_of(study)
    interval = found["worst class's natural error: reweight 5:1 below base"].over_images
    # Independent images: the deviation of a mean of three differences of shares of 1,000.
    expected = np.sqrt((0.48 * 0.52 + 0.36 * 0.64) / COUNT / 3)
    assert interval.estimate == pytest.approx(-0.12)
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(expected, rel=0.15)
    assert found["worst class's robust error at 16/255: remargin, chosen below base"].over_images is None


def test_the_command_writes_page_and_answers_and_a_changed_number_changes_them(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "_FIGURES", report._FIGURES[1:2])  # each costs a second

    def written(name):
        assert report.main([f"runs={runs}", f"out={tmp_path / name}", "figures=false"]) == 0
        return (tmp_path / name / "report.html").read_text(encoding="utf-8")

    before = written("a")
    assert before == written("b")  # equal tables, equal bytes
    printed = capsys.readouterr().out
    assert "question 3: EXPLORATORY" in printed
    assert "-12.0 points [-12.0, -12.0], seeds 0, 1, 2" in printed
    assert "36.0 ± 0.3" in before  # reweight's natural error of the worst class
    change(runs / "reweight-5.0-1.0-None-1" / "classwise.csv", num_natural_errors=300)
    after = written("c")
    assert "36.0 ± 0.3" not in after
    assert "34.0 ± 3.5" in after
    assert not (tmp_path / "c" / "exp2").exists()  # figures=false
    table = pd.read_csv(tmp_path / "c" / "verdicts.csv")
    assert list(table.columns) == list(answers_page.VERDICT_COLUMNS)
    changed = table.loc[table["criterion"] == "worst class's natural error: reweight 5:1 below base", "estimate"]
    assert changed.tolist() == pytest.approx([round((360 + 300 + 360 - 3 * 480) / 30, 2)])


def add_autoattack(root):
    """PGD and AutoAttack on the adversarial model of seed 0: 3 classes, of which AutoAttack took 4 images each.

    Every image is wrong under PGD but the last of each class; AutoAttack breaks all but the first and the last, and
    Shirt's last.
    """
    about = {"run_id": "adversarial-None-None-None-0", "split": "test", "seed": 0, "method": "adversarial"}
    about |= {"recipe": None, "alpha_nat": None, "alpha_bndy": None, "alpha_margin": None}
    labels = np.repeat([0, 1, 2], 5)
    by_pgd = np.tile([True, True, True, True, False], 3)
    natural = np.tile([False, True, False, False, False], 3)
    whole = Outcomes(labels, natural, {EPSILON: by_pgd}, {**about, "attack": "pgd-20"})
    write_outcomes(root / "pgd.outcomes.safetensors", whole)
    codes = np.tile([0, 1, 2, 0], 3).astype(np.uint8)
    codes[3] = 3
    part = Outcomes(
        labels=np.repeat([0, 1, 2], 4),
        is_natural_error=codes == 1,
        is_robust_error={EPSILON: codes != 0},
        about={**about, "attack": "autoattack-12_images"},
        components=("apgd-ce", "square"),
        broken_by={EPSILON: codes},
        images=np.flatnonzero(np.arange(15) % 5 != 3),
    )
    folder = root / "autoattack"
    folder.mkdir()
    write_outcomes(folder / "outcomes.safetensors", part)
    keys = {name: part.about[name] for name in ("run_id", "split", "attack", "seed", "method", "recipe")}
    keys |= {"dataset": "fashion_mnist", "model": "lenet5", "epoch": 10}
    keys |= dict.fromkeys(("alpha_nat", "alpha_bndy", "alpha_margin"))
    writing.write_table(folder / "classwise.csv", class_rows(part, keys, NAMES), schema.CLASSWISE_HEADER)
    rows = component_rows(part, {**keys, "batch_size": 12, "attack_seed": 0}, NAMES)
    writing.write_table(folder / "autoattack.csv", rows, COMPONENT_COLUMNS)


def test_autoattack_stands_beside_pgd_and_changes_no_verdict(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_FIGURES", report._FIGURES[1:2])
    assert autoattack_grids(runs, load_study(runs)) == []
    assert report.main([f"runs={runs}", f"out={tmp_path / 'a'}", "figures=false"]) == 0
    add_autoattack(runs)
    (grid,) = autoattack_grids(runs, load_study(runs))
    assert grid.header == [
        "class", "images", "natural", "robust, PGD-20", "robust, AutoAttack", "broken by apgd-ce", "broken by square",
    ]  # fmt: skip
    cells = [[cell.text for cell in row] for row in [*grid.rows, grid.footer]]
    assert cells == [
        [NAMES[0], "4", "25.0", "75.0", "75.0", "1", "1"],
        [NAMES[1], "4", "25.0", "75.0", "50.0", "1", "0"],
        [NAMES[2], "4", "25.0", "75.0", "50.0", "1", "0"],
        ["all classes", "12", "25.0", "75.0", "58.3", "3", "1"],
    ]
    assert "12 of the test images: adversarial, seed 0" in grid.caption
    assert "breaks 1 images that PGD-20 does not break, and leaves standing 3 that PGD-20 breaks" in grid.caption
    assert report.main([f"runs={runs}", f"out={tmp_path / 'b'}", "figures=false"]) == 0
    assert (tmp_path / "a" / "verdicts.csv").read_bytes() == (tmp_path / "b" / "verdicts.csv").read_bytes()
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    assert "AutoAttack (standard version) on 12 of the test images" in page
    assert "robust error by PGD-20. Figures and class tables show ε = 16/255" in page


def test_the_page_loads_nothing_and_shows_every_figure(runs, tmp_path):
    assert report.main([f"runs={runs}", f"out={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]+"', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    images = re.findall(r'role="img" aria-label="([^"]+)"', page)
    assert len(images) == 7  # the forest among them; no policy.csv, no grid
    assert all(NAMES[0] in text or "reweight" in text for text in images)
    for name in ("exp1/figure1.svg", "exp2/figure2.png", "exp3/figure3.pdf", "exp4/figure4.csv", "exp4/tradeoff.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=x"], "did you mean 'runs'"),
        (["runs=nowhere"], "nothing found at 'nowhere'"),
        (["figures=maybe"], "known: true, false"),
        (["docs=nowhere"], "no such folder or page"),
        (["epsilon=3"], "outside"),
        (["attack=autoattack"], "the tables have pgd-20"),
    ],
)
def test_mistakes_are_one_line(runs, capsys, arguments, message):
    given = arguments if any(a.startswith("runs=") for a in arguments) else [f"runs={runs}", *arguments]
    assert report.main(given) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_marked_tables_are_made_anew_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    new = markdown.rewrite(page, {"one": lambda: markdown.table(["a", "b"], [["1", "2"]])})
    assert new == "before\n<!-- table: one -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- end -->\nafter\n"
    with pytest.raises(UserError, match="no table is called 'one'; known: two"):
        markdown.rewrite(page, {"two": str})
    page.write_text("<!-- table: one -->\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no <!-- end -->"):
        markdown.rewrite(page, {"one": str})


def test_alt_text_says_the_numbers():
    numbers = pd.DataFrame({"class_name": ["Shirt"], "mean": [0.4812], "sd": [np.nan]})
    assert alt_text("Errors", numbers) == "Errors. Columns: class name, mean, sd. Shirt, 0.481."


def test_cells_hold_what_they_sort_by():
    assert Grid("c", ["a"], [[Cell("1", "1")]]).footer == []
