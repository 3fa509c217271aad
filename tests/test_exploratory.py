"""What stands beside the registered study: which run is which row of a table, and the numbers of the tables."""

import json
import runpy

import pytest

from frl_repro.commands.jobs import check_command_line
from frl_repro.results.registration import registered_runs
from frl_repro.results.report import documentation, exploratory
from frl_repro.results.report.questions import RADII
from frl_repro.results.report.registered import load_registered
from frl_repro.results.tables import schema, writing
from frl_repro.settings.config import RunConfig, to_dict
from support import ROOT
from test_registration import write_study

STUDY = runpy.run_path(str(ROOT / "scripts" / "study.py"))["STUDY"]
NAMES = ("coat", "bag", "shirt")


def write_table(folder, run_id, counts, *, seed, alphas=(5.0, 1.0, None), attack="pgd-20", config=None):
    """Write a run of which each split has these errors of 100 images: (natural, at 8/255, at 16/255) by class."""
    keys = {
        "run_id": run_id, "dataset": "d", "model": "m", "method": "reweight", "seed": seed, "recipe": "report",
        "attack": attack, "checkpoint": None, **dict.fromkeys(schema.SETTING_COLUMNS),
        **dict(zip(("alpha_nat", "alpha_bndy", "alpha_margin"), alphas, strict=True)),
    }  # fmt: skip
    rows = []
    for split in ("validation", "test"):
        for epoch in (0, 10):
            for place, epsilon in enumerate(RADII):
                natural = [of_class[0] for of_class in counts]
                boundary = [of_class[1 + place] - of_class[0] for of_class in counts]
                about = {**keys, "split": split, "epoch": epoch, "epsilon": epsilon}
                rows += writing.classwise_rows(about, NAMES, [100] * 3, natural, boundary)
    folder.mkdir(parents=True)
    writing.write_table(folder / "classwise.csv", rows, schema.CLASSWISE_HEADER)
    (folder / "run.json").write_text(json.dumps({"run_id": run_id, "config": config or {}, "config_hash": "0123abcd"}))


def cells_of(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.bench
@pytest.mark.parametrize("part", ["audit", "departures", "cadence", "longer", "split"])
def test_each_run_of_a_part_is_one_row_and_each_row_has_runs(part, tmp_path):
    configs = [
        run
        for sweep in STUDY[part].sweeps
        for run in check_command_line(["-m", *sweep.split(), "seed=0"], "config")
        if isinstance(run, RunConfig) and run.folder.parent.name == part
    ]
    for config in configs:
        settings = to_dict(config)
        alpha = settings.get("alpha") or {}
        write_table(
            tmp_path / part / config.run_id, config.run_id, [(1, 2, 3)] * 3, seed=0,
            alphas=[alpha.get(name) for name in ("nat", "bndy", "margin")], config=settings,
        )  # fmt: skip
    found = exploratory.load(tmp_path, part)
    own = [row for row in exploratory.TABLES[part].rows if not row.place]
    assert set(found.roles) == {row.name for row in own}
    after = found.rows[~found.rows["role"].isin([row.name for row in own if row.is_before])]
    by_run = after.groupby("run_id")["role"].nunique()
    assert set(by_run.index) == {config.run_id for config in configs}
    assert set(by_run) == {1}


def test_rows_have_errors_of_the_worst_class_and_the_difference_from_the_reference(tmp_path):
    every = {"every step": ("cadence", "1", -3), "every 48 steps (10 an epoch)": ("exp2", "48", 0)}
    for place, cadence, gain in every.values():
        for seed in (0, 1, 2):
            counts = [(10, 20, 30), (5, 9, 12), (40, 60, 80 + gain + (seed if gain else 0))]
            config = {"frl": {"update_every": cadence}}
            write_table(tmp_path / place / f"r{cadence}-{seed}", f"r{cadence}-{seed}", counts, seed=seed, config=config)
    text = exploratory.tables(tmp_path, None)["exploratory-cadence"]()
    assert cells_of(text, "every step") == [
        "every step", "3", "40.0 ± 0.0", "60.0 ± 0.0", "78.0 ± 1.0", "18.3 ± 0.0", "29.7 ± 0.0", "40.0 ± 0.3",
        "-2.0 [-4.5, 0.5]",
    ]  # fmt: skip
    assert cells_of(text, "every 48 steps (10 an epoch)")[-1] == "-"
    assert "Not run yet: every epoch." in text


def test_cards_of_published_models_have_none_of_these_runs(tmp_path):
    made = documentation.tables(tmp_path, None, [])  # reads nothing before a card is asked for
    write_table(tmp_path / "exp2" / "a-published-run", "a-published-run", [(5, 10, 20)] * 3, seed=0)
    before = documentation.tables(tmp_path, None, [])["model-reweight"]()
    for part in ("audit", "departures", "cadence", "longer", "split"):
        write_table(tmp_path / part / f"{part}-run", f"{part}-run", [(50, 60, 70)] * 3, seed=1)
    assert made["model-reweight"]() == before
    assert "5.0" in before


def test_where_nothing_has_run_the_table_says_what_runs_it(tmp_path):
    for name, make in exploratory.tables(tmp_path, None).items():
        part = name.removeprefix("exploratory-")
        assert f"`python scripts/study.py parts={part}" in make()


def test_autoattack_stands_beside_pgd_on_the_class_that_held_back_images_name(tmp_path):
    write_study(tmp_path / "registered", seeds=(10, 11), outcomes=False)
    for run_id, run in registered_runs().items():
        if run.seed in (10, 11) and run.cell in ("equal weights", "reweight 5:1"):
            more = 20 if run.cell == "reweight 5:1" else 5
            counts = [(0, 0, 0), (0, 0, 0), (40, 80 + more // 5, 70 + more)]
            folder = tmp_path / "registered" / "autoattack" / f"{run_id}-0123"
            write_table(folder, run_id, counts, seed=run.seed, attack="autoattack")
    study = load_registered(tmp_path)  # AutoAttack's rows are no part of the registered tables
    errors = study.errors(("equal weights", "reweight 5:1"))
    gain = 100 * (
        errors.worst("reweight 5:1", ("robust", RADII[1])) - errors.worst("equal weights", ("robust", RADII[1]))
    )
    text = exploratory.tables(tmp_path, study)["exploratory-autoattack"]()
    assert cells_of(text, "equal weights")[:2] == ["equal weights", "2"]
    assert cells_of(text, "equal weights")[3::2] == ["81.0 ± 0.0", "75.0 ± 0.0"]
    difference = cells_of(text, "reweight 5:1 against equal weights")
    assert difference[3::2] == ["+3.0 [3.0, 3.0]", "+15.0 [15.0, 15.0]"]
    assert difference[4].startswith(f"{gain.mean():+.1f} [")
