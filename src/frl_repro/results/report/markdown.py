"""Tables of the documentation, written from result tables between marks, so that no number is typed by hand.

A page holds ``<!-- table: NAME -->`` and ``<!-- end -->``; what stands between them is made by the entry of `TABLES`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from frl_repro.basics.errors import UserError
from frl_repro.results.tables import statistics
from frl_repro.results.tables.subsets import overall, select_epsilon, select_last_epoch, select_split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pandas import DataFrame

    from frl_repro.results.report.claims import Finding

_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_LOW, _HIGH = 8 / 255, 16 / 255
_HARD = "Shirt"  # the worst class of the published study; the tables' texts speak of it
_QUANTITIES = ("natural", "robust")

NO_ALPHAS: Mapping[str, float] = MappingProxyType({})
_REWEIGHT = MappingProxyType({"nat": 5.0, "bndy": 1.0})  # the report's best


def rewrite(page: Path, tables: dict[str, Callable[[], str]]) -> str:
    """Return a page with every marked table made anew.

    Raises
    ------
    UserError
        A mark names a table that does not exist, or an opening mark has no end.
    """
    text = page.read_text(encoding="utf-8")
    if text.count("<!-- table: ") != len(_BLOCK.findall(text)):
        raise UserError(f"{page}: a mark <!-- table: NAME --> has no <!-- end -->")

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise UserError(f"{page}: no table is called {name!r}; known: {', '.join(tables)}")
        return f"{match[1]}{tables[name]()}{match[3]}"

    return _BLOCK.sub(made, text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with a blank line on either side."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "\n"


@dataclass(frozen=True, eq=False)
class Model:
    """One setting's test errors over seeds.

    Attributes
    ----------
    rows : DataFrame
        Rows of ``classwise.csv`` of one epoch (before retraining, or the last).
    """

    rows: DataFrame

    def of(self, quantity: str, epsilon: float, class_name: str | None = None) -> list[float]:
        """Error of a class, or over all images, one number a seed in their order."""
        rows = select_epsilon(self.rows, epsilon)
        if class_name is None:
            return [float(v) for v in overall(rows).sort_values("seed")[f"overall_{quantity}_error"]]
        return [float(v) for v in rows[rows["class_name"] == class_name].sort_values("seed")[f"{quantity}_error"]]

    @property
    def seeds(self) -> list[int]:
        """Its seeds, sorted."""
        return sorted(int(seed) for seed in self.rows["seed"].unique())


def find_model(
    df: DataFrame, method: str, alphas: Mapping[str, float] = NO_ALPHAS, *, when: str = "after", seed: int | None = None
) -> Model:
    """Return the runs of a method with these alphas (``{"nat": 5}``), before or after retraining, of all seeds or one.

    Raises
    ------
    UserError
        There is none.
    """
    rows = select_split(df[df["method"] == method], "test")
    for name, value in alphas.items():
        rows = rows[rows[f"alpha_{name}"] == value]
    if seed is not None:
        rows = rows[rows["seed"] == seed]
    rows = rows[rows["epoch"] == 0] if when == "before" else select_last_epoch(rows)
    if rows.empty:
        wanted = ", ".join(f"alpha.{name}={value:g}" for name, value in alphas.items())
        raise UserError(f"a table of the documentation needs {method} {wanted}, which the tables lack")
    return Model(rows)


def share(value: float) -> str:
    """An error as ``.483``."""
    return f"{value:.3f}" if value >= 0.9995 else f"{value:.3f}".removeprefix("0")


def mean_and_seeds(values: Sequence[float]) -> str:
    """``**.483** (.475, .490)``."""
    singles = f" ({', '.join(map(share, values))})" if len(values) > 1 else ""
    return f"**{share(float(np.mean(values)))}**{singles}"


def percent(value: float) -> str:
    """A relative change as ``-25 %``."""
    return f"{100 * value:+.0f} %"


def points(interval: statistics.Interval) -> str:
    """``-2.4 [-3.8, -1.0]``, in points."""
    # Adding 0 turns the -0.0 of a rounded small number into 0.0.
    estimate, low, high = (round(100 * value, 1) + 0 for value in (interval.estimate, interval.low, interval.high))
    return f"{estimate:+.1f} [{low:.1f}, {high:.1f}]"


def experiment1(df: DataFrame) -> str:
    """Experiment 1 beside the report's numbers."""
    natural, adversarial = find_model(df, "natural"), find_model(df, "adversarial")

    def accuracy(model: Model) -> str:
        values = [1 - error for error in model.of("natural", _HIGH)]
        return f"**{100 * np.mean(values):.2f} %** ({', '.join(f'{100 * value:.2f}' for value in values)})"

    both = (("natural training", natural), ("adversarial training", adversarial))
    published = {"natural training": ("88.44 %", ".32", "1.0"), "adversarial training": ("86.68 %", ".44", ".89")}
    rows = [[f"{name}: test accuracy", published[name][0], accuracy(model)] for name, model in both]
    for name, model in both:
        clean, attacked = (model.of(quantity, _HIGH, _HARD) for quantity in ("natural", "robust"))
        rows.append([f'{name}: natural error of "{_HARD}"', published[name][1], mean_and_seeds(clean)])
        rows.append([f'{name}: robust error of "{_HARD}" at 16/255', published[name][2], mean_and_seeds(attacked)])
    for radius, label in ((_HIGH, "16/255"), (_LOW, "8/255")):
        for name, model in both:
            rows.append([f"{name}: overall robust error at {label}", "-", mean_and_seeds(model.of("robust", radius))])
    return table(["", "report", f"ours (seeds {', '.join(map(str, natural.seeds))})"], rows)


