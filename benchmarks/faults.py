"""Hurt runs at random moments and see that nothing is lost: what docs/reliability.md quotes.

    python benchmarks/faults.py                         # 200 faults, about seven minutes on one free core
    python benchmarks/faults.py faults=20 seed=1 kinds=kill_training,damaged_state
    python benchmarks/faults.py out=docs/faults         # also faults.md and faults.json

Tiny runs on synthetic images are killed, starved of disk and memory, damaged and interrupted; each is then started
again as a user would, and its files are compared with those of a run that nobody disturbed. Between fault and
repetition, no file may be there under its final name that is not whole. Moments come from the seed: the n-th optimiser
step, the n-th batch measured, the n-th file opened or renamed, the n-th byte written. POSIX only: one process that has
imported PyTorch forks one for each run, so that a fault costs a second or two. `kill_side_by_side` needs a compiler.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
import torch._dynamo  # the optimiser imports it on its first use, which takes longer than a tiny run

from frl_repro.basics import run_folder
from frl_repro.basics.errors import UserError, reason
from frl_repro.basics.progress import bar, set_up_logging
from frl_repro.commands import cli, collect, jobs
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, usage_text, whole_number
from frl_repro.data import Split
from frl_repro.models.compute import backends, memory
from frl_repro.models.compute.native import build
from frl_repro.results.tables import writing
from frl_repro.runs import experiment
from frl_repro.settings.config import RunConfig
from frl_repro.training import fitting

TINY = (
    "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=80", "dataset.num_test=30",
    "dataset.validation_fraction=0.25", "trainer.num_epochs=3", "trainer.batch_size=20", "attack.num_steps=1",
    "evaluation.num_steps=1", "num_threads=1", "backend=torch",
)  # fmt: skip
RETRAIN = (
    *TINY, "frl=reweight", "frl.num_validation=12", "frl.num_steps=1", "frl.update_every=2",
    "retrain.trainer.num_epochs=2", "retrain.trainer.batch_size=20", "retrain.attack.num_steps=1",
)  # fmt: skip

_KEYS = {
    "faults": "how many   [200]",
    "seed": "what the moments follow from   [0]",
    "kinds": "comma-separated kinds of faults   [all]",
    "out": "folder for faults.md and faults.json   [none]",
}
_NOT_COMPARED = ("run.json", "done.json")  # hold seconds, and checksums of what holds them
_NOBODY = 65534
_REFUSED = 1  # exit code of a command that says why it did nothing
_BROKEN = 99  # exit code of a process that ended with a traceback


# ---------------------------------------------------------------------------------------------------------------
# Processes


class Child:
    """A process forked from this one, and what it says."""

    def __init__(self, act: Callable[[], int]) -> None:
        self._reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = _BROKEN
            try:
                os.close(self._reader)
                os.dup2(writer, 1)
                os.dup2(writer, 2)
                # The parent's streams may be files, which are asked for their position; a pipe has none.
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
                torch.set_num_threads(1)
                set_up_logging()
                code = act()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(writer)
        self._said = b""

    def wait(self, seconds: float | None = None) -> bool:
        """Read what it says for so long, or until it ends; return whether it has ended."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            if select.select([self._reader], [], [], left)[0]:
                part = os.read(self._reader, 65536)
                if not part:
                    return True
                self._said += part

    def end(self) -> tuple[int, str]:
        """Return its exit code (negative: the signal that ended it) and what it said."""
        self.wait()
        os.close(self._reader)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, self._said.decode(errors="replace")


def train(*configs: RunConfig, wait: bool = False) -> int:
    """Do runs as the command line does: say in one line why one fails."""
    problems = [o for o in experiment.run_all(configs, command="faults", wait=wait) if isinstance(o, Exception)]
    for line in dict.fromkeys(map(reason, problems)):
        sys.stderr.write(f"error: {line}\n")
    return _REFUSED if problems else 0


# ---------------------------------------------------------------------------------------------------------------
# Moments


