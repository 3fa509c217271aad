"""The text of ``--help``: one screen, or all there is. Imports nothing slow; ``--help TOPIC`` is `helptopics`."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.files import headline, settings_in
from frl_repro.settings.keys import Key
from frl_repro.settings.lookup import GROUP_HELP, explanations

Known = Mapping[str, Mapping[str, Key]]

_COLUMN = 42  # where explanations start
_WIDEST = 100  # columns that a screen is made for
_WIDEST_LEFT = 69  # columns of what stands left in a table; what is longer has its meaning right behind
_FULLEST = "combined"  # the method whose settings under the default recipe are all there are
_SWEPT_ALONE = ("experiment", "sweep", "row", "schedule")  # groups whose files set keys of other groups

LAUNCHERS = {
    "serial": "The jobs of a sweep one after the other, in this process (default).",
    "fused": "Jobs side by side in one process, as many at once as memory holds.",
    "joblib": "Each job in a process of its own: hydra.launcher.n_jobs=N num_threads=1 (extra parallel).",
    "ray": "Jobs on a Ray cluster, or on a local one (extra ray, docs/reliability.md).",
    "slurm": "Jobs on a SLURM cluster (extra slurm, docs/reliability.md).",
}
"""Choices of ``hydra/launcher``."""

_SUMMARIES = {
    "config": "Train an image classifier, naturally or adversarially, and measure its errors by class.",
    "evaluate": "Measure natural, boundary and robust error by class of a checkpoint, ours or a plain state_dict.",
    "sanity": "Check that a checkpoint's robustness is real: thresholds and sources are in docs/sanity.md.",
}

_USAGES = {
    "config": [
        ("{program} [group=option ...] [key=value ...]", "one run"),
        ("{program} -m [key=value1,value2 ...]", "a sweep: one run for each combination"),
    ],
    "evaluate": [("{program} checkpoint=FILE|FOLDER [group=option ...] [key=value ...]", "")],
    "sanity": [("{program} checkpoint=FILE [other=FILE] [group=option ...] [key=value ...]", "")],
}

EXAMPLES = {
    "config": [
        ("dataset=synthetic trainer.num_epochs=1", "a trial in seconds, no data"),
        ("", "LeNet-5 on Fashion-MNIST"),
        ("attack=none seed=3", "natural training"),
        ("attack.epsilon=4/255 trainer.num_epochs=5", "another radius, 5 epochs"),
        ("dataset=image_folder dataset.root=FOLDER dataset.image_size=32", "your own images"),
        ("frl=reweight alpha.nat=5", "then retrain it by class"),
        ("frl=dafa recipe=scratch", "a method from scratch"),
        ("-m seed=0,1,2 attack=none,pgd", "a sweep: six runs"),
        ("-m frl=reweight sweep=alpha_grid hydra/launcher=fused", "16 runs side by side"),
        ("-m experiment=exp1", "Experiment 1 of the report"),
    ],
    "evaluate": [
        ("checkpoint=outputs/RUN", "on the data of the run"),
        ("checkpoint=lenet.pt evaluation.epsilons=[4/255,8/255]", "other radii"),
        ("checkpoint=lenet.pt evaluation=autoattack", "AutoAttack, for hours"),
    ],
    "sanity": [
        ("checkpoint=outputs/RUN other=outputs/RUN2", "RUN2: of another seed"),
        ("checkpoint=lenet.pt epsilon=8/255 num_images=null", "on all images"),
    ],
}
"""Settings of a program, and what they do."""

_NOTES = {
    "config": (
        "A run's folder is named after its settings: the same command skips a finished run and continues an "
        "interrupted one, force=true repeats it. Numbers may be fractions (8/255)."
    ),
    "evaluate": "Model and data are those that the checkpoint names, unless they are typed. Numbers may be fractions.",
    "sanity": "Exit code 0: every check that was run passes; 1: some do not, and a line on stderr names them.",
}

_FLAGS = [
    ("-m, --multirun", "run a sweep"),
    ("--cfg job", "print the composed settings instead of running (with --resolve: interpolations worked out)"),
    ("-cd, --config-dir FOLDER", "settings files of your own beside conf/ (docs/python.md)"),
    ("-sc install=bash", 'tab completion: eval "$({program} -sc install=bash)"; also zsh, fish'),
    ("--hydra-help", "Hydra's own flags"),
    ("--version", "versions of this program, PyTorch and Hydra"),
    ("-h, --help [TOPIC]", "help: on everything important, or on a topic"),
]

KINDS = {"config": RunConfig, "evaluate": EvaluateConfig, "sanity": SanityConfig}
"""What each program's settings are, by the name of its file in ``conf/``."""


