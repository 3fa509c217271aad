"""From a model and a split to rows of class errors; and from a checkpoint file to a table and outcomes by image."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from frl_repro.attacks import evaluation_mode, pgd
from frl_repro.attacks.predictions import predicted_class, say_not_finite
from frl_repro.basics import radii, streams
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER, bar
from frl_repro.basics.provenance import describe
from frl_repro.basics.run_folder import RUN_FILE, read_object
from frl_repro.data import Dataset, Split, in_unit_range, load_dataset
from frl_repro.evaluation import autoattack
from frl_repro.evaluation.class_errors import SampleErrors
from frl_repro.evaluation.evaluate import EvaluationAttack, evaluate
from frl_repro.evaluation.measure_autoattack import measure_with_autoattack
from frl_repro.models.compute.backends import Backend, choose_backend
from frl_repro.models.identity import differences, weights_record
from frl_repro.models.loading import network_of, refuse_other_model
from frl_repro.models.networks import image_shape
from frl_repro.models.origin import checkpoint_file, read_origin
from frl_repro.results.tables import reading, schema, text_tables, writing
from frl_repro.results.tables.components import COMPONENTS_FILE
from frl_repro.results.tables.examples import EXAMPLES_FILE, Examples, write_examples
from frl_repro.results.tables.outcomes import OUTCOMES_FILE, SPLIT_DIGEST, Outcomes, write_outcomes
from frl_repro.settings.config import EvaluateConfig, SanityConfig, to_dict
from frl_repro.settings.schema import AutoAttackEvaluationConfig, OwnModelConfig, PGDEvaluationConfig

USUAL_STEP_SIZE = 2 / 255  # of the reproduction report and the paper; tables name another one with the attack


def resolve_device(name: str) -> torch.device:
    """Return the device of a name such as ``auto`` or ``cuda:1``; UserError when this machine lacks it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: this machine offers {torch.cuda.device_count()} CUDA devices; use device=cpu")
    return device


def set_up_machine(device: torch.device, num_threads: int | None) -> None:
    """Set threads and, on a GPU, full float32 precision and repeatable kernels."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)  # streams and graphs are made on the current one
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False


def evaluation_attack(settings: PGDEvaluationConfig, backend: Backend) -> EvaluationAttack:
    """Return the attack that class errors are measured with."""
    return functools.partial(
        pgd,
        step_size=settings.step_size,
        num_steps=settings.num_steps,
        use_random_start=settings.random_start,
        num_restarts=settings.num_restarts,
        early_stop=settings.early_stop,
        ascend=backend.ascend,
        logits=backend.logits,
    )


def evaluation_name(settings: PGDEvaluationConfig) -> str:
    """Return the attack's name in tables: ``pgd-20``, ``pgd-50x10`` for ten restarts, and what is unusual."""
    name = f"{settings.name}-{settings.num_steps}"
    if settings.num_restarts > 1:
        name += f"x{settings.num_restarts}"
    if settings.step_size != USUAL_STEP_SIZE:
        name += f"-step_{radii.format_epsilon(settings.step_size)}"
    if not settings.random_start:
        name += "-no_random_start"
    return name + ("-early_stop" if settings.early_stop else "")


class Measured(NamedTuple):
    """Rows of ``classwise.csv``, and the samples they count."""

    rows: list[dict[str, Any]]
    samples: SampleErrors

    def outcomes(self, about: Mapping[str, Any]) -> Outcomes:
        """Return what the model made of each image; ``about`` names the model, the split and the attack."""
        radii = dict.fromkeys(row["epsilon"] for row in self.rows)
        return Outcomes(
            labels=self.samples.labels.numpy(),
            is_natural_error=self.samples.is_natural_error.numpy(),
            is_robust_error=dict(zip(radii, self.samples.is_robust_error.numpy(), strict=True)),
            about=about,
        )


