"""What ``--help TOPIC`` says: of a group, of one of its options, of a key, or of keys that begin alike.

All words are those of the declarations (`frl_repro.settings`, a method's ``Settings``) and of the files in ``conf/``.
Imports nothing slow.
"""

from __future__ import annotations

import difflib
import functools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from frl_repro.basics import suggestions
from frl_repro.basics.errors import UserError
from frl_repro.commands.helpmethods import RECIPES, Methods, comments
from frl_repro.commands.helptext import (
    KINDS,
    LAUNCHERS,
    aligned,
    choices_in,
    columns,
    declaration,
    defaults_of,
    flags_text,
    help_text,
    in_order,
    key_lines,
    own_settings,
    said,
)
from frl_repro.results.protocol import CONTESTANTS
from frl_repro.settings.files import headline, settings_in
from frl_repro.settings.keys import Key
from frl_repro.settings.lookup import GROUP_HELP, explanations, unknown_key
from frl_repro.settings.methods import SECTIONS
from frl_repro.settings.schema import GROUPS, NOT_IN_TRAINING

_SWEPT = "hydra.sweeper.params."
_LAUNCHER_GROUP = "hydra/launcher"
_WITH = {
    "schedule": "-m experiment=paper_table ", "sweep": "-m frl=reweight ",
}  # fmt: skip
"""What goes with the options of a group in an example."""

_KEY_EXAMPLES = {
    "seed": "seed=3",
    "init_from": "frl=reweight init_from=FILE",
    "init_from_key": "frl=reweight init_from=FILE init_from_key=ema_state_dict",
    "num_threads": "num_threads=4",
    "model.mean": "model=cnn_small model.mean=[0.5]",
    "model.std": "model=cnn_small model.std=[0.25]",
    "dataset.selection_fraction": "dataset.validation_fraction=0.2 dataset.selection_fraction=0.5",
    "dataset.num_train": "dataset.num_train=10000",
    "dataset.num_test": "dataset.num_test=1000",
    "dataset.imbalance": "dataset.imbalance=step dataset.imbalance_ratio=10",
    "dataset.imbalance_ratio": "dataset.imbalance=exponential dataset.imbalance_ratio=50",
    "dataset.image_size": "dataset=image_folder dataset.root=FOLDER dataset.image_size=32",
    "dataset.num_channels": "dataset=image_folder dataset.root=FOLDER dataset.num_channels=3",
    "attack.beta": "attack=trades attack.fraction=1 attack.beta=6",
    "trainer.ema_decay": "trainer.ema_decay=0.999",
    "retrain.trainer.ema_decay": "frl=finetune retrain.trainer.ema_decay=0.999",
    "evaluation.num_validation": "dataset.validation_fraction=0.1 evaluation.num_validation=1000",
    "evaluation.keep_best_by": "dataset.validation_fraction=0.1 evaluation.keep_best_by=worst_class_robust",
    "frl.slots": "frl=variance frl.slots=100",
}
"""Settings of training runs, for keys whose default shows nothing or that need another one."""
_PLACEHOLDERS = {
    "root": "FOLDER",
    "run_dir": "FOLDER",
    "base_dir": "FOLDER",
    "cache_dir": "FOLDER",
}  # for values that have no default
_NEAR = 0.75  # how alike a word must be to a group or an option that it may have meant
_LABELS = r"(command|expected|source|not known|hardware|compare) +"  # of comments at the head of a file
_MOST_READERS = 4  # options that a line about a key names


_EVERY = "every method"


@dataclass(frozen=True)
class Reader:
    """A key as one option has it.

    Attributes
    ----------
    key : str
        Dotted.
    option : str
        ``"attack=pgd"``, ``"frl=reweight recipe=paper"``; empty for keys outside groups.
    value : str
        The default, as it is written.
    declared : Key
    """

    key: str
    option: str
    value: str
    declared: Key


