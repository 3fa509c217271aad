"""Launchers: what they keep, jobs whose process dies and that are started again, scripts for SLURM."""

import importlib.util
import inspect
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from frl_repro.basics import sameness
from frl_repro.commands.jobs import Job, checked_jobs, read
from frl_repro.commands.running import Task
from frl_repro.settings.config import RunConfig
from hydra_plugins.frl import local, pool
from support import ROOT, TINY, call, contents, run_script

GRID = [
    "-m", "frl=reweight", "sweep=alpha_grid", "retrain.trainer.num_epochs=2", "retrain.trainer.batch_size=30",
    "retrain.attack.num_steps=2", "frl.num_validation=12", "frl.num_steps=2", "dataset.validation_fraction=0.25",
    *[argument.replace("num_train=90", "num_train=120") for argument in TINY],
]  # fmt: skip


class DyingPool(pool.PoolLauncher):
    """Jobs end at once, in this process; some of them die first, so many times."""

    def __init__(self, deaths, **settings):
        super().__init__(**settings)
        self.deaths, self.most, self.running, self.log = deaths, 0, set(), []

    def start(self, num_jobs):
        self.log.append(("start", num_jobs))

    def submit(self, work):
        handles = [one.jobs[0].shown for one in work]
        self.running |= set(handles)
        self.most = max(self.most, len(self.running))
        return handles

    def has_ended(self, _):
        return True

    def outcome(self, handle):
        self.running.remove(handle)
        self.log.append(("end", handle))
        if self.deaths.get(handle, 0) > 0:
            self.deaths[handle] -= 1
            raise RuntimeError("worker died\nwith a long story")
        return [{"job": handle, "reason": ""}]

    def stop(self):
        self.log.append(("stop", None))


def job(number, **settings):
    return Job([f"seed={number}"], [], {"output_dir": "o", **settings}, RunConfig)


def of_nobody(*_):
    raise AssertionError("composed once more")


def set_up(launcher, task, **hydra):
    """Set a launcher up as Hydra does; jobs that were checked must not be composed again."""
    context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=of_nobody))
    settings = {"hydra_logging": None, "verbose": False, "job": {"env_set": {}}, **hydra}
    launcher.setup(hydra_context=context, task_function=task, config=OmegaConf.create({"hydra": settings}))
    return launcher


def launched(deaths, *, num_workers=None, retries=2, num_jobs=5):
    noted = []
    task = SimpleNamespace(work=None, note=noted.extend, jobs=[job(number) for number in range(num_jobs)])
    launcher = set_up(DyingPool(deaths, num_workers=num_workers, retries=retries), task)
    returned = launcher.launch([[f"seed={number}"] for number in range(num_jobs)], 0)
    assert len(returned) == num_jobs
    return launcher, noted


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Launchers tell processes where the package is."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


def test_a_job_whose_process_dies_is_started_again_and_given_up_after_a_while(capsys):
    launcher, noted = launched({"seed=1": 2, "seed=3": 3})
    assert sorted(outcome["job"] for outcome in noted) == [f"seed={number}" for number in range(5)]
    (failed,) = [outcome for outcome in noted if outcome["reason"]]
    assert failed == {
        "job": "seed=3", "output_dir": "o", "reason": "its process died: RuntimeError: worker died", "run": None,
    }  # fmt: skip
    assert launcher.log[0] == ("start", 5)
    assert launcher.log[-1] == ("stop", None)
    assert launcher.log.count(("end", "seed=1")) == launcher.log.count(("end", "seed=3")) == 3
    out = capsys.readouterr().out
    assert out.count("the process of seed=1 died (RuntimeError: worker died): it is started again") == 2


