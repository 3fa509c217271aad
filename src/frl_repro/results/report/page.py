"""The page, one HTML file: no network, opens from disk; claims first, then experiments, runs and deviations."""

from __future__ import annotations

import html
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markdown_it import MarkdownIt
from markupsafe import Markup

from frl_repro.basics.radii import format_epsilon
from frl_repro.results import DEFAULT_TOP
from frl_repro.results.figures.style import drawing
from frl_repro.results.registration import ADVERSARIAL, BASE, EQUAL, EQUAL_MARGINS, NATURAL, is_of_bench
from frl_repro.results.report.questions import CHOSEN, COMBINED_51, REWEIGHT_51
from frl_repro.results.tables import statistics
from frl_repro.results.tables.reading import find_tables, read_json
from frl_repro.results.tables.subsets import overall
from frl_repro.results.tables.text_tables import is_worst, worst_and_best

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from frl_repro.results.report.answers_page import Section
    from frl_repro.results.report.study import Study
    from frl_repro.results.report.theory import TheorySection

_TABLES_OF = {
    "1": ("Classes, natural beside adversarial training", (NATURAL, ADVERSARIAL)),
    "2": ("Classes, before and after reweight, and its control", (BASE, EQUAL, REWEIGHT_51, CHOSEN["reweight"])),
    "3": ("Classes, before and after remargin, and its control", (BASE, EQUAL_MARGINS, CHOSEN["remargin"])),
    "4": ("Classes, before and after both together", (BASE, COMBINED_51, CHOSEN["combined"])),
}
"""Figure to the class table beneath it: its caption and its models."""

_QUANTITIES = ("natural", "robust")


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes
    ----------
    name, title : str
    svg : str
        An SVG document.
    alt : str
        What a reader who does not see it should know: what it shows, and the numbers.
    note : str
        What to say beneath it.
    """

    name: str
    title: str
    svg: str
    alt: str
    note: str = ""

    @property
    def markup(self) -> Markup:
        """The image as an element."""
        return Markup(_inline(self.svg, self.name, self.alt))


@dataclass(frozen=True)
class Grid:
    """A table on the page: header, rows of cells, of which some are marked as worst.

    ``tags``, one mapping a row where there are any, is what a page's filters choose rows by.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    footer: Sequence[Cell] = field(default_factory=list)
    tags: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Cell:
    """Text, what it sorts by, whether it is its column's worst, where it leads, and whether it is prose."""

    text: str
    key: str = ""
    is_worst: bool = False
    href: str = ""
    is_text: bool = False


