"""The text of ``--help``: values of the YAML files, and what the declarations of the keys say. Imports nothing slow."""

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
from frl_repro.settings.lookup import explanations

_Known = Mapping[str, Mapping[str, Key]]

_COLUMN = 42  # where explanations start
_FULLEST = "combined"  # the method whose settings under the default recipe are all there are

_TRAIN = """\
frl_repro trains image classifiers naturally or adversarially and measures natural, boundary and robust error by class.

Usage
  {program} [group=choice ...] [key=value ...]         one run
  {program} -m [group=a,b ...] [key=value1,value2 ...]   a sweep over all combinations

Examples
  {program}                                    adversarial LeNet-5 on Fashion-MNIST (the defaults below)
  {program} attack=none seed=3                 natural training, another seed
  {program} attack.epsilon=4/255 trainer.num_epochs=5
  {program} -m seed=0,1,2 attack=none,pgd      six runs
  {program} -m experiment=exp1                 Experiment 1 of the reproduction report
  {program} frl=reweight alpha.nat=5           Fair Robust Learning from the adversarially trained model
  {program} dataset=synthetic trainer.num_epochs=1   a trial in seconds, without data

Numbers may be written as fractions (8/255). A run's folder is named after its settings: the same command skips a
finished run, continues an interrupted one, and force=true repeats it.

Flags
  -m, --multirun    run a sweep
  --cfg job         print the composed settings instead of running (with --resolve: interpolations worked out)
  -sc install=bash  print tab completion for your shell: eval "$({program} -sc install=bash)"; also zsh (as bash), fish
  --hydra-help      Hydra's own flags
  --version         versions of this program, PyTorch and Hydra
  -h, --help        this text
"""

_EVALUATE = """\
Measure natural, boundary and robust error by class of a checkpoint, ours or a plain PyTorch state_dict.

Usage
  {program} checkpoint=FILE|FOLDER [group=choice ...] [key=value ...]

Examples
  {program} checkpoint=outputs/<run>             on the data of the run
  {program} checkpoint=lenet.pt evaluation.epsilons=[4/255,8/255] evaluation.num_steps=50
  {program} checkpoint=lenet.pt evaluation=autoattack evaluation.num_images=1000   a stronger attack

Flags
  --cfg job         print the composed settings instead of running
  -h, --help        this text
"""

_SANITY = """\
Check that a checkpoint's robustness is real: thresholds, reasons and sources in docs/sanity.md.

Exit code 0: every check that was run passes; 1: some do not, and a line on stderr names them.

Usage
  {program} checkpoint=FILE [other=FILE] [group=choice ...] [key=value ...]

Examples
  {program} checkpoint=outputs/<run>/model.safetensors other=outputs/<run of another seed>/model.safetensors
  {program} checkpoint=lenet.pt epsilon=8/255 num_images=null

Flags
  --cfg job         print the composed settings instead of running
  -h, --help        this text
"""

_KINDS = {"config": RunConfig, "evaluate": EvaluateConfig, "sanity": SanityConfig}
_INTRODUCTIONS = {"config": _TRAIN, "evaluate": _EVALUATE, "sanity": _SANITY}


def program_name() -> str:
    """Return how this program is called: ``python train.py``, also from elsewhere by path, or the console script."""
    called = Path(sys.argv[0])
    return f"python {os.path.relpath(called)}" if called.suffix == ".py" else called.name


def help_text(config_dir: Path, config_name: str, program: str) -> str:
    """Return usage, examples, and every group, choice and key with its meaning, range and default.

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
    defaults = dict(re.findall(r"^  - ([a-z]+): ([a-z0-9_]+)", main.read_text(encoding="utf-8"), flags=re.MULTILINE))
    known = explanations(_KINDS[config_name])
    sections = [_INTRODUCTIONS[config_name].format(program=program)]
    sections.append("\n".join(["Keys", *_key_lines(settings_in(main, config_dir), known, {})]))
    for group, default in defaults.items():
        lines = [
            f"Group {group} (default: {default})" if default != "null" else f"Group {group} (default: none chosen)"
        ]
        for path in sorted((config_dir / group).glob("*.yaml"), key=lambda p: (p.stem != default, p.stem)):
            lines += _aligned(f"  {group}={path.stem}", headline(path))
            if group not in ("experiment", "sweep", "row", "schedule"):
                values = {f"{group}.{key}": value for key, value in settings_in(path, config_dir).items()}
                lines += _key_lines(values, known, {group: path.stem})
        sections.append("\n".join(lines))
    if "recipe" in defaults:
        sections.append("\n".join(_method_lines(config_dir, known, defaults)))
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _method_lines(config_dir: Path, known: _Known, defaults: Mapping[str, str]) -> list[str]:
    """Return what each method does under each recipe, and every key of the one that has most."""
    retrain = config_dir / "retrain"
    lines = ["Settings of a method under a recipe (conf/retrain/<recipe>/<frl>.yaml)"]
    for path in sorted(retrain.glob("*/*.yaml")):
        if path.stem != "none":
            lines += _aligned(f"  frl={path.stem} recipe={path.parent.name}", headline(path))
    lines.append(f"  keys and defaults of frl={_FULLEST} recipe=report; others have part of them")
    values = settings_in(retrain / "report" / f"{_FULLEST}.yaml", config_dir)
    chosen = {**defaults, "frl": _FULLEST}
    chosen |= {key.removesuffix(".name"): value for key, value in values.items() if key.endswith(".name")}
    places = ("alpha.", "tau.", "frl.", "retrain.", "")
    order = sorted(values, key=lambda key: next(n for n, place in enumerate(places) if key.startswith(place)))
    return [*lines, *_key_lines({key: values[key] for key in order}, known, chosen)]


def _key_lines(values: Mapping[str, str], known: _Known, chosen: Mapping[str, str]) -> list[str]:
    """Return one line for each key, with what its declaration says; ``chosen``: the choice of each place."""
    lines = []
    for key, value in values.items():
        place, _, name = key.rpartition(".")
        declared = known.get(f"{place}={chosen[place]}" if place in chosen else place, {}).get(name)
        if declared is not None and name != "name":
            bounds = f". {declared.bounds}" if declared.bounds else ""
            lines += _aligned(f"    {key}={value}", f"{declared.help}{bounds}")
    return lines


def _aligned(left: str, right: str) -> list[str]:
    """Return two columns, the right one wrapped to the terminal."""
    width = max(shutil.get_terminal_size((120, 24)).columns - _COLUMN, 40)
    wrapped = textwrap.wrap(right, width) or [""]
    return [f"{left:<{_COLUMN - 1}} {wrapped[0]}".rstrip(), *(" " * _COLUMN + line for line in wrapped[1:])]