def test_no_more_jobs_run_at_a_time_than_asked_for():
    assert launched({"seed=0": 1}, num_workers=2)[0].most == 2
    assert launched({})[0].most == 5


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_install_line(name, package, monkeypatch, capsys, in_tmp):
    monkeypatch.setitem(sys.modules, package, None)
    assert call(monkeypatch, "-m", "seed=0,1", f"hydra/launcher={name}", *TINY) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: hydra/launcher={name} needs the package {package}")
    assert f"pip install -e '.[{name}]'" in errors
    assert errors.count("\n") == 1
    assert list(in_tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hydra.launcher.executor=pbs", "hydra.launcher.executor=pbs: unknown choice; known: slurm, local"),
        ("hydra.launcher.num_worker=2", "num_worker"),
    ],
)
def test_a_mistaken_setting_is_one_line(setting, message, monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, "-m", "seed=0,1", "hydra/launcher=slurm", setting, *TINY) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_hydra_finds_the_launchers_by_itself():
    done = run_script("train.py", "-m", "seed=0,1", "hydra/launcher=nothing")
    assert done.returncode == 1
    offered = done.stderr.partition("known: ")[2].replace(",", " ").split()
    assert {"basic", "serial", "fused", "joblib", "ray", "slurm"} <= set(offered)


@pytest.mark.parametrize(("node", "launcher"), [(pool.RAY, pool.RayLauncher), (pool.SLURM, pool.SlurmLauncher)])
def test_every_setting_that_a_launcher_takes_has_a_default(node, launcher):
    assert node.keys() - {"_target_"} == inspect.signature(launcher).parameters.keys()
    assert node["_target_"].endswith(launcher.__name__)


@pytest.mark.parametrize("setting", [{"num_workers": 0}, {"num_workers": -1}, {"num_workers": "x"}, {"retries": -1}])
def test_numbers_that_would_wait_for_ever_are_refused(setting):
    with pytest.raises(HydraException, match=r"hydra.launcher.\w+=.*: must be a whole number from [01]"):
        launched({}, **setting)


@pytest.mark.parametrize("program", ["config", "evaluate", "sanity"])
def test_programs_sweep_with_the_launcher_that_keeps_nothing_and_the_sweeper_that_composes_once(program):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        own = compose(program, return_hydra_config=True).hydra
    assert own.launcher._target_ == f"{local.__name__}.SerialLauncher"
    assert own.sweeper._target_.endswith("CheckedSweeper")


def test_a_job_is_done_as_it_was_checked_and_nothing_of_it_is_kept():
    """A thousand jobs take no more memory than ten."""
    jobs = [job(number) for number in range(9)]
    done = []

    def do_here(batch):
        done.extend((one.shown, os.environ["FRL_TEST_SET"]) for one in batch)

    task = SimpleNamespace(work=None, do_here=do_here, jobs=jobs)
    launcher = set_up(local.SerialLauncher(), task, job={"env_set": {"FRL_TEST_SET": 3}})
    returned = launcher.launch([one.overrides for one in jobs[3:]], 3)
    assert done == [(f"seed={number}", "3") for number in range(3, 9)]
    assert "FRL_TEST_SET" not in os.environ
    assert [one.overrides for one in returned] == [[f"seed={number}"] for number in range(3, 9)]
    assert all(one.cfg is None and one.hydra_cfg is None and one.return_value is None for one in returned)


def test_a_job_that_another_sweeper_made_is_composed_by_the_launcher():
    composed = OmegaConf.create({"hydra": {}, "seed": 7})
    done = []
    task = SimpleNamespace(work=None, do_here=done.extend, jobs=[job(0)], job=lambda *given: given)
    launcher = set_up(local.FusedLauncher(), task)
    launcher._context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=lambda *_: composed))
    launcher.launch([["seed=7"]], 0)
    assert done == [(["seed=7"], {"seed": 7})]


def test_what_is_sent_to_another_process_is_the_job_and_no_other():
    hydra = OmegaConf.create({"hydra": {}})
    checked = checked_jobs(read(["-m", "dataset=synthetic", "seed=0,1,2"], "config"), "config")
    jobs = [replace(one, hydra=hydra) for one in checked]
    task = Task(print, "scratch", jobs, RunConfig)
    work, one = pickle.loads(pickle.dumps((task.work, jobs[1])))
    assert work.__self__.jobs == []
    assert (one.shown, one.composed, one.kind, one.hydra) == (jobs[1].shown, jobs[1].composed, RunConfig, None)
    assert one.composed["seed"] == 1


