"""Tables of Markdown pages, written from result tables between marks, so that no number is typed by hand.

A page holds ``<!-- table: NAME -->`` and ``<!-- end -->``; `documentation.tables` makes what stands between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from frl_repro.basics.errors import UserError
from frl_repro.results.tables.subsets import overall, select_epsilon, select_last_epoch, select_split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pandas import DataFrame


_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_LOW, _HIGH = 8 / 255, 16 / 255

NO_ALPHAS: Mapping[str, float] = MappingProxyType({})


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


def mean_sd(values: NDArray[np.float64]) -> str:
    """``48.1 ± 1.2``, of shares in percent; the mean alone of a single one."""
    deviation = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{deviation}"


def card(df: DataFrame, method: str, alphas: Mapping[str, float] = NO_ALPHAS, *, when: str = "after") -> str:
    """A model card's errors: by class, mean and deviation over seeds; parameters as for `find_model`."""
    model = find_model(df, method, alphas, when=when)
    names = [str(n) for n in model.rows.drop_duplicates("class_id").sort_values("class_id")["class_name"]]
    columns = (("natural", _HIGH), ("robust", _LOW), ("robust", _HIGH))

    def cells(class_name: str | None) -> list[str]:
        return [mean_sd(np.array(model.of(quantity, radius, class_name))) for quantity, radius in columns]

    rows = [[name, *cells(name)] for name in names] + [["**all classes**", *cells(None)]]
    seeds = f"mean ± sd over seeds {', '.join(map(str, model.seeds))}"
    return table([f"test error in percent, {seeds}", "natural", "robust at 8/255", "robust at 16/255"], rows)
