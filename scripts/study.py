"""The whole study, or parts of it, with one command: every run, then every figure.

    python scripts/study.py                                     # all parts but `published` and `registered`, 3 seeds
    python scripts/study.py parts=exp1,exp2 seeds=0 jobs=2
    python scripts/study.py launcher=fused set=device=cuda parts=published,exp2,grid seeds=0,1,2,3,4   # one GPU

A run that is finished is skipped and an interrupted one continues: repeat the command until it ends. Runs that fail are
listed and the others go on.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A source checkout works without installing the package, from any directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon
from frl_repro.basics.run_folder import CLASSWISE_FILE, DONE_FILE, RUN_FILE, SPLIT_FILE, WEIGHTS_FILE, read_object
from frl_repro.basics.time_left import duration, seconds_left
from frl_repro.commands.helptext import program_name
from frl_repro.commands.jobs import check_command_line, configure
from frl_repro.commands.keyvalue import choice, run, switch, usage_text, whole_number
from frl_repro.results.registration import BASE, CELLS, COLUMNS, SEEDS, registered_runs
from frl_repro.results.registration import STUDY as REGISTERED_STUDY
from frl_repro.results.report.exploratory import PLACES
from frl_repro.results.report.questions import RADII, robust_error
from frl_repro.results.report.registered import load_registered
from frl_repro.results.tables.components import COMPONENTS_FILE
from frl_repro.results.tables.outcomes import OUTCOMES_FILE
from frl_repro.settings.config import RunConfig

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One experiment: what it shows, its sweeps, and the figures drawn from them.

    Attributes
    ----------
    sweeps : tuple of str
        Overrides of train.py; seeds are added.
    figures : tuple of str
        Arguments of plot.py.
    seeds : str
        Where the command names none.
    is_on_request : bool
        Whether it takes hours or days, and runs only when it is named.
    is_by_seed : bool
        Whether every sweep of one seed comes before the next seed, so that whole seeds stand when time ends, and runs
        whose results are committed are left out unless asked for.
    """

    summary: str
    sweeps: tuple[str, ...]
    figures: tuple[str, ...] = ()
    seeds: str = "0,1,2"
    is_on_request: bool = False
    is_by_seed: bool = False


