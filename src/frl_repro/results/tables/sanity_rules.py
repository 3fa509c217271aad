"""Sanity checks of robustness: what each demands, and the table of what was measured. Needs no torch.

An attack that finds little may have met a robust model, or a model whose gradients lead nowhere ("gradient masking").
Each rule is something that holds for the first and tends to break for the second. Thresholds follow from principle and
were fixed before any reference model was checked; docs/sanity.md gives reasons and sources.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from frl_repro.basics import readback
from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import format_epsilon, is_same_radius
from frl_repro.results.tables.reading import unescaped
from frl_repro.results.tables.schema import RUN_COLUMNS
from frl_repro.results.tables.text_tables import aligned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pandas import DataFrame

SANITY_FILE = "sanity.csv"

COLUMNS = (
    *RUN_COLUMNS, "num_images", "check", "quantity", "attack", "epsilon", "class_id", "class_name",
    "value", "rule", "threshold", "passes",
)  # fmt: skip
"""Columns of ``sanity.csv``. Rows with a ``rule`` are the checks; the others are what they rest on."""

RADII = tuple(levels / 255 for levels in (2, 4, 8, 16, 32, 64, 128, 255))
"""Radii of the sweep in pixel units, besides the one that is checked; at 1 any image can become any other."""

STEPS_FACTOR = 5
NUM_RESTARTS = 10
NUM_DRAWS = 20
"""Draws of noise for each image, one of which has to be misclassified: as many looks at the model as PGD-20 takes."""

VANISHED = 2.0**-24
"""Largest entry of an input gradient that counts as vanished.

Cross-entropy's gradient is made of p - 1, p the probability of the true class, and half a float32's distance from 1 to
the next number is all that 1 - p can resolve: below it signs are those of rounding.
"""

ATTACKS = ("pgd", "more_steps", "more_restarts", "single_step", "uniform_noise", "random_signs", "transfer")
"""Roles of attacks in the checks."""

DIRECTIONS = ("gradient", "attack", "random")
"""Along the sign of the input gradient, towards the attacked image, along random signs."""


@dataclass(frozen=True)
class Rule:
    """What a check demands of one number.

    Attributes
    ----------
    check, quantity : str
        Name of the check, and of its number.
    text : str
        The number in words.
    relation : str
        ``"<="``, ``">="`` or ``"<"``: how the number must stand to the threshold.
    threshold : float
        A share of images (0.02 is 2 points), or a ratio.
    unit : str
        ``"points"``, ``"%"`` or ``"ratio"``: how people write it.
    """

    check: str
    quantity: str
    text: str
    relation: str
    threshold: float
    unit: str

    def passes(self, value: float) -> bool:
        """Return whether the number is as demanded."""
        compare = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}[self.relation]
        return bool(compare(value, self.threshold))

    def shown(self, value: float | None) -> str:
        """Return the number as people read it."""
        if value is None:
            return "not run"
        if self.unit == "ratio":
            return f"{value:.2f}"
        return f"{100 * value:.1f} {self.unit}"

    @property
    def allowed(self) -> str:
        """The threshold as people read it."""
        words = {"<=": "at most", ">=": "at least", "<": "below"}
        return f"{words[self.relation]} {self.shown(self.threshold)}"


RULES = (
    Rule("epsilon_sweep", "largest_drop", "largest drop from one radius to the next", "<=", 0.01, "points"),
    Rule("epsilon_sweep", "robust_error_at_radius_1", "robust error at radius 1", ">=", 0.99, "%"),
    Rule("more_steps", "change", f"change of robust error with {STEPS_FACTOR} times the steps", "<=", 0.02, "points"),
    Rule("more_restarts", "change", f"change of robust error with {NUM_RESTARTS} restarts", "<=", 0.02, "points"),
    Rule("noise", "uniform_to_pgd", "images that uniform noise breaks, to those PGD breaks", "<", 0.5, "ratio"),
    Rule("noise", "signs_to_pgd", "images that random signs break, to those PGD breaks", "<", 0.5, "ratio"),
    Rule("transfer", "transfer_minus_pgd", "transferred attack's boundary error less PGD's", "<=", 0.0, "points"),
    Rule("gradient", "share_vanished", "images whose input gradient vanishes", "<=", 0.01, "%"),
    Rule("gradient", "share_rising", "images whose loss rises along a small step of it", ">=", 0.95, "%"),
    Rule("single_step", "fgsm_minus_pgd", "single-step attack's boundary error less PGD's", "<=", 0.01, "points"),
)
"""Every check, in the order of tables. AutoAttack within a few points of PGD belongs here once it can be run."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured of a model on N images, M of which it gets right before any attack.

    Attributes
    ----------
    labels : array, shape (N,), int64
    is_natural_error : array, shape (N,), bool
    is_attacked_error : mapping of (str, float) to array, shape (N,), bool
        By attack (one of `ATTACKS`) and radius: misclassified attacked; without meaning where wrong already clean.
        ``("transfer", epsilon)`` is missing where there is no other model.
    largest_gradient : array, shape (M,)
        Largest absolute entry of the loss's gradient with respect to each image.
    distances : array, shape (S,)
        Distances from the clean image in pixel units, ascending from 0, at which losses were taken.
    losses : mapping of str to array, shape (S, M)
        By direction (one of `DIRECTIONS`): each image's loss at each distance.
    epsilon : float
        The radius that is checked.
    num_steps : int
        Steps of the attack that is checked.
    """

    labels: NDArray[np.int64]
    is_natural_error: NDArray[np.bool_]
    is_attacked_error: Mapping[tuple[str, float], NDArray[np.bool_]]
    largest_gradient: NDArray[np.float64]
    distances: NDArray[np.float64]
    losses: Mapping[str, NDArray[np.float64]]
    epsilon: float
    num_steps: int

    @property
    def radii(self) -> list[float]:
        """Radii of the sweep, ascending."""
        return sorted(radius for attack, radius in self.is_attacked_error if attack == "pgd")

    def num_broken(self, attack: str, radius: float | None = None) -> int:
        """Return how many images are right clean and wrong attacked, at the checked radius unless another is given."""
        attacked = self.is_attacked_error[attack, self.epsilon if radius is None else radius]
        return int((attacked & ~self.is_natural_error).sum())

    def attack_name(self, attack: str) -> str:
        """Return an attack's name in tables, as ``classwise.csv`` writes it where it has one."""
        usual = f"pgd-{self.num_steps}"
        return {
            "pgd": usual,
            "more_steps": f"pgd-{STEPS_FACTOR * self.num_steps}",
            "more_restarts": f"{usual}x{NUM_RESTARTS}",
            "single_step": "fgsm",
            "uniform_noise": f"uniform_noise-x{NUM_DRAWS}",
            "random_signs": f"random_signs-x{NUM_DRAWS}",
            "transfer": f"{usual}-transfer",
        }[attack]