def template(name: str) -> Template:
    """Return a page's template; every text that it shows is escaped."""
    environment = Environment(
        loader=PackageLoader("frl_repro.results.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def svg_of(figure: Figure) -> str:
    """Return a figure as an SVG document; equal figures give equal text."""
    buffer = io.StringIO()
    with drawing(figure):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def render(
    study: Study,
    section: Section | None,
    pictures: Sequence[Picture],
    *,
    all_rows: DataFrame,
    settings: Grid,
    checks: Sequence[Grid],
    runs: str | Path,
    deviations: str,
    theory: TheorySection | None = None,
    top: int = DEFAULT_TOP,
) -> str:
    """Return the page.

    Parameters
    ----------
    study : Study
        The runs, by the part they play.
    section : Section or None
        The answers; None where no run plays a part.
    pictures : sequence of Picture
        In the order of the page.
    all_rows : DataFrame
        Every row of ``classwise.csv``, for the account of the runs.
    settings : Grid
        Every setting with its errors, from `settings_grid`.
    checks : sequence of Grid
        Further tables: sanity checks, AutoAttack.
    runs : str or Path
        Where the tables were read from; ``run.json`` is looked for beside them.
    deviations : str
        Markdown text on where the published code departs from its text; may be empty.
    theory : TheorySection, optional
        The runs on Gaussian mixtures.
    top : int
        Of many classes, how many of the worst and of the best are shown.
    """
    first = all_rows.iloc[0]
    return template("page.html.j2").render(
        dataset=first["dataset"],
        model=first["model"],
        attack=study.attack.upper(),
        epsilon=format_epsilon(study.epsilon),
        section=section,
        theory=theory,
        pictures=pictures,
        class_tables={name: class_grid(study, *_TABLES_OF[name], top=top) for name in _TABLES_OF},
        settings=settings,
        checks=checks,
        runs=_runs(runs),
        deviations=_rendered(deviations),
    )


def alt_text(title: str, numbers: DataFrame) -> str:
    """Return a figure's numbers as a sentence for each row: what a screen reader says of it."""
    sentences = []
    for row in numbers.to_dict("records"):
        said = [value for value in row.values() if not pd.isna(value) and value != ""]
        sentences.append(", ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in said))
    columns = ", ".join(str(name).replace("_", " ") for name in numbers.columns)
    return f"{title}. Columns: {columns}. {'; '.join(sentences)}."


def class_grid(study: Study, caption: str, roles: Sequence[str], *, top: int = DEFAULT_TOP) -> Grid | None:
    """Return errors by class of several models, in percent, mean and deviation over seeds; None without any of them.

    Of many classes ``top`` of the worst and of the best are shown, by the last column, and the others' mean.
    """
    # Where one setting is all that there is of a method, it plays two roles: the first is shown.
    settings = {study.settings[role]: role for role in reversed(roles) if role in study.settings}
    roles = list(reversed(settings.values()))
    if not roles:
        return None
    columns = [(role, quantity, study.at_main_radius(role)) for role in roles for quantity in _QUANTITIES]
    rows: list[list[Cell]] = [[Cell(name, name)] for name in study.class_names]
    footer = [Cell("all classes")]
    for _, quantity, part in columns:
        by_class = part.groupby("class_id")[f"{quantity}_error"]
        means = by_class.mean()
        marks = is_worst(means.tolist())
        for class_id, cells in enumerate(rows):
            cells.append(_percent_cell(by_class.get_group(class_id), is_worst=marks[class_id]))
        footer.append(_percent_cell(overall(part)[f"overall_{quantity}_error"], is_worst=False))
    ends = worst_and_best(means.tolist(), top)
    if ends is not None:
        between = sorted(set(range(len(rows))) - {*ends[0], *ends[1]})
        middle = [Cell(f"({len(between)} between, mean)")]
        for _, quantity, part in columns:
            of_them = part[part["class_id"].isin(between)]
            middle.append(_percent_cell(of_them.groupby("seed")[f"{quantity}_error"].mean(), is_worst=False))
        rows = [*(rows[place] for place in ends[0]), middle, *(rows[place] for place in ends[1])]
        caption += f", {top} worst and {top} best of {len(study.class_names)} by the last column"
    header = ["class", *(f"{role}: {quantity}" for role, quantity, _ in columns)]
    models = "; ".join(_played_by(study, role) for role in roles)
    attack = f"{study.attack.upper()} at {format_epsilon(study.epsilon)}"
    return Grid(f"{caption}. Errors in percent, test split, {attack}, mean ± sd ({models})", header, rows, footer)


def _played_by(study: Study, role: str) -> str:
    """``equal weights = finetune, 10 seeds``; settings among which seeds choose say their numbers of seeds."""
    setting = study.settings[role]
    name = role if setting == role else f"{role} = {setting}"
    return name if setting.endswith(("seed)", "seeds)")) else f"{name}, {len(study.seeds([role]))} seeds"


def settings_grid(
    by_setting: DataFrame,
    names: Sequence[str],
    class_errors: Sequence[Sequence[float]],
    *,
    baseline: Sequence[float] | None,
    num_images: int,
) -> Grid:
    """Return every setting's overall and worst-class errors, NSD and rho.

    Parameters
    ----------
    by_setting
        From `selection.by_setting`.
    names
        Each setting as people write it.
    class_errors
        Each setting's mean robust error of the K classes.
    baseline
        Those that rho compares with; None where there are none.
    num_images
        Test images of a class, for the worst class that equal classes would show.
    """
    rows = []
    for name, errors, (_, row) in zip(names, class_errors, by_setting.iterrows(), strict=True):
        cells = [Cell(name, name), Cell(str(row["num_seeds"]), str(row["num_seeds"]))]
        for which in ("overall", "worst_class"):
            for quantity in _QUANTITIES:
                mean, sd = row[f"{which}_{quantity}_error"], row[f"{which}_{quantity}_error_sd"]
                cells.append(_mean_sd_cell(float(mean), float(sd), is_worst=False))
        if_equal = statistics.expected_maximum(float(row["overall_robust_error"]), num_images, len(errors))
        cells.append(_mean_sd_cell(if_equal, float("nan"), is_worst=False))
        cells.append(_number_cell(statistics.normalised_deviation(errors)))
        if baseline is None or max(baseline) >= 1:
            cells.append(Cell("-"))
        else:
            cells.append(_number_cell(statistics.rho(errors, baseline)))
        rows.append(cells)
    errors_of = [f"{quantity}, {which}" for which in ("all", "worst class") for quantity in _QUANTITIES]
    caption = (
        "Every setting on the test split: errors in percent, mean ± sd over seeds. If equal: the largest class error "
        "that as many images would show on average were all classes alike (bias of a maximum). "
        "NSD: deviation of robust accuracy over classes by its mean. "
        "rho: relative gain of the worst class's robust accuracy less the relative loss of the mean, "
        "against the base model"
    )
    return Grid(caption, ["setting", "seeds", *errors_of, "robust, worst class if equal", "NSD", "rho"], rows)


def _percent_cell(values: Iterable[float], *, is_worst: bool) -> Cell:
    numbers = np.asarray(list(values), dtype=np.float64)
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else float("nan")
    return _mean_sd_cell(float(numbers.mean()), deviation, is_worst=is_worst)


def _mean_sd_cell(mean: float, deviation: float, *, is_worst: bool) -> Cell:
    text = f"{100 * mean:.1f}" + ("" if np.isnan(deviation) else f" ± {100 * deviation:.1f}")
    return Cell(text, f"{mean:.6f}", is_worst)


def _number_cell(value: float) -> Cell:
    return Cell(_minus(f"{value:.2f}"), f"{value:.6f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _runs(runs: str | Path) -> list[dict[str, Any]]:
    """Return the runs behind the page by their settings: those that differ in the seed alone share one record."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for table in find_tables(runs):
        path = table.with_name("run.json")
        if path.exists() and not is_of_bench(table):  # the bench has a page of its own
            run = {"run_id": table.parent.name, **read_json(path)}
            groups.setdefault(json.dumps(_without_seed(run), sort_keys=True), []).append(run)
    found = []
    for same in groups.values():
        seeds = [(run.get("config") or {}).get("seed") for run in same]
        settings = {**_without_seed(same[0]), "seed": seeds if len(seeds) > 1 else seeds[0]}
        found.append({
            "name": re.sub(r"-seed\d+-[0-9a-f]+$", "", same[0]["run_id"]) if len(same) > 1 else same[0]["run_id"],
            "number": len(same),
            "runs": [_provenance(run) for run in same],
            "json": json.dumps(settings, indent=1, sort_keys=True),
        })  # fmt: skip
    return found


def _without_seed(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run but its seed, also where the data split follows it."""
    config = {**(run.get("config") or {})}
    seed, dataset = config.pop("seed", None), config.get("dataset")
    if isinstance(dataset, dict) and "split_seed" in dataset and dataset["split_seed"] == seed:
        config["dataset"] = {**dataset, "split_seed": "seed"}
    return config


def _provenance(run: Mapping[str, Any]) -> dict[str, str]:
    commit = run.get("git_commit") or ""
    return {
        "run_id": run["run_id"],
        "command": run.get("command", ""),
        "commit": commit[:10] + ("+" if run.get("git_dirty") else ""),
        "device": run.get("device", ""),
        "backend": run.get("backend", ""),
        "torch": run.get("versions", {}).get("torch", ""),
        "minutes": f"{run.get('wall_seconds', 0) / 60:.0f}",
    }


def _rendered(markdown: str) -> Markup:
    """Markdown as HTML, one heading level down; links to other files become plain text: the page stands alone."""
    text = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    text = re.sub(r'<a href="(?!https?:|#)[^"]*">(.*?)</a>', r"\1", text, flags=re.DOTALL)
    text = re.sub(r"<(/?)h([1-4])>", lambda match: f"<{match[1]}h{int(match[2]) + 1}>", text)
    return Markup(
        text.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    )


_PAGE_COLOURS = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#0072b2": "var(--series)"}
"""What a figure's lines, background and darkest series are on a page, so that they follow dark mode."""


def _inline(svg: str, name: str, alt: str) -> str:
    """An SVG document as an element of the page: ids made unique, size left to the style sheet, text for readers."""
    body = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W", "", name)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}-\2"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    opening = body[: body.index(">") + 1]
    width = re.search(r'width="([\d.]+)pt"', opening)
    sized = re.sub(r' (width|height)="[^"]*"', "", opening)
    for colour, variable in _PAGE_COLOURS.items():
        body, opening, sized = (text.replace(colour, variable) for text in (body, opening, sized))
    style = f' style="max-width:{float(width[1]) * 1.9:.0f}px"' if width else ""
    label = html.escape(alt, quote=True)
    return body.replace(opening, f'{sized[:-1]} role="img" aria-label="{label}"{style}>', 1)