_AUDIT = "experiment=audit departures.scrambled_labels"
_AUDITED = ("fixed_step", "flipped_boundary", "base_saw_validation")
"""Departures that can change Experiment 3; docs/deviations.md says why two others cannot."""
_DEPARTING = (
    "experiment=exp2 recipe=report_code frl.update_every=48 retrain.trainer.num_epochs=10 "
    "alpha.nat=5 alpha.bndy=1 output_dir=outputs/departures"
)
_OF_REWEIGHT = ("flipped_boundary", "weight_by_prediction", "base_saw_validation")
"""Departures that can change Experiment 2."""
STUDY = {
    "exp1": Part("natural against adversarial training", ("experiment=exp1",), ("figure=1 runs=outputs/exp1",)),
    "exp2": Part(
        "reweight at the reproduction report's alphas",
        ("experiment=exp2",),
        (
            "figure=2 runs=outputs/exp2 where=alpha_nat=5,alpha_bndy=1",
            "figure=trajectory runs=outputs/exp2 where=alpha_nat=5,alpha_bndy=1",
        ),
    ),
    "exp3": Part("remargin", ("experiment=exp3",), ("figure=3 runs=outputs/exp3 where=alpha_margin=5",)),
    "exp4": Part(
        "reweight and remargin combined",
        ("experiment=exp4",),
        ("figure=4 runs=outputs/exp4 where=alpha_margin=5",),
    ),
    "controls": Part(
        "the same steps without a class policy, with and without weight averaging",
        ("experiment=controls",),
        ("figure=settings runs=outputs/exp2,outputs/exp4,outputs/controls",),
    ),
    "audit": Part(
        "remargin as published, with labels put right, and with another departure left out each",
        (
            f"{_AUDIT}=true,false",
            f"{_AUDIT}=false alpha.margin=0 alpha.nat=0",
            f"{_AUDIT}=false alpha.nat=0",
            *(f"{_AUDIT}=false departures.{name}=false" for name in _AUDITED),
            f"{_AUDIT}=false frl.margin_centred=true frl.margin_bounds=[0.5,2]",
            f"{_AUDIT}=false frl.margin_centred=true frl.margin_bounds=[0.5,2] departures.fixed_step=false",
        ),
        ("figure=settings runs=outputs/audit",),
    ),
    "departures": Part(
        "reweight 5:1 with all published departures that can change it, none, and each alone",
        (
            _DEPARTING,
            *(
                " ".join([_DEPARTING, *(f"departures.{other}=false" for other in _OF_REWEIGHT if other != name)])
                for name in ("", *_OF_REWEIGHT)
            ),
        ),
        ("figure=settings runs=outputs/departures",),
    ),
    "cadence": Part(
        "class weights updated every step, and every epoch; Experiment 2 has every 48 steps",
        ("experiment=exp2 alpha.nat=5 alpha.bndy=1 frl.update_every=1,epoch output_dir=outputs/cadence",),
        ("figure=settings runs=outputs/cadence,outputs/exp2 where=alpha_nat=5,alpha_bndy=1",),
    ),
    "longer": Part(
        "plain adversarial training for the epochs of base and retraining, beside the control",
        (
            "experiment=exp1 attack=pgd dataset.validation_fraction=0.2 trainer.num_epochs=25 "
            "attack.epsilon=8/255,16/255 output_dir=outputs/longer",
            "experiment=controls retrain.trainer.ema_decay=null",
        ),
        ("figure=settings runs=outputs/longer",),
    ),
    "split": Part(
        "how much the data split matters: one seed, five splits, each with its own base",
        ("experiment=study frl=reweight alpha.nat=5 alpha.bndy=1 dataset.split_seed=100,101,102,103,104 "
         "output_dir=outputs/split",),
        ("figure=settings runs=outputs/split",),
        seeds="0",
    ),
    "published": Part(
        "Experiments 2 and 3 with the policy measured before every step, as published",
        (
            "experiment=exp2 recipe=report_code alpha.nat=1 alpha.bndy=1,5 output_dir=outputs/published",
            "experiment=exp2 recipe=report_code alpha.nat=5 alpha.bndy=1 output_dir=outputs/published",
            "experiment=exp3 recipe=report_code alpha.margin=1,10 output_dir=outputs/published",
        ),
        ("figure=settings runs=outputs/published",),
        is_on_request=True,
    ),
    "registered": Part(
        "the registered study (docs/registration.md): every setting on ten fresh seeds",
        tuple(cell.overrides for cell in CELLS),
        seeds=",".join(map(str, SEEDS)),
        is_on_request=True,
        is_by_seed=True,
    ),
    "autoattack": Part(
        "AutoAttack on the worst class of registered models that are here (publish=true first)",
        (),
        seeds=",".join(map(str, SEEDS)),
        is_on_request=True,
    ),
    "grid": Part(
        "reweight over all alphas",
        ("experiment=exp2 alpha.nat=1,2,5,10 alpha.bndy=1,2,5,10",),
        ("figure=grid runs=outputs/exp2", "figure=tradeoff runs=outputs/exp2"),
    ),
}  # fmt: skip

_OUTPUTS = _ROOT / "outputs"
_REFERENCE = _OUTPUTS / "reference"
"""Committed results: runs without weights, in a folder for each part; see `place_of`."""

_REGISTERED = "registered"
"""Folder of the registered runs; bases of the last three seeds lie in it whole, so that another machine goes on."""

_BASES = "bases"
_AUTOATTACK = "autoattack"
_OF_AUTOATTACK = f"{_REGISTERED}/{_AUTOATTACK}"
_KEPT = ("exp2", "controls", *PLACES)
"""Folders of outputs/ whose runs are evidence beside the registered ones."""

_NOT_PUBLISHED = (WEIGHTS_FILE, SPLIT_FILE, DONE_FILE)

