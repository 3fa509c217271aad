"""Same seed, same bytes: every method of every recipe, whoever launches it, whatever is measured beside it."""

import pytest
import torch
from safetensors.torch import load_file

import native_lenet5 as native
from frl_repro.commands import jobs
from frl_repro.models.compute.native import NativeUnavailable
from frl_repro.runs import experiment
from support import METHODS, call, contents

SHORT = [
    "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=120", "dataset.num_test=45",
    "dataset.validation_fraction=0.25", "trainer.num_epochs=1", "trainer.batch_size=30", "evaluation.num_steps=2",
    "num_threads=1", "backend=native", "seed=0,1",
]  # fmt: skip
AGAIN = [
    "attack.num_steps=2", "retrain.trainer.num_epochs=2", "retrain.trainer.batch_size=30", "retrain.attack.num_steps=2",
]  # fmt: skip
STEERED = [*AGAIN, "frl.num_validation=12", "frl.num_steps=2"]
SWEEPS = [
    ["attack=none,pgd,trades"],
    ["frl=finetune", "recipe=report,report_code", *AGAIN],
    ["frl=reweight,remargin,combined,baseline_reweight", "recipe=report,paper", *STEERED],
    ["frl=reweight,remargin", "recipe=report_code", *STEERED],
]
NUM_RUNS = 2 * (3 + 2 + 8 + 2)
LAUNCHERS = {"fused": ["hydra/launcher=fused"], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """Fused runs have the bytes of runs alone on native code."""
    try:
        native.engine()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


def swept(folder, launcher):
    """Return what every run of the sweeps holds, and every base, by their folders' names."""
    for sweep in SWEEPS:
        with pytest.MonkeyPatch.context() as patched:
            assert call(patched, "-m", *sweep, *SHORT, *launcher, f"output_dir={folder}") == 0
    runs = [path.parent for path in folder.rglob("done.json")]
    return {run.relative_to(folder).as_posix(): contents(run) for run in runs}


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("serial"), [])


@pytest.mark.bench
def test_every_method_of_every_recipe_is_among_the_runs(serial):
    names = [name for name in serial if not name.startswith("bases/")]
    assert len(names) == NUM_RUNS
    for frl, recipe in METHODS:
        assert sum(f"-{frl}-{recipe}-" in name for name in names) == 2, (frl, recipe)
    weights = [files["model.safetensors"] for name, files in serial.items() if name in names]
    assert len(set(weights)) == NUM_RUNS


@pytest.mark.bench
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_writes_the_same_bytes(launcher, serial, tmp_path):
    found = swept(tmp_path, LAUNCHERS[launcher])
    assert found.keys() == serial.keys()
    differing = {
        f"{run}/{name}"
        for run in serial
        for name in serial[run].keys() | found[run].keys()
        if serial[run].get(name) != found[run].get(name)
    }
    assert differing == set()


@pytest.mark.parametrize("method", [["attack.num_steps=2"], ["frl=combined", *STEERED]], ids=["none", "combined"])
def test_what_is_measured_changes_no_weight_and_no_policy(method, tmp_path):
    own = [setting for setting in SHORT if not setting.startswith("seed")]
    more = [[], ["evaluation.num_steps=5", "evaluation.epsilons=[0.1]", "evaluation.num_validation=12"]]
    plain, measured = [
        experiment.run(jobs.configure(*own, *method, *settings, f"output_dir={tmp_path / str(number)}"))
        for number, settings in enumerate(more)
    ]
    assert plain.name != measured.name
    weights = [load_file(folder / "model.safetensors") for folder in (plain, measured)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if "frl=combined" in method:
        policies = [(folder / "policy.csv").read_text().replace(folder.name, "RUN") for folder in (plain, measured)]
        assert policies[0] == policies[1]
    assert (plain / "classwise.csv").read_bytes() != (measured / "classwise.csv").read_bytes()
