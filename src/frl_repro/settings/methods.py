"""Settings of methods: those that FRL's family shares, and where a method's own ones are found.

A method with files in ``conf/retrain/<recipe>`` is of FRL's family; they say which of the family's settings it has.
Another method declares its own in its file (``Settings``), which is imported when that method is chosen.
"""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import CONFIG_DIR
from frl_repro.settings.keys import COUNT, key, own

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

    def check_classes(self, num_classes: int) -> None:
        """Raise a `UserError` for settings that do not go with so many classes; asked before a base is trained."""

    def remark(self, num_epochs: int, *, averages: bool) -> str | None:
        """Return what a user should know of settings that are allowed; ``averages``: there is a running average."""


@dataclass
class ValidationSettings(MethodSettings):
    """Settings of a method that looks at validation images."""

    update_every: str = key("look at validation images after so many steps, or once an epoch: epoch")
    num_validation: int | None = key("validation images of each look, drawn anew; null: all", COUNT)
    epsilon: float | None = key(
        "radius of the attack on validation images, in pixel units; null: that of the training attack", "(0, 1]"
    )
    step_size: float = key("length of a step of that attack, in pixel units", "(0, 1]")
    num_steps: int = key("gradient steps of that attack", COUNT)


@dataclass
class FinishingSettings(MethodSettings):
    """Settings of a method that changes the finished model."""

    may_train_nothing = True

    def check(self, config: RunConfig) -> None:
        """Refuse to keep another epoch's model: it would be measured as it was trained."""
        if config.evaluation.keep_best_by is not None:
            raise UserError(
                f"evaluation.keep_best_by does not go with frl={self.name}, which changes the last epoch's model alone"
            )


@dataclass
class FRLConfig(MethodSettings):
    """How a policy of FRL's family is steered."""

    accumulate: bool | None = own("add each update to the multipliers (dual ascent); false: start anew at every update")
    update_every: str | None = own(f"update the policy after so many steps, or once an epoch: epoch. {COUNT}")
    num_validation: int | None = own(
        "validation images measured for an update, drawn anew each time, at most those there are; null: all", COUNT
    )
    epsilon: float | None = own("radius of the attack on validation images, in pixel units", "(0, 1]")
    step_size: float | None = own("length of a step of that attack, in pixel units", "(0, 1]")
    num_steps: int | None = own("gradient steps of that attack", COUNT)
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


def columns_of(alpha: AlphaConfig) -> dict[str, float | None]:
    """Return the step lengths as the tables have them: a column each, empty where the method lacks it."""
    return {f"alpha_{name}": value for name, value in vars(alpha).items()}


ALPHA_COLUMNS = tuple(columns_of(AlphaConfig()))
"""Columns of the tables that hold step lengths."""


@dataclass
class TauConfig:
    """Tolerated gaps to the overall error; None where the method does not read it."""

    nat: float | None = own("tolerated gap of a class's natural error to the overall one", "[0, 1]")
    bndy: float | None = own("tolerated gap of a class's boundary error to the overall one", "[0, 1]")
    rob: float | None = own("tolerated gap of a class's robust error to the overall one", "[0, 1]", added_as=None)


@dataclass
class DeparturesConfig:
    """Departures of the published code from the reproduction report's text; all off unless its recipe turns them on."""

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

_PACKAGE = "frl_repro.training.frl"


class SettingsByMethod(Mapping[str, type]):
    """The dataclass of each method's settings, by the method's name: every file of ``conf/frl``.

    A method is a plug-in that is found by its name: its file is imported only where its settings are asked for, since
    that loads PyTorch. Help and messages need the declarations alone: `declared`.
    """

    def __getitem__(self, name: str) -> type:
        return _settings_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in (CONFIG_DIR / "frl").glob("*.yaml")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))

    def declared(self) -> dict[str, type]:
        """Return the same dataclasses, made without importing the methods."""
        return {name: _declared(name) for name in self}


def is_of_family(name: str) -> bool:
    """Return whether a method is of FRL's family: its file declares no ``Settings``, ``conf/retrain`` has them."""
    return name in _with_recipes() and _declared(name) is FRLConfig


@functools.cache
def _with_recipes() -> frozenset[str]:
    return frozenset(path.stem for path in (CONFIG_DIR / "retrain").glob("*/*.yaml"))


def _file_of(name: str) -> Path:
    return Path(__file__).parents[1] / "training" / "frl" / f"{name}.py"


@functools.cache
def _settings_of(name: str) -> type:
    if is_of_family(name):
        return FRLConfig
    found: type = getattr(importlib.import_module(f"{_PACKAGE}.{name}"), "Settings", MethodSettings)
    return found


@functools.cache
def _declared(name: str) -> type:
    """Return a method's ``Settings`` without importing its file.

    Of the file, the class statement is run, and before it the imports of the standard library and of
    `frl_repro.basics` and `frl_repro.settings`, and the constants: importing the whole would load PyTorch.
    """
    path = _file_of(name)
    if not path.exists():
        return FRLConfig if name in _with_recipes() else _settings_of(name)  # frl=none has no file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [statement for statement in tree.body if _is_light(statement)]
    made: dict[str, Any] = {"__name__": __name__}  # a module that is imported: dataclasses look it up
    exec(compile(tree, str(path), "exec"), made)  # noqa: S102 (part of a module of this package)
    found: type = made.get("Settings", FRLConfig if name in _with_recipes() else MethodSettings)
    return found


def _is_light(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import(names=names):
            return all(_is_light_module(alias.name) for alias in names)
        case ast.ImportFrom(module=str(module)):
            return _is_light_module(module)
        case ast.Assign(value=ast.Constant() | ast.Tuple()):
            return True
        case ast.ClassDef(name="Settings"):
            return True
    return False


def _is_light_module(module: str) -> bool:
    ours = ("frl_repro.basics.", "frl_repro.settings.")
    return module.split(".", maxsplit=1)[0] in sys.stdlib_module_names or f"{module}.".startswith(ours)