_KEYS = {
    "parts": f"comma-separated choice of {', '.join(STUDY)}   [all but published, registered, autoattack]",
    "seeds": "comma-separated seeds   [0,1,2; split: 0; registered, autoattack: 10 to 19]",
    "jobs": "runs at a time, each in a process; more than 1 needs the extra `parallel`   [1]",
    "launcher": "fused trains all runs of a sweep side by side in one process; else one after the other   [serial]",
    "set": "settings added to every run, separated by spaces, for example 'device=cuda'   [none]",
    "list": "true prints the registered runs as CSV, for registered.csv, and runs nothing   [false]",
    "committed": "skip leaves out runs whose results are committed in outputs/reference; run repeats them   "
    "[run; registered: skip]",
    "publish": "true copies finished runs of the registered study, and of the parts beside it, to "
    "outputs/reference, and runs nothing   [false]",
    "dry": "true prints the commands and runs nothing   [false]",
}


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    status = 0

    def act(given: dict[str, str]) -> str:
        nonlocal status
        if switch("list", given.pop("list", "false")):
            return registered_list()
        if switch("publish", given.pop("publish", "false")):
            return publish()
        status = study(given)
        return ""

    return run(None, keys=_KEYS, usage=_usage, act=act) or status


def _seeds(text: str) -> str:
    """Return comma-separated seeds as typed; UserError for what is none, before any part runs."""
    for seed in text.split(","):
        whole_number("seeds", seed.strip(), least=0)
    return text.replace(" ", "")


def commands_of(name: str, given: dict[str, str], extra: list[str]) -> list[list[str]]:
    """Return the commands of a part without ``python``: its sweeps, then its figures."""
    part = STUDY[name]
    seeds = _seeds(given.get("seeds", part.seeds))
    if name == _AUTOATTACK:
        return autoattack_commands(seeds.split(","), [one for one in extra if not one.startswith("hydra")])
    skips = choice("committed", given.get("committed", "skip" if part.is_by_seed else "run"), ("skip", "run")) == "skip"
    turns = seeds.split(",") if part.is_by_seed or skips else [seeds]
    wanted = [(turn, sweep) for turn in turns for sweep in part.sweeps]
    if skips:
        wanted = [(turn, left) for turn, sweep in wanted for left in _not_committed(sweep, turn)]
    sweeps = [["train.py", "-m", *sweep.split(), f"seed={turn}", *extra] for turn, sweep in wanted]
    return [*sweeps, *(["scripts/plot.py", *figure.split(), f"out=outputs/{name}"] for figure in part.figures)]


def run_commands(commands: list[tuple[str, list[str]]]) -> list[str]:
    """Run commands, each with the name of its part; say how long the others will take; return those that failed."""
    failed, seconds = [], []
    num_sweeps = sum(command[0] != "scripts/plot.py" for _, command in commands)  # figures take no time beside them
    for number, (name, command) in enumerate(commands, start=1):
        print(f"[{name}] {number} of {len(commands)}: python {shlex.join(command)}", flush=True)
        started = time.perf_counter()
        code = subprocess.run([sys.executable, *command], cwd=_ROOT, check=False).returncode
        taken = time.perf_counter() - started
        seconds += [taken] if command[0] != "scripts/plot.py" else []
        left = seconds_left(seconds, num_sweeps - len(seconds))
        after = f", about {duration(left)} left" if left else ""
        print(f"[{name}] exit code {code} after {duration(taken)}{after}", flush=True)
        failed += [shlex.join(command)] if code else []
    return failed


