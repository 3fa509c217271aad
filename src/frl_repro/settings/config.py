"""The typed configuration of one job of each program, checked; `parse.parse` makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frl_repro.settings import identity
from frl_repro.settings.keys import about
from frl_repro.settings.methods import AlphaConfig, DeparturesConfig, FRLConfig, MethodSettings, TauConfig
from frl_repro.settings.programs import EvaluateKeys, RunKeys, SanityKeys
from frl_repro.settings.schema import (
    AttackConfig,
    DatasetConfig,
    EvaluationConfig,
    ModelConfig,
    NoAttackConfig,
    PGDConfig,
    PGDEvaluationConfig,
    RecipeConfig,
    RetrainConfig,
    TradesTrainingConfig,
    TrainerConfig,
)

# How a base model is measured, whatever its retraining is measured with: part of its name, so it does not follow conf/.
_BASE_EVALUATION = PGDEvaluationConfig(
    name="pgd",
    epsilons=[8 / 255, 16 / 255],
    step_size=2 / 255,
    num_steps=20,
    random_start=True,
    num_restarts=1,
    early_stop=False,
    batch_size=500,
    validation_every=1,
    num_validation=None,
    keep_best_by=None,
)

_OFF = (("imbalance", "none"), ("imbalance_ratio", None))
"""Left out of the headers of checkpoints, which thereby keep the bytes of before there were these settings."""


@dataclass(frozen=True)
class RunConfig:
    """A checked configuration of one training run; see the YAML files for the meaning of the keys."""

    model: ModelConfig
    dataset: DatasetConfig
    attack: AttackConfig
    trainer: TrainerConfig
    evaluation: PGDEvaluationConfig
    frl: MethodSettings
    recipe: RecipeConfig
    alpha: AlphaConfig
    tau: TauConfig
    retrain: RetrainConfig | None
    departures: DeparturesConfig
    keys: RunKeys

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.keys.seed

    @property
    def has_method(self) -> bool:
        """Whether something varies by class in the run's own training: in retraining, or from scratch."""
        return self.frl.name != "none"

    @property
    def method(self) -> str:
        """What the run stands for in tables: the class policy, else ``natural``, ``trades`` (its loss) or
        ``adversarial[_<attack>]``.
        """
        if self.has_method:
            return self.frl.name
        if isinstance(self.attack, NoAttackConfig):
            return "natural"
        if self.trades_beta is not None:
            return "trades"
        return "adversarial" if isinstance(self.attack, PGDConfig) else f"adversarial_{self.attack.name}"

    @property
    def trades_beta(self) -> float | None:
        """Weight of the boundary loss in the run's own training with the loss of TRADES; None for other losses."""
        if self.retrain is not None:
            return self.retrain.beta
        return self.attack.beta if isinstance(self.attack, TradesTrainingConfig) else None

    @property
    def objective(self) -> str:
        """The loss of a step of the run's own training: natural, mixed, split, paired, trades or a method's own."""
        if self.frl.objective is not None:
            return self.frl.objective
        if self.trades_beta is not None:
            return "trades"
        if self.retrain is not None:
            return self.retrain.objective
        return "natural" if isinstance(self.attack, NoAttackConfig) else "mixed"

    @property
    def attacked_share(self) -> float:
        """Share of the attacked images' (boundary) loss in the loss of a step, in [0, 1]."""
        if self.trades_beta is not None:
            return self.trades_beta / (1 + self.trades_beta)
        return {"natural": 0.0, "mixed": getattr(self.training[0], "fraction", 0.0)}.get(self.objective, 0.5)

    @property
    def has_policy(self) -> bool:
        """Whether there is a table of what the method did in training (``policy.csv``)."""
        return self.has_method and self.training[1].num_epochs > 0

    @property
    def last_epoch(self) -> int:
        """The epoch that the finished model has in tables: 1 where nothing is trained, for 0 is what it starts from."""
        return max(1, self.training[1].num_epochs)

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the sha256 of every setting that is not a machine setting.

        Settings that came later count only where they differ from what was done before there were them.
        """
        return identity.digest(self)

    @property
    def run_id(self) -> str:
        """Readable name plus hash; names the run's folder."""
        parts = [self.dataset.name, self.model.name]
        if self.has_method:
            parts += [self.frl.name, self.recipe.name]
            own = {f.name: getattr(self.frl, f.name) for f in dataclasses.fields(self.frl) if about(f).is_per_run}
            numbers = {**vars(self.alpha), **own}
            parts += [f"{name}{value:g}" for name, value in numbers.items() if value is not None]
        else:
            parts += [self.attack.name, self.frl.name]
        return "-".join([*parts, f"seed{self.seed}", self.hash])

    @property
    def training(self) -> tuple[AttackConfig, TrainerConfig]:
        """Attack and trainer of what this run itself trains: the retraining where there is one."""
        chosen = self if self.retrain is None else self.retrain
        return chosen.attack, chosen.trainer

    @property
    def shared(self) -> dict[str, str]:
        """What runs must have in common to be fused: see `identity.shared`."""
        return identity.shared(self)

    def base(self) -> RunConfig:
        """Return the run whose model a retraining starts from: the same settings without the class policy."""
        dataset = self.dataset
        if self.departures.base_saw_validation:
            dataset = dataclasses.replace(dataset, validation_fraction=0.0)
        output_dir = self.keys.base_dir or str(Path(self.keys.output_dir) / "bases")
        return dataclasses.replace(
            self,
            dataset=dataset,
            frl=FRLConfig(name="none"),
            recipe=RecipeConfig(name="report"),
            alpha=AlphaConfig(),
            tau=TauConfig(),
            retrain=None,
            departures=DeparturesConfig(),
            # How the retrained model is measured must not change which base it starts from.
            evaluation=dataclasses.replace(_BASE_EVALUATION, validation_every=self.trainer.num_epochs),
            keys=dataclasses.replace(
                self.keys,
                init_from=None,
                init_from_key=None,
                run_dir=None,
                base_dir=None,
                output_dir=output_dir,
                force=False,
            ),
        )

    def is_trained_like(self, recorded: Mapping[str, Any]) -> bool:
        """Return whether a recorded configuration (``run.json``) trains the same model: `identity.is_trained_like`."""
        return identity.is_trained_like(self, recorded)

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        if self.keys.run_dir is not None:
            return Path(self.keys.run_dir)
        return Path(self.keys.output_dir) / self.run_id


