"""Every key of every command as Markdown tables, from the declarations of the settings: what `docs/settings.md` shows.

python tools/key_reference.py
"""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.settings.config import Config, EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.files import headline, settings_in
from frl_repro.settings.keys import Key
from frl_repro.settings.lookup import explanations

PROGRAMS: dict[str, tuple[str, type[Config]]] = {
    "train.py": ("config", RunConfig),
    "scripts/evaluate.py": ("evaluate", EvaluateConfig),
    "scripts/sanity.py": ("sanity", SanityConfig),
}
"""Programs whose settings Hydra composes: name of their file in ``conf/``, and the settings."""

SCRIPTS = ("plot", "collect", "report", "status", "bench")
"""Commands with a table of keys of their own, in `frl_repro.commands`."""

_OF_METHODS = ("alpha.", "tau.", "frl.", "retrain.", "departures.")
_FILES_WITHOUT_KEYS = ("experiment", "sweep", "row", "schedule")
_SWITCH = ("true", "false")
_Known = Mapping[str, Mapping[str, Key]]


def reference() -> str:
    """Return the whole reference."""
    return "\n\n".join([*_of_train(), *_of_others(), *_of_scripts()]) + "\n"


def script_keys() -> dict[str, Mapping[str, str]]:
    """Return the keys of the scripts that read tables or start runs, with what they take, by the script's path."""
    keys = {f"scripts/{name}.py": importlib.import_module(f"frl_repro.commands.{name}")._KEYS for name in SCRIPTS}
    return {**keys, "scripts/study.py": runpy.run_path(str(ROOT / "scripts" / "study.py"))["_KEYS"]}


def _of_train() -> Iterator[str]:
    known = explanations(RunConfig)
    yield "## train.py"
    yield from _top_level("config", known)
    for group, default in _defaults("config").items():
        if group == "frl":
            yield from _of_methods(known)
        else:
            yield from _group(group, default, known)


def _of_others() -> Iterator[str]:
    for program, (name, kind) in PROGRAMS.items():
        if program != "train.py":
            known = explanations(kind)
            yield f"## {program}"
            yield from _top_level(name, known)
            if name == "evaluate":
                yield from _group("evaluation", _defaults(name)["evaluation"], known)
            yield "`model=` and `dataset=` are those of `train.py`."


def _of_scripts() -> Iterator[str]:
    for script, keys in script_keys().items():
        yield f"## {script}"
        rows = []
        for key, text in keys.items():
            meaning, _, default = text.rpartition("   [") if text.endswith("]") else (text, "", "")
            rows.append((f"`{key}`", _code(default.removesuffix("]")), _plain(meaning.strip())))
        yield _table(("key", "default", "meaning"), rows)
        if script == "scripts/plot.py":
            yield "All figures: [figures](figures.md)."