def study(given: dict[str, str]) -> int:
    """Run the chosen parts one after the other; 1 if anything failed."""
    usual = ",".join(name for name, part in STUDY.items() if not part.is_on_request)
    names = [choice("parts", name.strip(), STUDY) for name in given.get("parts", usual).split(",")]
    is_dry = switch("dry", given.get("dry", "false"))
    jobs = whole_number("jobs", given.get("jobs", "1"))
    is_fused = choice("launcher", given.get("launcher", "serial"), ("serial", "fused")) == "fused"
    launcher = ["hydra/launcher=fused"] if is_fused else []
    if jobs > 1:
        if is_fused:
            raise UserError(f"jobs={jobs} has no effect with launcher=fused: all runs train in one process")
        launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}", "num_threads=1"]
    try:
        extra = [*launcher, *shlex.split(given.get("set", ""))]
    except ValueError as problem:
        raise UserError(f"set={given['set']} cannot be read ({problem}): close the quotes") from None
    if not is_dry and {_REGISTERED, _AUTOATTACK} & set(names):
        restore_bases()
    commands = [(name, command) for name in names for command in commands_of(name, given, extra)]
    if is_dry:
        sys.stdout.write("".join(f"[{name}] python {shlex.join(command)}\n" for name, command in commands))
        return 0
    failed = run_commands(commands)
    for line in failed:
        sys.stderr.write(f"failed: python {line}\n")
    return 1 if failed else 0


def autoattack_commands(seeds: list[str], more: list[str]) -> list[list[str]]:
    """Return a command for each registered model whose weights are here, on the classes that are its worst at a radius.

    Held-back images name the worst classes. Of the other classes one image each is taken, so that tables have them all.
    Models that have been measured are left out.
    """
    found = load_registered(_REFERENCE)
    if found is None:
        return []
    commands = []
    for seed, role in itertools.product(seeds, (BASE, *(cell.name for cell in CELLS))):
        folder = _folder_of(role, int(seed))
        if folder is None or any((_REFERENCE / _OF_AUTOATTACK).glob(f"{folder.name}-*/{CLASSWISE_FILE}")):
            continue
        if role not in found.roles or int(seed) not in found.seeds((role,)):
            continue
        place = found.seeds((role,)).index(int(seed))
        named = found.errors((role,)).worst_class
        worst = sorted({int(named[role, robust_error(radius)][place]) for radius in RADII})
        commands.append([
            "scripts/evaluate.py", f"checkpoint={os.path.relpath(folder / WEIGHTS_FILE, _ROOT)}",
            "evaluation=autoattack",
            f"evaluation.epsilons=[{','.join(map(format_epsilon, RADII))}]",
            f"evaluation.num_images={len(found.class_names)}",
            f"evaluation.whole_classes=[{','.join(map(str, worst))}]",
            f"output_dir={os.path.relpath(_OUTPUTS / _OF_AUTOATTACK, _ROOT)}", *more,
        ])  # fmt: skip
    return commands


def _folder_of(role: str, seed: int) -> Path | None:
    """Return the folder of a registered model whose weights are on this machine; None where they are not."""
    if role == BASE:
        found = [base for base in registered_bases(_OUTPUTS / _BASES) if _config_of(base)["seed"] == seed]
    else:
        names = [name for name, run in registered_runs().items() if (run.cell, run.seed) == (role, seed)]
        found = [_OUTPUTS / place / name for name in names for place in ("exp1", _REGISTERED)]
    return next((folder for folder in found if (folder / WEIGHTS_FILE).exists()), None)


def _not_committed(sweep: str, seed: str) -> list[str]:
    """Return what is left of a sweep: itself, where none of its runs is committed, else those that are not."""
    values = [re.split(r",(?![^\[]*\])", setting) for setting in sweep.split()]
    names = [setting.partition("=")[0] for setting in sweep.split()]
    runs = [
        " ".join(one if "=" in one else f"{name}={one}" for name, one in zip(names, chosen, strict=True))
        for chosen in itertools.product(*values)
    ]
    left = [run for run in runs if not is_committed(run, seed)]
    return [sweep] if left == runs else left


