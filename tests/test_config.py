"""The configuration: every file composes, every key is documented and read, every mistake is one clear line."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.commands.helptext import help_text
from frl_repro.settings import methods
from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.files import settings_in, trained_like
from frl_repro.settings.identity import dotted
from frl_repro.settings.keys import about, hints, within
from frl_repro.settings.lookup import all_keys, explanations, method_keys
from frl_repro.settings.methods import FRLConfig, is_of_family
from frl_repro.settings.parse import parse
from frl_repro.settings.programs import EvaluateKeys, RunKeys, SanityKeys
from frl_repro.settings.schema import GROUPS, SECTIONS, RecipeConfig
from support import composed


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
        ({"trainer__num_epochs": -1}, r"trainer\.num_epochs=-1: must lie in \[0, 2\^31\)"),
        ({"trainer__num_epochs": 0}, r"trainer\.num_epochs=0 trains nothing: give at least 1"),
        ({"trainer__num_epochs": 1.5}, r"trainer\.num_epochs=1\.5: expected a whole number"),
        ({"trainer__learning_rate": float("inf")}, r"trainer\.learning_rate=inf: must lie in \(0, inf\)"),
        ({"attack__random_start": "maybe"}, r"attack\.random_start=maybe: expected true or false"),
        ({"evaluation__epsilons": 0.1}, r"evaluation\.epsilons=0\.1: expected a list of numbers"),
        ({"evaluation__epsilons": []}, "must name at least one radius"),
        ({"evaluation__epsilons": ["8/255", 8 / 255]}, "each radius once: 0.03137254901960784 and .* are both 8/255"),
        ({"evaluation__epsilons": [0.1, 0.1000001]}, "each radius once: 0.1 and 0.1000001 are both 0.1 in tables"),
        ({"evaluation__epsilons": ["8/255", 0.0313725]}, "0.0313725 and 0.03137254901960784 are both 8/255"),
        ({"evaluation__epsilons": [0.2, 1e-7, 0.1, 2e-7]}, "1e-07 and 2e-07 are both 1e-07"),
        ({"seed": 2**63}, r"seed=9223372036854775808: must lie in \[0, 2\^63\)"),
        ({"dataset__split_seed": 2**64}, r"split_seed=18446744073709551616: must lie in \[0, 2\^63\)"),
        ({"num_threads": 3 * 10**9}, r"num_threads=3000000000: must lie in \[1, 1024\]"),
        ({"trainer__batch_size": 10**20}, r"batch_size=100000000000000000000: must lie in \[1, 2\^31\)"),
        ({"attack__num_steps": 2**32}, r"num_steps=4294967296: must lie in \[1, 2\^31\)"),
        ({"frl": "reweight", "frl__update_every": "9" * 5000}, "expected a whole number of steps from 1, below 10"),
        ({"attack__epsilom": 1}, r"unknown key attack\.epsilom; did you mean attack\.epsilon\?"),
        ({"attack__objective": "hinge"}, r"attack\.objective=hinge: unknown choice; known: cross_entropy, kl"),
        ({"attack__random_start": False, "attack__num_restarts": 2}, r"attack\.num_restarts > 1 needs"),
        ({"attack__random_start": False, "attack__objective": "kl"}, r"attack\.objective=kl needs"),
        ({"attack": "fgsm", "attack__random_start": True}, r"needs attack\.step_size"),
        ({"evaluation__random_start": False, "evaluation__num_restarts": 2}, r"evaluation\.num_restarts > 1 needs"),
        ({"evaluation__num_validation": 10}, "num_validation has no effect"),
        ({"dataset__split_seed": 1}, "split_seed has no effect"),
        ({"trainer__batch_size": 1}, "nothing would be attacked; use attack=none"),
        ({"attack__fraction": 0.001}, r"attack\.fraction=0\.001 of a batch of 100 is no image at all"),
        ({"recipe": "paper"}, "recipe=paper has no effect with frl=none"),
        ({"init_from": "x"}, "init_from has no effect with frl=none"),
        ({"frl": "reweight", "attack": "none"}, "attack=none trains none"),
        ({"frl": "reweight", "dataset__validation_fraction": 0}, "validation_fraction must not be 0"),
        ({"frl": "reweight", "retrain__attack__fraction": 0.5}, r"retrain\.attack\.fraction must be 1"),
        ({"frl": "reweight", "retrain__objective": "trades"}, r"needs retrain\.beta"),
        ({"frl": "reweight", "retrain__beta": 2}, r"retrain\.beta has no effect with retrain\.objective=split"),
        (
            {"frl": "remargin", "recipe": "report_code", "retrain__objective": "split"},
            r"departures\.scrambled_labels=true has no effect with retrain\.objective=split, only with paired",
        ),
        (
            {"frl": "reweight", "recipe": "report_code", "retrain__objective": "paired"},
            r"departures\.weight_by_prediction=true has no effect with retrain\.objective=paired, only with split",
        ),
        (
            {"frl": "reweight", "recipe": "report_code", "tau__nat": 0.3},
            r"tau\.nat has no effect with departures\.ignored_tau_nat=true",
        ),
        (
            {"frl": "reweight", "frl__update_every": "often"},
            "expected a whole number of steps from 1, below",
        ),
        ({"frl": "reweight", "retrain__attack__name": "none"}, r"retrain\.attack=none: unknown choice"),
        ({"frl": "reweight", "alpha__natt": 1}, r"unknown key alpha\.natt; did you mean alpha\.nat\?"),
        ({"frl": "remargin", "frl__margin_bounds": [2, 3]}, "one at most and one at least 1"),
        ({"frl": "remargin", "tau__bndy": -1}, r"tau\.bndy=-1: must lie in \[0, 1\]"),
        ({"attack": "trades", "attack__beta": 6}, r"the loss of TRADES attacks every image: attack\.fraction must"),
        ({"attack": "trades", "attack__beta": 0}, r"attack\.beta=0: must lie in \(0, inf\)"),
        ({"trainer__num_accumulation": 101}, r"num_accumulation=101: a batch of 100 images .* more parts than it has"),
        ({"trainer__num_accumulation": 100}, r"attack\.fraction=0\.5 of a batch of 1 is no image at all"),
        ({"trainer__precision": "float16"}, r"trainer\.precision=float16: unknown choice; .*known: float32, bfloat16"),
        ({"trainer": "sgd_one_cycle", "trainer__warmup_share": 1}, r"trainer\.warmup_share=1: must lie in \(0, 1\)"),
        ({"evaluation__keep_best_by": "worst_class_robust"}, r"keep_best_by chooses on validation images"),
        ({"frl": "reweight", "retrain__trainer__num_accumulation": 101}, r"retrain\.trainer\.num_accumulation=101"),
        ({"device": "tpu"}, "device=tpu: unknown choice; known: auto, cpu, cuda"),
        ({"logger": "tensorbord"}, r"logger=tensorbord: unknown choice; did you mean tensorboard\? known: none, "),
        ({"dataset": "image_folder"}, r"dataset\.root is missing: give dataset\.root=FOLDER"),
        (
            {"dataset": "image_folder", "dataset__root": "x", "dataset__num_channels": 2},
            r"dataset\.num_channels=2: give 1 \(grey\) or 3",
        ),
        (
            {"dataset": "image_folder", "dataset__root": "x", "dataset__image_size": 7},
            r"dataset\.image_size=7: must lie in \[8, 2\^16\)",
        ),
        ({"dataset": "cifar10", "dataset__split_seed": 1}, "split_seed has no effect"),
        (
            {"dataset__augmentation": "crop_flipp"},
            r"augmentation=crop_flipp: unknown choice; did you mean crop_flip\? known: none, crop, crop_flip",
        ),
        ({"model": "wrn28_10", "model__width": 0}, r"model\.width=0: must lie in \[1, 2\^16\)"),
        ({"model": "wrn28_10", "model__std": [0]}, r"model\.std=\[0\]: must lie in \(0, 1\]"),
        ({"model": "wrn28_10", "model__mean": 0.5}, r"model\.mean=0\.5: expected a list of numbers"),
        ({"alpha": 5}, "alpha=5: expected keys with values"),
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
            logger="tensorboard",
            dataset__root="x",
            dataset__download=False,
            dataset__cache_dir="y",
        ),
        RunConfig,
    )
    assert machine.run_id == plain.run_id


def test_another_folder_is_another_run_and_another_place_of_known_data_is_not():
    def run_id(dataset, **changes):
        return parse(composed(dataset=dataset, **changes), RunConfig).run_id

    assert run_id("image_folder", dataset__root="x") != run_id("image_folder", dataset__root="y")
    for dataset in ("cifar10", "cifar10_jpeg", "svhn"):
        assert run_id(dataset, dataset__root="x") == run_id(dataset, dataset__root="y")
        assert run_id(dataset).startswith(f"{dataset}-lenet5-")


def test_keys_that_came_later_leave_the_names_of_earlier_runs_alone():
    assert parse(composed(), RunConfig).hash == "22a68d4d"
    assert parse(composed(dataset__augmentation="crop"), RunConfig).hash != "22a68d4d"


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
        if item.name in ("name", "objective") or about(item).is_machine:
            continue
        other = dataclasses.replace(node, **{item.name: changed(getattr(node, item.name))})
        assert dataclasses.replace(base, **{group: other}).hash != base.hash, item.name


METHODS = [(path.parent.name, path.stem) for path in sorted((CONFIG_DIR / "retrain").glob("*/*.yaml"))]


@pytest.mark.parametrize(("recipe", "frl"), [pair for pair in METHODS if pair[1] != "none"])
def test_every_setting_of_a_method_changes_the_hash_and_never_its_base(recipe, frl):
    base = parse(composed(recipe=recipe, frl=frl), RunConfig)
    for section in ("alpha", "tau", "departures", "frl"):
        node = getattr(base, section)
        for item in dataclasses.fields(node):
            value = getattr(node, item.name)
            if value is None or isinstance(value, str):
                continue
            other = dataclasses.replace(base, **{section: dataclasses.replace(node, **{item.name: changed(value)})})
            assert other.hash != base.hash, item.name
            if item.name != "base_saw_validation":
                assert other.base().hash == base.base().hash


def test_the_base_is_the_run_that_a_user_would_start():
    """Found by config hash: the same settings with frl=none, whatever the retraining is measured with."""
    method = parse(composed(frl="reweight", evaluation__epsilons=[0.1], seed=3), RunConfig)
    assert method.base() == parse(
        composed(seed=3, output_dir="outputs/bases", dataset__validation_fraction=0.2, evaluation__validation_every=15),
        RunConfig,
    )
    code = parse(composed(frl="reweight", recipe="report_code"), RunConfig)
    assert code.base().dataset.validation_fraction == 0
    assert parse(composed(frl="reweight", base_dir="x"), RunConfig).base().folder.parent.as_posix() == "x"


@pytest.mark.parametrize(
    ("changes", "hash_"),
    [
        ({}, "22a68d4d"),
        ({"trainer": "sgd", "attack": "trades"}, "e140a481"),
        ({"frl": "combined", "recipe": "paper"}, "f11afe9d"),
        ({"frl": "remargin", "recipe": "report_code"}, "123a7997"),
    ],
)
def test_runs_keep_the_names_that_they_had_before_keys_were_added(changes, hash_):
    """What the release before had: a finished run is found again, and a base model is not trained anew."""
    assert parse(composed(**changes), RunConfig).hash == hash_


def test_a_retrained_run_is_named_after_what_it_does():
    config = parse(composed(frl="combined", alpha__nat=5, alpha__margin=0.5, seed=2), RunConfig)
    assert config.run_id.startswith("fashion_mnist-lenet5-combined-report-nat5-bndy1-margin0.5-seed2-")
    assert config.method == "combined"


def yaml_files():
    return [CONFIG_DIR / group / f"{choice}.yaml" for group, choices in GROUPS.items() for choice in choices]


def test_every_choice_has_a_file_and_every_file_is_a_choice():
    assert {path for group in GROUPS for path in (CONFIG_DIR / group).glob("*.yaml")} == set(yaml_files())
    for path in yaml_files():
        assert yaml.safe_load(path.read_text())["name"] == path.stem


TOP_FILES = {
    "config": RunKeys,
    "evaluate": EvaluateKeys,
    "sanity": SanityKeys,
}


@pytest.mark.parametrize("path", [*yaml_files(), *(CONFIG_DIR / f"{name}.yaml" for name in TOP_FILES)], ids=str)
def test_every_file_gives_every_key_of_its_choice_a_value_and_nothing_else(path):
    if path.parent == CONFIG_DIR:
        schema = TOP_FILES[path.stem]
    else:
        schema = GROUPS[path.parent.name][path.stem]
        if path.parent.name == "frl" and is_of_family(path.stem):
            schema = RecipeConfig  # the rest stands in conf/retrain
    keys = {key for key in settings_in(path, CONFIG_DIR) if not key.startswith("hydra.")}
    assert keys == {item.name for item in dataclasses.fields(schema)}


def test_every_key_is_explained():
    for kind in (RunConfig, EvaluateConfig, SanityConfig):
        for place, keys in explanations(kind).items():
            for name, known in keys.items():
                assert known.help or known.choices or name == "name", f"{place} {name}"


@pytest.mark.parametrize("program", TOP_FILES)
def test_help_shows_the_range_that_is_enforced(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    kind = {"config": RunConfig, "evaluate": EvaluateConfig, "sanity": SanityConfig}[program]
    shown = [line.split(maxsplit=1) for line in help_text(CONFIG_DIR, program, "x").splitlines() if "=" in line]
    for place, keys in explanations(kind).items():
        for name, known in keys.items():
            is_own = place.split("=")[0].split(".")[0] in (*SECTIONS, "frl")
            if known.help and not is_own:
                key = f"{place.split('=')[0]}.{name}".lstrip(".")
                said = known.help + (f". {known.bounds}" if known.bounds else "")
                assert any(line[0].startswith(f"{key}=") and line[-1].endswith(said) for line in shown), key
    if kind is RunConfig:
        for key in method_keys()["frl=combined recipe=report"]:
            (line,) = [line for line in shown if line[0].startswith(f"{key}=") or key.endswith(".name")][:1]
            assert len(line) == 2, key


@pytest.mark.parametrize(("recipe", "frl"), METHODS)
def test_files_of_a_method_are_read_as_hydra_composes_them(recipe, frl):
    """Help and messages show them without Hydra."""
    own, retrain = CONFIG_DIR / "frl" / f"{frl}.yaml", CONFIG_DIR / "retrain" / recipe
    read = {f"frl.{key}": value for key, value in settings_in(own, CONFIG_DIR).items()}
    for file in (*trained_like(own), frl):
        read |= settings_in(retrain / f"{file}.yaml", CONFIG_DIR)
    by_hydra = dotted(composed(recipe=recipe, frl=frl))
    values = OmegaConf.to_container(OmegaConf.create("\n".join(f"{key}: {value}" for key, value in read.items())))
    assert values == {key: value for key, value in by_hydra.items() if key in read}
    of_methods = {key for key in by_hydra if key.split(".")[0] in (*SECTIONS, "frl")} - {"frl.name"}
    assert of_methods <= read.keys()


def test_help_declares_the_settings_that_a_method_has():
    """Made without importing the method's file, and with what they inherit."""
    declared = GROUPS["frl"].declared()
    assert declared.keys() == set(GROUPS["frl"])
    for name, kind in declared.items():
        made, imported = (
            [(item.name, type_of[item.name], about(item)) for item in dataclasses.fields(one)]
            for one, type_of in ((kind, hints(kind)), (GROUPS["frl"][name], hints(GROUPS["frl"][name])))
        )
        assert made == imported
    assert explanations(RunConfig)["frl=cfol"]["acts_by"].one_of == ("draw", "weigh")


