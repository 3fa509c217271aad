"""Feed wrong input to everything that takes input: what docs/reliability.md quotes.

    python benchmarks/fuzz.py                      # 10,000 inputs, about five minutes on one free core
    python benchmarks/fuzz.py inputs=500 seed=1 kinds=train,table
    python benchmarks/fuzz.py out=docs/fuzz        # also fuzz.md and fuzz.json

Command lines of every program, settings as YAML gives them, files of `conf/`, tables, checkpoints, training states and
the notes in a run's folder: valid ones, valid ones with a change, and noise, all from the seed. Every answer must be a
result or one line of text; a traceback, an "unexpected" error, an exit code of its own or a file written outside the
folder of the input is a finding, and the exit code is 1. Nothing is trained.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from frl_repro.basics import paths, run_folder
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import bar
from frl_repro.commands import cli, collect, jobs, plot, report, status
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import choice, run, usage_text, whole_number
from frl_repro.models import build_model, checkpoints, origin
from frl_repro.results.tables import examples, outcomes, reading, schema, writing
from frl_repro.runs import experiment
from frl_repro.settings import config, lookup
from frl_repro.settings.parse import parse

_KEYS = {
    "inputs": "how many   [10000]",
    "seed": "what the inputs follow from   [0]",
    "kinds": "comma-separated kinds of input   [all]",
    "out": "folder for fuzz.md and fuzz.json   [none]",
}

VALUES = (
    "", "0", "1", "-1", "3", "0.5", "1e400", "-inf", "nan", "1e-400", "8/255", "8/0", "1/3/5", "null", "true",
    "None", "[]", "[1,2]", "[8/255,]", "{}", "{a:1}", "[", "]", "{", "'", '"', "a'b", "a,b", "1,2", "x y", "\n",
    "a\nb", "\t", "\x00", "\x1b[31m", "é", "你好", "\ud800", "a" * 3000, "9" * 400, "1_000", "0x10", "${seed}",
    "${nothing}", "${px:8}", "${px:x}", "${px:}", "${", "$", "${oc.env:NOPE}", "${oc.env:HOME}", "${oc.decode:x}",
    "${.}", "${..seed}", "range(1,4)", "range(3,1)", "choice(1,2)", "choice()", "interval(0,1)", "glob(*)",
    "glob([a*],exclude=b)", "sort(3,1)", "shuffle(1,2)", "int(x)", "float(3)", "str([1])", "tag(a,1)",
    "extend_list(1)", "../x", "/nowhere/x", "~", "~/x", ".", "..", "a/b", "con", "-", "--", "-m", "=", "==", "@",
    "a@b", "!!python/object/apply:os.system [true]", "*x", "&x 1", "|", ">", "#", "%",
)  # fmt: skip
_FLAGS = (
    "-m", "--multirun", "--cfg", "--cfg=job", "-c", "job", "--resolve", "-p", "--package", "--version", "-h", "--help",
    "-sc", "--shell-completion", "--hydra-help", "--info", "-i", "-cn", "-cp", "-cd", "--experimental-rerun", "-x",
    "--", "-",
)  # fmt: skip
_MACHINE_KEYS = ("output_dir", "run_dir", "base_dir")  # of which `..` is the user's own choice of folder


# ---------------------------------------------------------------------------------------------------------------
# Inputs


def text(chance: random.Random) -> str:
    """Return a value that someone might type, or noise."""
    if chance.random() < 0.8:
        return chance.choice(VALUES)
    alphabet = "abz019.,:/-_=+*?![](){}<>|&%$#@~'\"\\ \té\u202e"
    return "".join(chance.choice(alphabet) for _ in range(chance.randint(1, 12)))


def changed(chance: random.Random, value: str) -> str:
    """Return a text with one character more, less or other."""
    place = chance.randrange(len(value) + 1)
    cut = chance.choice([0, 1])
    return value[:place] + chance.choice(["", *"xé[]{}(),'\"=.$~@+:/ \n-0"]) + value[place + cut :]


def harmed(chance: random.Random, content: bytes) -> bytes:
    """Return bytes truncated, with a flipped bit, with a part repeated, or noise."""
    kind = chance.randrange(5)
    if kind == 0 or not content:
        return content[: chance.randrange(len(content) + 1)]
    if kind == 1:
        flipped = bytearray(content)
        # Headers are where formats break: half of all flips fall into the first bytes.
        for _ in range(chance.choice([1, 1, 5])):
            flipped[chance.randrange(min(len(flipped), chance.choice([64, len(flipped)])))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if kind == 2:
        place = chance.randrange(len(content))
        return content[:place] + content[place : place + chance.randint(1, 300)] + content[place:]
    if kind == 3:
        return chance.randbytes(chance.randint(0, 200))
    place = chance.randrange(len(content))
    return content[:place] + chance.randbytes(chance.randint(1, 9)) + content[place + chance.randint(0, 9) :]


@functools.cache
def _train_tokens() -> tuple[str, ...]:
    keys = [
        *lookup.all_keys(config.RunConfig),
        "retrain",
        "hydra.sweep.dir",
        "hydra/launcher",
        "hydra/sweeper",
        "hydra.verbose",
    ]
    groups = [f"{g.name}={f.stem}" for g in paths.CONFIG_DIR.iterdir() if g.is_dir() for f in g.glob("*.yaml")]
    return (*(f"{key}=" for key in keys if key not in _MACHINE_KEYS), *groups * 3)


def train_line(chance: random.Random) -> list[str]:
    """Return arguments of ``train.py`` and ``evaluate.py``."""
    line = []
    for _ in range(chance.choice([1, 1, 2, 2, 3, 4])):
        token = chance.choice(_train_tokens())
        if token.endswith("="):
            token += text(chance)
        if chance.random() < 0.15:
            token = chance.choice(["+", "++", "~", " ", "-", "@", "hydra.", "experiment.", "."]) + token
        if chance.random() < 0.15:
            token = changed(chance, token)
        line.append(token)
    if chance.random() < 0.15:
        line.insert(chance.randrange(len(line) + 1), chance.choice(_FLAGS))
    if chance.random() < 0.05:
        line.append(text(chance))
    # Sweeps over thousands of values and Hydra's own folders are what they say; here they would only take time.
    return [part for part in line if "hydra.run" not in part and "00" not in part]


def script_line(chance: random.Random, keys: Sequence[str], values: Sequence[str]) -> list[str]:
    """Return arguments of a ``key=value`` program."""
    line = []
    for _ in range(chance.choice([0, 1, 1, 2, 3])):
        token = f"{chance.choice(keys)}={chance.choice(values) if chance.random() < 0.5 else text(chance)}"
        line.append(changed(chance, token) if chance.random() < 0.2 else token)
    return [token for token in line if not token.startswith("out=") or token.startswith("out=made")]


def node(chance: random.Random, depth: int = 0) -> Any:
    """Return what YAML may hold in the place of a setting."""
    kind = chance.randrange(10 if depth < 3 else 7)
    if kind < 7:
        plain = [None, True, 0, -1, 1e308, float("nan"), float("inf"), 10**30, text(chance), 0.5, "8/255", 3]
        return chance.choice(plain)
    if kind == 7:
        return [node(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    return {chance.choice(["name", "a", "nat", 3, None, text(chance)]): node(chance, depth + 1) for _ in range(2)}


# ---------------------------------------------------------------------------------------------------------------
# What is fed


class Fuzz:
    """Valid files to start from, and a folder for each input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[str] = []
        self.num_refused: Counter[str] = Counter()
        self.milliseconds: dict[str, float] = {}
        self._rows = _classwise_rows()
        writing.write_table(folder / "classwise.csv", self._rows, schema.CLASSWISE_HEADER)
        writing.write_table(folder / "policy.csv", _policy_rows(), schema.POLICY_COLUMNS)
        self.model = build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=0)
        checkpoints.save_weights(folder / "model.safetensors", self.model, origin={"run_id": "a", "seed": 0})
        small = {"model": {"w": torch.zeros(3)}, "epoch": 2, "policy": None, "history": [{"a": 1.5}]}
        checkpoints.save_state(folder / "state.pt", small)
        torch.save(self.model.state_dict(), folder / "model.pt")
        torch.save(small["model"], folder / "legacy.pt", _use_new_zipfile_serialization=False)
        self.valid = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        (composed,) = jobs.check_command_line(["dataset=synthetic", "frl=reweight"], "config")
        self.settings = config.to_dict(composed)
        (self.one,) = jobs.check_command_line(["dataset=synthetic"], "config")
        self.conf = folder / "conf"
        shutil.copytree(paths.CONFIG_DIR, self.conf)
        self.number = 0

    def here(self) -> Path:
        """Return an empty folder and make it the current one."""
        self.number += 1
        folder = self.folder / f"input{self.number}"
        folder.mkdir()
        os.chdir(folder)
        return folder

    def call(self, kind: str, main: Callable[[], int], shown: object) -> None:
        """Run a program and look at its answer."""
        out, errors = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                code = main()
        except SystemExit as problem:
            code = problem.code if isinstance(problem.code, int) else 0 if problem.code is None else 1
        except BaseException:
            self.note(kind, shown, traceback.format_exc())
            return
        said = errors.getvalue()
        self.num_refused[kind] += code == 1
        if "Traceback" in said or "unexpected" in said or code not in (0, 1, 2, 3):
            self.note(kind, shown, f"exit code {code}: {said}")
        elif code == 1 and not said.startswith("error: "):
            self.note(kind, shown, f"exit code 1 without a reason: {said!r}")
        elif said.count("\n") > 1 and "jobs failed" not in said:
            self.note(kind, shown, f"more than one line: {said!r}")

    def read(self, kind: str, reader: Callable[[], object], shown: object) -> None:
        """Read something and see that it is either read or refused."""
        try:
            reader()
        except (UserError, OSError):
            self.num_refused[kind] += 1
        except BaseException:
            self.note(kind, shown, traceback.format_exc())

    def note(self, kind: str, shown: object, what: str) -> None:
        """Note a finding."""
        self.found.append(f"{kind} {shown!r:.600}\n{what[-1800:]}")


