"""README and docs/: every command and block runs or is checked, every link leads somewhere, references are whole."""

import ast
import functools
import itertools
import os
import re
import runpy
import subprocess
import sys
import tomllib
import types

import pytest
import yaml
from markdown_it import MarkdownIt

import frl_repro
from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.commands import collect, jobs, plot, report, status
from frl_repro.commands.keyvalue import choice, parse_arguments
from frl_repro.results.figures import FIGURES, IMAGE_FIGURES, STUDY_FIGURES
from frl_repro.results.protocol import CONTESTANTS, TRACKS
from frl_repro.settings.lookup import all_keys
from hydra_plugins.frl.pool import RAY, SLURM
from pages import PAGES, blocks_of, code_of, commands_in, commands_of
from support import ROOT, call

PROGRAMS = {"train.py": "config", "scripts/evaluate.py": "evaluate", "scripts/sanity.py": "sanity"}
MAINS = {f"scripts/{module.__name__.rpartition('.')[2]}.py": module.main for module in (collect, plot, report, status)}
OTHER_PROGRAMS = {".", "tensorboard", "scancel"}
LANGUAGES = {"", "python", "yaml", "text"}
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# --- Blocks -----------------------------------------------------------------------------------------------------------


def run_cells(page):
    """Run the Python blocks of a page from top to bottom, as a module of their own; return its names."""
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module
    try:
        for code in code_of(page, "python"):
            exec(compile(code, str(page), "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]
    return vars(module)


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks_of(page)], ids=lambda block: block.name)
def test_a_block_can_be_run_or_says_why_not(block):
    assert block.language in LANGUAGES, "give python, yaml, text (output), or nothing: commands"
    if block.not_run is not None:
        pytest.skip(block.not_run)
    if block.language == "yaml":
        assert yaml.safe_load(block.code)
    if not block.language:
        assert commands_in(block.code), "no command: output is ```text"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if code_of(page, "python") and page.stem != "python"], ids=lambda page: page.stem
)
def test_python_blocks_run(page, in_tmp):
    assert run_cells(page)


def test_the_blocks_of_the_guide_to_own_models_run_and_do_what_it_says(in_tmp, capsys):
    names = run_cells(ROOT / "docs" / "python.md")
    assert "errors in percent" in capsys.readouterr().out
    assert {"natural_error", "boundary_error", "robust_error"} <= set(names["errors"].columns)
    assert [len(names[name].history) for name in ("natural", "robust", "fairer")] == [2, 5, 4]
    assert names["result"].policy is not None
    assert (in_tmp / "reweighted" / "done.json").exists()
    assert (in_tmp / "reweighted" / "figure2.png").exists()


def shortened(words):
    """Return a command of a tutorial with less to compute."""
    words = [re.sub(r"(trainer\.num_epochs)=\d+$", r"\1=1", word) for word in words]
    words = ["seed=0" if word.startswith("seed=") else word for word in words]
    is_retrained = any(word.startswith("frl=") for word in words)
    more = ["attack.num_steps=1", *(["retrain.attack.num_steps=1"] if is_retrained else [])]
    return [*words, *more, "evaluation.num_steps=1", "backend=torch", "num_threads=1"]


def test_the_guide_to_own_images_runs_from_top_to_bottom_and_the_commands_of_the_start_show_its_runs(
    in_tmp, monkeypatch
):
    page = ROOT / "docs" / "own_images.md"
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    run_cells(page)
    trained = [words for words in commands_of(page) if words[1] == "train.py"]
    assert len(trained) == 4
    for words in trained:
        assert call(monkeypatch, *shortened(words[2:])) == 0
    assert len(list((in_tmp / "outputs").glob("image_folder-*/done.json"))) == 3
    for words in [*commands_of(page), *commands_of(ROOT / "docs" / "index.md")]:
        if words[0] == "python" and words[1] in MAINS and "runs=" not in str(words):
            assert MAINS[words[1]]([*words[2:], *(["formats=png"] if words[1] == "scripts/plot.py" else [])]) == 0
    assert (in_tmp / "outputs" / "figures" / "figure2.png").exists()
    assert (in_tmp / "outputs" / "report" / "report.html").exists()


# --- Commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends_of_sweeps(monkeypatch):
    """Let of every sweep the first and the last job alone be composed."""
    jobs_of = jobs.jobs_of

    def ends(*given, **more):
        found = list(jobs_of(*given, **more))
        return found if len(found) == 1 else [found[0], found[-1]]

    monkeypatch.setattr(jobs, "jobs_of", ends)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_is_one_that_its_program_takes(page, in_tmp, ends_of_sweeps):
    (in_tmp / "outputs").symlink_to(ROOT / "outputs")
    for words in commands_of(page):
        check(*words)


@functools.cache  # pages repeat commands
def check(program, *arguments):
    words = [program, *arguments]
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        assert set(arguments) <= set(targets), words
    elif program == "pip":
        extras = {extra for word in arguments for extra in re.findall(r"^\.\[(\w+)\]$", word)}
        assert extras <= set(PROJECT["optional-dependencies"]), words
    elif program == "torchrun":
        check("python", *(word for word in arguments if not word.startswith("--")))
    elif program == "python" and arguments[0] == "-m":
        assert arguments[1] == "pytest"
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/")), words
    elif program == "python":
        check_script(*arguments)
    else:
        assert program in OTHER_PROGRAMS, words