def experiment2(df: DataFrame) -> str:
    """Reweight at 5:1 before and after, beside the report's numbers."""
    before = find_model(df, "reweight", _REWEIGHT, when="before")
    after = find_model(df, "reweight", _REWEIGHT)
    published = {
        ("natural", _HIGH): (".44", ".33 (-25 %)"),
        ("robust", _HIGH): (".89", ".755 (-15 %; the text says -11 %)"),
    }
    rows = []
    for quantity, radius, label in (
        ("natural", _HIGH, "natural error"),
        ("robust", _HIGH, "robust error at 16/255"),
        ("robust", _LOW, "robust error at 8/255"),
    ):
        old, new = before.of(quantity, radius, _HARD), after.of(quantity, radius, _HARD)
        changes = [b / a - 1 for a, b in zip(old, new, strict=True)]
        mean = np.mean(new) / np.mean(old) - 1
        singles = ", ".join(f"{100 * change:.0f}" for change in changes)
        cells = [label, *published.get((quantity, radius), ("-", "-")), mean_and_seeds(old), mean_and_seeds(new)]
        rows.append([*cells, f"**{percent(float(mean))}** ({singles})"])
    for quantity, radius, label in (
        ("natural", _HIGH, "natural error"),
        ("robust", _HIGH, "robust error at 16/255"),
        ("robust", _LOW, "robust error at 8/255"),
    ):
        means = [float(np.mean(model.of(quantity, radius))) for model in (before, after)]
        cells = [f"all classes: {label}", "-", "-", *(f"**{share(mean)}**" for mean in means)]
        rows.append([*cells, f"{100 * (means[1] - means[0]):+.1f} points"])
    header = [
        f'"{_HARD}", the worst class before and after',
        "report, before",
        "after 5:1",
        "ours, before",
        "after 5:1",
    ]
    return table([*header, "change"], rows)