class Moments:
    """Counts what happens in this process by name, and ends it at one of them, as kill -9 does."""

    def __init__(self, name: str = "", number: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self._fatal = name, number

    def note(self, name: str) -> None:
        """Count one more of a name."""
        self.counts[name] += 1
        if (name, self.counts[name]) == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Begin to count; for a process that ends soon, since it cannot be undone."""
        step, batches = fitting._Training.step, Split.batches

        def counted_step(training: Any, *place: int, **how: bool) -> None:
            self.note("step")
            step(training, *place, **how)

        def counted_batches(split: Split, size: int, device: torch.device) -> Iterator[tuple[Any, ...]]:
            for batch in batches(split, size, device):
                self.note("measure")
                yield batch

        fitting._Training.step = counted_step  # type: ignore[method-assign]
        Split.batches = counted_batches  # type: ignore[method-assign,assignment]
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            name, flags = Path(arguments[0]).name, arguments[2] or 0
            kind = "write" if flags & (os.O_WRONLY | os.O_RDWR) else "read"
            if name.endswith((".tmp", ".csv")):
                self.note(f"{kind} {_part(name)}")
        elif event == "os.rename":
            self.note(f"rename {_part(Path(arguments[1]).name)}")


def _part(name: str) -> str:
    return "state" if "state." in name else "table"


def at(name: str, number: int, act: Callable[[], int]) -> Callable[[], int]:
    """Return the work of a process that is killed at a moment."""

    def watched() -> int:
        Moments(name, number).watch()
        return act()

    return watched


# ---------------------------------------------------------------------------------------------------------------
# Faults


@dataclass
class Tally:
    """What became of the faults of a kind."""

    num_injected: int = 0
    num_recovered: int = 0
    num_refused: int = 0
    num_differing_bytes: int = 0
    messages: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)


class Bench:
    """Runs that nobody disturbed, what happens in them, and a folder to hurt others in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.plain,) = _configs(TINY)
        (self.retrained,) = _configs(RETRAIN)
        self.tally: dict[str, Tally] = {}
        self._number = 0
        self.reference: dict[str, dict[str, bytes]] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.seconds = 0.0
        for config in (self.plain, self.retrained):
            self._measure(config)

    @functools.cached_property
    def pair(self) -> list[RunConfig]:
        """Runs on native code: fused it gives the bytes that it gives alone, PyTorch does up to rounding."""
        configs = [config for seed in (1, 2) for config in _configs((*TINY, "backend=native", f"seed={seed}"))]
        for config in configs:
            self._measure(config)
        return configs

    def _measure(self, config: RunConfig) -> None:
        here = self.undisturbed(config)
        counts = self.folder / "counts.json"

        def counting() -> int:
            moments = Moments()
            moments.watch()
            code = train(here)
            counts.write_text(json.dumps(moments.counts))
            return code

        started = time.monotonic()
        code, said = Child(counting).end()
        if code:
            raise UserError(f"the undisturbed run failed: {said}")
        self.seconds = max(self.seconds, time.monotonic() - started)
        self.reference[config.run_id] = _files(here.folder)
        self.counts[config.run_id] = Counter(json.loads(counts.read_text()))
        if config.retrain is not None:
            base = here.base()
            self.reference[base.run_id] = _files(base.folder)

    def placed(self, config: RunConfig, folder: Path) -> RunConfig:
        """Return the run with its files, and those of its base, in a folder."""
        return dataclasses.replace(config, keys=dataclasses.replace(config.keys, output_dir=str(folder)))

    def undisturbed(self, config: RunConfig) -> RunConfig:
        """Return the run that nothing disturbed: in a folder of its own, since a base is not trained where one lies."""
        return self.placed(config, self.folder / "undisturbed" / f"{config.method}{config.seed}")

    def fresh(self) -> Path:
        """Return an empty folder."""
        self._number += 1
        folder = self.folder / f"fault{self._number}"
        folder.mkdir()
        return folder

    # What is checked

    def check_whole(self, kind: str, *configs: RunConfig) -> None:
        """Note files that are there under their final names and are not those of the undisturbed run."""
        for config in (*configs, *(c.base() for c in configs if c.retrain is not None)):
            reference = self.reference[config.run_id]
            for name, content in _files(config.folder).items():
                if name in reference and name not in _NOT_COMPARED and content != reference[name]:
                    self.tally[kind].broken.append(f"{config.folder.name}/{name} is there and not whole")
            if (config.folder / "done.json").exists():
                run_folder.check_finished(config.folder)

    def check_complete(self, kind: str, config: RunConfig) -> bool:
        """Note how a run that should be complete differs from the undisturbed one; return whether it does not."""
        tally, is_same = self.tally[kind], True
        for one in [config, *([config.base()] if config.retrain is not None else [])]:
            found, reference = _files(one.folder), self.reference[one.run_id]
            if found.keys() != reference.keys():
                tally.broken.append(f"{one.folder.name}: files {sorted(found.keys() ^ reference.keys())}")
                is_same = False
            for name in (found.keys() & reference.keys()) - set(_NOT_COMPARED):
                differing = _num_differing(found[name], reference[name])
                tally.num_differing_bytes += differing
                is_same = is_same and not differing
            run_folder.check_finished(one.folder)
        return is_same

    def refused(self, kind: str, code: int, said: str, *, names: str = "") -> None:
        """Note a refusal, which is one line with the name of what is wrong and no traceback."""
        tally = self.tally[kind]
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        is_clear = code == _REFUSED and "Traceback" not in said and len(errors) == 1 and names in errors[0]
        if not is_clear or "unexpected" in errors[0]:
            tally.broken.append(f"exit code {code}: {said[-2000:]}")
            return
        tally.num_refused += 1
        tally.messages.add(_without_paths(errors[0], self.folder))

    def again(self, kind: str, *configs: RunConfig) -> None:
        """Start runs that were hurt once more, and note whether they end as if nothing had happened."""
        code, said = Child(lambda: train(*configs)).end()
        if code:
            self.tally[kind].broken.append(f"repetition ended with {code}: {said[-2000:]}")
            return
        are_same = [self.check_complete(kind, config) for config in configs]
        self.tally[kind].num_recovered += all(are_same)


