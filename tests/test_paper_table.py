"""The paper's table as commands: rows, schedules and variants compose and are what they say; all rows end to end."""

import csv
import functools
import sys
from pathlib import Path

import pytest
import yaml

from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.commands import cli, collect, jobs, plot
from frl_repro.results.tables import reading
from frl_repro.settings.config import RunConfig, to_dict
from frl_repro.settings.parse import parse

ROWS = ("pgd", "trades1", "trades6", "baseline_reweight", "reweight", "remargin", "combined")
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("paper_table*.yaml"))
SCHEDULES = sorted(path.stem for path in (CONFIG_DIR / "schedule").glob("*.yaml"))


@functools.cache
def config_of(*overrides):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    jobs.register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return parse(OmegaConf.to_container(compose("config", list(overrides)), resolve=True), RunConfig)


def row(name, schedule="full", experiment="paper_table", **keys):
    return config_of(
        f"experiment={experiment}", f"row={name}", f"schedule={schedule}", *(f"{k}={v}" for k, v in keys.items())
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_variant_composes_as_one_command(experiment, schedule):
    jobs.check_command_line(["-m", f"experiment={experiment}", f"schedule={schedule}", "seed=0"], "config")


def test_the_sweep_is_the_papers_table_in_its_order():
    sweep = yaml.safe_load((CONFIG_DIR / "experiment" / "paper_table.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert sweep == {"schedule": "full", "row": ",".join(ROWS)}
    rows = {path.stem for path in (CONFIG_DIR / "row").glob("*.yaml")}
    assert {name for name in rows if not name.startswith("mixture_")} == {*ROWS, "finetune"}  # and the control


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_are_the_methods_they_are_called_after(schedule):
    configs = {name: row(name, schedule) for name in ROWS}
    assert [config.method for config in configs.values()] == ["adversarial", "trades", "trades", *ROWS[3:]]
    assert [configs[name].trades_beta for name in ROWS] == [None, 1, 6, 1.5, 1.5, 1.5, 1.5]
    for config in configs.values():
        attack, _ = config.training
        assert attack.fraction == 1
        assert attack.epsilon == 8 / 255
        assert config.evaluation.keep_best_by == "overall_robust"
        assert (config.recipe.name == "paper") is (config.retrain is not None)
    assert len({config.hash for config in configs.values()}) == len(ROWS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_retraining_starts_from_the_row_of_pgd_training(experiment, schedule):
    recorded = to_dict(row("pgd", schedule, experiment))
    for name in ROWS[3:]:
        assert row(name, schedule, experiment).base().is_trained_like(recorded), name
    for name in ("trades1", "trades6"):
        assert not row("reweight", schedule, experiment).base().is_trained_like(to_dict(row(name, schedule)))
    assert not row("reweight", schedule, experiment, seed=1).base().is_trained_like(recorded)


def test_a_schedule_says_how_long_and_nothing_of_what():
    full, short = row("combined"), row("combined", "short")
    assert (full.trainer.num_epochs, full.retrain.trainer.num_epochs) == (100, 40)
    assert (short.trainer.num_epochs, short.retrain.trainer.num_epochs) == (30, 10)
    assert short.trainer.precision == short.retrain.trainer.precision == "bfloat16"
    for part in ("dataset", "model", "attack", "evaluation", "alpha", "tau", "frl"):
        assert getattr(full, part) == getattr(short, part)
    assert row("pgd", "smoke", "paper_table_wrn").dataset.name == "synthetic"  # needs no data, on any machine
    assert row("pgd", "short", "paper_table_svhn").dataset.name == "svhn"
    assert row("pgd", "short", "paper_table_wrn").model.name == "wrn28_10"


def test_the_run_cards_quote_the_papers_table():
    """Numbers of conf/experiment/paper_table.yaml add up: robust = natural + boundary on average, to a rounding."""
    text = (CONFIG_DIR / "experiment" / "paper_table.yaml").read_text()
    lines = [line for line in text.splitlines() if line.count(" / ") == 3]
    assert len(lines) == len(ROWS)
    for line in lines:
        natural, boundary, robust = (float(part.split()[-1]) for part in line.split(" / ")[:3])
        assert robust == pytest.approx(natural + boundary, abs=0.35), line


@pytest.mark.bench
def test_every_row_trains_and_the_table_and_its_figure_come_of_it(tmp_path, monkeypatch, capsys):
    """The smoke form on even smaller data: seven rows, and one model that retraining starts from."""
    small = [
        "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=90", "dataset.num_test=30", "model.width=2",
        "trainer.num_epochs=2", "trainer.batch_size=30", "retrain.trainer.batch_size=30", "evaluation.num_steps=1",
    ]  # fmt: skip
    base_rows = [argument for argument in small if not argument.startswith("retrain.")]
    monkeypatch.chdir(tmp_path)
    for rows, settings in ((ROWS[:3], base_rows), (ROWS[3:], small)):
        arguments = ["-m", "experiment=paper_table", "schedule=smoke", f"row={','.join(rows)}", "num_threads=1"]
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *settings])
        assert cli.main() == 0
    folder = Path("outputs/paper_table_smoke")
    assert len(list(folder.glob("*/done.json"))) == len(ROWS)
    assert not (folder / "bases").exists()  # the row of PGD training serves
    capsys.readouterr()

    for checkpoint in ("last", "best"):
        table = [f"runs={folder}", "errors=natural,boundary,robust", f"checkpoint={checkpoint}", "out=table.csv"]
        assert collect.main(table) == 0
        text = capsys.readouterr().out
        for name in ("adversarial", "trades beta=1", "trades beta=6", *ROWS[3:], "overall boundary"):
            assert name in text, text
        with Path("table.csv").open() as opened:
            after = [r for r in csv.DictReader(opened) if r["when"] == "after" and r["split"] == "test"]
        assert len(after) == len(ROWS)
        tables = reading.read_classwise(reading.find_tables(folder))
        marked = tables[tables["checkpoint"].str.contains(checkpoint)]
        assert {(r["run_id"], int(r["epoch"])) for r in after} == set(
            zip(marked["run_id"], marked["epoch"], strict=True)
        )
        assert plot.main(["figure=settings", f"runs={folder}", f"checkpoint={checkpoint}", "formats=png"]) == 0
        capsys.readouterr()
    with Path("outputs/figures/settings.csv").open() as opened:
        settings = [r["setting"] for r in csv.DictReader(opened)]
    assert len(settings) == len(ROWS) + 1  # the model before retraining


def test_a_choice_of_checkpoint_or_errors_that_does_not_exist_is_refused(capsys):
    assert collect.main(["checkpoint=bets"]) == 1
    assert "checkpoint=bets" in capsys.readouterr().err
    assert collect.main(["errors=robst"]) == 1
    assert "errors=robst" in capsys.readouterr().err
    assert plot.main(["checkpoint=first"]) == 1
    assert "checkpoint=first" in capsys.readouterr().err
