"""``--help``: one screen, a group, an option, a key, or all; every example is a command that can be typed."""

import runpy
import shlex
import subprocess
import sys

import pytest

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.commands import bench, cli, collect, jobs, plot, report, status
from frl_repro.commands.helptext import EXAMPLES, front_page
from frl_repro.commands.helptopics import Topics
from frl_repro.settings.files import headline
from frl_repro.settings.lookup import all_keys, explanations
from support import ROOT, call

PROGRAMS = {"config": cli.main, "evaluate": cli.evaluate_main, "sanity": cli.sanity_main}
SCREEN = 40  # lines of a terminal of 100 columns


@pytest.fixture
def topics(monkeypatch):
    """Topics of a program, for a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    return lambda program: Topics(CONFIG_DIR, program, "python train.py")


def fits(text):
    lines = text.splitlines()
    return len(lines) <= SCREEN and max(map(len, lines)) <= 100


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("called", ["python train.py", "frl-repro"])
def test_help_is_one_screen_with_every_group(program, called, topics):
    text = front_page(CONFIG_DIR, program, called)
    assert fits(text), text
    for group in topics(program).defaults:
        assert f"\n  {group} " in text
    for key in (key for key in all_keys(jobs.KINDS[program]) if "." not in key):
        assert key in text
    for settings, meaning in EXAMPLES[program]:
        assert f"  {called} {settings}".rstrip() in text
        assert meaning in text


@pytest.mark.parametrize("main", [bench.main, collect.main, plot.main, report.main, status.main])
def test_help_of_scripts_that_read_tables_is_one_screen(main, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts" / f"{main.__module__.rpartition('.')[2]}.py")])
    monkeypatch.chdir(ROOT)
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert fits(text), text


def test_help_of_the_study_is_one_screen(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["scripts/study.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "study.py"), run_name="__main__")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert fits(text), text


def joined(text):
    """Return a text whose lines were broken at hyphens too."""
    return text.replace("- ", "-")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_has_a_text_with_its_headline_and_its_keys_with_ranges(program, topics):
    said = topics(program)
    known = explanations(jobs.KINDS[program])
    for group in said.defaults:
        listed = " ".join(said.text(group).split())
        for option, path in said._files(group).items():
            assert f"{group}={option} " in listed
            assert headline(path) in joined(listed)
            text = " ".join(said.text(f"{group}={option}").split())
            for name, declared in known.get(f"{group}={option}", {}).items():
                if group not in ("frl", "recipe") and name != "name":
                    assert f"{group}.{name}=" in text
                    assert f"{declared.help}{f'. {declared.bounds}' if declared.bounds else ''}" in joined(text)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_is_a_topic_with_its_range(program, topics):
    said = topics(program)
    for reader in {reader.key: reader for reader in said.readers}.values():
        text = " ".join(said.text(reader.key).split())
        assert text.startswith(f"{reader.key} ")
        assert reader.declared.help in joined(text)
        assert (reader.declared.bounds or "") in text
        assert f" {reader.value} " in text


def test_a_method_is_told_with_published_values_source_and_recipes(topics):
    said = topics("config")
    text = said.text("frl=cfol")
    assert "frl.eta=5e-6" in text
    assert "published: 5e-6" in " ".join(text.split())
    assert "Pethick et al., TMLR 2023 (CFOL), algorithm 1." in text
    assert "experiment=published_cfol" in text
    assert "0.05 with recipe=paper" in " ".join(said.text("frl=reweight").split())
    assert "5e-6 for frl=cfol (experiment=published_cfol)" in said.text("frl.eta")
    assert "0.05        recipe=paper: combined, remargin, reweight" in said.text("alpha.nat")
    assert "alpha.bndy=1" in said.text("alpha")
    assert "trainer.lr_decay_every=4" in said.text("trainer.lr")
    assert "hydra/launcher=fused" in said.text("launcher")
    assert "--cfg job" in said.text("flags")
    assert "retrain.trainer.momentum=0.9" in " ".join(said.text("retrain").split())


def examples(text):
    """Return the settings of each command after ``Example``."""
    lines = text.splitlines()
    places = [number + 1 for number, line in enumerate(lines) if line == "Example"]
    return [shlex.split(lines[place].removeprefix("    python train.py")) for place in places]


@pytest.mark.parametrize("program", PROGRAMS)
def test_examples_of_the_front_page_are_commands(program, monkeypatch, in_tmp):
    for settings, _ in EXAMPLES[program]:
        line = [part for part in shlex.split(settings) if program == "config" or not part.startswith("checkpoint=")]
        more = [] if program == "config" else ["checkpoint=FILE"]
        assert jobs.check_command_line([*line, *more], program)


def test_examples_of_options_and_keys_are_commands(topics, in_tmp):
    said = topics("config")
    for topic in ("frl=cfol", "recipe=scratch", "dataset=image_folder", "row=mixture_reweight", "alpha.nat"):
        (line,) = examples(said.text(topic))
        assert jobs.check_command_line(line, "config"), line


@pytest.mark.bench
def test_examples_of_every_option_are_commands(topics, in_tmp):
    said = topics("config")
    for group in said.defaults:
        for option in said._files(group):
            for line in examples(said.text(f"{group}={option}")):
                assert jobs.check_command_line(line, "config"), line


@pytest.mark.bench
def test_examples_of_every_key_are_commands(topics, in_tmp):
    said = topics("config")
    for key in dict.fromkeys(reader.key for reader in said.readers):
        (line,) = examples(said.text(key))
        assert jobs.check_command_line(line, "config"), line


@pytest.mark.parametrize(
    ("topic", "answer"),
    [
        ("modell", "no help on 'modell'; did you mean model?"),
        ("frl=cfoll", "frl=cfoll: unknown choice; did you mean cfol? known: none, baseline_reweight"),
        ("pgd", "no help on 'pgd'; did you mean attack=pgd or evaluation=pgd or row=pgd?"),
        ("reweigth", "no help on 'reweigth'; did you mean frl=reweight?"),
        ("lr", "no help on 'lr'; did you mean trainer.learning_rate (training)"),
        ("alpha.natt", "no help on 'alpha.natt'; did you mean alpha.nat?"),
        ("alpha.natt=5", "no help on 'alpha.natt=5'; did you mean alpha.nat?"),
        ("trainer.epochs", "no help on 'trainer.epochs'; did you mean trainer.num_epochs?"),
        ("resume", "no help on 'resume'; the same command continues an interrupted run"),
        ("evaluation=autoattack", "evaluation=autoattack measures finished models: scripts/evaluate.py --help "),
        ("flagz", "no help on 'flagz'; did you mean flags?"),
        ("zzz", "no help on 'zzz'; known are model, dataset"),
        ("", "no help on ''; known are model, dataset"),
        ("=3", "no help on '=3'; known are model, dataset"),
        ("checkpoint", "(checkpoint is a key of scripts/evaluate.py and scripts/sanity.py)"),
    ],
)
def test_a_misspelt_topic_is_one_line_with_a_suggestion(topic, answer, topics, monkeypatch, capsys, in_tmp):
    with pytest.raises(UserError) as refused:
        topics("config").text(topic)
    assert answer in str(refused.value)
    assert call(monkeypatch, "--help", topic) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_topics_may_be_what_is_being_typed(monkeypatch, capsys, in_tmp):
    assert call(monkeypatch, "-m", "frl=cfol", "seed=0,1", "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("frl=cfol ")
    assert "\nseed\n  drives initial weights" in out
    for line in (["cfol", "--help"], ["--help=cfol"], ["-h", "frl=cfol"]):
        assert call(monkeypatch, *line) == 0
        assert capsys.readouterr().out.startswith("frl=cfol ")
    assert call(monkeypatch, "help") == 1
    assert "did you mean --help?" in capsys.readouterr().err
    assert list(in_tmp.iterdir()) == []


def test_settings_of_ones_own_are_told_too(monkeypatch, capsys, in_tmp):
    (in_tmp / "mine" / "model").mkdir(parents=True)
    (in_tmp / "mine" / "model" / "tiny.yaml").write_text("# A net of mine.\nname: tiny\nfactory: nets:tiny\n")
    assert call(monkeypatch, "-cd", "mine", "--help", "model") == 0
    assert "A net of mine." in capsys.readouterr().out
    assert call(monkeypatch, "-cd", "mine", "--help", "model=tiny") == 0
    assert "factory=nets:tiny" in capsys.readouterr().out
    assert call(monkeypatch, "-cd", "yours", "--help", "model=tiny") == 1
    assert capsys.readouterr().err == "error: --config-dir=yours: no such folder\n"


@pytest.mark.parametrize(
    ("script", "topic", "needle"),
    [
        ("train.py", [], "Groups"),
        ("train.py", ["all"], "dataset.validation_fraction=0"),
        ("train.py", ["frl=cfol"], "frl.gamma=0.5"),
        ("train.py", ["alpha.nat"], "step length"),
        ("scripts/evaluate.py", ["all"], "evaluation.num_steps=20"),
        ("scripts/status.py", [], "verify"),
    ],
)
def test_help_imports_nothing_slow(script, topic, needle):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help', *sys.argv[2:]]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as done: assert done.code == 0\n"
        "slow = {'torch', 'hydra', 'omegaconf', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, script, *topic], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert needle in done.stdout