def check_script(script, *arguments):
    assert (ROOT / script).exists(), script
    if arguments[:1] == ("--help",):
        return
    if script in PROGRAMS:
        assert jobs.check_command_line(arguments, PROGRAMS[script])
        return
    given = parse_arguments(arguments, keys_of(script))
    choices = {
        "scripts/plot.py": {"figure": [*FIGURES, *STUDY_FIGURES, *IMAGE_FIGURES]},
        "scripts/study.py": {"parts": runpy.run_path(str(ROOT / "scripts" / "study.py"))["STUDY"]},
        "scripts/bench.py": {"track": [*TRACKS, "all"], "methods": [*CONTESTANTS, "mine"]},
    }
    for key, known in choices.get(script, {}).items():
        for value in given.get(key, next(iter(known))).split(","):
            choice(key, value, known)


def keys_of(script):
    """Return the keys of a script or benchmark, or of the command behind it, from its source."""
    command = ROOT / "src" / "frl_repro" / "commands" / script.rpartition("/")[2]
    for path in (ROOT / script, command):
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_KEYS":
                return {key.value: "" for key in node.value.keys}
    raise AssertionError(f"{script} has no keys")


def test_a_wrong_command_is_noticed(in_tmp, ends_of_sweeps):
    for words in (
        ["make", "tea"], ["pip", "install", ".[tea]"], ["python", "scripts/tea.py"], ["tea"],
        ["python", "-m", "pytest", "tests/test_tea.py"],
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check(*words)
    for words in (
        ["python", "train.py", "trainer.epochs=3"], ["torchrun", "--nproc-per-node=2", "train.py", "frl=tea"],
        ["python", "scripts/plot.py", "figure=9"], ["python", "scripts/bench.py", "seed=20"],
        ["python", "scripts/evaluate.py", "checkpoint=x", "evaluation.num_step=2"],
    ):  # fmt: skip
        with pytest.raises(frl_repro.UserError):
            check(*words)


# --- Links and references ---------------------------------------------------------------------------------------------


def anchors_of(page):
    """Return the anchors of a page's headings as git hosts and the site name them."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def links_of(page):
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        yield from re.findall(r'<img src="([^"]+)"', token.content if token.type == "html_block" else "")
        for inner in token.children or []:
            target = inner.attrGet("href") or inner.attrGet("src")
            if target and not target.startswith(("http:", "https:")):
                yield target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "outputs" / "reference" / "README.md"], ids=[*IDS, "reference"])
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_lists_and_tables_begin_after_an_empty_line(page):
    """Git hosts see them without one; the site does not."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    starts = re.findall(r"^(?![-|]|\d+\. |\s|:|<!--)(.+)\n((?:- |1\. |\|).*)", text, flags=re.M)
    assert starts == []


def test_the_reference_has_every_key():
    text = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "key_reference.py")], capture_output=True, text=True, check=True
    ).stdout
    for kind in jobs.KINDS.values():
        assert [key for key in all_keys(kind) if f"`{key}`" not in text] == []
    for group in ("model", "dataset", "attack", "trainer", "frl", "recipe", "experiment", "schedule"):
        names = [path.stem for path in (CONFIG_DIR / group).glob("*.yaml")]
        assert [name for name in names if f"`{group}={name}`" not in text] == []
    assert [key for key in keys_of("scripts/plot.py") if f"| `{key}` |" not in text] == []


def test_pages_name_every_method_extra_figure_and_launcher_setting():
    def text(name):
        return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")

    assert [name for name in PROJECT["optional-dependencies"] if f"`{name}`" not in text("index")] == ["all"]
    assert [name for name in PROJECT["scripts"] if f"`{name}`" not in text("index")] == []
    methods = [path.stem for path in (CONFIG_DIR / "frl").glob("*.yaml")]
    assert [name for name in methods if f"`{name}`" not in text("methods")] == []
    assert [name for name in (*FIGURES, *STUDY_FIGURES, *IMAGE_FIGURES) if f"| `{name}` |" not in text("figures")] == []
    settings = {*RAY, *SLURM} - {"_target_"}
    assert [name for name in settings if f"`{name}`" not in text("clusters")] == []


def test_the_readme_is_a_screen_and_a_half():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    assert "make test" in "\n".join(lines)  # what continuous integration runs


@pytest.mark.bench
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, cwd=ROOT, env={"NO_MKDOCS_2_WARNING": "1", "PATH": os.defpath}, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    loaded = r'(?:src|href)="(https?://[^"]+\.(?:js|css|png|svg|woff2?)[^"]*|https?://fonts[^"]*)"'
    assert {page.name: found for page, text in pages.items() if (found := re.findall(loaded, text))} == {}
    assert (tmp_path / "site" / "search" / "search_index.json").exists()
    assert "frl.strength" in pages[tmp_path / "site" / "settings.html"]
    assert "L-infinity ball" in pages[tmp_path / "site" / "api.html"]
