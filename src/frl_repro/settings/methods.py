"""Settings of methods: those that FRL's family shares, and where a method's own ones are found.

Files of ``conf/retrain/<recipe>/<frl>.yaml`` say which method of FRL's family has which. Another method declares its
own in its file (``Settings``), which is imported when that method is chosen.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.settings import keys
from frl_repro.settings.keys import COUNT, Key, key, own

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig


@dataclass
class MethodSettings:
    """What every method has: its name. A method's ``Settings`` derive from this."""

    objective: ClassVar[str | None] = None
    """The loss of a step, where the method has one of its own (``retrain.objective``)."""
    may_train_nothing: ClassVar[bool] = False
    """Whether ``retrain.trainer.num_epochs`` may be 0: the method changes the finished model."""

    name: str = key("")

    def check(self, config: RunConfig) -> None:
        """Raise a `UserError` for settings of the run that do not go together with the method."""


@dataclass
class ValidationSettings(MethodSettings):
    """Settings of a method that looks at validation images."""

    update_every: str = key("look at them after so many steps, or once an epoch: epoch")
    num_validation: int | None = key("images of a look, drawn anew each time; null: all", COUNT)
    epsilon: float = key("radius of the attack that measures them, in pixel units", "(0, 1]")
    step_size: float = key("its step, in pixel units", "(0, 1]")
    num_steps: int = key("its steps", COUNT)


@dataclass
class FRLConfig(MethodSettings):
    """How a policy of FRL's family is steered."""

    accumulate: bool | None = own("add each update to the multipliers (dual ascent); false: start anew at every update")
    update_every: str | None = own(f"update the policy after so many steps, or once an epoch: epoch. {COUNT}")
    num_validation: int | None = own(
        "validation images measured for an update, drawn anew each time, at most those there are; null: all", COUNT
    )
    epsilon: float | None = own("radius of the attack that measures them, in pixel units", "(0, 1]")
    step_size: float | None = own("its step, in pixel units", "(0, 1]")
    num_steps: int | None = own("its steps", COUNT)
    weight_rule: str | None = own(
        "multipliers to class weights: softmax (report) or simplex (paper)", one_of=("softmax", "simplex")
    )
    margin_centred: bool | None = own("compare a class's boundary error with the overall one; false: with 0")
    margin_bounds: list[float] | None = own("smallest and largest margin factor", "[0, inf)")


@dataclass
class AlphaConfig:
    """Step lengths of the multipliers; None where the method has no such multiplier."""

    nat: float | None = own("natural loss weights: step length on violations of natural error", "[0, inf)")
    bndy: float | None = own("boundary loss weights: step length on violations of boundary error", "[0, inf)")
    margin: float | None = own("class margins: step length on violations of boundary error", "[0, inf)")
    rob: float | None = own(
        "weights of both losses: step length on violations of robust error", "[0, inf)", added_as=None
    )


@dataclass
class TauConfig:
    """Tolerated gaps to the overall error; None where the method does not read it."""

    nat: float | None = own("tolerated gap of a class's natural error to the overall one", "[0, 1]")
    bndy: float | None = own("tolerated gap of a class's boundary error to the overall one", "[0, 1]")
    rob: float | None = own("tolerated gap of a class's robust error to the overall one", "[0, 1]", added_as=None)


@dataclass
class DeparturesConfig:
    """Departures of the report's public code from its text; all off unless its recipe turns them on."""

    scrambled_labels: bool | None = own("score the shuffled mixed batch against unshuffled labels (departure 1)")
    flipped_boundary: bool | None = own(
        "count flipped predictions as boundary errors, of wrong samples too (departure 5)"
    )
    overall_over_22: bool | None = own("divide the sum over 21 batches by 22 for the overall error (departure 4)")
    ignored_tau_nat: bool | None = own("use tau.bndy in place of tau.nat (departure 4)")
    weight_by_prediction: bool | None = own("take boundary weights by predicted instead of true class (departure 8)")
    fixed_step: bool | None = own("attack steps do not grow with the margin (departure 9)")
    base_saw_validation: bool | None = own(
        "train the base model on all images, those of validation included (departure 7)"
    )


SECTIONS: dict[str, type] = {"alpha": AlphaConfig, "tau": TauConfig, "departures": DeparturesConfig}
"""Parts of a run's configuration that hold settings of methods alone, beside the group ``frl``."""

_FRL_FAMILY = ("none", "finetune", "reweight", "remargin", "combined", "baseline_reweight")
_PACKAGE = "frl_repro.training.frl"


class SettingsByMethod(Mapping[str, type]):
    """The dataclass of each method's settings, by the method's name: every file of ``conf/frl``.

    A method is a plug-in that is found by its name: its file is imported only where its settings are asked for, since
    that loads PyTorch, and help and refusals of other settings need none.
    """

    def __getitem__(self, name: str) -> type:
        return _settings_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in (CONFIG_DIR / "frl").glob("*.yaml")))

    def of_family(self) -> dict[str, type]:
        """Return those of FRL's family, without importing anything."""
        return {name: FRLConfig for name in self if name in _FRL_FAMILY}

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))


@functools.cache
def _settings_of(name: str) -> type:
    if name in _FRL_FAMILY:
        return FRLConfig
    found: type = getattr(importlib.import_module(f"{_PACKAGE}.{name}"), "Settings", MethodSettings)
    return found


def explained(name: str) -> dict[str, Key]:
    """Return what a method's file says of its own settings, by name, without importing it: for help.

    A setting whose explanation or range is no literal, or a constant of `keys`, is left out.
    """
    path = Path(__file__).parents[1] / "training" / "frl" / f"{name}.py"
    if not path.exists():
        return {}
    found: dict[str, Key] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ClassDef) and node.name == "Settings"):
            continue
        for item in node.body:
            if (
                isinstance(item, ast.AnnAssign)
                and isinstance(item.target, ast.Name)
                and isinstance(item.value, ast.Call)
            ):
                said = [_constant(argument) for argument in item.value.args]
                if said and all(isinstance(text, str) for text in said):
                    found[item.target.id] = Key(*said)
    return found


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return getattr(keys, node.id, None)
    return node.value if isinstance(node, ast.Constant) else None


def has_own_recipes(name: str) -> bool:
    """Return whether a method's settings stand in ``conf/retrain/<recipe>/<name>.yaml``: those of FRL's family do."""
    return name in _FRL_FAMILY
