"""What a word that is no key or choice may have meant: names that other tools use, and words that are near.

Every message with "did you mean" comes from here. Imports nothing slow.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

_KEYS_BY_OTHER_NAMES = {
    "num_epochs": "epochs epoch n_epochs nb_epochs max_epochs train_epochs total_epochs",
    "learning_rate": "lr base_lr max_lr lr_max peak_lr initial_lr init_lr step_lr eta learningrate",
    "batch_size": "bs batch batchsize train_batch_size minibatch_size n_batch",
    "weight_decay": "wd l2 l2_penalty",
    "momentum": "mom",
    "lr_decay_factor": "gamma lr_gamma lr_decay decay_rate",
    "lr_decay_every": "lr_step lr_step_size decay_every",
    "lr_milestones": "milestones lr_steps scheduler lr_scheduler",
    "warmup_share": "warmup warmup_epochs warmup_steps pct_start",
    "ema_decay": "ema ema_rate swa",
    "num_accumulation": "accumulation grad_accum accumulate_grad_batches gradient_accumulation_steps accum_steps",
    "precision": "amp fp16 bf16 dtype mixed_precision",
    "epsilon": "eps radius linf max_eps perturbation epsilons",
    "epsilons": "eps radius radii linf max_eps perturbation epsilon eps_list",
    "step_size": "alpha stepsize eps_iter eps_step pgd_alpha",
    "num_steps": "steps iters iterations n_steps n_iter nb_iter num_iter max_iter pgd_steps attack_iters",
    "num_restarts": "restarts n_restarts",
    "random_start": "rand_init random_init rand_start",
    "fraction": "share attack_fraction adv_ratio",
    "objective": "loss loss_fn criterion",
    "beta": "lambda lam trades_beta",
    "seed": "random_seed rng_seed manual_seed random_state rng seeds",
    "device": "gpu gpus cuda gpu_id accelerator",
    "num_threads": "threads n_threads nthreads cpus n_jobs jobs workers num_workers n_workers",
    "output_dir": "out output outdir out_dir save_dir save_path log_dir result_dir results results_dir exp_dir workdir "
    "runs",
    "run_dir": "name run_name exp_name experiment_name",
    "checkpoint": "ckpt ckpt_path weights model_path checkpoint_path model_file load load_from",
    "init_from": "checkpoint ckpt pretrained load load_from weights init base_model",
    "runs": "run output_dir outputs dir folder path",
    "out": "output outfile out_dir outdir save save_dir",
    "force": "overwrite rerun redo",
    "logger": "log wandb tensorboard loggers",
    "root": "path data_dir data_path data_root datadir folder",
    "image_size": "img_size size resolution input_size resize",
    "num_channels": "channels in_channels",
    "num_classes": "classes n_classes nb_classes",
    "validation_fraction": "val_fraction val_split val_size valid_size validation_split val_ratio validation_size",
    "num_validation": "num_val n_val n_validation",
    "num_images": "n_images n_ex n_examples num_samples",
    "num_test": "num_images n_images n_test test_size max_test_samples num_samples",
    "num_train": "num_images n_images n_train train_size max_samples max_train_samples num_samples",
    "augmentation": "aug augment augmentations transform transforms",
    "width": "widen_factor width_factor",
    "keep_best_by": "early_stopping patience monitor save_best",
    "model": "arch architecture network net backbone",
    "dataset": "data dset data_set dataset_name",
    "trainer": "optimizer optimiser optim opt solver",
    "frl": "method policy algorithm algo fairness",
    "attack": "adversary attack_type attack_name adv",
}
_PLACES_BY_OTHER_NAMES = {
    "trainer.": "train training optim optimizer optimiser opt",
    "evaluation.": "eval test testing val measure",
    "dataset.": "data",
    "attack.": "adv adversary pgd fgsm trades linf",
    "retrain.": "finetune finetuning retraining fine_tune",
    "model.": "net network arch",
    "frl.": "policy reweight remargin combined",
}
_CHOICES_BY_OTHER_NAMES = {
    "lenet5": "lenet cnn",
    "linear": "logistic logistic_regression perceptron",
    "cnn_small": "small_cnn smallcnn cnnsmall",
    "resnet8": "resnet-8 resnet_8 mlperf_tiny",
    "preact_resnet18": "resnet resnet18 resnet-18 preactresnet preactresnet18 prn18 preact_resnet",
    "wrn28_10": "wrn wideresnet wide_resnet wrn28 wrn-28-10 wrn_28_10 wideresnet28_10",
    "fashion_mnist": "mnist fmnist fashionmnist fashion",
    "cifar10": "cifar cifar-10 cifar_10",
    "image_folder": "folder imagefolder images custom own",
    "synthetic": "fake fakedata random toy dummy",
    "gaussian_mixture": "gaussian gaussians mixture",
    "none": "natural clean standard erm nat null vanilla",
    "pgd": "madry pgd10 pgd-10 pgd20 pgd-20 linf adversarial bim ifgsm",
    "autoattack": "aa auto_attack auto",
    "adam": "adamw",
    "sgd_one_cycle": "onecycle one_cycle cyclic",
    "finetune": "fine_tune fine-tune control",
    "combined": "both reweight_remargin",
    "slurm": "submitit submitit_slurm",
    "reweight": "frl fair",
    "joblib": "multiprocessing parallel",
    "smoke": "fast test tiny quick debug",
}
_ADVICE = {
    "n_jobs jobs njobs num_jobs workers num_workers n_workers nproc processes parallel": (
        "num_threads=N sets the processor threads of a run; for several runs at a time: -m hydra/launcher=joblib "
        "hydra.launcher.n_jobs=N"
    ),
    "launcher": "did you mean hydra/launcher? With -m it says how the runs of a sweep are started",
    "resume continue restart resume_from": "the same command continues an interrupted run; force=true repeats it",
    "eval_only test_only evaluate test test_checkpoint": "python scripts/evaluate.py checkpoint=FILE measures a model",
}
"""Answers where no key does what a word asks for."""

_CHOICE_ADVICE = {
    "frl=ema": "a running average of weights is a setting of training: frl=finetune retrain.trainer.ema_decay=0.999",
    "frl=margins": "margins without class weights are frl=combined alpha.nat=0 alpha.bndy=0 alpha.margin=5",
}
_CHOICE_ADVICE["frl=swa"] = _CHOICE_ADVICE["frl=ema_from_base"] = _CHOICE_ADVICE["frl=ema"]
"""Answers where no choice of a group is what a word asks for, but settings are."""

_PIXEL_KEYS = ("epsilon", "epsilons", "step_size", "start_sd")  # lengths in units of [0, 1]
_MOST_OFFERED = 4


def _inverted(names: Mapping[str, str]) -> dict[str, list[str]]:
    inverted: dict[str, list[str]] = {}
    for ours, theirs in names.items():
        for word in theirs.split():
            inverted.setdefault(word, []).append(ours)
    return inverted


_KEYS, _PLACES = _inverted(_KEYS_BY_OTHER_NAMES), _inverted(_PLACES_BY_OTHER_NAMES)
_CHOICES = _inverted(_CHOICES_BY_OTHER_NAMES)
ADVICE = {word: advice for words, advice in _ADVICE.items() for word in words.split()}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the choice nearest to a word: by an alias, as part of it, or by edit distance."""
    names, lower = list(known), word.lower()
    by_name = [ours for ours in _CHOICES.get(lower, []) if ours in names]
    within = [name for name in names if len(lower) > 2 and lower in name]
    close = difflib.get_close_matches(lower, names, n=1)
    return next(iter([*by_name, *close, *within]), None)


