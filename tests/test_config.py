"""The configuration: every file composes, every key is documented and read, every mistake is one clear line."""

import dataclasses
import re

import pytest
import yaml

from frl_repro import config as configuration
from frl_repro.config import GROUPS, EvaluateConfig, RunConfig, all_keys, parse, within
from frl_repro.errors import UserError
from frl_repro.paths import CONFIG_DIR

DEFAULTS = {
    "model": "lenet5",
    "dataset": "fashion_mnist",
    "attack": "pgd",
    "frl": "none",
    "trainer": "adam",
    "evaluation": "pgd",
}
TOP = {
    "seed": 0,
    "output_dir": "outputs",
    "run_dir": None,
    "force": False,
    "device": "auto",
    "backend": "auto",
    "num_threads": None,
}


def read(group, choice):
    return yaml.safe_load((CONFIG_DIR / group / f"{choice}.yaml").read_text())


def composed(**changes):
    """Return the default composition with ``group__key=value`` changes, ``group=choice`` first."""
    choices = {**DEFAULTS, **{k: v for k, v in changes.items() if k in DEFAULTS}}
    result = {**TOP, **{group: read(group, choice) for group, choice in choices.items()}}
    for name, value in changes.items():
        if name in TOP:
            result[name] = value
        elif "__" in name:
            group, key = name.split("__")
            result[group][key] = value
    return result