def is_committed(sweep: str, seed: str) -> bool:
    """Whether the results of every run of a sweep are committed."""
    cell = next((cell.name for cell in CELLS if cell.overrides == sweep), None)
    if cell is not None:  # the list has the names of registered runs; composing each one takes a while
        listed = [run_id for run_id, run in registered_runs().items() if (run.cell, str(run.seed)) == (cell, seed)]
        folders = [_REFERENCE / _REGISTERED / run_id for run_id in listed]
        return bool(folders) and all((folder / CLASSWISE_FILE).exists() for folder in folders)
    runs = check_command_line(["-m", *shlex.split(sweep), f"seed={seed}"], "config")
    folders = [place_of(run.run_id, run.folder.parent) for run in runs if isinstance(run, RunConfig)]
    return all((folder / CLASSWISE_FILE).exists() for folder in folders)


def place_of(run_id: str, output_dir: Path) -> Path:
    """Return the folder of a run's committed results."""
    return _REFERENCE / (_REGISTERED if run_id in registered_runs() else output_dir.name) / run_id


def publish() -> str:
    """Copy finished runs, and the registered study's bases, to outputs/reference; return what stands there."""
    folders = ("exp1", _REGISTERED, *_KEPT)
    for done in (done for name in folders for done in sorted(_OUTPUTS.glob(f"{name}/*/{DONE_FILE}"))):
        is_registered = done.parent.name in registered_runs()
        if is_registered or done.parents[1].name in _KEPT:
            left_out = _NOT_PUBLISHED if is_registered else (*_NOT_PUBLISHED, OUTCOMES_FILE)
            shutil.copytree(
                done.parent,
                place_of(done.parent.name, done.parents[1]),
                ignore=shutil.ignore_patterns(*left_out),
                dirs_exist_ok=True,
            )
    for base in registered_bases(_OUTPUTS / _BASES):
        shutil.copytree(base, _REFERENCE / _REGISTERED / _BASES / base.name, dirs_exist_ok=True)
    for measured in sorted((_OUTPUTS / _OF_AUTOATTACK).glob(f"*/{OUTCOMES_FILE}")):
        shutil.copytree(
            measured.parent,
            _REFERENCE / _OF_AUTOATTACK / measured.parent.name,
            ignore=shutil.ignore_patterns(OUTCOMES_FILE, COMPONENTS_FILE),
            dirs_exist_ok=True,
        )
    return "".join(
        f"{len(list((_REFERENCE / name).glob(f'*/{CLASSWISE_FILE}')))} runs stand in {_REFERENCE / name}\n"
        for name in (_REGISTERED, *_KEPT)
    )


def registered_bases(bases: Path) -> list[Path]:
    """Return the folders of finished base models that are registered, in order of their names."""
    finished = [done.parent for done in sorted(bases.glob(f"*/{DONE_FILE}"))]
    configs = {base: _config_of(base) for base in finished}
    return [b for b, of in configs.items() if of["seed"] in SEEDS and of["dataset"].get("selection_fraction")]


def _config_of(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_object(run / RUN_FILE)["config"]
    return config


def restore_bases() -> None:
    """Put committed base models where retraining looks for them, unless there are some already.

    Most seeds' bases are committed without the list of their images, to keep the repository small: those train again.
    """
    for listed in sorted((_REFERENCE / _REGISTERED / _BASES).glob(f"*/{SPLIT_FILE}")):
        base = listed.parent
        if not (_OUTPUTS / _BASES / base.name).exists():
            shutil.copytree(base, _OUTPUTS / _BASES / base.name)


def registered_list() -> str:
    """Return the rows of ``registered.csv``: each cell of each seed with the name of its run."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in CELLS:
        for seed in SEEDS:
            run_id = configure(*cell.overrides.split(), f"seed={seed}").run_id
            writer.writerow([REGISTERED_STUDY, cell.name, seed, run_id, cell.overrides])
    return content.getvalue()


def _usage() -> str:
    parts = "\n".join(f"  {name:<11} {part.summary}" for name, part in STUDY.items())
    program = program_name()
    return usage_text(
        "Run the whole study, or parts of it, and draw its figures. Repeat the command to continue.",
        program=program,
        keys=_KEYS,
        sections={"parts": parts, "examples": f"  {program} parts=exp1,exp2 seeds=0 jobs=2\n  {program} dry=true"},
    )


if __name__ == "__main__":
    sys.exit(main())