def _no_training(configs: Sequence[config.RunConfig], **_: object) -> list[Any]:
    return [one.folder for one in configs]


def feed_train(fuzz: Fuzz, chance: random.Random) -> None:
    """command lines of train.py"""
    line = train_line(chance)
    fuzz.here()
    sys.argv = ["train.py", *line]
    fuzz.call("train", cli.main, line)


def feed_evaluate(fuzz: Fuzz, chance: random.Random) -> None:
    """command lines of evaluate.py, with checkpoints of every kind"""
    folder = fuzz.here()
    name = chance.choice(["model.safetensors", "model.pt", "legacy.pt", "classwise.csv"])
    (folder / name).write_bytes(harmed(chance, fuzz.valid[name]))
    line = [
        f"checkpoint={chance.choice([name, 'nowhere', '.', text(chance)])}",
        "dataset=synthetic",
        "dataset.num_test=9",
    ]
    line += [token for token in train_line(chance) if not token.startswith("dataset")]
    sys.argv = ["evaluate.py", *line]
    fuzz.call("evaluate", cli.evaluate_main, line)


def feed_script(fuzz: Fuzz, chance: random.Random) -> None:
    """command lines of plot, collect, report and status, on folders of damaged tables"""
    folder = fuzz.here()
    for name in ("classwise.csv", "policy.csv"):
        (folder / name).write_bytes(fuzz.valid[name] if chance.random() < 0.5 else harmed(chance, fuzz.valid[name]))
    program = chance.choice([plot, collect, status, collect, status, report])
    values = [
        ".", "classwise.csv", "*", "**", "[a", "nowhere", "8/255", "16/255", "pgd-20", "method=adversarial", "epoch=1",
        "alpha_nat=x", "made", "open", "all", "true", "1", "tradeoff", "grid", "png", "svg,png", "method", "=", ",",
    ]  # fmt: skip
    line = script_line(chance, list(program._KEYS), values)
    if program is plot and not any(part.startswith("runs=") for part in line):
        line.append("runs=.")
    if program in (plot, report):  # drawing takes seconds: what is asked for is refused before, or not at all
        line = [part for part in line if not part.startswith("docs=")]
        line.append(chance.choice(["epsilon=2", "attack=none", "where=method=nothing", "figure=none", "x"]))
    fuzz.call("script", lambda: program.main(line), line)


