"""Progress with the time left: live on a terminal, a few plain lines elsewhere, the same estimate in both."""

import io
import logging
import re
import runpy
import subprocess
import sys
import time

import pytest

from frl_repro.basics import folder_lock, progress, time_left
from frl_repro.basics.progress import LOGGER, Progress, bar, in_sweep, silence
from frl_repro.runs import experiment, sweeps
from frl_repro.training.epochs_left import TrainingProgress
from support import ROOT, TINY, call, stopped, tiny_retraining, tiny_run


class Clock:
    """Seconds that a test sets."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def lines(caplog):
    """What is logged."""
    propagates, LOGGER.propagate = LOGGER.propagate, True
    caplog.set_level(logging.INFO, logger="frl_repro")
    yield caplog
    LOGGER.propagate = propagates


def test_a_file_gets_few_lines_at_growing_intervals_with_the_time_left(clock, lines):
    with bar("measure test", 10_000) as advance:
        for _ in range(10_000):  # of a second each
            clock.now += 1
            advance(1)
    assert lines.messages[0] == "measure test: 0 %, about 2.8 h left"
    assert len(lines.messages) <= 12
    shares = [int(re.search(r": (\d+) %", line)[1]) for line in lines.messages]
    assert shares == sorted(shares)
    assert lines.messages[-1].endswith(" left")


def test_short_work_says_nothing(clock, lines):
    with bar("measure test", 100) as advance:
        for _ in range(100):
            clock.now += 0.2
            advance(1)
    assert lines.messages == []


def test_a_terminal_gets_one_live_line(clock, lines, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bar("measure test", 100) as advance:
        for _ in range(50):
            clock.now += 10
            advance(1)
        drawn = sys.stderr.getvalue()
    assert "measure test" in drawn
    assert drawn.rstrip().endswith("about 8 min left")
    assert "\n" not in drawn.rstrip("\n")
    assert lines.messages == []


def test_other_processes_of_a_run_are_silent(clock, lines, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with silence(), bar("measure test", 100) as advance:
        for _ in range(50):
            clock.now += 100
            advance(1)
    assert sys.stderr.getvalue() == ""
    assert lines.messages == []


def test_what_was_done_before_does_not_make_work_look_fast(clock):
    work = Progress("training", 100)
    work.expect(-90)
    work.start()
    clock.now += 60
    work.advance(5)
    assert work.seconds_left() == 60
    assert work.left() == "about 60 s left"


def test_the_time_left_of_a_sweep_counts_the_jobs_after_this_one(clock):
    work = Progress("training", 10)
    work.start()
    clock.now += 60
    work.advance(5)
    with in_sweep(num_after=3, seconds=None):  # the first job: the others will take as long
        assert work.left() == "about 60 s left, 7 min of the sweep"
    with in_sweep(num_after=3, seconds=600.0):
        assert work.left() == "about 60 s left, 31 min of the sweep"
    assert work.left() == "about 60 s left"


def test_pieces_that_were_done_before_do_not_count():
    assert time_left.seconds_left([], 5) is None
    assert time_left.seconds_left([0.1, 0.1, 60.0], 5) == 300.0
    assert time_left.seconds_left([60.0, 60.0], 6, at_once=3) == 120.0
    assert time_left.seconds_left([60.0, 60.0], 2, at_once=8) == 60.0


def test_runs_are_counted_by_what_their_epochs_cost(clock, tmp_path):
    adversarial = tiny_run(tmp_path / "pgd", trainer__num_epochs=4)
    other = tiny_run(tmp_path / "other", attack__num_steps=9, trainer__num_epochs=4)
    work = TrainingProgress()
    work.plan([adversarial, other])
    work.start()
    clock.now += 90
    work.trained([adversarial], 1.0)
    alone = work.seconds_left()
    work.drop(other)
    assert alone > work.seconds_left() == pytest.approx(270)
    work.had(adversarial, 2)
    assert work.seconds_left() == pytest.approx(90)
    work.drop(adversarial)
    assert work.seconds_left() == 0


def test_a_run_says_the_time_left_and_a_continued_one_counts_what_is_left(monkeypatch, lines, tmp_path):
    left = []
    say = TrainingProgress.left

    def noting(self):
        left.append((self._done, self._total))
        return say(self)

    monkeypatch.setattr(TrainingProgress, "left", noting)
    config = tiny_run(tmp_path / "run", trainer__num_epochs=4)
    with stopped(monkeypatch, after=2):
        experiment.run(config)
    assert [done / total for done, total in left] == pytest.approx([0.25])
    left.clear()
    experiment.run(config)
    assert [done / total for done, total in left] == pytest.approx([0.5, 1])
    assert (
        sum(line.startswith("epoch ") for line in lines.messages) == 3
    )  # the second epoch was stopped before it was said


def test_a_base_model_counts_and_fused_runs_share_a_line(monkeypatch, lines, tmp_path):
    configs = [tiny_retraining(tmp_path, seed=seed, num_threads=1) for seed in (0, 1)]
    experiment.run_all(configs)
    said = [line for line in lines.messages if line.startswith("epoch ")]
    assert [line.split("  ")[0] for line in said] == [
        "epoch 1/1 of 2 runs",
        "epoch 1/2 of 2 runs",
        "epoch 2/2 of 2 runs",
    ]
    assert re.search(r"loss [\d.]+ to [\d.]+", said[0])


def test_a_folder_says_how_far_its_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "RENEWED_EVERY", 0.02)
    assert folder_lock.told(tmp_path) == {}
    with folder_lock.held(tmp_path, wait=False):
        folder_lock.tell(tmp_path, epochs=1.5, left=90.0)
        while not (about := folder_lock.told(tmp_path)).get("left"):
            pass
        assert (about["epochs"], about["left"]) == (1.5, 90.0)
        assert about["age"] < 60
    assert folder_lock.told(tmp_path) == {}


@pytest.mark.parametrize("about", ['"x"', "[1]", '{"left": "soon"}', '{"left": null}', '{"left": true}', "null"])
def test_what_a_damaged_lock_says_is_left_aside(about, tmp_path):
    (tmp_path / folder_lock.LOCK_FILE).write_text(f'{{"id": "1", "about": {about}}}')
    assert folder_lock.told(tmp_path) == {}


def test_a_serial_sweep_says_its_time_left_from_the_first_epoch_on(monkeypatch, capsys, in_tmp):
    monkeypatch.setattr(Progress, "seconds_left", lambda _: 60.0)
    assert call(monkeypatch, "-m", "seed=0,1,2", *TINY, "trainer.num_epochs=2") == 0
    out = capsys.readouterr().out
    first = out[: out.index("sweep: 1 of 3 jobs have ended, about ")]
    assert re.search(r"epoch 1/2 .*  about 60 s left, \d+ (s|min) of the sweep\n", first)
    assert out.count("of the sweep") == 4  # the last job has none after it
    assert "sweep: 3 of 3 jobs have ended\n" in out


def test_a_sweep_counts_jobs_that_run_at_the_same_time(tmp_path):
    about = {"reason": "", "run": None, "output_dir": "outputs", "seconds": 100.0}
    for number in range(4):
        sweeps.note_outcome(tmp_path, {**about, "job": str(number)})
    assert sweeps.progress_line(tmp_path, num_jobs=12) == "sweep: 4 of 12 jobs have ended, about 13 min left"
    assert sweeps.progress_line(tmp_path, num_jobs=12, at_once=4).endswith("have ended, about 3 min left")


def test_a_study_says_the_time_left_of_its_sweeps(monkeypatch, capsys):
    study = runpy.run_path(str(ROOT / "scripts" / "study.py"))
    now = [0.0]

    def takes(command, **_):
        now[0] += 600 if "train.py" in command else 1
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", takes)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    sweep, figure = ["train.py", "-m", "seed=0"], ["scripts/plot.py"]
    assert study["run_commands"]([("exp1", sweep), ("exp1", figure), ("exp2", sweep), ("exp2", sweep)]) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[exp1] 1 of 4: python train.py -m seed=0"
    assert [line for line in lines if "exit" in line] == [
        "[exp1] exit code 0 after 10 min, about 20 min left",
        "[exp1] exit code 0 after 1 s, about 20 min left",
        "[exp2] exit code 0 after 10 min, about 10 min left",
        "[exp2] exit code 0 after 10 min",
    ]
