"""Registered studies: which runs were fixed, with their criteria, before any of them was run (docs/registration.md).

``registered.csv`` lists the runs of the study by name, ``registered_bench.csv`` those of the bench, a row for each
setting. A name ends in the hash of every setting that changes numbers, so that the lists fix each run to the last
setting; a run whose name is in a list records that it belongs to the registration. Needs no torch.
"""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGISTERED_FILE = Path(__file__).with_name("registered.csv")
COLUMNS = ("registration", "cell", "seed", "run_id", "overrides")
BENCH_FILE = Path(__file__).with_name("registered_bench.csv")
BENCH_COLUMNS = ("registration", "track", "start", "method", "setting", "run", "hashes", "overrides")
"""``run`` is a run's name up to its hash, with ``{seed}``; ``hashes`` has that of each seed, ``20:1f0c... 21:...``."""


@dataclass(frozen=True)
class Cell:
    """One setting of a registered study; each seed runs it once.

    Attributes
    ----------
    name : str
        As verdicts and tables call it.
    overrides : str
        Settings of ``train.py``, without the seed.
    """

    name: str
    overrides: str


@dataclass(frozen=True)
class RegisteredRun:
    """A run that was fixed beforehand.

    Attributes
    ----------
    registration : str
        Name of the registered study.
    cell : str
        Name of its `Cell`.
    seed : int
    """

    registration: str
    cell: str
    seed: int


@dataclass(frozen=True)
class BenchRun:
    """A run of the bench that was fixed beforehand.

    Attributes
    ----------
    registration : str
    track, start, method, setting : str
        As `frl_repro.results.protocol` writes them.
    seed : int
    """

    registration: str
    track: str
    start: str
    method: str
    setting: str
    seed: int

    @property
    def cell(self) -> str:
        """What all seeds share, as ``run.json`` records it."""
        return " ".join(filter(None, (self.track, self.start, self.method, self.setting)))


NATURAL, ADVERSARIAL, BASE = "natural", "adversarial", "base"
EQUAL, EMA, EQUAL_MARGINS = "equal weights", "equal weights, EMA", "equal margins"
REWEIGHT = ("reweight 5:1", "reweight 5:5", "reweight 20:20")
COMBINED = ("combined 5:1", "combined 5:5", "combined 20:20")
MARGINS = ("margins 5", "margins 10")
REMARGIN = ("remargin 5", "remargin 10")

STUDY = "fashion-mnist-2026"
"""The reproduction report's data and network: what it claims, and how its methods compare under equal conditions."""

SEEDS = tuple(range(10, 20))
DEVELOPMENT_SEEDS = (0, 1, 2)
REGISTERED_IN = ("da576a1", "2026-11-26 12:20 UTC")
"""The commit that fixed the study, before the first of its runs."""

CELLS = (
    Cell(NATURAL, "experiment=exp1 attack=none"),
    Cell(ADVERSARIAL, "experiment=exp1 attack=pgd"),
    Cell(EQUAL, "experiment=study frl=finetune"),
    Cell(EMA, "experiment=study frl=finetune retrain.trainer.ema_decay=0.998"),
    *(
        Cell(name, f"experiment=study frl=reweight alpha.nat={nat} alpha.bndy={bndy}")
        for name, (nat, bndy) in zip(REWEIGHT, ((5, 1), (5, 5), (20, 20)), strict=True)
    ),
    *(
        Cell(name, f"experiment=study frl=combined alpha.nat=0 alpha.bndy=0 alpha.margin={margin}")
        for name, margin in zip(MARGINS, (5, 10), strict=True)
    ),
    *(
        Cell(name, f"experiment=study frl=combined alpha.nat={nat} alpha.bndy={bndy} alpha.margin=5")
        for name, (nat, bndy) in zip(COMBINED, ((5, 1), (5, 5), (20, 20)), strict=True)
    ),
    Cell(EQUAL_MARGINS, "experiment=study frl=remargin alpha.margin=0"),
    *(
        Cell(name, f"experiment=study frl=remargin alpha.margin={margin}")
        for name, margin in zip(REMARGIN, (5, 10), strict=True)
    ),
)
"""All settings of the study. The base needs no cell: retraining measures it as epoch 0."""


@functools.cache
def registered_runs() -> Mapping[str, RegisteredRun | BenchRun]:
    """Return every registered run by its name (``run_id``)."""
    with REGISTERED_FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = {row["run_id"]: RegisteredRun(row["registration"], row["cell"], int(row["seed"])) for row in rows}
    return {**runs, **bench_runs()}


@functools.cache
def bench_runs() -> Mapping[str, BenchRun]:
    """Return every registered run of the bench by its name."""
    with BENCH_FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = {}
    for row in rows:
        registration, track, start, method, setting = (row[name] for name in BENCH_COLUMNS[:5])
        for entry in row["hashes"].split():
            seed, _, digest = entry.partition(":")
            runs[f"{row['run'].format(seed=seed)}-{digest}"] = BenchRun(
                registration, track, start, method, setting, int(seed)
            )
    return runs


def record_of(run_id: str) -> dict[str, Any] | None:
    """Return what ``run.json`` keeps of the registration that a run belongs to; None where it belongs to none."""
    run = registered_runs().get(run_id)
    if run is None:
        return None
    return {"name": run.registration, "cell": run.cell, "list_sha256": _list_digest(run.registration)}


@functools.cache
def _list_digest(registration: str) -> str:
    """Return the sha256 of the runs of one registration: another one that is added later changes nothing."""
    names = sorted(name for name, run in registered_runs().items() if run.registration == registration)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def is_of_bench(table: Path) -> bool:
    """Return whether a table is of a registered run of the bench, or of what AutoAttack makes of it."""
    name = table.parent.name
    return name in bench_runs() or name.rpartition("-")[0] in bench_runs()


def of_one_study(tables: Sequence[Path]) -> Sequence[Path]:
    """Return the registered study's tables where there are any, else all but the bench's, else all.

    Registered runs and others are never shown together; the bench has pages of its own.
    """
    registered = registered_runs()
    own = [path for path in tables if path.parent.name in registered and not is_of_bench(path)]
    return own or [path for path in tables if not is_of_bench(path)] or tables


def of_first_study(tables: Sequence[Path]) -> Sequence[Path]:
    """Return tables that are neither registered runs' nor of the bases beside them; all where there are no others.

    Registered runs are judged by what was registered, apart from the runs that the study was developed with.
    """
    registered = [path for path in tables if path.parent.name in registered_runs()]
    places = {path.parents[1] for path in registered}
    others = [path for path in tables if path not in registered and path.parents[2] not in places]
    return others or tables


def registered_left_out(tables: Sequence[Path]) -> str:
    """Return a line on the registered runs that `of_first_study` leaves out, and how to get them; empty where none."""
    kept = of_first_study(tables)
    registered = [path for path in tables if path.parent.name in registered_runs() and path not in kept]
    if not registered:
        return ""
    places = {path.parents[1] for path in registered}
    seeds = sorted({registered_runs()[path.parent.name].seed for path in registered})
    is_apart = not any(path.parents[1] in places for path in kept)
    how = f"runs={','.join(sorted(map(str, places)))} shows them" if is_apart else "runs= with their folders shows them"
    return (
        f"left out: {len(registered)} registered runs (seeds {', '.join(map(str, seeds))}), which are not mixed with "
        f"others; {how}"
    )
