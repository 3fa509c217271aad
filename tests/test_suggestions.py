"""What a mistyped line is answered with: words of other tools, the wrong place, and what was chosen beside them."""

import shlex

import pytest

from frl_repro.basics import suggestions
from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.commands import jobs
from frl_repro.commands.keyvalue import parse_arguments
from frl_repro.settings.config import EvaluateConfig, RunConfig, SanityConfig
from frl_repro.settings.lookup import all_keys

TRAIN = {
    # The right key in the wrong place never leads to the base model.
    "retrain.num_epochs=3": "did you mean retrain.trainer.num_epochs? It belongs to frl=reweight",
    "frl=reweight retrain.num_epochs=3": "did you mean retrain.trainer.num_epochs?",
    "frl=reweight retrain.lr=1e-3": "did you mean retrain.trainer.learning_rate?",
    "frl=reweight retrain.epsilon=8/255": "did you mean retrain.attack.epsilon?",
    "frl=reweight retrain.trainer.lr=1": "did you mean retrain.trainer.learning_rate?",
    "frl=reweight recipe=paper retrain.momentum=.9": "did you mean retrain.trainer.momentum?",
    "evaluation.epsilon=8/255": "did you mean evaluation.epsilons?",
    "num_classes=3": "did you mean dataset.num_classes? It belongs to dataset=synthetic",
    # Words of other tools.
    "epochs=3": "did you mean trainer.num_epochs?",
    "lr=0.1": "did you mean trainer.learning_rate?",
    "trainer.lr=0.1": "did you mean trainer.learning_rate?",
    "optimizer.lr=0.1": "did you mean trainer.learning_rate?",
    "train.epochs=3": "did you mean trainer.num_epochs?",
    "wd=1e-4": "did you mean trainer.weight_decay?",
    "gamma=0.1": "did you mean trainer.lr_decay_factor?",
    "epsilon=8/255": "did you mean attack.epsilon (training) or evaluation.epsilons (measuring)?",
    "attack.eps=8/255": "did you mean attack.epsilon?",
    "attack.alpha=2/255": "did you mean attack.step_size?",
    "attack.steps=5": "did you mean attack.num_steps?",
    "pgd.num_steps=3": "did you mean attack.num_steps?",
    "bs=10": "did you mean trainer.batch_size (training) or evaluation.batch_size (measuring)?",
    "eval.batch_size=3": "did you mean evaluation.batch_size?",
    "random_seed=3": "did you mean seed?",
    "seeds=0": "did you mean seed?",
    "gpu=0": "did you mean device?",
    "output=x": "did you mean output_dir?",
    "data_dir=/x": "did you mean dataset.root?",
    "dataset.path=x": "did you mean dataset.root?",
    "dataset.val_fraction=.1": "did you mean dataset.validation_fraction?",
    "optimizer=sgd": "did you mean trainer=sgd?",
    "trainer.optimizer=sgd": "did you mean trainer=sgd?",
    "arch=resnet18": "did you mean model=preact_resnet18?",
    "data=cifar10": "did you mean dataset=cifar10?",
    "dataset.name=cifar10": "did you mean dataset=cifar10?",
    "method=reweight": "did you mean frl=reweight?",
    "n_jobs=2": "for several runs at a time: -m hydra/launcher=joblib hydra.launcher.n_jobs=N",
    "num_workers=2": "num_threads=N sets the processor threads of a run",
    "resume=true": "the same command continues an interrupted run",
    # What is chosen beside them decides.
    "frl=reweight epochs=3": "retrain.trainer.num_epochs (retraining) or trainer.num_epochs (the base model)?",
    "experiment=exp2 epochs=3": "retrain.trainer.num_epochs (retraining) or trainer.num_epochs (the base model)?",
    "frl=reweight epsilon=8/255": "did you mean retrain.attack.epsilon (retraining), attack.epsilon (the base model), ",
    "alpha=5": "evaluation.step_size (measuring), alpha.nat (with frl=reweight) or alpha.bndy (with frl=reweight)?",
    "frl=reweight alpha=5": "did you mean alpha.nat, alpha.bndy, retrain.attack.step_size (retraining) or",
    "frl=reweight frl.alpha=5": "did you mean alpha.nat or alpha.bndy?",
    "frl=reweight recipe=paper frl.alpha.nat=5": "did you mean alpha.nat?",
    "frl=reweight frl.tau=0.1": "did you mean tau.nat or tau.bndy?",
    "frl=reweight retrain.alpha=5": "did you mean alpha.nat or alpha.bndy?",
    "frl=reweight retrain.attack.alpha=2/255": "did you mean retrain.attack.step_size?",
    "frl.alpha=5": "did you mean alpha.nat (with frl=reweight), alpha.bndy (with frl=reweight), ",
    "frl=remargin alpha=5": "did you mean alpha.margin, ",
    "frl=reweight tau=0.1": "did you mean tau.nat or tau.bndy?",
    "tau=0.1": "did you mean tau.nat (with frl=reweight), tau.bndy (with frl=reweight) or",
    "beta=6": "did you mean attack.beta? It belongs to attack=trades",
    "attack=trades beta=6": "did you mean attack.beta?",
    "momentum=0.9": "did you mean trainer.momentum? It belongs to trainer=sgd or trainer=sgd_one_cycle",
    "width=4": "did you mean model.width? It belongs to model=resnet8 or model=preact_resnet18 or model=wrn28_10",
    "checkpoint=x": "did you mean init_from? (checkpoint is a key of scripts/evaluate.py and scripts/sanity.py)",
    # Choices.
    "model=resnet": "did you mean preact_resnet18?",
    "model=wideresnet": "did you mean wrn28_10?",
    "dataset=mnist": "did you mean fashion_mnist?",
    "dataset=FashionMNIST": "did you mean fashion_mnist?",
    "dataset=cifar": "did you mean cifar10?",
    "attack=pgd20": "did you mean pgd?",
    "attack=autoattack": "did you mean evaluation=autoattack?",
    "frl=trades": "did you mean attack=trades?",
    "trainer=adamw": "did you mean adam?",
    "schedule=fast": "did you mean smoke?",
    "device=gpu": "did you mean cuda?",
    "frl=baseline_reweight recipe=report_code": (
        "frl=baseline_reweight has no recipe=report_code; it has recipe=paper and recipe=report"
    ),
    "hydra/launcher=fuse": "hydra/launcher=fuse: unknown choice; did you mean fused? known: basic, fused, joblib,",
    "-m seed=0,1 hydra/launcher=submitit": "did you mean slurm?",
    # Values.
    "attack.epsilon=8": "must lie in (0, 1]; in pixel units of [0, 1]: did you mean attack.epsilon=8/255?",
    "attack.step_size=2": "did you mean attack.step_size=2/255?",
    "evaluation.epsilons=[8,16]": "did you mean evaluation.epsilons=[8/255,16/255]?",
    "evaluation.epsilons=8/255,16/255": "it takes a list, write evaluation.epsilons=[8/255,16/255]",
    "trainer=sgd trainer.lr_milestones=3,4": "it takes a list, write trainer.lr_milestones=[3,4]",
    "dataset.validation_fraction=20": "did you mean dataset.validation_fraction=0.2 (20 %)?",
    # Spaces and words alone.
    "seed = 3": "cannot read 'seed = 3': spaces end a setting, write seed=3",
    "seed =3": "write seed=3",
    "seed= 3": "write seed=3",
    "-m seed=0, 1, 2": "cannot read 'seed=0, 1, 2': spaces end a setting, write seed=0,1,2",
    "evaluation.epsilons=[8/255 16/255]": "write evaluation.epsilons=[8/255,16/255]",
    "-m seed=0,1 launcher=fused": "unknown key launcher: did you mean hydra/launcher?",
    "evaluation.epsilons=[8/255, 16/255]": "write evaluation.epsilons=[8/255,16/255]",
    "reweight": "an override has the form key=value; did you mean frl=reweight?",
}
EVALUATE = {
    "num_steps=5": "did you mean evaluation.num_steps?",
    "num_images=5": "did you mean evaluation.num_images (with evaluation=autoattack), dataset.num_test or",
    "epsilons=[8/255]": "did you mean evaluation.epsilons?",
    "eps=.1": "did you mean evaluation.epsilons?",
    "ckpt=x": "did you mean checkpoint?",
    "model.pt": "did you mean checkpoint=model.pt?",
    "model=resnet18": "did you mean preact_resnet18?",
    "evaluation=aa": "did you mean autoattack?",
    "n_jobs=2": "did you mean num_threads?",
    "trainer.num_epochs=3": "unknown key trainer.num_epochs here: trainer.num_epochs is a key of train.py",
    "frl=reweight": "unknown key frl here: frl is a key of train.py",
    "evaluation.epsilons=8/255,16/255": "it takes a list, write evaluation.epsilons=[8/255,16/255]",
}
SANITY = {
    "attack.epsilon=0.1": "did you mean epsilon? (attack.epsilon is a key of train.py)",
    "evaluation.epsilons=[0.1]": "did you mean epsilon?",
    "steps=3": "did you mean num_steps?",
    "epsilon=8": "did you mean epsilon=8/255?",
    "num_examples=3": "num_examples is a key of scripts/evaluate.py",
}
LINES = [
    *(("config", line, answer) for line, answer in TRAIN.items()),
    *(("evaluate", f"checkpoint=x {line}", answer) for line, answer in EVALUATE.items()),
    *(("sanity", f"checkpoint=x {line}", answer) for line, answer in SANITY.items()),
]


