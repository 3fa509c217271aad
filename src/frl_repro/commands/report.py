"""``scripts/report.py``: answers to the study's questions, figures, documentation's tables and the page, from tables.

pandas and matplotlib are imported where they are needed, so that help answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from frl_repro.basics.errors import UserError
from frl_repro.basics.paths import in_home
from frl_repro.commands.helptext import program_name
from frl_repro.commands.keyvalue import (
    ATTACK_HELP,
    EPSILON_HELP,
    TOP_HELP,
    WHERE_HELP,
    parse_epsilon,
    run,
    switch,
    usage_text,
    whole_number,
)
from frl_repro.results.protocol import AUTOATTACK_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pandas import DataFrame

    from frl_repro.results.report.answers_page import Section
    from frl_repro.results.report.page import Grid, Picture
    from frl_repro.results.report.registered import RegisteredStudy
    from frl_repro.results.report.study import Study
    from frl_repro.results.report.theory import TheorySection
    from frl_repro.results.report.verdicts import Answer

_DEFAULT_RUNS, _DEFAULT_OUT = "outputs", "outputs/report"

_KEYS = {
    "runs": f"folder of finished runs (searched recursively), or a comma-separated list of them   [{_DEFAULT_RUNS}]",
    "epsilon": EPSILON_HELP,
    "attack": ATTACK_HELP,
    "where": f"{WHERE_HELP}, for example model=lenet5   [all]",
    "top": TOP_HELP,
    "out": f"folder for report.html, verdicts.csv and figures   [{_DEFAULT_OUT}]",
    "figures": "false leaves figure files as they are; the page has its figures either way   [true]",
    "docs": "comma-separated Markdown pages, or folders of them, whose marked tables are made anew   [none]",
}


@dataclass(frozen=True)
class _Place:
    """A figure of the page: what it is drawn from, where its files go, how the page calls it.

    ``of_registered`` narrows the registered study's runs further; None leaves the figure out there.
    """

    figure: str
    folder: str
    title: str
    where: str = ""
    of_registered: str | None = ""


_REPORTS_BEST = "alpha_nat=5,alpha_bndy=1"

_FIGURES = (
    _Place("1", "exp1", "Experiment 1: natural against adversarial training"),
    _Place("2", "exp2", "Experiment 2: reweight", of_registered=_REPORTS_BEST),
    _Place(
        "trajectory", "exp2", "How reweight steers: class weights over the epochs", "method=reweight", _REPORTS_BEST
    ),
    _Place("grid", "exp2", "Reweight over the alphas", "method=reweight", None),
    _Place("3", "exp3", "Experiment 3: remargin", of_registered="alpha_margin=5"),
    _Place("4", "exp4", "Experiment 4: reweight and remargin combined", of_registered=_REPORTS_BEST),
    _Place("settings", "controls", "Every setting, mean over seeds", "recipe=report"),
    _Place("tradeoff", "exp4", "Average against worst-class robust accuracy, one point a run"),
)

_OF_OTHER_METHODS = (
    _Place("settings", "", "Every setting"),
    _Place("trajectory", "", "How a method steers: class weights and radii over the epochs"),
    _Place("tradeoff", "", "Average against worst-class robust accuracy, one point a run"),
)
"""Figures of runs that play no part in the questions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page that ``argv`` (default: the command line) asks for; returns the exit code.

    A mistake of the user or of the file system is one line on stderr and exit code 1.
    """
    return run(argv, keys=_KEYS, usage=_usage, act=_report)


def _report(given: dict[str, str]) -> str:
    from frl_repro.basics.atomic import write_text
    from frl_repro.results import DEFAULT_TOP
    from frl_repro.results.figures.style import save
    from frl_repro.results.report import answers_page, documentation
    from frl_repro.results.report.autoattack import autoattack_grids
    from frl_repro.results.report.page import render
    from frl_repro.results.report.registered import load_registered
    from frl_repro.results.report.sanity import sanity_grids, sanity_pictures, sanity_table
    from frl_repro.results.report.study import load_study, study_rows
    from frl_repro.results.tables.reading import find_tables
    from frl_repro.results.tables.sanity_rules import SANITY_FILE
    from frl_repro.results.tables.writing import write_table

    runs, where = given.get("runs", _DEFAULT_RUNS), given.get("where", "")
    out = Path(in_home(given.get("out", _DEFAULT_OUT)))
    draws_files = switch("figures", given.get("figures", "true").lower())
    docs = _pages(given.get("docs", ""))
    epsilon = parse_epsilon(given["epsilon"]) if "epsilon" in given else None
    top = whole_number("top", given["top"]) if "top" in given else DEFAULT_TOP
    study = load_study(runs, epsilon=epsilon, attack=given.get("attack"), where=where)
    df, _ = study_rows(runs, where)
    found = find_tables(runs)
    policy = _policy_rows(runs, df)
    registered = load_registered(runs)
    places = _places(study, is_registered=registered is not None)
    pictures, written = _pictures(places, df, policy, study, out if draws_files else None, top=top)
    shown, files_of_shown = _examples(runs, study, out if draws_files else None)
    pictures, written = pictures + shown, written + files_of_shown
    sanity_files = _found(runs, SANITY_FILE)
    answers = study.judge() if registered is None else registered.judge()
    section = _section(runs, study, registered, answers)
    theory = _theory(runs, out, draws_files=draws_files)
    page = render(
        study,
        section,
        [*pictures, *sanity_pictures(sanity_files)],
        all_rows=df,
        settings=_settings(df, study),
        checks=[*autoattack_grids(runs, study), *sanity_grids(sanity_files)],
        runs=runs,
        deviations=_deviations(docs),
        theory=None if theory is None else theory.section,
        top=top,
    )
    write_text(out / "report.html", page)
    written.append(out / "report.html")
    if answers:
        write_table(out / "verdicts.csv", answers_page.verdict_rows(answers), answers_page.VERDICT_COLUMNS)
        written.append(out / "verdicts.csv")
    if draws_files and (forest := answers_page.forest(answers)) is not None:
        written += save(forest, out / "figures", "forest")
    written += [] if theory is None else theory.written
    tables = documentation.tables(runs, registered, answers)
    tables["sanity"] = lambda: sanity_table(sanity_files)
    tables["theory"] = lambda: "\nNo runs.\n\n" if theory is None else theory.table
    written += _bench_and_docs(runs, out, docs, tables, draws_files=draws_files)
    said = [answers_page.said(answers), *([] if theory is None else [theory.said])]
    said += [f"{line}\n" for line in (*_left_out(found), *study.notes)]
    return "".join([*said, *(f"wrote {path}\n" for path in written)])


def _policy_rows(runs: str, df: DataFrame) -> DataFrame:
    """Rows of the class policies of the runs in ``df``; none where no run has one."""
    from frl_repro.results.registration import of_one_study
    from frl_repro.results.tables.reading import find_tables, read_policy
    from frl_repro.results.tables.variants import with_variants

    policies = of_one_study(_found(runs, "policy.csv"))
    policy = with_variants(read_policy(policies), of_one_study(find_tables(runs))) if policies else df.iloc[:0]
    rows: DataFrame = policy[policy["run_id"].isin(df["run_id"]) & (policy["dataset"] == df["dataset"].iloc[0])]
    return rows


def _section(runs: str, study: Study, registered: RegisteredStudy | None, answers: Sequence[Answer]) -> Section | None:
    """What the page says first; None where no run plays a part in the questions."""
    from frl_repro.results.report import answers_page

    if registered is not None:
        return answers_page.registered_section(registered, answers, _commits(runs))
    return answers_page.exploratory_section(answers, study.notes) if answers else None


def _left_out(tables: Sequence[Path]) -> list[str]:
    """Return a line on the runs that are not shown because others are registered, if there are any."""
    from frl_repro.results.registration import is_of_bench, of_one_study

    number = sum(not is_of_bench(table) for table in set(tables) - set(of_one_study(tables)))
    if not number:
        return []
    return [f"left out: {number} tables of no registered run, which are not mixed with registered ones; narrow runs="]


def _rewritten(docs: Sequence[Path], tables: dict[str, Callable[[], str]]) -> list[Path]:
    """Make the marked tables of Markdown pages anew; returns the pages that changed."""
    from frl_repro.basics.atomic import write_text
    from frl_repro.results.report import markdown

    written = []
    for path in docs:
        text = markdown.rewrite(path, tables)
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            written.append(path)
    return written


@dataclass(frozen=True)
class _Theory:
    """What runs on Gaussian mixtures come to: for the page, the documentation and the terminal; files written."""

    section: TheorySection
    table: str
    said: str
    written: list[Path]


def _theory(runs: str, out: Path, *, draws_files: bool) -> _Theory | None:
    """Judge the claims of theory and write numbers and figure; None where there are no runs on Gaussian mixtures."""
    from frl_repro.results.figures.style import save
    from frl_repro.results.figures.theory import theory_figure
    from frl_repro.results.report import theory
    from frl_repro.results.tables.theory import load_theory
    from frl_repro.results.tables.writing import write_table

    rows = load_theory(runs)
    if rows is None:
        return None
    answers = theory.judge_theory(rows)
    path = out / "theory_claims.csv"
    write_table(path, theory.theory_claim_rows(answers), theory.THEORY_CLAIM_COLUMNS)
    said = "".join(f"theory {one.name}: {one.verdict.upper()}. {one.text}\n" for one in answers)
    written = [path]
    if draws_files:
        written += save(theory_figure(rows), out / "theory", "theory")
    return _Theory(theory.theory_section(rows, answers), theory.theory_table(answers), said, written)


def _bench_and_docs(
    runs: str, out: Path, docs: Sequence[Path], tables: dict[str, Callable[[], str]], *, draws_files: bool
) -> list[Path]:
    """Write table, figures and page of the bench among the tables, in a folder of its name, and all marked tables.

    Without runs of the bench its marked tables say so. Returns the files that were written.
    """
    from frl_repro.results.registration import is_of_bench
    from frl_repro.results.report.bench_docs import bench_tables
    from frl_repro.results.report.bench_files import write_bench
    from frl_repro.results.tables.reading import find_tables

    folders = sorted({table.parents[1] for table in find_tables(runs) if is_of_bench(table)})
    folders = [folder for folder in folders if folder.name != AUTOATTACK_FOLDER]
    if not folders:
        return _rewritten(docs, {**tables, **bench_tables(None, None)})
    files = write_bench(folders, out / "bench", draws_files=draws_files)
    return [*files.written, *_rewritten(docs, {**tables, **bench_tables(files.bench, files.board)})]


def _pages(text: str) -> list[Path]:
    """Return the Markdown pages that ``docs=`` names, those of a folder in their order."""
    pages: list[Path] = []
    for part in (one.strip() for one in text.split(",") if one.strip()):
        path = Path(in_home(part))
        if not path.exists():
            raise UserError(f"docs={part}: no such folder or page")
        pages += sorted(path.rglob("*.md")) if path.is_dir() else [path]
    return pages


def _found(runs: str, name: str) -> list[Path]:
    """Files of a name that not every study has."""
    from frl_repro.results.tables.reading import find_tables

    try:
        return find_tables(runs, name)
    except UserError:
        return []


def _places(study: Study, *, is_registered: bool) -> list[_Place]:
    """Return the figures of these runs."""
    if not study.settings:
        return list(_OF_OTHER_METHODS)
    if not is_registered:
        return list(_FIGURES)
    return [
        replace(place, folder="figures", where=",".join(filter(None, (place.where, place.of_registered))))
        for place in _FIGURES
        if place.of_registered is not None
    ]


def _pictures(
    places: Sequence[_Place], df: DataFrame, policy: DataFrame, study: Study, out: Path | None, *, top: int
) -> tuple[list[Picture], list[Path]]:
    """Draw every figure that the tables hold enough for; with ``out`` write their files as well."""
    from frl_repro.results.figures import FIGURES, draw
    from frl_repro.results.figures.style import save
    from frl_repro.results.report.page import Picture, alt_text, svg_of
    from frl_repro.results.tables.where import select_where
    from frl_repro.results.tables.writing import write_frame

    pictures: list[Picture] = []
    written: list[Path] = []
    for place in places:
        entry = FIGURES[place.figure]
        rows = df if entry.table == "classwise.csv" else policy
        try:
            chosen = select_where(rows, place.where)
            drawing = draw(entry, chosen, epsilon=study.epsilon, attack=study.attack, top=top)
        except UserError:
            continue  # the tables do not hold this experiment
        pictures.append(
            Picture(
                place.figure, place.title, svg_of(drawing.figure), alt_text(place.title, drawing.numbers), drawing.note
            )
        )
        if out is not None:
            folder = out / place.folder
            folder.mkdir(parents=True, exist_ok=True)
            name = f"figure{place.figure}" if place.figure.isdigit() else place.figure
            write_frame(folder / f"{name}.csv", drawing.numbers)
            written += [*save(drawing.figure, folder, name), folder / f"{name}.csv"]
    return pictures, written


def _examples(runs: str, study: Study, out: Path | None) -> tuple[list[Picture], list[Path]]:
    """Draw the study's example images that stand among the tables; with ``out`` write their files as well.

    They go where the images stand below ``runs``, taken from ``out``.
    """
    from frl_repro.results.figures.examples import examples_figure, examples_numbers
    from frl_repro.results.figures.style import save
    from frl_repro.results.report.page import Picture, alt_text, svg_of
    from frl_repro.results.tables.examples import EXAMPLES_FILE, read_examples

    pictures: list[Picture] = []
    written: list[Path] = []
    for path in _found(runs, EXAMPLES_FILE):
        examples = read_examples(path)
        if not study.is_about(examples.about):
            continue
        title = f"Images before and after the attack: {examples.about['method']}"
        alt = alt_text(title, examples_numbers(examples))
        pictures.append(Picture(f"examples-{path.parent.name}", title, svg_of(examples_figure(examples)), alt))
        if out is not None:
            folder = out / _below(path.parent, runs)
            folder.mkdir(parents=True, exist_ok=True)
            # A new figure: saving one twice moves its layout, and scripts/plot.py saves it once.
            written += save(examples_figure(examples), folder, path.stem)
    return pictures, written


def _below(folder: Path, runs: str) -> Path:
    """Where a folder lies below the one of ``runs`` that holds it; its name where none does."""
    tops = [Path(in_home(part.strip())) for part in (runs, *runs.split(","))]
    return next((folder.relative_to(top) for top in tops if folder.is_relative_to(top)), Path(folder.name))


def _settings(df: DataFrame, study: Study) -> Grid:
    """Every setting on the test split, the models before retraining among them."""
    from frl_repro.results.report.page import settings_grid
    from frl_repro.results.tables.selection import BEFORE, by_setting, of_setting, setting_name, summary, with_bases

    runs = with_bases(summary(df, epsilon=study.epsilon, attack=study.attack))
    test = runs[runs["split"] == "test"]
    table = by_setting(test)
    rows = [row for _, row in table.iterrows()]
    errors = [_class_errors(df, test[of_setting(test, row)], study) for row in rows]
    bases = [of_row for row, of_row in zip(rows, errors, strict=True) if row["method"] == BEFORE]
    names = [setting_name(row) for row in rows]
    num_images = round(float(study.rows.loc[study.rows["split"] == "test", "count"].mean()))
    return settings_grid(table, names, errors, baseline=bases[0] if bases else None, num_images=num_images)


def _class_errors(df: DataFrame, runs: DataFrame, study: Study) -> list[float]:
    """Mean robust error of each class over runs given by `summary`, at the moment that their ``epoch`` names."""
    from frl_repro.results.tables.selection import select_attack
    from frl_repro.results.tables.subsets import select_epsilon, select_split

    rows = select_attack(select_epsilon(select_split(df, "test"), study.epsilon), study.attack)
    chosen = rows.merge(runs[["run_id", "epoch"]].drop_duplicates())
    return [float(value) for value in chosen.groupby("class_id")["robust_error"].mean()]


def _commits(runs: str) -> list[str]:
    """The commits that made the registered runs among the tables."""
    from frl_repro.results.registration import STUDY, registered_runs
    from frl_repro.results.tables.reading import find_tables, read_json

    own = {name for name, run in registered_runs().items() if run.registration == STUDY}
    notes = [path.with_name("run.json") for path in find_tables(runs) if path.parent.name in own]
    return [str(read_json(note).get("git_commit") or "") for note in notes if note.exists()]


def _deviations(docs: Sequence[Path]) -> str:
    found = [page for page in docs if page.name == "deviations.md"]
    return found[0].read_text(encoding="utf-8") if found else ""


def _usage() -> str:
    program = program_name()
    return usage_text(
        "Answer the study's questions from tables of finished runs, and write one HTML page with all figures.",
        program=program,
        keys=_KEYS,
        sections={"examples": f"  {program}\n  {program} runs=outputs/exp1,outputs/exp2 epsilon=8/255 out=my_report"},
    )
