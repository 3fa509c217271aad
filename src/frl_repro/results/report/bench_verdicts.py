"""Which published claims survive on the bench: criteria, outcomes and verdicts (docs/registration.md, second part)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from frl_repro.results.protocol import CNN_SMALL, CONTESTANTS, IMBALANCED, LENET5, TRACKS
from frl_repro.results.report.bench import interval_in
from frl_repro.results.report.bench_claims import CLAIMS, GAIN, PRICE
from frl_repro.results.report.bench_models import CRITERIA
from frl_repro.results.report.verdicts import Outcome, Verdict, outcome_of, verdict_of
from frl_repro.results.tables.statistics import Interval

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Fate = Literal["survives", "fails", "open"]


@dataclass(frozen=True)
class Evidence:
    """What the data say of one criterion: it holds where the interval lies below the threshold.

    Attributes
    ----------
    kind : str
        ``gain`` (worst class) or ``price`` (all classes).
    radius : str
    interval : Interval
        Of the difference to the control.
    threshold : float
    adjusted_p : float
    num_comparisons, num_seeds : int
    outcome : str
    """

    kind: str
    radius: str
    interval: Interval
    threshold: float
    adjusted_p: float
    num_comparisons: int
    num_seeds: int
    outcome: Outcome


@dataclass(frozen=True)
class Answer:
    """What becomes of a method's claim on a track, from one start.

    Attributes
    ----------
    track, start, method : str
    is_published_start : bool
    evidence : tuple of Evidence
        Gain and price at every radius.
    verdict : str
    turns_under_autoattack : bool
        Whether AutoAttack turns the sign of a gain that holds.
    """

    track: str
    start: str
    method: str
    is_published_start: bool
    evidence: tuple[Evidence, ...]
    verdict: Verdict
    turns_under_autoattack: bool


def judge(board: DataFrame) -> list[Answer]:
    """Return an answer for every registered claim of which there is a run, from `leaderboard`'s rows."""
    rows = board[(board["criterion"] == next(iter(CRITERIA))) & board["registered"].astype(bool)]
    answers = []
    for (track, start, method), part in rows.groupby(["track", "start", "method"], sort=False):
        if method not in CLAIMS or track not in TRACKS or part["difference"].isna().any():
            continue
        evidence = tuple(one for _, row in part.iterrows() for one in (_gain(row), _price(row)))
        needed = len(TRACKS[str(track)].seeds)
        is_complete = all(one.num_seeds == needed for one in evidence)
        holds = part.loc[[one.outcome == "holds" for one in evidence if one.kind == GAIN]]
        answers.append(
            Answer(
                str(track),
                str(start),
                str(method),
                start == CONTESTANTS[str(method)].starts[0],
                evidence,
                verdict_of([one.outcome for one in evidence]) if is_complete else "incomplete",
                bool((holds["autoattack_difference"] > 0).any()),
            )
        )
    return answers


def fate_of(method: str, answers: Sequence[Answer]) -> Fate:
    """Return whether a claim survives: by its verdicts in its published start on the tracks that decide."""
    tracks = (IMBALANCED,) if CONTESTANTS[method].needs_imbalance else (LENET5, CNN_SMALL)
    verdicts = {
        answer.track: answer.verdict for answer in answers if answer.method == method and answer.is_published_start
    }
    found = [verdicts.get(track, "incomplete") for track in tracks]
    if all(verdict == "reproduced" for verdict in found):
        return "survives"
    return "fails" if "contradicted" in found and "reproduced" not in found else "open"


def _gain(row: Series) -> Evidence:
    return _evidence(row, GAIN, "difference", 0.0, float(row["adjusted_p"]))


def _price(row: Series) -> Evidence:
    return _evidence(row, PRICE, "average_difference", float(row["price"]), float(row["average_adjusted_p"]))


def _evidence(row: Series, kind: str, name: str, threshold: float, adjusted_p: float) -> Evidence:
    interval = interval_in(row, name)
    outcome = outcome_of(interval, threshold, adjusted_p)
    num_seeds, num_comparisons = int(row["num_seeds"]), int(row["num_comparisons"])
    return Evidence(kind, str(row["epsilon"]), interval, threshold, adjusted_p, num_comparisons, num_seeds, outcome)