def measure(
    model: nn.Module,
    split: Split,
    settings: PGDEvaluationConfig,
    *,
    class_names: Sequence[str],
    seed: int,
    device: torch.device,
    backend: Backend,
    keys: Mapping[str, Any],
) -> Measured:
    """Return the class rows of a split at every radius, and which images are wrong.

    Parameters
    ----------
    model, split, seed, device
        As in `evaluate`.
    backend : Backend
    settings : PGDEvaluationConfig
        The attack and its radii.
    class_names : sequence of str, length K
    keys : mapping
        The columns that name the run, the split and the epoch.
    """
    with bar(f"measure {keys['split']}", len(split.labels)) as advance:
        samples = evaluate(
            model,
            split,
            attack=evaluation_attack(settings, backend),
            logits=backend.logits,
            epsilons=settings.epsilons,
            batch_size=settings.batch_size,
            seed=seed,
            device=device,
            advance=advance,
        )
    say_not_finite(samples.is_not_finite)
    rows: list[dict[str, Any]] = []
    for epsilon, class_errors in zip(settings.epsilons, samples.by_class(len(class_names)), strict=True):
        rows += writing.classwise_rows(
            {**keys, "attack": evaluation_name(settings), "epsilon": epsilon},
            class_names,
            class_errors.count.tolist(),
            class_errors.num_natural_errors.tolist(),
            class_errors.num_boundary_errors.tolist(),
        )
    return Measured(rows, samples)


def model_and_backend(
    path: Path,
    config: EvaluateConfig | SanityConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    key: str | None = None,
    setting: str = "checkpoint",
) -> tuple[nn.Module, Backend]:
    """Return the network of a checkpoint, on the device, and what computes it; see `network_of`."""
    model = network_of(path, config, dataset, key=key, setting=setting).to(device)
    backend = choose_backend(
        config.keys.backend,
        model,
        device,
        image_shape=image_shape(dataset),
        is_ours=not isinstance(config.model, OwnModelConfig),
    )
    return model, backend


def measure_checkpoint(config: EvaluateConfig, *, command: str = "") -> Path:
    """Measure a checkpoint on the test split, show its class table and return the folder of its tables.

    The folder is ``<output_dir>/<run>-<hash>``. Repeating the command writes the same bytes.

    Raises
    ------
    UserError
        The file is no checkpoint of this architecture, or data or device are missing.
    """
    path = checkpoint_file(config.keys.checkpoint, key="checkpoint")
    # A run's folder and the file in it are one measurement.
    config = dataclasses.replace(config, keys=dataclasses.replace(config.keys, checkpoint=str(path)))
    refuse_other_model(path, config.model)
    origin = origin_of(path)
    if isinstance(config.evaluation, AutoAttackEvaluationConfig):
        autoattack.check()
    device = resolve_device(config.keys.device)
    set_up_machine(device, config.keys.num_threads)
    dataset = load_dataset(config.dataset)
    model, backend = model_and_backend(path, config, dataset, device, key=config.keys.checkpoint_key)
    seed = int(origin["seed"]) if config.keys.seed is None else config.keys.seed
    keys = {**origin, "dataset": config.dataset.name, "model": config.model.name, "split": "test"}
    folder = Path(config.keys.output_dir) / f"{keys['run_id']}-{config.hash}"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {"data": dataset.content, "checkpoint": weights_record(path)}
    _forget_others(folder, inputs)
    process = describe(device=device, backend=backend.name, command=command)
    run_record = {"config": to_dict(config), **inputs, **process}
    if isinstance(config.evaluation, AutoAttackEvaluationConfig):
        measure_with_autoattack(
            model,
            dataset,
            config.evaluation,
            seed=seed,
            weights=_digest(path),
            device=device,
            backend=backend,
            keys=keys,
            folder=folder,
            run_record=run_record,
        )
    else:
        _measure_with_pgd(model, dataset, config, seed=seed, device=device, backend=backend, keys=keys, folder=folder)
        writing.write_json(folder / "run.json", run_record)
    LOGGER.info("%s", text_tables.class_table(reading.read_classwise([folder / "classwise.csv"]), top=config.keys.top))
    LOGGER.info("tables: %s", folder)
    return folder


