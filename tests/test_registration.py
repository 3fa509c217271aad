"""The registered study: runs fixed by name, settings chosen on selection images, verdicts that follow the rules."""

import csv
import itertools

import numpy as np
import pandas as pd
import pytest

from frl_repro.basics.errors import UserError
from frl_repro.commands.bench_jobs import starts_of
from frl_repro.commands.jobs import configure
from frl_repro.results import registration
from frl_repro.results.protocol import CONTESTANTS, STARTS, TRACKS
from frl_repro.results.registration import CELLS, REGISTERED_FILE, SEEDS, registered_runs
from frl_repro.results.report.comparison import Comparison
from frl_repro.results.report.questions import RADII
from frl_repro.results.report.registered import CANDIDATES, load_registered
from frl_repro.results.report.verdicts import holm, judge, verdict_of
from frl_repro.results.tables import schema, writing
from frl_repro.results.tables.outcomes import Outcomes, write_outcomes

NAMES = ("coat", "bag", "shirt")
FROM_SCRATCH = ("natural", "adversarial")


def registered():
    with REGISTERED_FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_list_holds_every_cell_of_every_seed_once():
    rows = [row for row in registered() if row["registration"] == registration.STUDY]
    assert [(row["cell"], int(row["seed"])) for row in rows] == list(
        itertools.product([cell.name for cell in CELLS], SEEDS)
    )
    assert len({row["run_id"] for row in rows}) == len(rows)
    assert not set(SEEDS) & set(registration.DEVELOPMENT_SEEDS)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_each_command_makes_the_registered_run(cell):
    by_seed = {int(row["seed"]): row for row in registered() if row["cell"] == cell.name}
    assert by_seed[SEEDS[0]]["overrides"] == cell.overrides
    config = configure(*cell.overrides.split(), f"seed={SEEDS[0]}")
    assert config.run_id == by_seed[SEEDS[0]]["run_id"]
    if cell.name not in FROM_SCRATCH:
        # A split of its own for each seed; half of the validation images choose.
        assert (config.dataset.split_seed, config.dataset.selection_fraction) == (SEEDS[0], 0.5)
    assert config.evaluation.epsilons == [8 / 255, 16 / 255]


def test_a_registered_run_says_so_and_no_other_does():
    (name, run) = next(iter(registered_runs().items()))
    record = registration.record_of(name)
    assert (record["name"], record["cell"]) == (run.registration, run.cell)
    assert len(record["list_sha256"]) == 64
    assert registration.record_of(f"{name}x") is None


def errors_of(level):
    """Wrong of 1,000 images by class: natural, robust at 8/255 and at 16/255. The third class is the worst."""
    return [(40, 90, 140), (50, 120, 200), (480 + level, 690 + level, 880 + level)]


LEVELS = {
    "natural": -180, "adversarial": 0, "base": 0, "equal weights": 60, "equal weights, EMA": 55,
    "reweight 5:1": -120, "reweight 5:5": -150, "reweight 20:20": -180, "margins 5": 40, "margins 10": 30,
    "combined 5:1": -140, "combined 5:5": -170, "combined 20:20": -176, "equal margins": -5, "remargin 5": -20,
    "remargin 10": -25,
}  # fmt: skip


def write_study(root, levels=LEVELS, *, seeds=SEEDS, other_base=None, outcomes=True):
    """Write tables (and outcomes) of every registered run, as the levels say; seeds differ by a few images."""
    for row in registered():
        cell, seed = row["cell"], int(row["seed"])
        if seed not in seeds or cell not in levels:
            continue
        folder = root / row["run_id"]
        folder.mkdir(parents=True)
        keys = {
            "run_id": row["run_id"], "dataset": "d", "model": "m", "method": cell.split()[0], "seed": seed,
            "attack": "pgd-20", "recipe": None, "checkpoint": None,
            **dict.fromkeys(schema.SETTING_COLUMNS),
        }  # fmt: skip
        noise = np.random.default_rng(len(cell) * 100 + seed).integers(-4, 5)
        rows = []
        is_retrained = cell not in FROM_SCRATCH
        for split in ("selection", "test") if is_retrained else ("test",):
            for epoch, level in ((0, levels["base"] + ((cell, seed) == other_base)), (10, levels[cell] + noise)):
                if epoch == 0 and not is_retrained:
                    continue
                for place, epsilon in enumerate(RADII):
                    counts = errors_of(level)
                    rows += writing.classwise_rows(
                        {**keys, "split": split, "epoch": epoch, "epsilon": epsilon},
                        NAMES,
                        [1000] * 3,
                        [wrong[0] for wrong in counts],
                        [wrong[1 + place] - wrong[0] for wrong in counts],
                    )
        writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_HEADER)
        if outcomes:
            write_outcomes(folder / "outcomes.safetensors", as_outcomes(levels[cell] + noise, row["run_id"], seed))
        if outcomes and cell == "equal weights":
            write_outcomes(folder / "base-outcomes.safetensors", as_outcomes(levels["base"], "base", seed))


