"""The marked tables of docs/bench.md, from the bench's tables: no number on the page is typed by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from frl_repro.results.protocol import BASE, CNN_SMALL, CONTESTANTS, IMBALANCED, LENET5, TRACKS
from frl_repro.results.report.bench import interval_in
from frl_repro.results.report.bench_advice import advice
from frl_repro.results.report.bench_claims import CLAIMS, PRICE
from frl_repro.results.report.bench_models import CRITERIA, START_NAMES
from frl_repro.results.report.bench_ranks import agreements
from frl_repro.results.report.bench_verdicts import Answer, fate_of, judge
from frl_repro.results.report.markdown import table
from frl_repro.results.tables.statistics import points

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from frl_repro.results.report.bench_models import Bench

NO_RUNS = "\nNo runs yet.\n\n"


def bench_tables(bench: Bench | None, board: DataFrame | None) -> dict[str, Callable[[], str]]:
    """Return every table of docs/bench.md by name, made when it is called; without runs each says so."""
    names = [
        "bench-advice",
        "bench-claims",
        "bench-evidence",
        "bench-tuning",
        "bench-ranks",
        *(f"bench-{name}" for name in TRACKS),
    ]
    if bench is None or board is None:
        return dict.fromkeys(names, lambda: NO_RUNS)
    first = board[board["criterion"] == next(iter(CRITERIA))]
    answers = judge(board)
    makers: dict[str, Callable[[], str]] = {
        "bench-advice": functools.partial(_advice, board),
        "bench-claims": functools.partial(_claims, answers),
        "bench-evidence": functools.partial(_evidence, answers),
        "bench-tuning": functools.partial(_tuning, first),
        "bench-ranks": functools.partial(_ranks, bench),
    }
    for name in TRACKS:
        makers[f"bench-{name}"] = functools.partial(_board, first[first["track"] == name])
    return makers


def _advice(board: DataFrame) -> str:
    """Which method to use, as a list."""
    sentences = advice(board)
    return (
        "\n" + "".join(f"{number}. {one}\n" for number, one in enumerate(sentences, 1)) + "\n" if sentences else NO_RUNS
    )


def _claims(answers: list[Answer]) -> str:
    """Fate and verdicts of each claim, in the published start."""
    if not answers:
        return NO_RUNS
    rows = []
    for method, claim in CLAIMS.items():
        own = {answer.track: answer for answer in answers if answer.method == method and answer.is_published_start}
        verdicts = [_said(own.get(track)) for track in (LENET5, CNN_SMALL, IMBALANCED)]
        price = f"{100 * claim.price:.0f}"
        rows.append([f"`{method}`", claim.text, price, *verdicts, f"**{fate_of(method, answers)}**"])
    header = ["method", "claim", "price, points", "Fashion-MNIST, LeNet-5", "CIFAR-10, cnn_small", "imbalanced"]
    return table([*header, "the claim"], rows)


def _said(answer: Answer | None) -> str:
    if answer is None:
        return "-"
    seeds = min(one.num_seeds for one in answer.evidence)
    text = f"{answer.verdict} ({seeds} seeds)"
    return f"{text}; AutoAttack turns the sign" if answer.turns_under_autoattack else text


def _evidence(answers: list[Answer]) -> str:
    """Every criterion with its effect, n, interval, correction and outcome."""
    if not answers:
        return NO_RUNS
    rows = []
    for answer in answers:
        for one in answer.evidence:
            what = f"all classes, less than {100 * one.threshold:+.0f}" if one.kind == PRICE else "worst class, below 0"
            rows.append(
                [
                    f"`{answer.method}`", answer.track, START_NAMES[answer.start], one.radius, what,
                    points(one.interval), str(one.num_seeds), _p(one.adjusted_p), str(one.num_comparisons), one.outcome,
                ]
            )  # fmt: skip
    header = ["method", "track", "from", "radius", "criterion", "against the control [95 %]", "n"]
    return table([*header, "p (Holm)", "comparisons", "outcome"], rows)


def _board(rows: DataFrame) -> str:
    """The leaderboard of a track; errors in percent."""
    if rows.empty:
        return NO_RUNS
    text = ""
    for radius, of_radius in rows.groupby("epsilon", sort=False):
        lines = []
        for _, row in of_radius.sort_values(["start", "robust_worst"]).iterrows():
            name = f"`{row['method']}`" + ("" if row["registered"] else " (not registered)")
            lines.append(
                [
                    name, "" if row["method"] == BASE else START_NAMES[row["start"]], f"{row['num_seeds']:.0f}",
                    *(_percent(row[key]) for key in ("natural_average", "natural_worst", "robust_average")),
                    _percent(row["robust_worst"]), _percent(row["robust_maximum"]), _percent(row["if_equal"]),
                    _difference(row, "difference"), _p(row["adjusted_p"]), _difference(row, "average_difference"),
                    _autoattack(row), _number(row["rho"], "{:.2f}"), _number(row["nsd"], "{:.2f}"),
                    _percent(row["gap"]), _number(row["image_steps"] / 1e6, "{:.2f}"),
                    _number(row["seconds"], "{:.0f}"),
                ]
            )  # fmt: skip
        header = ["method", "from", "n", "natural, all", "natural, worst", "robust, all", "robust, worst"]
        header += ["largest on test", "largest if classes were equal", "worst, against the control [95 %]", "p (Holm)"]
        header += ["all, against the control [95 %]", "AutoAttack: all / worst (n)", "rho", "NSD", "max - min"]
        header += ["M image-steps", "seconds"]
        text += f"\n**Radius {radius}**\n{table(header, lines)}"
    return text


def _tuning(rows: DataFrame) -> str:
    """What the choice among settings bought, against the published setting."""
    rows = rows[rows["tuning"].notna()]
    if rows.empty:
        return NO_RUNS
    lines = [
        [
            f"`{row['method']}`", row["track"], START_NAMES[row["start"]], row["epsilon"], f"{row['num_seeds']:.0f}",
            _difference(row, "tuning"), row["chosen"], _at_end(row),
        ]
        for _, row in rows.iterrows()
    ]  # fmt: skip
    header = ["method", "track", "from", "radius", "n", "worst class: chosen less published [95 %], points"]
    return table([*header, "chosen", "the best may lie beyond"], lines)


def _at_end(row: Series) -> str:
    """Whether the setting that was chosen most often is the smallest or largest of those tried."""
    contestant = CONTESTANTS.get(str(row["method"]))
    if contestant is None:
        return ""
    ends = {min(contestant.settings, key=_size), max(contestant.settings, key=_size)}
    return "yes" if any(str(row["chosen"]).startswith(f"{end} (") for end in ends) else "no"


def _size(setting: str) -> float:
    return sum(float(part.partition("=")[2]) for part in setting.split())


def _ranks(bench: Bench) -> str:
    """Rank correlations of methods between tracks, starts, radii and attacks."""
    found = agreements(bench)
    if not found:
        return NO_RUNS
    lines = []
    for one in found:
        low, high = one.interval.low, one.interval.high
        bounds = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        value = "-" if math.isnan(one.interval.estimate) else f"{one.interval.estimate:.2f}{bounds}"
        lines.append([one.between, one.one, one.other, str(one.num_methods), str(one.num_seeds), value])
    return table(["between", "one", "the other", "methods", "n", "Spearman's correlation [95 %]"], lines)


def _difference(row: Series, name: str) -> str:
    interval = interval_in(row, name)
    return "-" if math.isnan(interval.estimate) else points(interval)


def _autoattack(row: Series) -> str:
    if not row["autoattack_seeds"]:
        return "-"
    return (
        f"{_percent(row['autoattack_average'])} / {_percent(row['autoattack_worst'])} ({row['autoattack_seeds']:.0f})"
    )


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "below .001" if value < 0.001 else f"{value:.3f}"


def _percent(value: float) -> str:
    return _number(100 * value, "{:.1f}")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