def kill_at(bench: Bench, kind: str, chance: random.Random, config: RunConfig, names: Sequence[str]) -> None:
    """Kill a run at a moment of one of these names, and start it again."""
    config = bench.placed(config, bench.fresh())
    counts = bench.counts[config.run_id]
    name = chance.choice([name for name in names if counts[name]])
    code, said = Child(at(name, chance.randint(1, counts[name]), lambda: train(config))).end()
    if code != -signal.SIGKILL:
        bench.tally[kind].broken.append(f"{name} was not reached: {code} {said[-2000:]}")
    bench.check_whole(kind, config)
    bench.again(kind, config)


def kill_training(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 at an optimiser step"""
    kill_at(bench, kind, chance, bench.plain, ["step"])


def kill_evaluation(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 while a split is measured"""
    kill_at(bench, kind, chance, bench.plain, ["measure"])


def kill_checkpoint_write(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 while a training state is opened or renamed"""
    kill_at(bench, kind, chance, bench.plain, ["write state", "rename state"])


def kill_table_write(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 while a result file is opened or renamed"""
    kill_at(bench, kind, chance, chance.choice([bench.plain, bench.retrained]), ["write table", "rename table"])


def kill_base_training(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 during warm-start training and the retraining after it"""
    kill_at(bench, kind, chance, bench.retrained, ["step", "measure", "write state", "rename state"])


def kill_any_moment(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 by the clock, several times in a row"""
    config = bench.placed(chance.choice([bench.plain, bench.retrained]), bench.fresh())
    for _ in range(3):
        child = Child(lambda: train(config))
        if not child.wait(chance.uniform(0, bench.seconds)):
            os.kill(child.pid, signal.SIGKILL)
        code, said = child.end()
        if code not in (0, -signal.SIGKILL):
            bench.tally[kind].broken.append(f"exit code {code}: {said[-2000:]}")
        bench.check_whole(kind, config)
    bench.again(kind, config)


def kill_mid_write(bench: Bench, kind: str, chance: random.Random) -> None:
    """killed by the system at the n-th byte of a file (SIGXFSZ)"""
    config = bench.placed(bench.plain, bench.fresh())
    limit = int(10 ** chance.uniform(2, 5.5))

    def limited() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return train(config)

    code, said = Child(limited).end()
    if code != -signal.SIGXFSZ:
        bench.tally[kind].broken.append(f"exit code {code} at {limit} bytes: {said[-2000:]}")
    bench.check_whole(kind, config)
    bench.again(kind, config)


def kill_side_by_side(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 of two fused runs, at an optimiser step or a renamed file"""
    folder = bench.fresh()
    pair = [bench.placed(config, folder) for config in bench.pair]
    counts = bench.counts[pair[0].run_id]
    name = chance.choice(["step", "rename state", "rename table"])
    number = chance.randint(1, len(pair) * counts[name])
    code, said = Child(at(name, number, lambda: train(*pair))).end()
    if code != -signal.SIGKILL:
        bench.tally[kind].broken.append(f"{name} was not reached: {code} {said[-2000:]}")
    bench.check_whole(kind, *pair)
    bench.again(kind, *pair)


def kill_collect(bench: Bench, kind: str, chance: random.Random) -> None:
    """kill -9 while collect reads tables or writes its own"""
    folder = bench.fresh()
    runs = [str(bench.undisturbed(config).folder) for config in (bench.plain, bench.retrained)]

    def collect_into(to: str) -> int:
        return collect.main([f"runs={','.join(runs)}", f"out={folder / to}"])

    whole = folder / "whole.csv"
    Child(lambda: collect_into("whole.csv")).end()
    name, number = chance.choice([("read table", 1), ("read table", 2), ("write table", 1), ("rename table", 1)])
    code, said = Child(at(name, number, lambda: collect_into("all.csv"))).end()
    if code != -signal.SIGKILL:
        bench.tally[kind].broken.append(f"{name} was not reached: {code} {said[-2000:]}")
    if (folder / "all.csv").exists():
        bench.tally[kind].broken.append("a table is there before it is whole")
    code, said = Child(lambda: collect_into("all.csv")).end()
    differing = _num_differing((folder / "all.csv").read_bytes(), whole.read_bytes())
    bench.tally[kind].num_differing_bytes += differing
    bench.tally[kind].num_recovered += code == 0 and not differing


def full_disk(bench: Bench, kind: str, chance: random.Random) -> None:
    """no room left: a small file system, or where none can be mounted a limit on the size of files"""
    folder = bench.fresh()
    config = bench.placed(bench.plain, folder)
    kilobytes = chance.randint(8, 1500)
    with _small_disk(folder, kilobytes) as is_mounted:

        def limited() -> int:
            if not is_mounted:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                most = kilobytes * 300
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            return train(config)

        code, said = Child(limited).end()
        if code == 0:  # it was large enough
            bench.tally[kind].num_recovered += bench.check_complete(kind, config)
            return
        bench.refused(kind, code, said, names="No space left on device" if is_mounted else "File too large")
        bench.check_whole(kind, config)
        if is_mounted:  # someone makes room
            subprocess.run(["mount", "-o", "remount,size=20M", str(folder)], check=True)
        bench.again(kind, config)


def read_only_folder(bench: Bench, kind: str, chance: random.Random) -> None:
    """an output folder that may not be written to, from the start or from the middle of a run on"""
    folder = bench.fresh()
    config = bench.placed(bench.plain, folder)
    is_begun = chance.random() < 0.5
    for path in [bench.folder, *bench.folder.parents]:
        if os.geteuid() == 0 and path.stat().st_uid == 0 and path == bench.folder:
            path.chmod(0o755)
    if is_begun:
        Child(at("step", chance.randint(5, 9), lambda: train(config))).end()
        config.folder.chmod(0o555)
    folder.chmod(0o555)

    def as_nobody() -> int:
        if os.geteuid() == 0:  # the superuser may write everywhere
            os.setgid(_NOBODY)
            codecs.lookup("ascii")  # loaded now: the interpreter may lie where only the superuser reads
            os.setuid(_NOBODY)
        return train(config)

    code, said = Child(as_nobody).end()
    bench.refused(kind, code, said, names="Permission denied")
    folder.chmod(0o755)
    if is_begun:
        config.folder.chmod(0o755)
    bench.check_whole(kind, config)
    bench.again(kind, config)


def damaged_state(bench: Bench, kind: str, chance: random.Random) -> None:
    """the newest training state truncated or with a flipped bit"""
    config = bench.placed(bench.plain, bench.fresh())
    steps = bench.counts[config.run_id]["step"] // 3
    Child(at("step", chance.randint(2 * steps + 1, 3 * steps), lambda: train(config))).end()
    _damage(config.folder / "state.pt", chance)
    code, said = Child(lambda: train(config)).end()
    if code or "is damaged (wrong sha256): continuing from the state of" not in said:
        bench.tally[kind].broken.append(f"{code}: {said[-2000:]}")
    elif bench.check_complete(kind, config):
        bench.tally[kind].num_recovered += 1


def damaged_result(bench: Bench, kind: str, chance: random.Random) -> None:
    """a file of a finished run truncated or with a flipped bit, then the run asked for again"""
    config = bench.placed(bench.plain, bench.fresh())
    shutil.copytree(bench.undisturbed(bench.plain).folder, config.folder)
    name = chance.choice([*bench.reference[config.run_id]])
    _damage(config.folder / name, chance)
    code, said = Child(lambda: train(config)).end()
    # A bit of done.json or run.json may fall where it is read as another name or hash: both are refused as well.
    bench.refused(kind, code, said, names="" if name in _NOT_COMPARED else name)
    shutil.rmtree(config.folder)  # as the message says
    bench.again(kind, config)


def damaged_base(bench: Bench, kind: str, chance: random.Random) -> None:
    """the weights of a base truncated or with a flipped bit, then a retraining asked for"""
    config = bench.placed(bench.retrained, bench.fresh())
    base = config.base()
    shutil.copytree(bench.undisturbed(bench.retrained).base().folder, base.folder)
    _damage(base.folder / "model.safetensors", chance)
    code, said = Child(lambda: train(config)).end()
    bench.refused(kind, code, said, names="model.safetensors")
    shutil.rmtree(base.folder)
    bench.again(kind, config)


def damaged_table(bench: Bench, kind: str, chance: random.Random) -> None:
    """a table truncated or with a flipped bit, then read by collect"""
    folder = bench.fresh()
    here = bench.placed(bench.plain, folder)
    shutil.copytree(bench.undisturbed(bench.plain).folder, here.folder)
    _damage(here.folder / "classwise.csv", chance)
    code, said = Child(lambda: collect.main([f"runs={folder}"])).end()
    bench.refused(kind, code, said, names="classwise.csv")
    shutil.rmtree(here.folder)
    bench.again(kind, here)


def same_run_twice(bench: Bench, kind: str, chance: random.Random) -> None:
    """two processes start the same run"""
    config = bench.placed(chance.choice([bench.plain, bench.retrained]), bench.fresh())
    wait = chance.random() < 0.5  # as sweeps do
    first = Child(lambda: train(config, wait=wait))
    first.wait(chance.uniform(0, bench.seconds / 2))
    second = Child(lambda: train(config, wait=wait))
    ends = [first.end(), second.end()]
    for code, said in ends:
        if code:
            bench.refused(kind, code, said, names="another process is working on this run")
    if all(code for code, _ in ends):
        bench.tally[kind].broken.append("neither has done it")
    elif bench.check_complete(kind, config):
        bench.tally[kind].num_recovered += 1


def out_of_memory(bench: Bench, kind: str, chance: random.Random) -> None:
    """the device's memory holds only some of the images of a batch"""
    config = bench.placed(chance.choice([bench.plain, bench.retrained]), bench.fresh())
    most = chance.randint(1, 9)

    def scarce() -> int:
        parts = memory.Parts()

        def holds(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def limited(model: Any, x: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
                if len(x) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return function(model, x, *arguments, **settings)

            return limited

        backends.TORCH = dataclasses.replace(
            backends.TORCH,
            logits=memory.logits_in_parts(holds(backends.TORCH.logits), parts),
            ascend=memory.ascend_in_parts(holds(backends.TORCH.ascend), parts),  # type: ignore[arg-type]
        )
        return train(config)

    code, said = Child(scarce).end()
    if code or "out of memory: attacks and measurements go on with" not in said:
        bench.tally[kind].broken.append(f"{code}: {said[-2000:]}")
    elif bench.check_complete(kind, config):
        bench.tally[kind].num_recovered += 1


def interrupted_twice(bench: Bench, kind: str, chance: random.Random) -> None:
    """Ctrl-C, and again shortly after, on the whole command line"""
    folder = bench.fresh()
    config = bench.placed(bench.plain, folder)

    def command() -> int:
        sys.argv = ["train.py", *TINY, f"output_dir={folder}"]
        return cli.main()

    child = Child(command)
    if not child.wait(chance.uniform(0, 2 * bench.seconds)):
        os.kill(child.pid, signal.SIGINT)
        if not child.wait(10 ** chance.uniform(-5, -1)):
            os.kill(child.pid, signal.SIGINT)
    code, said = child.end()
    # Before the command has begun, Python itself is interrupted.
    if code not in (0, 130, -signal.SIGINT) and not said.startswith("Traceback"):
        bench.tally[kind].broken.append(f"exit code {code}: {said[-2000:]}")
    if "Traceback" in said and "epoch 1/3" in said:
        bench.tally[kind].broken.append(said[-2000:])
    bench.check_whole(kind, config)
    bench.again(kind, config)


KINDS: dict[str, Callable[[Bench, str, random.Random], None]] = {
    function.__name__: function
    for function in (
        kill_training, kill_evaluation, kill_checkpoint_write, kill_table_write, kill_base_training, kill_collect,
        kill_any_moment, kill_mid_write, kill_side_by_side, full_disk, read_only_folder, damaged_state, damaged_result,
        damaged_base, damaged_table, same_run_twice, out_of_memory, interrupted_twice,
    )
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Tools


def _configs(arguments: Sequence[str]) -> list[RunConfig]:
    return [config for config in jobs.check_command_line(arguments, "config") if isinstance(config, RunConfig)]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()} if folder.is_dir() else {}


def _num_differing(ours: bytes, theirs: bytes) -> int:
    return abs(len(ours) - len(theirs)) + sum(a != b for a, b in zip(ours, theirs, strict=False) if ours != theirs)


def _without_paths(message: str, folder: Path) -> str:
    text = re.sub(rf"{re.escape(str(folder))}/fault\d+/?", "", message.removeprefix("error: "))
    return re.sub(r"(bases/)?synthetic-[\w.-]+-[0-9a-f]{8}(?=/|:|;| |$)", r"\1RUN", text)


def _damage(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if chance.random() < 0.5:
        content = content[: chance.randrange(len(content))]
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _has_native_code() -> bool:
    try:
        build.find_compiler()
    except build.NativeUnavailable as why:
        sys.stderr.write(f"without native code fused runs are equal up to rounding only: left out ({why})\n")
        return False
    return True


@contextmanager
def _small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    is_mounted = False
    if os.geteuid() == 0 and sys.platform == "linux":
        is_mounted = subprocess.run(options, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=True)


# ---------------------------------------------------------------------------------------------------------------
# The command


def inject(num_faults: int, seed: int, kinds: Sequence[str], folder: Path) -> dict[str, Tally]:
    """Inject faults, each kind in turn, and return what became of them by kind."""
    bench = Bench(folder)
    with bar("faults", num_faults) as advance:
        for number in range(num_faults):
            kind = kinds[number % len(kinds)]
            tally = bench.tally.setdefault(kind, Tally())
            tally.num_injected += 1
            try:
                KINDS[kind](bench, kind, random.Random(f"{seed}/{number}"))
            except (UserError, OSError) as problem:
                tally.broken.append(f"{type(problem).__name__}: {problem}")
            advance(1)
    return bench.tally


def table(tallies: dict[str, Tally]) -> str:
    """Return the table that a run of the bench ends with, as Markdown, and the messages of refusals."""
    lines = [
        "| fault | injected | complete afterwards | of these refused first, in a line | differing bytes | broken |",
        "|---|---|---|---|---|---|",
    ]
    total = Tally()
    for kind, t in tallies.items():
        what = (KINDS[kind].__doc__ or kind).strip()
        cells = (t.num_injected, t.num_recovered, t.num_refused, t.num_differing_bytes, len(t.broken))
        lines.append(f"| {what} | " + " | ".join(map(str, cells)) + " |")
        total.num_injected += t.num_injected
        total.num_recovered += t.num_recovered
        total.num_refused += t.num_refused
        total.num_differing_bytes += t.num_differing_bytes
        total.broken += t.broken
    cells = (total.num_injected, total.num_recovered, total.num_refused, total.num_differing_bytes, len(total.broken))
    lines.append("| **all** | " + " | ".join(map(str, cells)) + " |")
    messages = sorted({message for tally in tallies.values() for message in tally.messages})
    if messages:
        lines += ["", "What refused runs were told:", "", *(f"- `{message}`" for message in messages)]
    return "\n".join(lines)


def _act(given: dict[str, str]) -> tuple[str, int]:
    num_faults = whole_number("faults", given.get("faults", "200"))
    usual = [kind for kind in KINDS if kind != kill_side_by_side.__name__ or _has_native_code()]
    kinds = [choice("kinds", kind, KINDS) for kind in given.get("kinds", ",".join(usual)).split(",")]
    seed = whole_number("seed", given.get("seed", "0"), least=0)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tallies = inject(num_faults, seed, kinds, Path(folder))
    seconds = time.monotonic() - started
    text = f"{table(tallies)}\n"
    is_sound = all(not t.broken and t.num_recovered == t.num_injected for t in tallies.values())
    if "out" in given:
        out = Path(given["out"])
        writing.write_json(out / "faults.json", {
            "seed": seed, "seconds": round(seconds), "kinds": {
                kind: {**dataclasses.asdict(t), "messages": sorted(t.messages)} for kind, t in tallies.items()
            },
        })  # fmt: skip
        (out / "faults.md").write_text(text, encoding="utf-8")
    broken = [f"{kind}: {line}" for kind, tally in tallies.items() for line in tally.broken]
    return "\n".join([text, f"{num_faults} faults in {seconds:.0f} s, seed {seed}", *broken]) + "\n", not is_sound


def _usage() -> str:
    kinds = "\n".join(f"  {name:<22}{(function.__doc__ or '').strip()}" for name, function in KINDS.items())
    summary = "Hurt tiny runs at random moments and see that each ends as if nothing had happened."
    return usage_text(summary, program=program_name(), keys=_KEYS, sections={"kinds": kinds})


def main(argv: Sequence[str] | None = None) -> int:
    """Inject the faults that ``argv`` asks for; exit code 1 where anything is lost."""
    return run(argv, keys=_KEYS, usage=_usage, act=_act)


if __name__ == "__main__":
    sys.exit(main())