def program_name() -> str:
    """Return how this program is called: ``python train.py``, also from elsewhere by path, or the console script."""
    called = Path(sys.argv[0])
    return f"python {os.path.relpath(called)}" if called.suffix == ".py" else called.name


def front_page(config_dir: Path, config_name: str, program: str) -> str:
    """Return one screen: usage, groups, keys outside groups, examples, and where more is said.

    Parameters
    ----------
    config_dir : Path
        The folder ``conf``.
    config_name : str
        ``"config"`` (train), ``"evaluate"`` or ``"sanity"``.
    program : str
        How the program was called.
    """
    main = config_dir / f"{config_name}.yaml"
    sections = [
        _SUMMARIES[config_name],
        columns("Usage", [(text.format(program=program), meaning) for text, meaning in _USAGES[config_name]]),
    ]
    groups = [(group, f"{GROUP_HELP[group]} [{default}]") for group, default in defaults_of(main).items()]
    if config_name == "config":
        groups = [(name, text.removesuffix(" [null]")) for name, text in groups]
        groups.append(("hydra/launcher", f"how the runs of a sweep are started: {', '.join(LAUNCHERS)} [serial]"))
    sections.append(columns("Groups, each with one option chosen [default]", groups))
    sections.append(_paragraph("Keys outside groups", ", ".join(own_settings(main, config_dir))))
    examples = [(f"{program} {settings}".rstrip(), meaning) for settings, meaning in EXAMPLES[config_name]]
    sections.append(columns("Examples", examples))
    topics = ("trainer", "frl=cfol", "alpha.nat") if config_name == "config" else ("model", "dataset=svhn", "seed")
    more = ", ".join(f"--help {topic}" for topic in topics)
    more = f"{more} (group, option, key), --help flags, --help all"
    sections.append(_paragraph("More", more) + "\n" + _paragraph("", _NOTES[config_name]))
    return "\n\n".join(sections) + "\n"


def flags_text(program: str) -> str:
    """Return the flags with a line each."""
    return columns("Flags", [(flag, meaning.format(program=program)) for flag, meaning in _FLAGS]) + "\n"


def own_settings(main: Path, config_dir: Path) -> dict[str, str]:
    """Return the settings outside groups with their defaults, from a program's file in ``conf/``."""
    return {key: value for key, value in settings_in(main, config_dir).items() if not key.startswith("hydra.")}