def radii_of_sweep(epsilon: float) -> list[float]:
    """Return the radii of the sweep, the checked one among them."""
    return sorted([radius for radius in RADII if not is_same_radius(radius, epsilon)] + [epsilon])


def measured(evidence: Evidence) -> list[float | None]:
    """Return the number that each of `RULES` speaks of; None for a check that was not run.

    Errors are divided from counts last, so that a difference of n images is exactly n / N.
    """
    num = len(evidence.labels)
    broken = {
        attack: evidence.num_broken(attack)
        for attack in ATTACKS
        if (attack, evidence.epsilon) in evidence.is_attacked_error
    }
    sweep = [0, *(evidence.num_broken("pgd", radius) for radius in evidence.radii)]
    largest_drop = max(0, *(before - after for before, after in itertools.pairwise(sweep)))
    num_natural = int(evidence.is_natural_error.sum())
    rising = evidence.losses["gradient"][1] > evidence.losses["gradient"][0]

    def above_pgd(attack: str) -> float:
        return (broken[attack] - broken["pgd"]) / num

    def to_pgd(attack: str) -> float:
        return broken[attack] / broken["pgd"] if broken["pgd"] else math.inf

    values: dict[tuple[str, str], float | None] = {
        ("epsilon_sweep", "largest_drop"): largest_drop / num,
        ("epsilon_sweep", "robust_error_at_radius_1"): (num_natural + sweep[-1]) / num,
        ("more_steps", "change"): abs(broken["more_steps"] - broken["pgd"]) / num,
        ("more_restarts", "change"): abs(broken["more_restarts"] - broken["pgd"]) / num,
        ("noise", "uniform_to_pgd"): to_pgd("uniform_noise"),
        ("noise", "signs_to_pgd"): to_pgd("random_signs"),
        ("transfer", "transfer_minus_pgd"): (broken["transfer"] - broken["pgd"]) / num
        if "transfer" in broken
        else None,
        # A gradient that is NaN leads nowhere either.
        ("gradient", "share_vanished"): float((~(evidence.largest_gradient >= VANISHED)).mean()),
        ("gradient", "share_rising"): float(rising.mean()),
        ("single_step", "fgsm_minus_pgd"): above_pgd("single_step"),
    }
    return [values[rule.check, rule.quantity] for rule in RULES]


_CHECK_OF: Mapping[str, str] = MappingProxyType(
    {"pgd": "epsilon_sweep", "uniform_noise": "noise", "random_signs": "noise"}
)
"""Check under which an attack's errors stand, where it is not called as the attack is."""