def choice_hint(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean x? "``, or nothing where no choice is near."""
    close = nearest(word, known)
    return f"did you mean {close}? " if close else ""


def choice_of_group_hint(group: str, word: str, known: Iterable[str]) -> str:
    """Return what a choice of a group that does not exist may have meant, as `choice_hint` does."""
    advice = _CHOICE_ADVICE.get(f"{group}={word.lower()}")
    return f"{advice}; " if advice else choice_hint(word, known)


def keys_named(word: str, keys: Sequence[str]) -> list[str]:
    """Return the keys that a dotted word names but for where they are, or by another name of theirs.

    Parameters
    ----------
    word : str
        What was typed.
    keys : sequence of str
        Dotted keys and groups, in the order in which they are offered.

    Returns
    -------
    list of str
        Those in the place that the word names first; all of one place where there are any in it.
    """
    head, _, tail = word.lower().replace("-", "_").rpartition(".")
    section = tail if head in _AROUND_SECTIONS else head.rpartition(".")[2]
    if section in SECTIONS:  # alphas stand by themselves
        inside = [key for key in keys if key.startswith(f"{section}.") and key.count(".") == 1]
        return difflib.get_close_matches(f"{section}.{tail}", inside, n=1, cutoff=0.8) or inside
    names = [tail, *_KEYS.get(tail, [])]
    found = [key for name in names for key in keys if key.rpartition(".")[2] == name]
    if not head:  # alpha: one of alpha.nat, alpha.bndy
        found = [key for key in keys if key.startswith(f"{tail}.") and key.count(".") == 1 and tail in SECTIONS] + found
    return list(dict.fromkeys(_in_place(head, found) or found))


SECTIONS = ("alpha", "tau")  # parts that hold one number for each kind of error
_AROUND_SECTIONS = ("frl", "retrain", *_PLACES_BY_OTHER_NAMES["frl."].split())  # where people look for them


def keys_near(word: str, keys: Sequence[str]) -> list[str]:
    """Return the key that is nearest by its letters, of the place that the word names if there is such a place."""
    head, _, tail = word.lower().replace("-", "_").rpartition(".")
    inside = _in_place(head, keys)
    by_tail = {key.rpartition(".")[2]: key for key in reversed(inside or keys)}
    if inside:
        return [by_tail[name] for name in difflib.get_close_matches(tail, by_tail, n=1, cutoff=0.5)]
    return difflib.get_close_matches(word, keys, n=1, cutoff=0.75) or [
        by_tail[name] for name in difflib.get_close_matches(tail, by_tail, n=1, cutoff=0.7)
    ]


def _in_place(head: str, keys: Sequence[str]) -> list[str]:
    if not head:
        return []
    places = (f"{head}.", *_PLACES.get(head, []))
    return [key for key in keys if key.startswith(places)]


def offered(belongs: Mapping[str, str | None], *, is_retraining: bool) -> str:
    """Return keys as a question: which of them was meant; where there are several, with what each is about.

    Parameters
    ----------
    belongs : mapping
        Key to what must be chosen for it to be read; None where it is read as things are.
    is_retraining : bool
        A class policy is chosen: what trains without it is the base model, and comes last.
    """
    firsts = (*(f"{name}." for name in SECTIONS), "retrain.") if is_retraining else ()
    shown = sorted(belongs, key=lambda key: not key.startswith(firsts) if firsts else False)[:_MOST_OFFERED]
    if len(shown) == 1:
        condition = belongs[shown[0]]
        return f"did you mean {shown[0]}?" + (f" It belongs to {condition}" if condition else "")
    words = [f"{key}{_role(key, belongs[key], is_retraining=is_retraining)}" for key in shown]
    return f"did you mean {', '.join(words[:-1])} or {words[-1]}?"


def _role(key: str, condition: str | None, *, is_retraining: bool) -> str:
    if condition:
        return f" (with {condition})"
    roles = {
        "retrain.": " (retraining)",
        "attack.": " (the base model)" if is_retraining else " (training)",
        "trainer.": " (the base model)" if is_retraining else " (training)",
        "evaluation.": " (measuring)",
        "frl.": " (the class policy)",
    }
    return next((role for place, role in roles.items() if key.startswith(place)), "")


def number_hint(key: str, numbers: Sequence[float]) -> str:
    """Return what a number beyond the range of its key may have meant: grey levels for pixel units, percent for shares.

    Parameters
    ----------
    key : str
        Dotted.
    numbers : sequence of float
        Those of its value.
    """
    name = key.rpartition(".")[2]
    is_list = name == "epsilons"
    if name in _PIXEL_KEYS and all(float(n).is_integer() and 0 <= n <= 255 for n in numbers) and max(numbers) >= 1:
        shown = ",".join(f"{n:g}/255" for n in numbers)
        return f"; in pixel units of [0, 1]: did you mean {key}={f'[{shown}]' if is_list else shown}?"
    if (name.endswith("fraction") or key.startswith("tau.")) and all(1 < n <= 100 for n in numbers):
        return f"; did you mean {key}={numbers[0] / 100:g} ({numbers[0]:g} %)?"
    return ""