def as_outcomes(level, run_id, seed):
    wrong = np.arange(1000)[None, :, None] < np.array(errors_of(level))[:, None, :]  # class, image, quantity
    flat = wrong.reshape(3000, 3)
    return Outcomes(
        labels=np.repeat(np.arange(3), 1000),
        is_natural_error=flat[:, 0],
        is_robust_error={radius: flat[:, 1 + place] for place, radius in enumerate(RADII)},
        about={"run_id": run_id, "seed": seed},
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("registered")
    write_study(root)
    return load_registered(root)


def answers_of(study):
    return {answer.question.name: answer for answer in study.judge()}


def test_each_seed_takes_the_setting_that_its_selection_images_prefer(study):
    assert set(study.chosen) == {(method, seed) for method in CANDIDATES for seed in SEEDS}
    # 30 images apart where seeds move by 4: always the same.
    assert {study.chosen["reweight", seed] for seed in SEEDS} == {"reweight 20:20"}
    assert {study.chosen["margins", seed] for seed in SEEDS} == {"margins 10"}
    # 6 images apart: seeds differ.
    assert {study.chosen["combined", seed] for seed in SEEDS} == {"combined 5:5", "combined 20:20"}


def test_numbers_of_a_criterion_are_those_of_the_tables(study):
    answer = answers_of(study)["3"]
    evidence = answer.evidence[0]
    assert evidence.criterion.text == "worst class's natural error: reweight 5:1 below base"
    assert evidence.seeds == SEEDS
    noise = [np.random.default_rng(len("reweight 5:1") * 100 + seed).integers(-4, 5) for seed in SEEDS]
    np.testing.assert_allclose(evidence.values, [(-120 + n) / 1000 for n in noise], atol=1e-12)
    assert evidence.over_seeds.estimate == pytest.approx(np.mean(evidence.values))
    assert evidence.over_images.low < evidence.over_seeds.estimate < evidence.over_images.high


def test_verdicts_of_a_clear_study(study):
    answers = answers_of(study)
    assert answers["1"].verdict == "reproduced"
    assert answers["3"].verdict == "reproduced"
    assert answers["4"].verdict == "reproduced"
    assert answers["4b"].verdict == "contradicted"  # margins alone are 20 points worse
    assert answers["5m"].verdict == "reproduced"
    # Best against best: combined and reweight differ by less than a point, margins alone by far.
    by_text = {one.criterion.text: one.outcome for one in answers["5"].evidence}
    assert by_text["worst class's robust error at 16/255: combined, chosen below reweight, chosen"] == "no difference"
    assert by_text["worst class's robust error at 16/255: combined, chosen below margins, chosen"] == "holds"
    assert answers["5"].verdict == "mixed"
    for answer in answers.values():
        for one in answer.evidence:
            assert one.adjusted_p >= one.p


def test_a_natural_model_at_its_ceiling_has_no_say_at_that_radius(tmp_path):
    levels = {**LEVELS, "natural": 110}  # worst class: 590 natural, 800 and 990 robust
    write_study(tmp_path, levels, outcomes=False)
    answer = answers_of(load_registered(tmp_path))["2"]
    outcomes = {one.criterion.radius: one.outcome for one in answer.evidence}
    assert outcomes[16 / 255] == "ceiling"
    assert outcomes[8 / 255] == "opposite"
    assert answer.verdict == "contradicted"


def test_no_verdict_before_the_last_seed(tmp_path):
    write_study(tmp_path, seeds=SEEDS[:-1], outcomes=False)
    answers = answers_of(load_registered(tmp_path))
    assert {answer.verdict for answer in answers.values()} == {"incomplete"}
    assert answers["3"].evidence[0].seeds == SEEDS[:-1]


def test_missing_models_are_named_by_their_roles(tmp_path):
    levels = {name: level for name, level in LEVELS.items() if name != "equal margins"}
    write_study(tmp_path, levels, outcomes=False)
    answers = answers_of(load_registered(tmp_path))
    assert answers["4"].verdict == "incomplete"
    assert [one.outcome for one in answers["4"].evidence[:2]] == ["not run", "not run"]
    assert answers["3"].verdict == "reproduced"


def test_development_runs_beside_registered_ones_have_no_part(tmp_path):
    write_study(tmp_path, outcomes=False)
    before = answers_of(load_registered(tmp_path))["3"].evidence[0].values
    (folder,) = tmp_path.glob("*reweight*nat5-bndy1-seed10-*")
    (tmp_path / "development").mkdir()
    table = pd.read_csv(folder / "classwise.csv").assign(run_id="development", seed=0)
    table.to_csv(tmp_path / "development" / "classwise.csv", index=False)
    assert answers_of(load_registered(tmp_path))["3"].evidence[0].values == before


def test_a_verdict_that_mixes_registered_with_development_seeds_is_refused(study):
    mixed = Comparison(study.rows.replace({"seed": {SEEDS[-1]: 0}}), RADII, {})
    with pytest.raises(UserError, match=r"seeds 0 are not registered: a verdict never mixes"):
        judge(mixed, registered=SEEDS)
    answers = judge(mixed, registered=None)
    assert {answer.verdict for answer in answers} == {"exploratory"}
    assert answers[2].evidence[0].seeds == (0, *SEEDS[:-1])


def test_retrainings_of_one_seed_share_their_base(tmp_path):
    write_study(tmp_path, outcomes=False, other_base=("remargin 5", 12))
    with pytest.raises(UserError, match="retrainings of seed 12 started from different base models"):
        load_registered(tmp_path)


def test_tables_without_a_registered_run_are_no_registered_study(tmp_path):
    write_study(tmp_path, seeds=SEEDS[:1], outcomes=False)
    for path in tmp_path.glob("*/classwise.csv"):
        path.write_text(path.read_text().replace(path.parent.name, f"{path.parent.name}-other"))
    assert load_registered(tmp_path) is None


def test_holm_by_hand():
    # Sorted .01, .02, .03, .5: times 4, 3, 2, 1, never falling; one without a value does not count.
    corrected = holm([0.03, 0.01, float("nan"), 0.5, 0.02])
    np.testing.assert_allclose(corrected, [0.06, 0.04, np.nan, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["holds", "holds"], "reproduced"),
        (["holds", "ceiling"], "reproduced"),
        (["holds", "uncertain"], "mixed"),
        (["holds", "opposite"], "mixed"),
        (["holds", "no difference"], "mixed"),
        (["opposite", "uncertain"], "contradicted"),
        (["no difference", "no difference"], "contradicted"),
        (["no difference", "uncertain"], "too uncertain to say"),
        (["uncertain", "ceiling"], "too uncertain to say"),
        (["ceiling"], "too uncertain to say"),
        (["holds", "not run"], "incomplete"),
    ],
)
def test_how_outcomes_sum_up(outcomes, verdict):
    assert verdict_of(outcomes) == verdict