def feed_settings(fuzz: Fuzz, chance: random.Random) -> None:
    """settings as YAML gives them: keys missing, renamed, of other types"""
    settings = json.loads(json.dumps(fuzz.settings))
    settings["retrain"] = fuzz.settings["retrain"]
    for _ in range(chance.randint(1, 3)):
        part = settings
        while True:
            key = chance.choice(list(part))
            if isinstance(part[key], dict) and part[key] and chance.random() < 0.8:
                part = part[key]
                continue
            break
        kind = chance.randrange(3)
        if kind == 0:
            del part[key]
        elif kind == 1:
            part[changed(chance, str(key))] = part.pop(key)
        else:
            part[key] = node(chance)
        if not part:
            break
    as_kind = chance.choice([config.RunConfig, config.EvaluateConfig])
    fuzz.read("settings", lambda: _as_run(parse(settings, as_kind)), settings)


def _as_run(parsed: Any) -> None:
    _ = parsed.hash
    if isinstance(parsed, config.RunConfig):
        _ = parsed.folder, parsed.shared, parsed.base().folder


def feed_yaml(fuzz: Fuzz, chance: random.Random) -> None:
    """files of conf/ with a change, composed and shown by --help"""
    fuzz.here()
    path = chance.choice(sorted(fuzz.conf.rglob("*.yaml")))
    before = path.read_bytes()
    lines = before.decode().splitlines()
    place = chance.randrange(len(lines))
    new = chance.choice(
        ["", "a: [", "\t- x", "x: ${nothing}", "? :", f"k: {text(chance)!r}", lines[place] + text(chance), "- 3"]
    )
    content = "\n".join([*lines[:place], new, *lines[place + 1 :]]).encode(errors="surrogatepass")
    path.write_bytes(content if chance.random() < 0.8 else harmed(chance, before))
    group = path.parent.name
    line = (
        [f"{group}={path.stem}"]
        if group in ("attack", "dataset", "trainer", "frl", "experiment", "sweep", "model")
        else []
    )
    if chance.random() < 0.1:
        line.append("--help")
    sys.argv = ["train.py", *line]
    try:
        lookup.method_keys.cache_clear()
        fuzz.call("yaml", cli.main, (str(path.relative_to(fuzz.conf)), new))
    finally:
        path.write_bytes(before)
        lookup.method_keys.cache_clear()