@pytest.mark.bench
def test_the_sweep_bench_gives_every_figure(tmp_path):
    out = tmp_path / "sweep.json"
    done = run_script("benchmarks/sweep.py", "jobs=3", f"out={out}")
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["jobs"] == 3
    assert figures["memory_mib_largest"] >= figures["memory_mib_smallest"] > 100
    assert min(figures[name] for name in ("seconds_a_job", "seconds_of_a_run_alone", "collect_seconds")) > 0
    assert f"| memory_growth | {figures['memory_growth']} |" in done.stdout


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Pretend to be a machine of a SLURM cluster: ``sbatch`` keeps the script and answers as the real one does."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    bodies = {
        "srun": "",
        "sbatch": f'cp "$1" {tmp_path}/script; echo Submitted batch job 17',
        "squeue": f"cat {tmp_path}/queue",  # which fails where a test has not written one
        "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def test_the_script_for_sbatch_asks_for_what_was_set(slurm):
    settings = {key: value for key, value in pool.SLURM.items() if key != "_target_"} | {
        "folder": str(slurm / "jobs"), "num_workers": 8, "cpus_per_job": 4, "gpus_per_job": 1, "memory_gb": 16,
        "minutes": 90, "partition": "short", "setup": ["source .venv/bin/activate"], "more": {"slurm_account": "mine"},
    }  # fmt: skip
    launcher = pool.SlurmLauncher(**settings)
    launcher.start(16)
    jobs = [[job(number)] for number in range(16)]
    launcher.submit([pool.Work(print, one, str(slurm), {}) for one in jobs])
    script = (slurm / "script").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, flags=re.MULTILINE))
    assert asked["array"] == "0-15%8"
    assert asked["gpus-per-node"] == "1"
    assert asked["cpus-per-task"] == "4"
    assert asked["mem"] == "16GB"
    assert asked["time"] == "90"
    assert asked["partition"] == "short"
    assert asked["account"] == "mine"
    assert asked["job-name"] == "frl_repro"
    assert script.index("source .venv/bin/activate") < script.index("srun")


def test_a_dead_job_is_noticed_on_a_cluster_that_keeps_no_accounts(slurm, monkeypatch):
    monkeypatch.setattr(pool, "_SECONDS_BETWEEN_QUESTIONS", 0)
    monkeypatch.setattr(pool, "_SECONDS_FOR_FILES", 0)
    settings = {key: value for key, value in pool.SLURM.items() if key != "_target_"} | {"folder": str(slurm / "jobs")}
    launcher = pool.SlurmLauncher(**settings)
    launcher.start(2)
    jobs = [[job(number)] for number in range(2)]
    first, second = launcher.submit([pool.Work(print, one, str(slurm), {}) for one in jobs])
    queue = slurm / "queue"

    def have_ended():
        return [[launcher.has_ended(handle) for _ in range(2)][-1] for handle in (first, second)]

    assert have_ended() == [False, False]  # the controller does not answer
    queue.write_text("17_0 RUNNING\n17_1 PENDING\n9_1 FAILED\n")
    assert have_ended() == [False, False]
    queue.write_text("17_0 CONFIGURING\n17_1 COMPLETING\n")
    assert have_ended() == [False, False]
    queue.write_text("17_0 TIMEOUT\n17_1 RUNNING\n")
    assert have_ended() == [True, False]
    with pytest.raises(pool.ProcessDiedError, match=r"17_0 ended as TIMEOUT, see .*; raise hydra.launcher.minutes"):
        launcher.outcome(first)
    queue.write_text("")  # some minutes later
    assert have_ended() == [True, True]
    with pytest.raises(pool.ProcessDiedError, match="17_1 ended as FORGOTTEN"):
        launcher.outcome(second)
    # SLURM says that a job has ended before its result is seen here; then it is, and counts.
    with second.paths.result_pickle.open("wb") as file:
        pickle.dump(("success", [{"job": "seed=1", "reason": ""}]), file)
    assert launcher.outcome(second) == [{"job": "seed=1", "reason": ""}]


