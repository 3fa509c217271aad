"""What to type after a run, a sweep or a measurement: commands that fit what has been done, in at most three lines."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from frl_repro.basics.run_folder import RUN_FILE
from frl_repro.settings.config import Config, EvaluateConfig, RunConfig
from frl_repro.settings.identity import dotted, science
from frl_repro.settings.schema import NoAttackConfig

_SCRIPTS = {"train": "frl-repro", "evaluate": "frl-evaluate", "sanity": "frl-sanity"}
_MOST_NAMED = 3  # folders that a command lists
_BEFORE_AFTER = {"reweight": "2", "remargin": "3", "combined": "4"}
_ALPHAS = 2  # step lengths that a heat map has


def next_lines(configs: Sequence[Config], folders: Sequence[Path]) -> list[str]:
    """Return lines that say which commands come next; none for checks, whose table is the end of it.

    Parameters
    ----------
    configs : sequence of RunConfig, EvaluateConfig or SanityConfig
        Of what has been done without a failure.
    folders : sequence of Path
        Where each left its tables.
    """
    done = dict(zip(folders, configs, strict=True))
    runs = {folder: config for folder, config in done.items() if isinstance(config, RunConfig)}
    measured = {folder: config for folder, config in done.items() if isinstance(config, EvaluateConfig)}
    commands = _after_runs(runs) if runs else _after_measuring(measured) if measured else []
    starts = ["next: ", *["      "] * len(commands)]
    return [start + command for start, command in zip(starts, commands, strict=False)]


def _after_runs(runs: dict[Path, RunConfig]) -> list[str]:
    where = f"runs={shlex.quote(_where(list(runs)))}"
    figure = _figure_of(list(runs.values()))
    if len(runs) > 1:
        return [_command("collect", where), _command("plot", f"figure={figure}", where)]
    ((folder, config),) = runs.items()
    checkpoint = f"checkpoint={shlex.quote(str(folder))}"
    if config.retrain is not None:
        return [_command("plot", f"figure={figure}", where), _command("sanity", checkpoint)]
    commands = [_command("evaluate", checkpoint, "num_examples=2")]
    return commands if isinstance(config.attack, NoAttackConfig) else [*commands, _command("sanity", checkpoint)]


def _after_measuring(measured: dict[Path, EvaluateConfig]) -> list[str]:
    where = f"runs={shlex.quote(_where(list(measured)))}"
    if len(measured) > 1:
        return [_command("collect", where), _command("plot", "figure=settings", where)]
    ((_, config),) = measured.items()
    sanity = _command("sanity", f"checkpoint={shlex.quote(str(config.keys.checkpoint))}")
    shows = config.keys.num_examples > 0 and config.evaluation.name == "pgd"
    return [_command("plot", "figure=examples", where), sanity] if shows else [_command("collect", where), sanity]


def _figure_of(configs: Sequence[RunConfig]) -> str:
    """Return the figure that shows what tells these runs apart."""
    if all(config.dataset.name == "gaussian_mixture" and config.model.name == "linear" for config in configs):
        return "theory"
    settings = {repr(_without_seed(config)): config for config in configs}
    methods = {config.frl.name for config in configs}
    one = configs[0]
    if len(methods) > 1 or len({(c.dataset.name, c.model.name) for c in configs}) > 1:
        return "settings"
    if not one.has_method:
        kinds = [isinstance(config.attack, NoAttackConfig) for config in settings.values()]
        return "1" if sorted(kinds) == [False, True] else "settings"
    if len(settings) == 1:
        return _BEFORE_AFTER.get(one.frl.name, "2") if one.retrain is not None else "settings"
    return "grid" if _is_grid(list(settings.values())) else "settings"


def _is_grid(configs: Sequence[RunConfig]) -> bool:
    """Return whether retrained runs differ in two step lengths and in nothing else, every pair of them once."""
    if any(config.retrain is None or config.dataset.validation_fraction == 0 for config in configs):
        return False
    values = [vars(config.alpha) for config in configs]
    varied = {name: {str(value[name]) for value in values} for name in values[0]}
    counts = [len(found) for found in varied.values() if len(found) > 1]
    others = {
        repr({k: v for k, v in _without_seed(config).items() if not k.startswith("alpha.")}) for config in configs
    }
    return len(counts) == _ALPHAS and counts[0] * counts[1] == len(configs) and len(others) == 1


def _without_seed(config: RunConfig) -> dict[str, str]:
    return {key: str(value) for key, value in dotted(science(config)).items() if key != "keys.seed"}


def _where(folders: Sequence[Path]) -> str:
    """Return what ``runs=`` takes for these folders and no others: their parent, a list, or what begins alike."""
    if len(folders) <= _MOST_NAMED:
        text = ",".join(map(str, folders))
        if len(folders) == 1 or text.count(",") == len(folders) - 1:  # no comma in a name
            return text
    parents = {folder.parent for folder in folders}
    if len(parents) > 1:
        return os.path.commonpath(folders)
    (parent,) = parents
    names = {folder.name for folder in folders}
    beside = {path.name for path in parent.iterdir() if (path / RUN_FILE).exists()}
    first, *_, last = sorted(names)
    start = first[: next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)]
    if beside != names and start and {name for name in beside if name.startswith(start)} == names:
        return f"{parent / start}*"
    return str(parent)


def _command(name: str, *settings: str) -> str:
    """Return how a command of this project is typed here: from a checkout, or as it was installed."""
    called = Path(sys.argv[0])
    for folder in (called.parent, called.parent / "scripts"):
        script = folder / f"{name}.py"
        if called.suffix == ".py" and script.exists() and folder.name == "scripts":
            return " ".join(["python", shlex.quote(os.path.relpath(script)), *settings])
    return " ".join([_SCRIPTS.get(name, f"frl-{name}"), *settings])