def rows(evidence: Evidence, keys: Mapping[str, Any], class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``sanity.csv``: the checks, then every error and loss they rest on.

    Parameters
    ----------
    evidence : Evidence
    keys : mapping
        `schema.RUN_COLUMNS` and their values.
    class_names : sequence of str, length K
    """
    start = {**dict.fromkeys(COLUMNS), **keys, "num_images": len(evidence.labels)}
    for rule, value in zip(RULES, measured(evidence), strict=True):
        yield {
            **start, "check": rule.check, "quantity": rule.quantity, "value": value, "rule": rule.relation,
            "threshold": rule.threshold, "passes": None if value is None else str(rule.passes(value)).lower(),
            "epsilon": None if rule.check == "epsilon_sweep" else evidence.epsilon,
        }  # fmt: skip
    groups: list[tuple[int | None, str | None, NDArray[np.bool_]]] = [
        (None, None, np.ones(len(evidence.labels), dtype=bool))
    ]
    groups += [(class_id, name, evidence.labels == class_id) for class_id, name in enumerate(class_names)]
    natural = evidence.is_natural_error
    errors: list[tuple[str, str, str | None, float, NDArray[np.bool_]]] = [
        ("epsilon_sweep", "natural_error", None, 0.0, natural)
    ]
    errors += [
        (_CHECK_OF.get(attack, attack), "robust_error", evidence.attack_name(attack), radius, wrong | natural)
        for (attack, radius), wrong in sorted(
            evidence.is_attacked_error.items(), key=lambda item: (ATTACKS.index(item[0][0]), item[0][1])
        )
    ]
    for check, quantity, attack_name, radius, is_error in errors:
        for class_id, class_name, members in groups:
            yield {
                **start, "check": check, "quantity": quantity, "attack": attack_name, "epsilon": radius,
                "class_id": class_id, "class_name": class_name,
                "value": int(is_error[members].sum()) / int(members.sum()),
            }  # fmt: skip
    for direction in DIRECTIONS:
        for distance, losses in zip(evidence.distances.tolist(), evidence.losses[direction], strict=True):
            yield {
                **start, "check": "gradient", "quantity": f"mean_loss_along_{direction}", "epsilon": distance,
                "value": float(losses.mean()),
            }  # fmt: skip


def read_sanity(path: Path) -> DataFrame:
    """Return a ``sanity.csv``, numbers as numbers; empty cells are missing (texts: empty).

    Raises
    ------
    UserError
        The file cannot be read, is empty, lacks a column, or was written with other rules.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8").map(unescaped)
    except (OSError, ValueError) as problem:  # parser errors are ValueErrors
        raise UserError(f"cannot read {path}: {' '.join(str(problem).split())}") from problem
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise UserError(f"{path} is no {SANITY_FILE}: it lacks {', '.join(missing)}; repeat scripts/sanity.py")
    for name in ("run_id", "dataset", "model", "method"):
        for value in table[name].unique():
            readback.checked(
                value, readback.text(), source=f"{path}, column {name!r}", remedy="repeat scripts/sanity.py"
            )
    for name in ("seed", "num_images", "epsilon", "class_id", "value", "threshold"):
        try:
            table[name] = table[name].replace("", "nan").astype(float)
        except ValueError as problem:
            raise UserError(f"{path}, column {name!r}: {problem}") from problem
    found = table[table["rule"] != ""]
    held = list(zip(found["check"], found["quantity"], found["rule"], found["threshold"], strict=True))
    if held != [(rule.check, rule.quantity, rule.relation, rule.threshold) for rule in RULES]:
        raise UserError(f"{path} was written with other checks or thresholds: repeat scripts/sanity.py")
    return table


def verdicts(table: DataFrame) -> list[tuple[Rule, float | None, bool | None]]:
    """Return each rule with its number and whether it passes; None for a check that was not run."""
    found = table[table["rule"] != ""]
    values = [None if pd.isna(value) else float(value) for value in found["value"]]
    return [
        (rule, value, None if value is None else rule.passes(value)) for rule, value in zip(RULES, values, strict=True)
    ]


def failed(table: DataFrame) -> list[Rule]:
    """Return the rules that the model does not meet."""
    return [rule for rule, _, passes in verdicts(table) if passes is False]


def table_text(table: DataFrame) -> str:
    """Return the checks as text for people."""
    first = table.iloc[0]
    attack = table.loc[(table["check"] == "epsilon_sweep") & (table["attack"] != ""), "attack"].iloc[0]
    epsilon = table.loc[(table["check"] == "more_steps") & (table["rule"] != ""), "epsilon"].iloc[0]
    results = verdicts(table)
    said = {True: "passes", False: "FAILS", None: "not run"}
    columns = [
        ["check", *(f"{rule.check}: {rule.text}" for rule, _, _ in results)],
        ["measured", *("-" if value is None else rule.shown(value) for rule, value, _ in results)],
        ["allowed", *(rule.allowed for rule, _, _ in results)],
        ["", *(said[passes] for _, _, passes in results)],
    ]
    lines = [
        f"{first['run_id']}: sanity checks on {first['num_images']:.0f} test images, {attack.upper()} at "
        f"{format_epsilon(epsilon)} unless another radius is named",
        aligned(columns),
    ]
    if any(passes is None for _, _, passes in results):
        lines.append("transfer was not run: give other=FILE, a checkpoint trained with another seed")
    return "\n".join(lines) + "\n"