def bench_rows():
    with registration.BENCH_FILE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("number", range(0, len(bench_rows()), 23))
def test_each_setting_of_the_bench_makes_the_runs_of_the_list(number):
    row = bench_rows()[number]
    for entry in row["hashes"].split()[:2]:
        seed, _, digest = entry.partition(":")
        config = configure(*row["overrides"].split(), f"seed={seed}")
        assert config.run_id == f"{row['run'].format(seed=seed)}-{digest}"
        run = registered_runs()[config.run_id]
        assert (run.registration, run.track, run.start, run.method, run.seed) == (
            "bench-2026", row["track"], row["start"], row["method"], int(seed),
        )  # fmt: skip
        assert registration.record_of(config.run_id)["name"] == "bench-2026"
    other = configure(*row["overrides"].split(), f"seed={seed}", "dataset.num_train=2000")
    assert registration.record_of(other.run_id) is None


def test_the_benchs_list_has_every_setting_of_the_protocol_on_the_seeds_of_its_track():
    for name, track in TRACKS.items():
        rows = [row for row in bench_rows() if row["track"] == name]
        for row in rows:
            assert [int(entry.partition(":")[0]) for entry in row["hashes"].split()] == list(track.seeds)
            assert row["setting"] in CONTESTANTS[row["method"]].settings
        listed = [(row["method"], row["start"], row["setting"]) for row in rows]
        assert len(set(listed)) == len(listed)
        methods = track.methods or [m for m, one in CONTESTANTS.items() if not one.needs_imbalance]
        assert set(listed) == {
            (method, start, setting)
            for method in methods
            for start in starts_of(track, method, STARTS)
            for setting in CONTESTANTS[method].settings
        }
