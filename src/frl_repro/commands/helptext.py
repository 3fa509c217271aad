"""The text of ``--help``, read from the YAML files themselves. Imports nothing slow: help answers at once."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

_KEY = re.compile(r"(?P<key>[a-z_]+): (?P<value>.+?)(?:  # (?P<comment>.*))?")

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
  {program} -m experiment=exp1                 Experiment 1 of the report
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

_INTRODUCTIONS = {"config": _TRAIN, "evaluate": _EVALUATE, "sanity": _SANITY}


def program_name() -> str:
    """Return how this program is called: ``python train.py``, also from elsewhere by path, or the console script."""
    called = Path(sys.argv[0])
    return f"python {os.path.relpath(called)}" if called.suffix == ".py" else called.name


def help_text(config_dir: Path, config_name: str, program: str) -> str:
    """Return usage, examples, and every group, choice and key with its comment and default.

    Parameters
    ----------
    config_dir : Path
        The folder ``conf``.
    config_name : str
        ``"config"`` (train), ``"evaluate"`` or ``"sanity"``.
    program : str
        How the program was called.
    """
    main = (config_dir / f"{config_name}.yaml").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^  - ([a-z]+): ([a-z0-9_]+)", main, flags=re.MULTILINE))
    sections = [_INTRODUCTIONS[config_name].format(program=program)]
    sections.append("\n".join(["Keys", *_key_lines(main, "")]))
    for group, default in defaults.items():
        lines = [
            f"Group {group} (default: {default})" if default != "null" else f"Group {group} (default: none chosen)"
        ]
        for path in sorted((config_dir / group).glob("*.yaml"), key=lambda p: (p.stem != default, p.stem)):
            text = path.read_text(encoding="utf-8")
            lines += _aligned(f"  {group}={path.stem}", _headline(text))
            if group not in ("experiment", "sweep", "row", "schedule"):
                lines += _key_lines(text, f"{group}.")
        sections.append("\n".join(lines))
    if "recipe" in defaults:
        sections.append("\n".join(_method_lines(config_dir / "retrain")))
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _method_lines(retrain: Path) -> list[str]:
    """Return what each method does under each recipe, and every key of the one that has most."""
    lines = ["Settings of a method under a recipe (conf/retrain/<recipe>/<frl>.yaml)"]
    for path in sorted(retrain.glob("*/*.yaml")):
        if path.stem != "none":
            text = path.read_text(encoding="utf-8")
            lines += _aligned(f"  frl={path.stem} recipe={path.parent.name}", _headline(text))
    lines.append(f"  keys and defaults of frl={_FULLEST} recipe=report; others have part of them")
    parents: list[str] = []
    for line in (retrain / "report" / f"{_FULLEST}.yaml").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(?P<indent> *)(?P<key>[a-z_]+):(?: (?P<value>.+?))?(?:  # (?P<comment>.*))?", line)
        if match is None or match["key"] == "name":
            continue
        parents = [*parents[: len(match["indent"]) // 2], match["key"]]
        if match["value"] is not None:
            lines += _aligned(f"    {'.'.join(parents)}={match['value']}", match["comment"] or "")
    return lines


def _headline(text: str) -> str:
    """Return the first comment of a YAML file; empty where someone's own file has none."""
    return next((line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line), "")


def _key_lines(text: str, prefix: str) -> list[str]:
    """Return one line for each documented top-level key of a YAML file."""
    lines = []
    for line in text.splitlines():
        match = _KEY.fullmatch(line)
        if match and match["key"] != "name":
            lines += _aligned(f"    {prefix}{match['key']}={match['value']}", match["comment"] or "")
    return lines


def _aligned(left: str, right: str) -> list[str]:
    """Return two columns, the right one wrapped to the terminal."""
    width = max(shutil.get_terminal_size((120, 24)).columns - _COLUMN, 40)
    wrapped = textwrap.wrap(right, width) or [""]
    return [f"{left:<{_COLUMN - 1}} {wrapped[0]}".rstrip(), *(" " * _COLUMN + line for line in wrapped[1:])]