def _defaults(name: str) -> dict[str, str]:
    text = (CONFIG_DIR / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - ([a-z]+): ([a-z0-9_]+)", text, flags=re.MULTILINE))


def _top_level(name: str, known: _Known) -> Iterator[str]:
    values = settings_in(CONFIG_DIR / f"{name}.yaml", CONFIG_DIR)
    yield "### Outside every group"
    rows = [
        (f"`{key}`", _code(values.get(key, "null")), _takes(about, values.get(key, "")), _meaning(about))
        for key, about in known[""].items()
    ]
    yield _table(("key", "default", "values", "meaning"), rows)


def _group(group: str, default: str, known: _Known) -> Iterator[str]:
    yield f"### {group}"
    files = {
        path.stem: path
        for path in sorted((CONFIG_DIR / group).glob("*.yaml"), key=lambda path: (path.stem != default, path.stem))
        if f"{group}={path.stem}" in known or group in _FILES_WITHOUT_KEYS
    }
    yield f"Default: `{default}`." if default != "null" else "Default: none."
    yield _table(
        ("choice", "what it is"), [(f"`{group}={name}`", _plain(headline(path))) for name, path in files.items()]
    )
    if group not in _FILES_WITHOUT_KEYS:
        values = {name: settings_in(path, CONFIG_DIR) for name, path in files.items()}
        yield from _keys_of(group, values, {name: known[f"{group}={name}"] for name in files})


def _keys_of(
    group: str, values: Mapping[str, Mapping[str, str]], known: Mapping[str, Mapping[str, Key]]
) -> Iterator[str]:
    """Yield one table: a row for each key and meaning, whichever choices have it."""
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for choice, keys in known.items():
        for key, about in keys.items():
            if key != "name":
                defaults = rows.setdefault((key, _takes(about, values[choice].get(key, "")), _meaning(about)), {})
                defaults.setdefault(values[choice].get(key, "null"), []).append(choice)
    first = {key: place for place, (key, *_) in reversed(list(enumerate(rows)))}
    if rows:
        yield _table(
            ("key", "default", "values", "meaning"),
            [
                (f"`{group}.{key}`", _by_choice(defaults, len(known)), takes, meaning)
                for (key, takes, meaning), defaults in sorted(rows.items(), key=lambda row: first[row[0][0]])
            ],
        )


def _by_choice(defaults: Mapping[str, list[str]], num_choices: int) -> str:
    if len(defaults) == 1 and len(next(iter(defaults.values()))) == num_choices:
        return _code(next(iter(defaults)))
    return "<br>".join(f"{', '.join(choices)}: {_code(value)}" for value, choices in defaults.items())


def _of_methods(known: _Known) -> Iterator[str]:
    yield "### frl"
    yield "Default: `none`. What a method has by recipe stands [below](#settings-of-a-method-by-recipe)."
    files = sorted((CONFIG_DIR / "frl").glob("*.yaml"), key=lambda path: (path.stem != "none", path.stem))
    yield _table(("choice", "what it is"), [(f"`frl={path.stem}`", _plain(headline(path))) for path in files])
    rows = []
    for path in files:
        own = settings_in(path, CONFIG_DIR)
        for key, about in known[f"frl={path.stem}"].items():
            if key in own and key != "name":
                rows.append((path.stem, f"`frl.{key}`", _code(own[key]), _takes(about, own[key]), _meaning(about)))
    yield "Keys of single methods:"
    yield _table(("method", "key", "default", "values", "meaning"), rows)
    yield from _by_recipe(known)


def _by_recipe(known: _Known) -> Iterator[str]:
    yield "### Settings of a method by recipe"
    yield (
        "Files of `conf/retrain`: what FRL's family and its control `finetune` have. Other methods have the attack, "
        "the loss and the trainer of `finetune`, and their own keys above. Empty: the method lacks the key."
    )
    found: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted((CONFIG_DIR / "retrain").glob("*/*.yaml")):
        if path.stem != "none":
            found.setdefault(path.parent.name, {})[path.stem] = settings_in(path, CONFIG_DIR)
    yield _table(
        ("key", "values", "meaning"),
        [
            (f"`{key}`", _takes(about), _meaning(about))
            for place in ("alpha", "tau", "frl=reweight", "retrain", "departures")
            for key, about in _named(place, known[place])
        ],
    )
    for recipe, methods in found.items():
        if recipe == "scratch":
            continue  # it has neither a base nor keys of retraining
        yield f"Defaults of `recipe={recipe}`:"
        keys = sorted(
            {key for values in methods.values() for key in values if not key.endswith(".name")},
            key=lambda key: (next((n for n, place in enumerate(_OF_METHODS) if key.startswith(place)), 9), key),
        )
        rows = [(f"`{key}`", *(_code(values.get(key, "")) for values in methods.values())) for key in keys]
        yield _table(("key", *methods), rows)


def _named(place: str, keys: Mapping[str, Key]) -> Iterable[tuple[str, Key]]:
    prefix = place.partition("=")[0]
    return [(f"{prefix}.{key}", about) for key, about in keys.items() if key != "name" and not about.choices]


def _takes(about: Key, default: str = "") -> str:
    if default in _SWITCH:
        return ", ".join(map(_code, _SWITCH))
    if about.one_of:
        return ", ".join(_code(value) for value in about.one_of)
    return "a path" if about.is_path else _code(about.bounds or "")


def _meaning(about: Key) -> str:
    return f"{_plain(about.help)}. *Machine*" if about.is_machine else _plain(about.help)


def _plain(text: str) -> str:
    """Return a text that is no Markdown as Markdown."""
    return text.replace("<", "&lt;").replace("*", r"\*")


def _code(text: str) -> str:
    return "needed" if text == "???" else f"`{text}`" if text else ""


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(columns)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
