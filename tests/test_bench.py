"""The bench: budgets, the choice within a seed, differences to the control, the page."""

import re

import numpy as np
import pytest

from frl_repro.basics.errors import UserError
from frl_repro.commands import bench as command
from frl_repro.commands import bench_jobs
from frl_repro.commands.jobs import configure
from frl_repro.results.figures.pareto import front
from frl_repro.results.protocol import CONTESTANTS, TRACKS
from frl_repro.results.report.bench import leaderboard
from frl_repro.results.report.bench_models import Bench, Model, read_bench
from frl_repro.training.budget import image_steps
from support import run_script

SHARES = np.array([0.5, 0.3, 0.2])
TRACK = "data-model"
TINY = (
    "dataset=synthetic dataset.num_classes=3 dataset.num_train=120 dataset.num_test=45 backend=torch num_threads=1 "
    "attack.num_steps=2 evaluation.num_steps=2 retrain.attack.num_steps=2 "
    "trainer.num_epochs=1 retrain.trainer.num_epochs=2"
)


def model(setting, selection, test, *, steps=1e6):
    errors = [{"natural": np.array(part) / 2, "8/255": np.array(part)} for part in (selection, test)]
    return Model(setting, *errors, SHARES, steps, 60.0, num_test=300)


def two_methods():
    models = {}
    for seed, shift in ((20, 0.0), (21, 0.02), (22, -0.02)):
        models[TRACK, "base", "finetune", seed] = [model("finetune", [0.2, 0.9, 0.3], [0.2, 0.8 + shift, 0.85])]
        models[TRACK, "base", "reweight", seed] = [
            model("reweight a", [0.3, 0.6, 0.5], [0.1, 0.1, 0.1]),  # best on test images: that must not matter
            model("reweight b", [0.3, 0.5, 0.55], [0.3, 0.4, 0.7 + 2 * shift]),
        ]
    return Bench(models, {TRACK: ["a", "b", "c"]})


def test_settings_are_chosen_on_selection_images_and_differences_are_to_the_control_of_the_seed():
    board = leaderboard(two_methods()).set_index(["method", "criterion"])
    row, control = (board.loc[(name, "worst class")] for name in ("reweight", "finetune"))
    assert row["chosen"] == "reweight b (3 of 3)"
    assert row["num_settings"] == 2
    # The class that selection images name: c of reweight b, b of finetune, though c is worse on test images.
    assert row["robust_worst"] == pytest.approx(0.7)
    assert control["robust_worst"] == pytest.approx(0.8)
    assert control["robust_maximum"] == pytest.approx(0.85)
    assert row["robust_average"] == pytest.approx(0.3 * 0.5 + 0.4 * 0.3 + 0.7 * 0.2)
    # Differences of the seeds are -0.1, -0.08, -0.12: mean -0.1, sd 0.02, Student's t of 2 degrees 4.3027.
    assert row["difference"] == pytest.approx(-0.1)
    assert row["difference_high"] == pytest.approx(-0.1 + 4.302653 * 0.02 / np.sqrt(3))
    assert row["num_comparisons"] == 1
    assert np.isnan(control["difference"])


def test_a_setting_that_some_seeds_lack_is_not_chosen():
    found = two_methods()
    del found.models[TRACK, "base", "reweight", 21][1]
    assert {one.setting for one in found.chosen(TRACK, "base", "reweight", "worst class").values()} == {"reweight a"}


def test_the_front_is_what_no_other_beats_in_both_errors():
    assert front(np.array([30.0, 40, 35, 50, 30]), np.array([80.0, 60, 85, 60, 90])) == [0, 1]