def defaults_of(main: Path) -> dict[str, str]:
    """Return the groups of a program, from its file in ``conf/``, and the default of each (``"null"``: none)."""
    found = re.findall(r"^  - ([a-z]+): ([a-z0-9_]+)", main.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(found)


def help_text(config_dir: Path, config_name: str, program: str) -> str:
    """Return everything: the front page, flags, and every group, choice and key with its meaning, range and default.

    Parameters
    ----------
    config_dir, config_name, program
        As in `front_page`.
    """
    main = config_dir / f"{config_name}.yaml"
    defaults = defaults_of(main)
    known = explanations(KINDS[config_name])
    sections = [front_page(config_dir, config_name, program).rstrip("\n"), flags_text(program)]
    sections.append("\n".join(["Keys", *key_lines(own_settings(main, config_dir), known, {})]))
    for group, default in defaults.items():
        lines = [
            f"Group {group} (default: {default})" if default != "null" else f"Group {group} (default: none chosen)"
        ]
        for path in sorted((config_dir / group).glob("*.yaml"), key=lambda p: (p.stem != default, p.stem)):
            lines += aligned(f"  {group}={path.stem}", headline(path))
            if group not in _SWEPT_ALONE:
                values = {f"{group}.{key}": value for key, value in settings_in(path, config_dir).items()}
                lines += key_lines(values, known, {group: path.stem})
        sections.append("\n".join(lines))
    if "recipe" in defaults:
        sections.append("\n".join(_method_lines(config_dir, known, defaults)))
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _method_lines(config_dir: Path, known: Known, defaults: Mapping[str, str]) -> list[str]:
    """Return what each method does under each recipe, and every key of the one that has most."""
    retrain = config_dir / "retrain"
    lines = ["Settings of a method under a recipe (conf/retrain/<recipe>/<frl>.yaml)"]
    for path in sorted(retrain.glob("*/*.yaml")):
        if path.stem != "none":
            lines += aligned(f"  frl={path.stem} recipe={path.parent.name}", headline(path))
    lines.append(f"  keys and defaults of frl={_FULLEST} recipe=report; others have part of them")
    values = settings_in(retrain / "report" / f"{_FULLEST}.yaml", config_dir)
    return [*lines, *key_lines(in_order(values), known, choices_in(values, {**defaults, "frl": _FULLEST}))]


def in_order(values: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of a method, its own first."""
    places = ("alpha.", "tau.", "frl.", "retrain.", "")
    order = sorted(values, key=lambda key: next(n for n, place in enumerate(places) if key.startswith(place)))
    return {key: values[key] for key in order}


def choices_in(values: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Return the choice of each place: those of ``retrain.attack.name`` and the like among values, and ``others``."""
    own = {key.removesuffix(".name"): value for key, value in values.items() if key.endswith(".name")}
    return {**others, **own}


def key_lines(values: Mapping[str, str], known: Known, chosen: Mapping[str, str]) -> list[str]:
    """Return one line for each key, with what its declaration says; ``chosen``: the choice of each place."""
    lines = []
    for key, value in values.items():
        declared = declaration(key, known, chosen)
        if declared is not None:
            lines += aligned(f"    {key}={value}", said(declared))
    return lines


def declaration(key: str, known: Known, chosen: Mapping[str, str]) -> Key | None:
    """Return what is declared of a key that people set; None of others."""
    place, _, name = key.rpartition(".")
    if name == "name":
        return None
    return known.get(f"{place}={chosen[place]}" if place in chosen else place, {}).get(name)


def said(declared: Key) -> str:
    """Return a declaration's words and its range."""
    return f"{declared.help}. {declared.bounds}" if declared.bounds else declared.help


def aligned(left: str, right: str, *, column: int = _COLUMN) -> list[str]:
    """Return two columns, the right one wrapped to the terminal."""
    width = shutil.get_terminal_size((120, 24)).columns
    if len(left) >= column and len(left) + 1 + len(right) <= width:
        return [f"{left} {right}"]
    first, *more = textwrap.wrap(right, max(width - column, 40)) or [""]
    start = [f"{left:<{column}}{first}"] if len(left) < column else [left, " " * column + first]
    return [line.rstrip() for line in [*start, *(" " * column + line for line in more)]]


def columns(title: str, rows: list[tuple[str, str]]) -> str:
    """Return a titled table of two columns, as narrow as the left one allows."""
    column = max(len(left) for left, _ in rows if len(left) <= _WIDEST_LEFT or len(rows) == 1) + 4
    lines = [title]
    for left, right in rows:
        lines += aligned(f"  {left}", right, column=column) if len(left) + 4 <= column else [f"  {left}  {right}"]
    return "\n".join(lines)


def _paragraph(title: str, text: str) -> str:
    lines = textwrap.wrap(text, _WIDEST - 2, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([title, *lines] if title else lines)