def test_fractions_pixels_and_decimals_are_one_setting():
    by_fraction = parse(composed(attack__epsilon="4/255"), RunConfig)
    by_decimal = parse(composed(attack__epsilon=4 / 255), RunConfig)
    assert by_fraction.attack.epsilon == 4 / 255
    assert by_fraction.hash == by_decimal.hash
    assert parse(composed(), RunConfig).trainer.lr_decay_factor == 1 / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack__epsilon": "abc"}, r"attack\.epsilon=abc: expected a number or a fraction such as 8/255"),
        ({"attack__epsilon": "8/0"}, r"attack\.epsilon=8/0: expected a number"),
        ({"attack__epsilon": float("nan")}, r"attack\.epsilon=nan: must lie in \(0, 1\]"),
        ({"attack__epsilon": 8}, r"attack\.epsilon=8: must lie in \(0, 1\]"),
        ({"attack__epsilon": None}, r"attack\.epsilon=null: expected a number"),
        ({"trainer__num_epochs": -1}, r"trainer\.num_epochs=-1: must lie in \[1, inf\)"),
        ({"trainer__num_epochs": 1.5}, r"trainer\.num_epochs=1\.5: expected a whole number"),
        ({"trainer__learning_rate": float("inf")}, r"trainer\.learning_rate=inf: must lie in \(0, inf\)"),
        ({"attack__random_start": "maybe"}, r"attack\.random_start=maybe: expected true or false"),
        ({"evaluation__epsilons": 0.1}, r"evaluation\.epsilons=0\.1: expected a list of numbers"),
        ({"evaluation__epsilons": []}, "must name at least one radius"),
        ({"evaluation__epsilons": ["8/255", 8 / 255]}, "each once"),
        ({"attack__epsilom": 1}, r"unknown key attack\.epsilom; did you mean attack\.epsilon\?"),
        ({"attack__objective": "hinge"}, r"attack\.objective=hinge: unknown choice; known: cross_entropy, kl"),
        ({"attack__random_start": False, "attack__num_restarts": 2}, r"attack\.num_restarts > 1 needs"),
        ({"attack__random_start": False, "attack__objective": "kl"}, r"attack\.objective=kl needs"),
        ({"attack": "fgsm", "attack__random_start": True}, r"needs attack\.step_size"),
        ({"evaluation__random_start": False, "evaluation__num_restarts": 2}, r"evaluation\.num_restarts > 1 needs"),
        ({"evaluation__num_validation": 10}, "num_validation has no effect"),
        ({"dataset__split_seed": 1}, "split_seed has no effect"),
        ({"trainer__batch_size": 1}, "nothing would be attacked; use attack=none"),
        ({"attack__fraction": 0.001}, r"attack\.fraction=0\.001 of trainer\.batch_size=100 is no image at all"),
        ({"device": "tpu"}, "device=tpu: unknown choice; known: auto, cpu, cuda"),
        ({"backend": "jax"}, "backend=jax: unknown choice; known: auto, torch, native"),
    ],
)
def test_each_mistake_names_key_value_and_what_is_allowed(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(composed(**changes), RunConfig)
    assert "\n" not in str(caught.value)


def test_machine_settings_change_neither_name_nor_hash():
    plain = parse(composed(), RunConfig)
    machine = parse(
        composed(
            output_dir="elsewhere",
            force=True,
            device="cpu",
            backend="torch",
            num_threads=1,
            dataset__root="x",
            dataset__download=False,
            dataset__cache_dir="y",
        ),
        RunConfig,
    )
    assert machine.run_id == plain.run_id


def changed(value):
    """Return a different value that most ranges allow."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [1 / 255]
    if value is None or isinstance(value, int):
        return 2 if value is None else value + 1
    return 0.5 if value != 0.5 else 0.25


@pytest.mark.parametrize("group", ["seed", "attack", "trainer", "evaluation", "dataset"])
def test_every_scientific_setting_changes_the_hash(group):
    base = parse(composed(), RunConfig)
    if group == "seed":
        assert parse(composed(seed=1), RunConfig).hash != base.hash
        return
    node = getattr(base, group)
    for item in dataclasses.fields(node):
        if item.name in ("name", "objective") or item.metadata["is_machine"]:
            continue
        other = dataclasses.replace(node, **{item.name: changed(getattr(node, item.name))})
        assert dataclasses.replace(base, **{group: other}).hash != base.hash, item.name


def yaml_files():
    return [CONFIG_DIR / group / f"{choice}.yaml" for group, choices in GROUPS.items() for choice in choices]


def test_every_choice_has_a_file_and_every_file_is_a_choice():
    assert {path for group in GROUPS for path in (CONFIG_DIR / group).glob("*.yaml")} == set(yaml_files())
    for path in yaml_files():
        assert yaml.safe_load(path.read_text())["name"] == path.stem


@pytest.mark.parametrize("path", [*yaml_files(), CONFIG_DIR / "config.yaml", CONFIG_DIR / "evaluate.yaml"], ids=str)
def test_every_key_is_documented_with_the_range_that_is_enforced(path):
    if path.parent == CONFIG_DIR:
        schema = {"config": configuration._RunKeys, "evaluate": configuration._EvaluateKeys}[path.stem]
    else:
        schema = GROUPS[path.parent.name][path.stem]
    text = path.read_text()
    documented = dict(re.findall(r"^([a-z_]+): .*?  # (.+)$", text, flags=re.MULTILINE))
    for item in dataclasses.fields(schema):
        if item.name == "name":
            continue
        assert item.name in documented, f"{path}: {item.name} has no comment"
        bounds = item.metadata["bounds"]
        if bounds is not None:
            assert documented[item.name].endswith(bounds), f"{path}: {item.name}"


def test_the_key_list_is_a_contract():
    assert sorted(all_keys(RunConfig)) == [
        "attack.epsilon", "attack.fraction", "attack.num_restarts", "attack.num_steps", "attack.objective",
        "attack.random_start", "attack.step_size", "backend", "dataset.cache_dir", "dataset.download",
        "dataset.num_classes", "dataset.num_test", "dataset.num_train", "dataset.root", "dataset.split_seed",
        "dataset.validation_fraction", "device", "evaluation.batch_size", "evaluation.early_stop",
        "evaluation.epsilons", "evaluation.num_restarts", "evaluation.num_steps", "evaluation.num_validation",
        "evaluation.random_start", "evaluation.step_size", "force", "num_threads", "output_dir", "run_dir", "seed",
        "trainer.batch_size", "trainer.ema_decay", "trainer.learning_rate", "trainer.lr_decay_every",
        "trainer.lr_decay_factor", "trainer.num_epochs", "trainer.weight_decay",
    ]  # fmt: skip
    assert set(all_keys(EvaluateConfig)) - set(all_keys(RunConfig)) == {"checkpoint"}


@pytest.mark.parametrize(
    ("number", "bounds", "expected"),
    [(0, "[0, 1)", True), (1, "[0, 1)", False), (0, "(0, 1]", False), (1e9, "[1, inf)", True), (-1, "[0, inf)", False)],
)
def test_interval_notation(number, bounds, expected):
    assert within(number, bounds) is expected