def other_alphas(df: DataFrame) -> str:
    """Reweight at several alphas on seed 0."""
    published = {(1.0, 1.0): (".45", ".83"), (5.0, 1.0): (".33", ".755")}
    base = find_model(df, "reweight", _REWEIGHT, when="before", seed=0)
    models = [("base", (".44", ".89"), base)]
    settings = df[df["method"] == "reweight"].drop_duplicates(["alpha_nat", "alpha_bndy"])
    for nat, bndy in sorted(zip(settings["alpha_nat"], settings["alpha_bndy"], strict=True)):
        model = find_model(df, "reweight", {"nat": nat, "bndy": bndy}, seed=0)
        models.append((f"{nat:g}:{bndy:g}", published.get((nat, bndy), ("", "")), model))
    best = {quantity: min(model.of(quantity, _HIGH, _HARD)[0] for _, _, model in models) for quantity in _QUANTITIES}
    rows = []
    for name, report, model in models:
        cells = [name]
        for quantity, said in zip(_QUANTITIES, report, strict=True):
            (value,) = model.of(quantity, _HIGH, _HARD)
            text = f"**{share(value)}**" if value == best[quantity] else share(value)
            cells.append(f"{text} ({said})" if said else text)
        rows.append([*cells, *(share(model.of(quantity, _HIGH)[0]) for quantity in _QUANTITIES)])
    header = ["alpha.nat : alpha.bndy", f'"{_HARD}" natural (report)', f'"{_HARD}" robust (report)']
    return table([*header, "all natural", "all robust"], rows)


def control(df: DataFrame) -> str:
    """Reweight beside its control and the base on seed 0."""
    models = (
        find_model(df, "reweight", _REWEIGHT, when="before", seed=0),
        find_model(df, "finetune", seed=0),
        find_model(df, "reweight", _REWEIGHT, seed=0),
    )
    rows = []
    for class_name, quantity in (
        (_HARD, "natural"), (_HARD, "robust"), (None, "natural"), (None, "robust"),
        ("T-shirt/top", "robust"), ("Pullover", "natural"),
    ):  # fmt: skip
        whose = "all classes" if class_name is None else f'"{class_name}"'
        values = [model.of(quantity, _HIGH, class_name)[0] for model in models]
        rows.append([f"{whose}: {quantity} error", *map(share, values)])
    return table(["", "base", "control", "reweight 5:1"], rows)


def experiments3and4(df: DataFrame, policy: DataFrame) -> str:
    """Remargin, combined and what they are compared with."""
    settings: list[tuple[str, str, str, Mapping[str, float]]] = [
        ("base", "reweight", "before", _REWEIGHT),
        ("control, `alpha.margin=0`", "remargin", "after", {"margin": 0}),
        ("remargin, `alpha.margin=1`", "remargin", "after", {"margin": 1}),
        ("remargin, `alpha.margin=5`", "remargin", "after", {"margin": 5}),
        ("reweight 5:1 (Experiment 2)", "reweight", "after", _REWEIGHT),
        ("combined, `alpha.margin=1`", "combined", "after", {"margin": 1}),
        ("combined, `alpha.margin=5`", "combined", "after", {"margin": 5}),
    ]
    rows = []
    for name, method, when, alphas in settings:
        model = find_model(df, method, alphas, when=when)
        errors = [np.mean(model.of(quantity, _HIGH, of)) for of in (_HARD, None) for quantity in _QUANTITIES]
        margin = "16/255" if method == "reweight" and when == "after" else "-"
        if "margin" in alphas:
            of_class = policy[policy["run_id"].isin(set(model.rows["run_id"])) & (policy["class_name"] == _HARD)]
            last = of_class[of_class["epoch"] == of_class.groupby("run_id")["epoch"].transform("max")]
            margin = f"{255 * last['margin'].mean():.1f}/255"
        rows.append([name, ", ".join(map(str, model.seeds)), *(share(float(e)) for e in errors), margin])
    header = ["", "seeds", f'"{_HARD}" natural', f'"{_HARD}" robust', "all natural", "all robust"]
    return table([*header, f'margin of "{_HARD}" at the end'], rows)


