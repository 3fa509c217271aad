"""What ``--help frl=NAME`` says of a class-wise method. Imports nothing slow, and no method."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from frl_repro.commands.helptext import Known, aligned, choices_in, declaration, in_order, said
from frl_repro.results.protocol import CONTESTANTS, TRACKS
from frl_repro.settings.files import settings_in, trained_like
from frl_repro.settings.methods import SECTIONS, is_of_family

RECIPES = ("report", "report_code", "paper", "scratch")
"""In the order in which they are shown; the first is the default."""

_OWN_PARTS = (*SECTIONS, "frl", "retrain")  # what a method's files set, beside its run's own training


class Methods:
    """Settings of every method, as its files say.

    Parameters
    ----------
    config_dir : Path
        The folder ``conf``.
    files : mapping of str to Path
        File in ``conf/frl``, or in a folder of the user's own, by the method's name.
    """

    def __init__(self, config_dir: Path, files: Mapping[str, Path]) -> None:
        self._config_dir, self._files = config_dir, files
        self._values: dict[tuple[str, str], dict[str, str] | None] = {}

    def values(self, name: str, recipe: str) -> dict[str, str] | None:
        """Return the settings of a method under a recipe, as Hydra composes them; None where there is no such pair."""
        if (name, recipe) not in self._values:
            self._values[name, recipe] = self._read(name, recipe)
        return self._values[name, recipe]

    def num_of(self, recipe: str) -> int:
        """Return how many methods a recipe has."""
        return sum(self.values(name, recipe) is not None for name in self._files)

    def _read(self, name: str, recipe: str) -> dict[str, str] | None:
        path, retrain = self._files[name], self._config_dir / "retrain" / recipe
        own = {f"frl.{key}": value for key, value in settings_in(path, self._config_dir).items()}
        files = [retrain / f"{like}.yaml" for like in trained_like(path)]
        files = [file for file in [*files, retrain / f"{name}.yaml"] if file.exists()]
        if not files or name == "none":
            return None
        found: dict[str, str] = {}
        for file in files:
            found |= settings_in(file, self._config_dir)
        # A method's own file turns off by null what it lacks of the training that it takes in.
        found = {key: value for key, value in found.items() if value != "null" or key.split(".")[0] == "retrain"}
        return {key: value for key, value in {**found, **own}.items() if key.split(".", maxsplit=1)[0] in _OWN_PARTS}

    def published(self, name: str) -> dict[str, str]:
        """Return the settings of the experiment with a method's published ones; empty where there is none."""
        file = self._experiment(name)
        return settings_in(file, self._config_dir) if file.exists() else {}

    def _experiment(self, name: str) -> Path:
        return self._config_dir / "experiment" / f"published_{name}.yaml"

    def lines(self, name: str, known: Known, program: str) -> list[str]:
        """Return what is said of a method: keys, other recipes, published settings, source, and a command."""
        by_recipe = {recipe: v for recipe in RECIPES if (v := self.values(name, recipe)) is not None}
        if not by_recipe:
            return ["Example", f"    {program} frl={name}"]
        recipe, values = next(iter(by_recipe.items()))
        published = self.published(name)
        shown = {key: value for key, value in in_order(values).items() if not key.startswith("retrain.")}
        chosen = choices_in(values, {"frl": name})
        lines = [f"Keys and defaults (recipe={recipe})"]
        for key, value in shown.items():
            declared = declaration(key, known, chosen)
            if declared is not None:
                others = {r: v[key] for r, v in by_recipe.items() if v.get(key, value) != value}
                notes = [f"{other} with recipe={r}" for r, other in others.items()]
                notes += [f"published: {published[key]}"] if key in published else []
                lines += aligned(f"    {key}={value}", " | ".join([said(declared), *notes]))
        more = [key for v in by_recipe.values() for key in v if key not in values and not key.startswith("retrain.")]
        if more:
            names = ", ".join(dict.fromkeys(key for key in more if not key.endswith(".name")))
            lines += aligned("    with another recipe", names)
        lines += ["    its training: --help retrain"] if any(key.startswith("retrain.") for key in values) else []
        lines += ["Recipes", *aligned("", ", ".join(f"recipe={recipe}" for recipe in by_recipe), column=4)]
        lines += ["Source", *self._sources(name)]
        return [*lines, "Example", f"    {program} {_example(name, values)}"]

    def _sources(self, name: str) -> list[str]:
        source, experiment = self._source(name), self._experiment(name)
        lines = aligned("", source, column=4) if source else []
        if experiment.exists():
            published = f"experiment={experiment.stem}"
            lines += aligned("", f"settings as published: {published} (--help {published})", column=4)
        return [*lines, f"    card: docs/methods/{'frl' if is_of_family(name) else name}.md"]

    def _source(self, name: str) -> str:
        """Return where a method comes from: its class says so, else the experiment with its published settings."""
        path = Path(__file__).parents[1] / "training" / "frl" / f"{name}.py"
        if path.exists():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                text = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
                found = re.search(r"Source: (.*?)(\n\n|\Z)", text or "", flags=re.DOTALL)
                if found:
                    return " ".join(found[1].split())
        file = self._experiment(name)
        notes = comments(file) if file.exists() else []
        return next((note.split(maxsplit=1)[1] for note in notes if note.strip().startswith("source ")), "")


def _example(name: str, values: Mapping[str, str]) -> str:
    """Return settings that choose a method, with numbers of its own where it has some."""
    contestant = CONTESTANTS.get(name)
    if contestant is None or contestant.frl != name:
        alphas = [f"{key}={value}" for key, value in values.items() if key.startswith("alpha.")]
        return " ".join([f"frl={name}", *alphas])
    more = [contestant.settings[-1]]
    if contestant.needs_imbalance:
        more.append(next(track.overrides for track in TRACKS.values() if "imbalance" in track.overrides))
    return " ".join(filter(None, [f"frl={name}", *more]))


def comments(path: Path) -> list[str]:
    """Return the comments at the head of a file after its headline: command, expected numbers, source."""
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            head.append(line[1:].rstrip())
    return head[1:]