def _forget_others(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Remove what was measured of other weights or on other data under the same settings, and say so."""
    if not (folder / RUN_FILE).exists():
        return
    changes = differences(read_object(folder / RUN_FILE), inputs)
    if changes:
        LOGGER.info("%s was measured before a change of %s: measured anew", folder, " and of ".join(changes))
        for name in (EXAMPLES_FILE, OUTCOMES_FILE, "classwise.csv", COMPONENTS_FILE, RUN_FILE):
            (folder / name).unlink(missing_ok=True)


def _measure_with_pgd(
    model: nn.Module,
    dataset: Dataset,
    config: EvaluateConfig,
    *,
    seed: int,
    device: torch.device,
    backend: Backend,
    keys: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write tables, outcomes and, where asked for, example images of PGD on the test images."""
    settings = config.evaluation
    assert isinstance(settings, PGDEvaluationConfig)
    measured = measure(
        model,
        dataset.test,
        settings,
        class_names=dataset.class_names,
        seed=streams.derive_seed(seed, "measure test"),
        device=device,
        backend=backend,
        keys=keys,
    )
    about = {**keys, "attack": evaluation_name(settings), SPLIT_DIGEST: dataset.split_digest("test")}
    writing.write_table(folder / "classwise.csv", measured.rows, schema.CLASSWISE_HEADER)
    write_outcomes(folder / OUTCOMES_FILE, measured.outcomes(about))
    if config.keys.num_examples:
        examples = _examples(model, dataset, measured.samples, config, seed=seed, backend=backend, about=about)
        write_examples(folder / EXAMPLES_FILE, examples)


def _examples(
    model: nn.Module,
    dataset: Dataset,
    samples: SampleErrors,
    config: EvaluateConfig,
    *,
    seed: int,
    backend: Backend,
    about: Mapping[str, Any],
) -> Examples:
    """Attack the first test images of the worst and of the best class, at the largest radius.

    The worst and the best are those of robust error there; images that are right before the attack come first.
    """
    settings, device = config.evaluation, next(model.parameters()).device
    assert isinstance(settings, PGDEvaluationConfig)
    place = max(range(len(settings.epsilons)), key=lambda index: settings.epsilons[index])
    errors = samples.by_class(dataset.num_classes)[place].class_robust_error
    ends = worst_and_best_class(errors)
    chosen: list[int] = []
    for class_id in ends:
        of_class = (samples.labels == class_id).nonzero().flatten()
        right_first = samples.is_natural_error[of_class].to(torch.uint8).argsort(stable=True)
        chosen += of_class[right_first][: config.keys.num_examples].tolist()
    part = dataset.test.select(torch.tensor(chosen))
    x, y = in_unit_range(part.images.to(device)), part.labels.to(device)
    generator = streams.generator(seed, "examples", device=device)
    with evaluation_mode(model):
        attack = evaluation_attack(settings, backend)
        x_adv = attack(model, x, y, epsilon=settings.epsilons[place], generator=generator)
        before, after = (predicted_class(backend.logits(model, images)).cpu().numpy() for images in (x, x_adv))
    names = {"class_names": list(dataset.class_names), "worst": dataset.class_names[ends[0]]}
    return Examples(
        clean=x.cpu().numpy(),
        attacked=x_adv.cpu().numpy(),
        labels=part.labels.numpy(),
        clean_predictions=before,
        attacked_predictions=after,
        about={**about, **names, "best": dataset.class_names[ends[1]], "epsilon": settings.epsilons[place]},
    )


def worst_and_best_class(errors: Tensor) -> tuple[int, int]:
    """Return the class with the largest and another with the smallest error; the first ones of ties.

    Parameters
    ----------
    errors : Tensor, shape (K,)
        In [0, 1].
    """
    worst = int(errors.argmax())
    others = errors.clone()
    others[worst] = 2  # above any error: all classes may be equally bad
    return worst, int(others.argmin())


_ORIGIN = ("run_id", "method", "seed", "epoch", schema.CHECKPOINT_COLUMN, *schema.SETTING_COLUMNS)
"""What a checkpoint says of its run."""

_CONTROL, _MAX_STEM = r"[\x00-\x1f\x7f]", 100  # a file's name becomes part of a folder's, and of a line on a terminal


def origin_of(path: Path) -> dict[str, Any]:
    """Return what names the run: from the file when one of our runs wrote it, else from its content.

    Raises
    ------
    UserError
        What the file says of its run is damaged.
    """
    origin = read_origin(path)
    if origin is not None:
        if origin.get("run_id") is None or origin.get("seed") is None:
            raise UserError(f"{path} is damaged: its header does not name its run (run_id, seed)")
        return {name: origin.get(name) for name in _ORIGIN}
    return {
        **dict.fromkeys(_ORIGIN),
        "run_id": f"{re.sub(_CONTROL, '_', path.stem)[:_MAX_STEM]}-{_digest(path)[:8]}",
        "method": "external",
        "seed": 0,
        "epoch": 0,
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