def test_a_declaration_may_derive_take_constants_and_lists(tmp_path, monkeypatch):
    file = tmp_path / "training" / "frl" / "new_one.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport no_such_package\n"
        "from frl_repro.settings.keys import COUNT, key\n"
        "from frl_repro.settings.methods import ValidationSettings\n_WAYS = ('one', 'other')\n"
        "x = no_such_package.x\n@dataclass\nclass Settings(ValidationSettings):\n"
        "    way: str = key('how', one_of=_WAYS)\n    sizes: list[int] = key('how many', COUNT)\n"
    )
    monkeypatch.setattr(methods, "__file__", str(tmp_path / "settings" / "methods.py"))
    kind = methods._declared.__wrapped__("new_one")
    known = {item.name: about(item) for item in dataclasses.fields(kind)}
    assert (known["way"].one_of, known["sizes"].bounds) == (("one", "other"), methods.COUNT)
    assert known["num_steps"].help == "gradient steps of that attack"  # inherited


def test_the_key_list_is_a_contract():
    family = {item.name for item in dataclasses.fields(FRLConfig)}
    # A new method brings settings of its own and touches no other file, this one included.
    own = {
        f"frl.{item.name}" for kind in GROUPS["frl"].values() for item in dataclasses.fields(kind)
    } - {f"frl.{name}" for name in family}  # fmt: skip
    assert sorted(set(all_keys(RunConfig)) - own) == KEYS.split()
    of_evaluation = {
        "evaluation.num_images",
        "evaluation.subset_seed",
        "evaluation.whole_classes",
        "evaluation.num_components",
    }  # of AutoAttack, which only measures
    assert set(all_keys(EvaluateConfig)) - set(all_keys(RunConfig)) == {
        "checkpoint", "checkpoint_key", "num_examples", *of_evaluation
    }  # fmt: skip
    own = set(all_keys(SanityConfig)) - set(all_keys(RunConfig))
    assert own == {"checkpoint", "checkpoint_key", "epsilon", "num_images", "num_steps", "other"}


