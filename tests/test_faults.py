"""A small run of the fault bench; the large one is a command (docs/reliability.md)."""

import json
import os
import subprocess
import sys

import pytest

from support import ROOT

CHEAP = "kill_training,kill_checkpoint_write,kill_table_write,kill_mid_write,damaged_state,damaged_result,damaged_table"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the bench forks")


def bench(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.bench
def test_ten_faults_leave_every_run_complete_and_the_same(tmp_path):
    done = bench("faults=10", "seed=3", f"kinds={CHEAP}", f"out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads((tmp_path / "faults.json").read_text())["kinds"]
    assert sum(kind["num_injected"] for kind in kinds.values()) == 10
    for kind in kinds.values():
        assert kind["num_recovered"] == kind["num_injected"]
        assert kind["num_differing_bytes"] == 0
        assert kind["broken"] == []
    assert kinds["damaged_result"]["num_refused"] == kinds["damaged_result"]["num_injected"] > 0
    assert "| **all** | 10 | 10 | " in (tmp_path / "faults.md").read_text()


@pytest.mark.slow
def test_two_hundred_faults_leave_every_run_complete_and_the_same(tmp_path):
    done = bench("faults=200", f"out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_bench_notices_what_is_lost(tmp_path):
    """A run that forgets its running sums after a kill ends with other bytes: the bench says so and fails."""
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "from frl_repro.models import checkpoints\n"
        "save = checkpoints.save_state\n"
        "def forgetful(path, state):\n"
        "    save(path, {**state, 'model': {n: t + 1e-3 for n, t in state['model'].items()}})\n"
        "checkpoints.save_state = forgetful\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [str(ROOT / "benchmarks" / "faults.py"), "faults=1", "kinds=damaged_state", f"out={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (kind,) = json.loads((tmp_path / "faults.json").read_text())["kinds"].values()
    assert kind["num_injected"] == 1
    assert kind["num_recovered"] == 0
    assert kind["num_differing_bytes"] > 0