@pytest.mark.parametrize("name", TRACKS)
def test_no_job_costs_more_than_the_control_and_one_more_epoch_would(name):
    more = TINY.split()
    if "imbalance" in TRACKS[name].overrides:
        more.append("dataset.imbalance_ratio=2")  # of so few images more would not pay for looks at validation images
    budget = bench_jobs.Budget(TRACKS[name], more)
    methods, starts = ["finetune", "reweight", "cfol"], ["base", "scratch"]
    jobs = list(bench_jobs.jobs(TRACKS[name], methods, starts, is_published_only=False, more=more))
    expected = {("finetune", "base"), ("finetune", "scratch"), ("reweight", "base"), ("cfol", "scratch")}
    expected |= {("cfol", "base")} if TRACKS[name].other_start else set()
    assert {(job.method, job.start) for job in jobs} == expected
    for job in jobs:
        key = "retrain.trainer.num_epochs" if job.start == "base" else "trainer.num_epochs"
        (chosen,) = [one for one in job.overrides if one.startswith(f"{key}=")]
        rest, epochs = [one for one in job.overrides if one != chosen], chosen.partition("=")[2]
        cost, with_one_more = (
            image_steps(configure(*line), **budget.sizes).total
            for line in (job.overrides, [*rest, f"{key}={int(epochs) + 1}"])
        )
        assert cost <= budget.image_steps < with_one_more


@pytest.mark.parametrize(("line", "message"), [
    ("methods=reweight starts=scratch", "methods=reweight has nothing to run with starts=scratch"),
    ("methods=robust_lt", "methods=robust_lt has nothing to run with starts=base,scratch"),
    ("methods=faal,dafa,faal", "methods=faal,dafa,faal: faal is there twice"),
    ("seeds=20,21,20", "seeds=20,21,20: 20 is there twice"),
    ("methods=none", "methods=none is no method: the control is finetune"),
    ("methods=faal,dafaa settings=published", "frl=dafaa: unknown choice; did you mean dafa?"),
    ("methods=dafa,finetune settings=published set=frl.strength=2", "frl.strength has no effect with frl=finetune"),
    ("methods=finetune set=seed=3", "set=seed=3: the bench sets seed itself; give seeds="),
    ("methods=finetune set=+recipe=paper", "set=+recipe=paper: the bench sets recipe itself; give starts="),
    ("track=mnist", "track=mnist is unknown, did you mean 'fashion_mnist-lenet5'?"),
    ("starts=nowhere", "starts=nowhere is unknown; known: base, scratch"),
    ("settings=best", "settings=best is unknown; known: all, published"),
    ("show=true", "python scripts/bench.py seeds=20 runs the first seed"),
])  # fmt: skip
def test_a_wrong_line_is_answered_before_anything_runs(line, message, tmp_path, capsys):
    given = dict(word.split("=", 1) for word in line.split())
    given["set"] = f"{TINY} {given.get('set', '')}".strip()
    code = command.main([f"runs={tmp_path / 'runs'}", *(f"{key}={value}" for key, value in given.items())])
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_method_has_as_many_settings_as_the_others_or_one():
    assert {len(one.settings) for one in CONTESTANTS.values()} <= {1, 3}


def test_a_reduced_bench_ends_in_table_figure_and_page(tmp_path):
    arguments = (f"runs={tmp_path}", "seeds=20", "methods=finetune,faal", "settings=published", f"set={TINY}")
    done = run_script("scripts/bench.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "synthetic-lenet5, start=base" in done.stdout
    assert "synthetic-lenet5, start=scratch" in done.stdout
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count('data-start="scratch"') == 2 * 2 * 2  # methods, criteria, radii
    assert "https://" not in re.sub(r'xmlns[^=]*="[^"]*"|<!DOCTYPE[^>]*>', "", page)
    assert (tmp_path / "pareto-synthetic-lenet5.png").stat().st_size > 0
    again = run_script("scripts/bench.py", *arguments, "show=true")
    assert again.stdout.splitlines()[-5:] == done.stdout.splitlines()[-5:]


def test_runs_without_selection_images_are_refused_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"scripts/bench\.py"):
        read_bench(tmp_path)