@dataclass(frozen=True)
class EvaluateConfig:
    """A checked configuration of one measurement of a checkpoint."""

    model: ModelConfig
    dataset: DatasetConfig
    evaluation: EvaluationConfig
    keys: EvaluateKeys

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the sha256 of every setting that is not a machine setting."""
        return identity.digest(self)


@dataclass(frozen=True)
class SanityConfig:
    """A checked configuration of the sanity checks of a checkpoint."""

    model: ModelConfig
    dataset: DatasetConfig
    keys: SanityKeys

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of the sha256 of every setting that is not a machine setting."""
        return identity.digest(self)


Config = RunConfig | EvaluateConfig | SanityConfig


def to_dict(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain nested containers, as it would be written in YAML."""
    nested = dataclasses.asdict(config)
    return {**nested.pop("keys"), **nested}


def rebuilding_settings(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the settings that a model and its data are made from, for a checkpoint's header.

    Where the data lie is no part of them: the same data elsewhere give the same checkpoint.
    """
    return {
        group: {
            f.name: getattr(part, f.name)
            for f in dataclasses.fields(part)
            if not about(f).is_machine and f.name != "root" and (f.name, getattr(part, f.name)) not in _OFF
        }
        for group, part in (("model", config.model), ("dataset", config.dataset))
    }