@pytest.mark.parametrize(("program", "line", "answer"), LINES, ids=str)
def test_a_mistyped_line_is_answered_with_what_was_meant(program, line, answer):
    with pytest.raises(UserError) as refused:
        jobs.check_command_line(shlex.split(line), program)
    assert answer in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_other_name_leads_to_a_key_or_choice_that_exists():
    kinds = (RunConfig, EvaluateConfig, SanityConfig)
    keys = {key.rpartition(".")[2] for kind in kinds for key in all_keys(kind)} | {"runs", "out"}  # of the scripts
    groups = {group for kind in kinds for group in kind.__dataclass_fields__}
    assert set(suggestions._KEYS_BY_OTHER_NAMES) <= keys | groups
    assert {place.removesuffix(".") for place in suggestions._PLACES_BY_OTHER_NAMES} <= groups
    choices = {path.stem for path in CONFIG_DIR.rglob("*.yaml")} | {"joblib", "slurm"}
    assert set(suggestions._CHOICES_BY_OTHER_NAMES) <= choices


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("output_dir=x", "did you mean 'runs'?"),
        ("eps=8/255", "did you mean 'epsilon'?"),
        ("ot=x", "did you mean 'out'?"),
    ],
)
def test_scripts_that_read_tables_know_the_same_words(given, answer):
    keys = {"runs": "folder", "epsilon": "radius", "out": "file"}
    with pytest.raises(UserError) as refused:
        parse_arguments([given], keys)
    assert answer in str(refused.value)