KEYS = """
alpha.bndy alpha.margin alpha.nat alpha.rob attack.beta attack.epsilon attack.fraction attack.num_restarts
attack.num_steps attack.objective attack.random_start attack.start_sd attack.step_size backend base_dir compile
dataset.augmentation dataset.cache_dir dataset.deviation_ratio dataset.download dataset.eta dataset.image_size
dataset.imbalance dataset.imbalance_ratio dataset.num_channels dataset.num_classes dataset.num_features
dataset.num_test dataset.num_train dataset.prior_ratio dataset.root dataset.selection_fraction dataset.sigma
dataset.split_seed dataset.validation_fraction departures.base_saw_validation departures.fixed_step
departures.flipped_boundary
departures.ignored_tau_nat departures.overall_over_22 departures.scrambled_labels departures.weight_by_prediction
device evaluation.batch_size evaluation.early_stop evaluation.epsilons evaluation.keep_best_by evaluation.num_restarts
evaluation.num_steps evaluation.num_validation evaluation.random_start evaluation.step_size
evaluation.validation_every force frl.accumulate frl.epsilon frl.margin_bounds frl.margin_centred frl.num_steps
frl.num_validation frl.step_size frl.update_every frl.weight_rule init_from init_from_key logger model.mean model.std
model.width num_threads output_dir retrain.attack.epsilon retrain.attack.fraction retrain.attack.num_restarts
retrain.attack.num_steps retrain.attack.objective retrain.attack.random_start retrain.attack.start_sd
retrain.attack.step_size retrain.beta retrain.objective retrain.trainer.batch_size retrain.trainer.ema_decay
retrain.trainer.ema_from_start retrain.trainer.learning_rate retrain.trainer.lr_decay_every
retrain.trainer.lr_decay_factor retrain.trainer.lr_milestones retrain.trainer.momentum
retrain.trainer.num_accumulation retrain.trainer.num_epochs retrain.trainer.precision retrain.trainer.weight_decay
run_dir seed tau.bndy tau.nat tau.rob top trainer.batch_size trainer.ema_decay trainer.ema_from_start
trainer.learning_rate trainer.lr_decay_every trainer.lr_decay_factor trainer.lr_milestones trainer.momentum
trainer.num_accumulation trainer.num_epochs trainer.precision trainer.warmup_share trainer.weight_decay
"""