def feed_table(fuzz: Fuzz, chance: random.Random) -> None:
    """classwise.csv and policy.csv with changed cells, rows, columns and bytes"""
    folder = fuzz.here()
    name = chance.choice(["classwise.csv", "classwise.csv", "policy.csv"])
    content = fuzz.valid[name]
    if chance.random() < 0.5:
        content = harmed(chance, content)
    else:
        rows = [row.split(",") for row in content.decode().splitlines()]
        for _ in range(chance.choice([1, 1, 2, 5])):
            row = chance.choice(rows)
            kind = chance.randrange(4)
            if kind == 0 and row:
                row.pop(chance.randrange(len(row)))
            elif kind == 1:
                rows.append(list(row))
            elif row:
                row[chance.randrange(len(row))] = text(chance)
        content = "\n".join(",".join(row) for row in rows).encode(errors="surrogatepass")
    path = folder / name
    path.write_bytes(content)
    reader = reading.read_classwise if name == "classwise.csv" else reading.read_policy
    fuzz.read("table", lambda: reader([path]), content[:300])


def feed_checkpoint(fuzz: Fuzz, chance: random.Random) -> None:
    """weights, states, outcomes and examples with changed bytes, and pickles that would run code"""
    folder = fuzz.here()
    name = chance.choice(["model.safetensors", "model.pt", "legacy.pt", "state.pt", "pickle.pt"])
    path = folder / name
    if name == "pickle.pt":
        content = pickle.dumps(_RunsCode(str(folder / "made")), protocol=chance.randrange(5))
        content = content if chance.random() < 0.5 else harmed(chance, content)
    else:
        content = harmed(chance, fuzz.valid[name])
    path.write_bytes(content)
    readers: list[Callable[[Path], object]] = [
        lambda p: checkpoints.load_weights(p, fuzz.model), checkpoints.load_state, origin.read_origin,
        outcomes.read_outcomes, examples.read_examples,
    ]  # fmt: skip
    for reader in readers:
        fuzz.read("checkpoint", functools.partial(reader, path), (name, content[:80]))
    if (folder / "made").exists():
        fuzz.note("checkpoint", name, "a pickle ran code")