def test_a_job_is_not_done_by_another_program_than_the_one_that_was_checked(in_tmp):
    done = []
    work = pool.Work(lambda jobs: done.extend(jobs) or [], [job(1)], str(in_tmp), sameness.code())
    assert pool.do(work) == []
    assert done == [job(1)]
    (outcome,) = pool.do(work._replace(code={**work.code, "torch": "1.13.1"}))
    assert done == [job(1)]
    assert outcome["job"] == "seed=1"
    different = f"torch is {version('torch')} there and 1.13.1 here"
    assert f"is not like the machine of the command: {different}" in outcome["reason"]


def test_the_program_is_known_by_its_content(tmp_path, monkeypatch):
    """Changed without a commit it is another one; in another place it is the same."""
    package = tmp_path / "frl_repro"
    shutil.copytree(ROOT / "src" / "frl_repro", package, ignore=shutil.ignore_patterns("__pycache__"))

    def code_there():
        command = [sys.executable, "-c", "from frl_repro.basics import sameness; print(sameness.code()['frl_repro'])"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    assert code_there() == sameness.code()["frl_repro"]
    with (package / "trainer.py").open("a") as file:
        file.write("\n")
    assert code_there() != sameness.code()["frl_repro"]


def test_the_cluster_script_names_what_to_install(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import slurm_cluster\n"
        "slurm_cluster._PATH = '/nowhere'; sys.exit(slurm_cluster.main(['up', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(tmp_path / "cluster")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: munged, slurmctld, slurmd, sbatch, squeue, scontrol not found: apt-get install"
    )
    assert not (tmp_path / "cluster").exists()


# ---------------------------------------------------------------------------------------------------------------
# Whole grids, with a process killed on the way


def workers_of(pid):
    """Return the processes of this machine that work for a launcher and hold a job, youngest last."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if f"FRL_TEST={pid}".encode() in environment and ("submitit.core._submit" in command or "ray::do" in command):
            found.append(int(path.name))
    return sorted(found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the runs of the grid and their base hold where one process does them one by one."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, str(ROOT / "train.py"), *GRID, f"output_dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return runs_under(folder)


def runs_under(folder):
    runs = [done.parent for done in folder.rglob("done.json")]
    return {run.relative_to(folder).as_posix(): contents(run) for run in runs}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=slurm", "hydra.launcher.executor=local", "hydra.launcher.num_workers=2"],
        ["hydra/launcher=ray", "hydra.launcher.num_workers=2"],
    ],
    ids=["submitit", "ray"],
)
def test_a_grid_of_which_a_process_is_killed_ends_complete_with_one_base_and_the_same_bytes(
    launcher, undisturbed, in_tmp
):
    package = "ray" if "ray" in launcher[0] else "submitit"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    log, mark = in_tmp / "log", os.getpid()
    with log.open("w") as opened:
        sweep = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *GRID, *launcher],
            stdout=opened,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FRL_TEST": str(mark), "OMP_NUM_THREADS": "1"},
        )
        outputs, killed = in_tmp / "outputs", None
        while sweep.poll() is None:
            if killed is None and len(list(outputs.glob("*/done.json"))) >= 3 and workers_of(mark):
                killed = workers_of(mark)[-1]
                os.kill(killed, signal.SIGKILL)
            time.sleep(0.2)
    said = log.read_text()
    assert killed is not None
    assert sweep.returncode == 0, said
    assert "it is started again" in said
    assert len(list(outputs.glob("*/done.json"))) == 16
    assert len(list((outputs / "bases").glob("*/done.json"))) == 1
    assert said.count("epoch 1/1") <= 2  # of the base: twice at most, if it was its own process that was killed
    assert not (outputs / "failed.json").exists()
    assert not list(outputs.glob("sweep-*.json"))
    assert len(undisturbed) == 17
    assert runs_under(outputs) == undisturbed


@pytest.mark.slow
def test_a_grid_on_a_slurm_cluster_survives_kills_a_node_that_goes_down_and_time_limits(tmp_path):
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None or os.geteuid() != 0:
        pytest.skip("needs slurm-wlm, munge and the superuser: benchmarks/slurm_cluster.py")
    command = [sys.executable, str(ROOT / "benchmarks" / "slurm_grid.py"), f"out={tmp_path / 'figures.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["complete"] == 16
    assert figures["bases"] == 1
    assert figures["same_bytes"] is True