def differences(df: DataFrame) -> str:
    """Differences between methods over seeds, with Student's intervals."""
    base = find_model(df, "reweight", _REWEIGHT, when="before")
    models = {
        "base": base,
        "its control": find_model(df, "remargin", {"margin": 0}),
        "remargin": find_model(df, "remargin", {"margin": 5}),
        "reweight": find_model(df, "reweight", _REWEIGHT),
        "combined": find_model(df, "combined", {"margin": 5}),
    }
    pairs = [
        ("remargin", "base"), ("remargin", "its control"), ("its control", "base"), ("combined", "base"),
        ("combined", "reweight"), ("combined", "remargin"),
    ]  # fmt: skip
    rows = []
    for after, before in pairs:
        cells = []
        for class_name in (_HARD, None):
            for quantity in _QUANTITIES:
                old, new = (models[name].of(quantity, _HIGH, class_name) for name in (before, after))
                cells.append(points(statistics.over_seeds([b - a for a, b in zip(old, new, strict=True)])))
        rows.append([f"{after} against {before}".replace("its control against", "the control against"), *cells])
    return table(["", f'"{_HARD}" natural', f'"{_HARD}" robust', "all natural", "all robust"], rows)


def card(df: DataFrame, method: str, alphas: Mapping[str, float] = NO_ALPHAS, *, when: str = "after") -> str:
    """A model card's errors: by class, mean and deviation over seeds; parameters as for `find_model`."""
    model = find_model(df, method, alphas, when=when)
    names = [str(n) for n in model.rows.drop_duplicates("class_id").sort_values("class_id")["class_name"]]
    columns = (("natural", _HIGH), ("robust", _LOW), ("robust", _HIGH))

    def cells(class_name: str | None) -> list[str]:
        every = [model.of(quantity, radius, class_name) for quantity, radius in columns]
        return [f"{100 * np.mean(v):.1f}" + (f" ± {100 * np.std(v, ddof=1):.1f}" if len(v) > 1 else "") for v in every]

    rows = [[name, *cells(name)] for name in names] + [["**all classes**", *cells(None)]]
    seeds = f"mean ± sd over seeds {', '.join(map(str, model.seeds))}"
    return table([f"test error in percent, {seeds}", "natural", "robust at 8/255", "robust at 16/255"], rows)


def verdicts(findings: Sequence[Finding]) -> str:
    """The claims with their verdicts and evidence."""
    rows = []
    for finding in findings:
        first = [f"{finding.claim.number}. {finding.claim.text}", f"**{finding.verdict}**"]
        if finding.missing:
            rows.append([*first, f"no runs of {', '.join(finding.missing)}", "", ""])
        for place, one in enumerate(finding.evidence):
            images = "-" if one.over_images is None else _in_unit(one.over_images, one.criterion.unit)
            label = f'{one.criterion.text} ("{one.class_name}")'
            rows.append(
                [*(first if place == 0 else ["", ""]), label, _in_unit(one.over_seeds, one.criterion.unit), images]
            )
    return table(["claim", "verdict", "criterion", "mean over seeds [95 %]", "over test images [95 %]"], rows)


def _in_unit(interval: statistics.Interval, unit: str) -> str:
    return f"{points(interval)} {'points' if unit == 'points' else '%'}"


def all_tables(df: DataFrame, policy: DataFrame, findings: Sequence[Finding]) -> dict[str, Callable[[], str]]:
    """Every table of the documentation by name, made when it is called."""
    makers: dict[str, tuple[Callable[..., str], tuple[Any, ...]]] = {
        "experiment1": (experiment1, (df,)),
        "experiment2": (experiment2, (df,)),
        "other-alphas": (other_alphas, (df,)),
        "control": (control, (df,)),
        "experiments3and4": (experiments3and4, (df, policy)),
        "differences": (differences, (df,)),
        "claims": (verdicts, (findings,)),
    }
    models: dict[str, tuple[str, Mapping[str, float], str]] = {
        "natural": ("natural", NO_ALPHAS, "after"),
        "adversarial": ("adversarial", NO_ALPHAS, "after"),
        "base": ("reweight", _REWEIGHT, "before"),
        "reweight": ("reweight", _REWEIGHT, "after"),
        "remargin": ("remargin", {"margin": 5}, "after"),
        "combined": ("combined", {"margin": 5}, "after"),
    }
    tables: dict[str, Callable[[], str]] = {}
    for name, (make, given) in makers.items():
        tables[name] = functools.partial(make, *given)
    for name, (method, alphas, when) in models.items():
        tables[f"model-{name}"] = functools.partial(card, df, method, alphas, when=when)
    return tables