def feed_notes(fuzz: Fuzz, chance: random.Random) -> None:
    """run.json, done.json, failed.json and sweep-*.json of other content, read by status and by runs"""
    folder = fuzz.here()
    one = fuzz.one
    run_ = folder / one.folder
    run_.mkdir(parents=True)
    about = {"run_id": one.run_id, "config_hash": one.hash, "config": config.to_dict(one)}
    notes = {
        run_ / "run.json": about,
        run_ / "done.json": {**about, "sha256": {"classwise.csv": "0"}},
        folder / "outputs" / "failed.json": [{"job": "seed=0", "run": one.run_id, "reason": "x"}],
        folder / "outputs" / "sweep-0.json": {"runs": [one.run_id, "later"]},
    }
    for path, content in notes.items():
        kept = json.dumps(content).encode()
        kind = chance.randrange(3)
        path.write_bytes([kept, harmed(chance, kept), json.dumps(node(chance)).encode()][kind])
    fuzz.call("notes", lambda: status.main([chance.choice(["show=all", "verify=true"])]), "status")
    fuzz.read("notes", lambda: experiment.folder_status(run_, one), "status of a folder")
    fuzz.read("notes", lambda: run_folder.check_finished(run_), "check of a folder")


class _RunsCode:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


FEEDS: dict[str, tuple[float, Callable[[Fuzz, random.Random], None]]] = {
    "train": (0.04, feed_train),
    "evaluate": (0.03, feed_evaluate),
    "script": (0.15, feed_script),
    "settings": (0.16, feed_settings),
    "yaml": (0.02, feed_yaml),
    "table": (0.25, feed_table),
    "checkpoint": (0.25, feed_checkpoint),
    "notes": (0.1, feed_notes),
}
"""By kind: its share of the inputs, and what feeds it."""


# ---------------------------------------------------------------------------------------------------------------
# Files