@pytest.mark.parametrize(
    ("number", "bounds", "expected"),
    [
        (0, "[0, 1)", True),
        (1, "[0, 1)", False),
        (0, "(0, 1]", False),
        (1e9, "[1, inf)", True),
        (-1, "[0, inf)", False),
        (2**31 - 1, "[1, 2^31)", True),
        (2**31, "[1, 2^31)", False),
        (2**63 - 1, "[0, 2^63)", True),
        (2**63, "[0, 2^63)", False),
    ],
)
def test_interval_notation(number, bounds, expected):
    assert within(number, bounds) is expected


def test_every_whole_number_has_an_end():
    """Seeds fit into 64 bits and counts into a C integer: beyond, they would be cut off or crash, deep inside."""
    pending, seen = [RunConfig, EvaluateConfig, SanityConfig], set()
    while pending:
        kind = pending.pop()
        for item in dataclasses.fields(kind):
            hint = get_type_hints(kind)[item.name]
            parts = [hint, *get_args(hint)]
            pending += [part for part in parts if dataclasses.is_dataclass(part) and part not in seen]
            if int in parts:
                assert not within(2**63, about(item).bounds), f"{kind.__name__}.{item.name}"
                seen.add(item.name)
        seen.add(kind)
    assert {"seed", "batch_size", "num_steps", "lr_milestones", "num_threads", "width", "num_examples"} <= seen


def test_radii_that_are_told_apart_are_kept():
    config = parse(composed(evaluation__epsilons=[0, 0.1, 0.10001, "8/255", 0.03138]), RunConfig)
    assert config.evaluation.epsilons == [0, 0.1, 0.10001, 8 / 255, 0.03138]