def _settings_of_file(path: Path, values: Mapping[str, str]) -> Iterator[str]:
    """Yield what a file chooses, sets and sweeps over."""
    chosen = re.findall(r"^ *- override /(\w+): (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if chosen:
        yield from ["Chooses", *aligned("", " ".join(f"{group}={choice}" for group, choice in chosen), column=4)]
    shown = [f"    {key}={value}" for key, value in values.items() if not key.startswith("hydra.")]
    if shown:
        yield from ["Sets", *shown]
    swept = {key: value for key, value in values.items() if key.startswith(_SWEPT)}
    if swept:
        yield from ["Sweeps over", *(f"    {key.removeprefix(_SWEPT)}={value}" for key, value in swept.items())]


class Topics:
    """What is known of each topic of a program.

    Parameters
    ----------
    config_dir : Path
        The folder ``conf``.
    config_name : str
        ``"config"`` (train), ``"evaluate"`` or ``"sanity"``.
    program : str
        How the program was called.
    own : Path, optional
        A folder of the user's own settings files.
    """

    def __init__(self, config_dir: Path, config_name: str, program: str, own: Path | None = None) -> None:
        self.config_dir, self.config_name, self.program = config_dir, config_name, program
        self.kind = KINDS[config_name]
        self.main = config_dir / f"{config_name}.yaml"
        self.defaults = defaults_of(self.main)
        self.folders = [config_dir] if own is None else [config_dir, own]
        self.known = explanations(self.kind)
        self.methods = Methods(config_dir, self._files("frl") if "frl" in self.defaults else {})

    def text(self, topic: str) -> str:
        """Return what is said of a topic.

        Raises
        ------
        UserError
            There is no such topic; with what it may have meant.
        """
        name, equals, choice = topic.partition("=")
        name = name.lstrip("+~")
        if topic == "all":
            return help_text(self.config_dir, self.config_name, self.program)
        if topic == "flags":
            return flags_text(self.program)
        if name in ("launcher", "hydra", _LAUNCHER_GROUP, *LAUNCHERS) and self.config_name == "config":
            return self._launchers()
        if name in self.defaults:
            return self._options(name, choice) if equals and choice else self._group(name)
        readers = self._matching(name)
        if readers:
            return self._key(name, readers) if readers[0].key == name else self._keys(name, readers)
        groups = [] if equals else [group for group in self.defaults if name in self._files(group)]
        if len(groups) == 1:
            return self._option(groups[0], name)
        if groups:
            raise UserError(f"no help on {topic!r}; did you mean {' or '.join(f'{g}={name}' for g in groups)}?")
        raise UserError(self._unknown(topic, name, choice))

    def _unknown(self, topic: str, name: str, choice: str) -> str:
        """Return the message for what is no topic, with what it may have meant."""
        start = f"no help on {topic!r}; "
        if name in suggestions.ADVICE and self.config_name == "config":
            return start + suggestions.ADVICE[name]
        options = {option: group for group in reversed(self.defaults) for option in self._files(group)}
        groups = [*self.defaults, *SECTIONS, "retrain", "flags", "all", _LAUNCHER_GROUP]
        for words in (groups, [] if choice else options):
            near = difflib.get_close_matches(name, words, n=1, cutoff=_NEAR)
            if near:
                return f"{start}did you mean {f'{options[near[0]]}={near[0]}' if near[0] in options else near[0]}?"
        found = unknown_key(name, self.kind, value=choice).removeprefix(f"unknown key {name}").lstrip(";: ")
        return start + found

    # ------------------------------------------------------------------------------------------------------------
    # Groups and options

    def _files(self, group: str) -> dict[str, Path]:
        """Return the options of a group with their files, the default first."""
        found = {path.stem: path for folder in self.folders for path in (folder / group).glob("*.yaml")}
        if self.config_name == "config":
            found.pop(NOT_IN_TRAINING.get(group, ""), None)
        return dict(sorted(found.items(), key=lambda item: (item[0] != self.defaults[group], item[0])))

    def _group(self, group: str) -> str:
        default = self.defaults[group]
        lines = [f"{group}: {GROUP_HELP[group]} (default: {'none chosen' if default == 'null' else default})", ""]
        for option, path in self._files(group).items():
            lines += aligned(f"  {group}={option}", headline(path))
        if group == "frl":
            lines += ["", "Keys and defaults of each, where retraining is by the default recipe", *self._method_keys()]
        elif any(reader.key.startswith(f"{group}.") for reader in self.readers):
            lines += ["", "Keys and defaults", *self._lines(self._matching(f"{group}."))]
        some = next((option for option in self._files(group) if option != default), default)
        lines += ["", f"More: --help {group}={'cfol' if group == 'frl' else some}"]
        return "\n".join(lines) + "\n"

    def _method_keys(self) -> Iterator[str]:
        """Yield the keys of every method in short."""
        for option in self._files("frl"):
            values = self.methods.values(option, RECIPES[0]) or {}
            shown = [
                f"{key}={value}"
                for key, value in in_order(values).items()
                if not key.startswith("retrain.") and not key.endswith(".name")
            ]
            yield from aligned(f"  frl={option}", " ".join(shown) or "none")

    def _options(self, group: str, choice: str) -> str:
        """Return what is said of the options of a group that are named with commas between them."""
        files = self._files(group)
        for option in choice.split(","):
            if option == NOT_IN_TRAINING.get(group) and option not in files:
                topic = f"{group}={option}"
                raise UserError(f"{topic} measures finished models: scripts/evaluate.py --help {topic}")
            if option not in files:
                hint = suggestions.choice_of_group_hint(group, option, files)
                raise UserError(f"{group}={option}: unknown choice; {hint}known: {', '.join(files)}")
        return "\n".join(self._option(group, option) for option in dict.fromkeys(choice.split(",")))

    def _option(self, group: str, option: str) -> str:
        path = self._files(group)[option]
        default = self.defaults[group]
        aside = "none by default" if default == "null" else f"default: {group}={default}"
        aside = "the default" if option == default else aside
        notes = comments(path)
        lines = [f"{group}={option} ({aside})", *aligned("", headline(path), column=2)]
        if group == "frl":
            lines += self.methods.lines(option, self.known, self.program)
            return "\n".join(lines) + "\n"
        lines += _indented(notes)
        values = settings_in(path, self.config_dir)
        if group in ("experiment", "row", "schedule", "sweep"):
            lines += _settings_of_file(path, values)
        elif group == "recipe":
            methods = sorted(name for name in self._files("frl") if self.methods.values(name, option) is not None)
            lines += ["Methods", *aligned("", ", ".join(methods), column=4)]
        else:
            keys = key_lines({f"{group}.{key}": v for key, v in values.items()}, self.known, {group: option})
            lines += ["Keys and defaults", *keys] if keys else []
            lines += key_lines_of_own(values) if not keys and "factory" in values else []
        if not any(note.strip().startswith("command") for note in notes):
            lines += ["Example", f"    {self._example(group, option)}"]
        return "\n".join(lines) + "\n"

    def _example(self, group: str, option: str) -> str:
        """Return a command that chooses an option."""
        companion = _WITH.get(group, "")
        if group == "recipe":
            methods = (method for method in ("reweight", "dafa") if self.methods.values(method, option) is not None)
            companion = f"frl={next(methods)} "
        if group == "row":
            companion = f"-m experiment={self._experiment_of_row(option)} "
        settings = f"{companion}{group}={option}"
        values = settings_in(self._files(group)[option], self.config_dir)
        settings += "".join(f" {group}.{k}={_PLACEHOLDERS.get(k, 'VALUE')}" for k, v in values.items() if v == "???")
        if self.config_name != "config":
            settings = f"checkpoint=FILE {settings}"
        return f"{self.program} {settings}"

    def _experiment_of_row(self, row: str) -> str:
        """Return an experiment that sweeps over a row of a table, or takes it."""
        swept = {
            path.stem: settings_in(path, self.config_dir).get(f"{_SWEPT}row", "").split(",")
            for path in self._files("experiment").values()
        }
        return next((experiment for experiment, rows in swept.items() if row in rows), "paper_table")

    def _launchers(self) -> str:
        rows = [(f"{_LAUNCHER_GROUP}={name}", meaning) for name, meaning in LAUNCHERS.items()]
        return columns(f"{_LAUNCHER_GROUP}: how the runs of a sweep (-m) are started", rows) + (
            f"\n\nExample\n    {self.program} -m seed=0,1,2 {_LAUNCHER_GROUP}=fused\n"
        )

    # ------------------------------------------------------------------------------------------------------------
    # Keys

    @functools.cached_property
    def readers(self) -> list[Reader]:
        """Every key with every option that reads it."""
        return list(self._find_readers())

    def _find_readers(self) -> Iterator[Reader]:
        for key, value in own_settings(self.main, self.config_dir).items():
            yield Reader(key, "", value, self.known[""][key])
        for group in (g for g in self.defaults if g in GROUPS and g not in ("frl", "recipe")):
            for option, path in self._files(group).items():
                for name, value in settings_in(path, self.config_dir).items():
                    declared = declaration(f"{group}.{name}", self.known, {group: option})
                    if declared is not None:
                        yield Reader(f"{group}.{name}", f"{group}={option}", value, declared)
        if "frl" in self.defaults:
            yield from self._readers_by_method()

    def _readers_by_method(self) -> Iterator[Reader]:
        for recipe in RECIPES:
            for name in self._files("frl"):
                values = self.methods.values(name, recipe) or {}
                chosen = choices_in(values, {"frl": name})
                for key, value in in_order(values).items():
                    declared = declaration(key, self.known, chosen)
                    if declared is not None:
                        yield Reader(key, f"frl={name} recipe={recipe}", value, declared)

    def _matching(self, start: str) -> list[Reader]:
        """Return the keys of a name; where there is none, those that begin with it."""
        readers = self.readers
        exact = [reader for reader in readers if reader.key == start]
        if exact:
            return exact
        inside = [reader for reader in readers if reader.key.startswith(f"{start.rstrip('.')}.")]
        return inside or [reader for reader in readers if len(start) > 2 and reader.key.startswith(start)]

    def _lines(self, readers: Sequence[Reader]) -> Iterator[str]:
        """Yield a line for each key, or several where options read it as something else."""
        found: dict[tuple[str, str], list[Reader]] = {}
        for reader in readers:
            found.setdefault((reader.key, said(reader.declared)), []).append(reader)
        order = list(dict.fromkeys(reader.key for reader in readers))
        for (key, text), same in sorted(found.items(), key=lambda item: order.index(item[0][0])):
            yield from aligned(f"    {key}={same[0].value}", f"{text}{self._who(same)}")

    def _who(self, readers: Sequence[Reader]) -> str:
        """Return which options read a key, where not all of its group do."""
        group = readers[0].option.partition("=")[0]
        if group == "frl":
            by_recipe = self._methods_by_recipe(readers)
            if by_recipe.get(RECIPES[0]) == _EVERY:
                return ""
            known = by_recipe.get(RECIPES[0], [])
            parts = [f"frl={_few(known)}"] if known else []
            for recipe, names in by_recipe.items():
                more = names if isinstance(names, str) else [name for name in names if name not in known]
                if more:
                    parts.append(f"recipe={recipe}" if more == _EVERY else f"frl={_few(more)} recipe={recipe}")
            return f" ({'; '.join(parts)})"
        options = [reader.option.partition("=")[2] for reader in readers]
        return "" if not group or len(options) == len(self._files(group)) else f" ({group}={_few(options)})"

    def _methods_by_recipe(self, readers: Sequence[Reader]) -> dict[str, list[str] | str]:
        """Return recipe to methods, or to `_EVERY` where each method that the recipe has is among them."""
        found: dict[str, list[str]] = {}
        for reader in readers:
            method, recipe = (part.partition("=")[2] for part in reader.option.split())
            found.setdefault(recipe, []).append(method)
        return {
            recipe: _EVERY if len(names) == self.methods.num_of(recipe) else names for recipe, names in found.items()
        }

    def _keys(self, start: str, readers: Sequence[Reader]) -> str:
        head = start.rstrip(".")
        section = SECTIONS.get(head)
        about = "what a method sets in the training that it adds" if head == "retrain" else None
        about = (section.__doc__ or "").splitlines()[0].partition(";")[0] if section else about
        title = f"{head}: {about[0].lower()}{about[1:]}" if about else f"Keys that begin with {start}"
        return "\n".join([title, "", *self._lines(readers), "", f"More: --help {readers[0].key}"]) + "\n"

    def _key(self, key: str, readers: Sequence[Reader]) -> str:
        """Return all that is known of a key."""
        lines = [key]
        for text in dict.fromkeys(said(reader.declared) for reader in readers):
            same = [reader for reader in readers if said(reader.declared) == text]
            whose = "" if len(same) == len(readers) else self._who(same)
            lines += aligned("", f"{text}{whose}", column=2)
        lines += ["Default", *self._default_lines(readers)]
        of_methods = readers[0].option.startswith("frl=") and not key.startswith("retrain.")
        published = {name: self.methods.published(name).get(key) for name in CONTESTANTS if of_methods}
        found = [(name, value) for name, value in published.items() if value]
        rows = [f"    {value} for frl={name} (experiment=published_{name})" for name, value in found]
        lines += ["Published", *rows] if rows else []
        declared = readers[0].declared
        if declared.is_machine:
            lines.append("It says how to compute, not what: it is no part of a run's name.")
        usual = next((reader for reader in readers if reader.option == "frl=reweight recipe=report"), readers[0])
        lines += ["Example", f"    {self._example_of_key(usual)}"]
        same_name = dict.fromkeys(r.key for r in self.readers if r.key.rpartition(".")[2] == key.rpartition(".")[2])
        others = [other for other in same_name if other != key]
        return "\n".join([*lines, *([f"See also: {', '.join(others)}"] if others else [])]) + "\n"

    def _default_lines(self, readers: Sequence[Reader]) -> Iterator[str]:
        """Yield a line for each default, with who has it."""
        by_value: dict[str, list[Reader]] = {}
        for reader in readers:
            by_value.setdefault(reader.value, []).append(reader)
        column = max(16, *(len(value) + 6 for value in by_value))
        for value, same in by_value.items():
            if same[0].option.startswith("frl="):
                of_recipe = self._methods_by_recipe(same).items()
                whose = "; ".join(f"recipe={r}: {n if isinstance(n, str) else _few(n)}" for r, n in of_recipe)
            else:
                whose = self._who(same).strip(" ()")
            yield from aligned(f"    {value}", whose, column=column)

    def _example_of_key(self, reader: Reader) -> str:
        about_checkpoint = [] if self.config_name == "config" or reader.key == "checkpoint" else ["checkpoint=FILE"]
        if reader.key in _KEY_EXAMPLES and (not about_checkpoint or "." not in reader.key):
            return " ".join([self.program, *about_checkpoint, _KEY_EXAMPLES[reader.key]])
        value = reader.value
        if value in ("null", "???"):
            one_of = reader.declared.one_of
            usual = "FILE" if reader.declared.is_path else "VALUE"
            value = one_of[0] if one_of else _PLACEHOLDERS.get(reader.key.rpartition(".")[2], usual)
        option = reader.option.removesuffix(f" recipe={RECIPES[0]}")
        group, _, choice = option.partition("=")
        settings = [] if not option or self.defaults.get(group) == choice else option.split()
        return f"{self.program} {shlex.join([*about_checkpoint, *settings, f'{reader.key}={value}'])}"


def key_lines_of_own(values: Mapping[str, str]) -> list[str]:
    """Return the settings of a file of the user's own, which are not declared here."""
    return ["Sets", *(f"    {key}={value}" for key, value in values.items())]


def _indented(notes: Sequence[str]) -> Iterator[str]:
    """Yield comments as they are laid out, wrapped under their second column."""
    for note in notes:
        text = note.strip()
        label = re.match(_LABELS, text)
        yield from aligned(f"  {label[1]}", text[label.end() :], column=13) if label else aligned("", text, column=13)


def _few(names: Sequence[str]) -> str:
    """Return names; of many, the first ones and how many more there are."""
    if len(names) <= _MOST_READERS + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_READERS])} and {len(names) - _MOST_READERS} others"