class Fence:
    """Notes every file that this process opens for writing, makes, renames or removes outside a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self.outside: set[str] = set()
        self.is_up = True
        sys.addaudithook(self._audit)  # for as long as this process lives

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_up:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            if (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._note(arguments[0])
        elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._note(path)

    def _note(self, path: str | bytes | os.PathLike[str]) -> None:
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (resolves no links: a link is a file of its own)
        if full != os.devnull and not full.startswith(self._folder):
            self.outside.add(full)


@contextlib.contextmanager
def _prepared(folder: Path) -> Iterator[Fuzz]:
    """Turn the programs to this folder: no training, its own temporary files and settings."""
    before = os.getcwd(), sys.argv, tempfile.tempdir, experiment.run_all, paths.CONFIG_DIR  # noqa: PTH109
    sys.dont_write_bytecode = True
    scratch = folder / "tmp"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    (folder / "cache").mkdir(exist_ok=True)
    fuzz = Fuzz(folder)
    experiment.run_all = _no_training  # type: ignore[assignment]
    paths.CONFIG_DIR = lookup.CONFIG_DIR = fuzz.conf
    try:
        yield fuzz
    finally:
        os.chdir(before[0])
        sys.argv, tempfile.tempdir, experiment.run_all = before[1:4]  # type: ignore[assignment]
        paths.CONFIG_DIR = lookup.CONFIG_DIR = before[4]
        lookup.method_keys.cache_clear()


def feed(num_inputs: int, seed: int, kinds: Sequence[str], folder: Path) -> tuple[Fuzz, Counter[str], set[str]]:
    """Feed inputs; return what was found, how many of each kind there were, and files outside the folder."""
    _load_lazily_imported()
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    total = sum(FEEDS[kind][0] for kind in kinds)
    with _prepared(folder) as fuzz, bar("inputs", num_inputs) as advance:
        fence = Fence(folder)
        order = random.Random(seed).choices(kinds, [FEEDS[kind][0] / total for kind in kinds], k=num_inputs)
        for number, kind in enumerate(order):
            started = time.process_time()
            FEEDS[kind][1](fuzz, random.Random(f"{seed}/{number}"))
            seconds[kind] += time.process_time() - started
            counts[kind] += 1
            os.chdir(folder)
            shutil.rmtree(folder / f"input{fuzz.number}", ignore_errors=True)
            advance(1)
        fence.is_up = False
    fuzz.milliseconds = {kind: 1e3 * seconds[kind] / counts[kind] for kind in counts}
    return fuzz, counts, fence.outside


def _load_lazily_imported() -> None:
    """Import what the programs import when they need it: libraries write caches of their own then."""
    import hydra  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    from frl_repro.evaluation import measure  # noqa: F401
    from frl_repro.results.figures import style  # noqa: F401
    from frl_repro.results.tables import selection, text_tables, variants  # noqa: F401


def _classwise_rows() -> list[dict[str, Any]]:
    keys = {
        "run_id": "a", "dataset": "synthetic", "model": "lenet5", "method": "adversarial", "seed": 0, "recipe": None,
        "alpha_nat": None, "alpha_bndy": None, "alpha_margin": None, "attack": "pgd-20",
    }  # fmt: skip
    rows = []
    for split, epoch in (("validation", 1), ("validation", 2), ("test", 2)):
        for epsilon in (8 / 255, 16 / 255):
            more = {**keys, "split": split, "epoch": epoch, "epsilon": epsilon}
            rows += writing.classwise_rows(more, ["x", "y", "z"], [10, 10, 10], [1, 2, 3], [2, 0, 7])
    return rows


def _policy_rows() -> list[dict[str, Any]]:
    row = dict.fromkeys(schema.POLICY_COLUMNS, 0) | {"run_id": "a", "recipe": "report", "method": "reweight"}
    return [{**row, "epoch": epoch, "class_id": k, "class_name": f"c{k}"} for epoch in (1, 2) for k in range(3)]


# ---------------------------------------------------------------------------------------------------------------
# The command


def _act(given: dict[str, str]) -> tuple[str, int]:
    num_inputs = whole_number("inputs", given.get("inputs", "10000"))
    seed = whole_number("seed", given.get("seed", "0"), least=0)
    kinds = [choice("kinds", kind, FEEDS) for kind in given.get("kinds", ",".join(FEEDS)).split(",")]
    out = Path(given["out"]).resolve() if "out" in given else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fuzz, counts, outside = feed(num_inputs, seed, kinds, Path(folder))
    seconds = time.monotonic() - started
    lines = ["| input | fed | milliseconds each | refusals | findings |", "|---|---|---|---|---|"]
    for kind in kinds:
        num_found = sum(finding.startswith(f"{kind} ") for finding in fuzz.found)
        what = (FEEDS[kind][1].__doc__ or kind).strip()
        cells = [f"{counts[kind]:,}", f"{fuzz.milliseconds.get(kind, 0):.0f}", f"{fuzz.num_refused[kind]:,}"]
        lines.append(f"| {what} | {' | '.join(cells)} | {num_found} |")
    lines.append(f"| **all** | {num_inputs:,} | | {fuzz.num_refused.total():,} | {len(fuzz.found)} |")
    lines += ["", f"Files touched outside the input's folder: {len(outside)}"]
    text_ = "\n".join(lines) + "\n"
    if out is not None:
        writing.write_json(out / "fuzz.json", {
            "inputs": dict(counts), "refused": dict(fuzz.num_refused), "findings": len(fuzz.found),
            "files_outside": len(outside), "seconds": round(seconds), "seed": seed,
        })  # fmt: skip
        (out / "fuzz.md").write_text(text_, encoding="utf-8")
    more = [f"{num_inputs} inputs in {seconds:.0f} s", *fuzz.found, *sorted(outside)]
    return "\n".join([text_, *more]) + "\n", int(bool(fuzz.found or outside))


def _usage() -> str:
    kinds = "\n".join(f"  {name:<12}{(function.__doc__ or '').strip()}" for name, (_, function) in FEEDS.items())
    summary = "Feed wrong input to everything that takes input, and see that the answer is one line."
    return usage_text(summary, program=program_name(), keys=_KEYS, sections={"kinds": kinds})


def main(argv: Sequence[str] | None = None) -> int:
    """Feed the inputs that ``argv`` asks for; exit code 1 where anything is found."""
    return run(argv, keys=_KEYS, usage=_usage, act=_act)


if __name__ == "__main__":
    sys.exit(main())
