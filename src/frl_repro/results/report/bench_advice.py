"""Which method to use: ten sentences from the bench's leaderboard, each with its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frl_repro.results.protocol import BASE, CNN_SMALL, CONTESTANTS, CONTROL, IMBALANCED, LENET5
from frl_repro.results.report.bench import interval_in
from frl_repro.results.report.bench_models import CRITERIA, START_NAMES
from frl_repro.results.tables.statistics import points

if TYPE_CHECKING:
    from collections.abc import Callable

    from pandas import DataFrame, Series

NAMES = {
    LENET5: "Fashion-MNIST with LeNet-5",
    CNN_SMALL: "CIFAR-10 with cnn_small",
    IMBALANCED: "imbalanced Fashion-MNIST",
}
_CONTROLS = [name for name, contestant in CONTESTANTS.items() if contestant.is_control]
_LEVEL = 0.05
_AFFORDED = 0.01  # points of robust error of all classes that a method for free may cost
_NEAR = 0.01  # what lies this near the best is named with it


def advice(board: DataFrame) -> list[str]:
    """Return ten sentences, or as many as there are runs for.

    The best of several is the one with the smallest mean over radii, of settings that selection images chose by the
    worst class. It looks best partly by chance: what lies within a point of it is named with it.

    Parameters
    ----------
    board : DataFrame
        Rows of `bench.leaderboard`.
    """
    rows = board[(board["criterion"] == next(iter(CRITERIA))) & board["registered"].astype(bool)]
    rows = rows[(rows["method"] != BASE)]
    of = {track: rows[rows["track"] == track] for track in NAMES}
    found = [
        *(_for_the_worst_class(of[track], track) for track in (LENET5, CNN_SMALL)),
        *(_for_free(of[track], track) for track in (LENET5, CNN_SMALL)),
        _by_track(of, "If natural errors count most: ", _natural),
        _by_track(of, "If nothing is to be tuned, at published settings: ", _untuned),
        _by_track(of, "Try the controls first, which know nothing of classes or only move the logits: ", _controls),
        _for_the_worst_class(of[IMBALANCED], IMBALANCED),
        _by_track(of, "No gain was shown (corrected p of .05 or more, or a loss) for: ", _without_gain),
        _by_track(of, "Under AutoAttack: ", _under_autoattack),
    ]
    return [sentence for sentence in found if sentence]


def _by_track(of: dict[str, DataFrame], start: str, say: Callable[[DataFrame], str]) -> str:
    """Join what is said of the two balanced tracks; empty where nothing is."""
    said = {track: say(of[track]) for track in (LENET5, CNN_SMALL) if not of[track].empty}
    parts = [f"on {NAMES[track]}, {text}" for track, text in said.items() if text]
    return f"{start}{'; '.join(parts)}." if parts else ""


def _compared(rows: DataFrame) -> DataFrame:
    """Rows of methods that are compared with a control, which are not controls themselves."""
    return rows[rows["difference"].notna() & ~rows["method"].isin(_CONTROLS)]


def _best(rows: DataFrame, column: str = "robust_worst") -> tuple[DataFrame, str]:
    """Rows of the method with the smallest mean over radii, one a radius, and which others lie near it."""
    means = rows.groupby(["method", "start"], sort=False)[column].mean().sort_values(kind="stable")
    (method, start), least = means.index[0], means.iloc[0]
    near = [_name(*place) for place in means.index[1:][means.iloc[1:] < least + _NEAR]]
    others = f"within a point of it: {', '.join(near)}" if near else "no other lies within a point of it"
    return rows[(rows["method"] == method) & (rows["start"] == start)], others


def _name(method: str, start: str) -> str:
    return f"`{method}` from {START_NAMES[start]}"


def _method(rows: DataFrame) -> str:
    row = rows.iloc[0]
    return f"{_name(row['method'], row['start'])} ({row['num_seeds']:.0f} seeds)"


def _change(rows: DataFrame, column: str) -> str:
    """``-3.1 [-4.0, -2.2] at 8/255 and ...``, in points against the control."""
    return " and ".join(f"{points(interval_in(row, column))} at {row['epsilon']}" for _, row in rows.iterrows())


def _for_the_worst_class(rows: DataFrame, track: str) -> str:
    rows = _compared(rows)
    if rows.empty:
        return ""
    best, others = _best(rows)
    return (
        f"If the worst class under attack counts alone, on {NAMES[track]}: {_method(best)}. "
        f"{_gain_and_price(best)}; {others}."
    )


def _for_free(rows: DataFrame, track: str) -> str:
    rows = _compared(rows)
    if rows.empty:
        return ""
    costs = rows.groupby(["method", "start"], sort=False)["average_difference"].transform("max")
    cheap = rows[costs <= _AFFORDED]
    if cheap.empty:
        return f"No method on {NAMES[track]} costs at most a point of the robust error of all classes at every radius."
    best, others = _best(cheap)
    return (
        f"If the robust error of all classes may rise by a point at most, on {NAMES[track]}: {_method(best)}. "
        f"{_gain_and_price(best)}; {others}."
    )


def _gain_and_price(rows: DataFrame) -> str:
    return (
        f"Against the control the worst class's robust error changes by {_change(rows, 'difference')} points, that of "
        f"all classes by {_change(rows, 'average_difference')}"
    )


def _natural(rows: DataFrame) -> str:
    compared = _compared(rows)
    if compared.empty:
        return ""
    best, others = _best(compared, "natural_worst")
    row, control = best.iloc[0], _control_of(rows, best.iloc[0])
    return (
        f"{_method(best)}: natural error of the worst class {_percent(row['natural_worst'])} %, the control's "
        f"{_percent(control['natural_worst'])} %; of all classes {_percent(row['natural_average'])} % and "
        f"{_percent(control['natural_average'])} %; {others}"
    )


def _control_of(rows: DataFrame, row: Series) -> Series:
    same = (rows["method"] == CONTROL) & (rows["start"] == row["start"]) & (rows["epsilon"] == row["epsilon"])
    control: Series = rows[same].iloc[0]
    return control


def _untuned(rows: DataFrame) -> str:
    compared = _compared(rows)
    if compared.empty:
        return ""
    published = compared["robust_worst"] - compared["tuning"].fillna(0)
    best, others = _best(compared.assign(published=published), "published")
    errors = " and ".join(f"{_percent(row['published'])} % at {row['epsilon']}" for _, row in best.iterrows())
    controls = [_control_of(rows, row) for _, row in best.iterrows()]
    theirs = " and ".join(f"{_percent(row['robust_worst'])} %" for row in controls)
    return f"{_method(best)}: robust error of the worst class {errors}, the control's {theirs}; {others}"


def _controls(rows: DataFrame) -> str:
    rows = rows[rows["difference"].notna() & rows["method"].isin(_CONTROLS)]
    parts = [
        f"{_name(str(method), str(start))} by {_change(part, 'difference')} points"
        for (method, start), part in rows.groupby(["method", "start"], sort=False)
    ]
    return f"against `{CONTROL}` the worst class's robust error changes: {', '.join(parts)}" if parts else ""


def _without_gain(rows: DataFrame) -> str:
    rows = _compared(rows)
    if rows.empty:
        return ""
    is_shown = (rows["difference"] < 0) & (rows["adjusted_p"] < _LEVEL)
    shown = rows[is_shown].groupby(["method", "start"]).size().index
    places = rows.drop_duplicates(["method", "start"])[["method", "start"]].itertuples(index=False, name=None)
    left = [place for place in places if place not in shown]
    number = f" (n = {rows['num_seeds'].min():.0f} seeds, {rows['num_comparisons'].max():.0f} comparisons a radius)"
    return (", ".join(_name(*place) for place in left) if left else "none of the methods") + number


def _under_autoattack(rows: DataFrame) -> str:
    rows = _compared(rows)
    rows = rows[rows["autoattack_difference"].notna()]
    if rows.empty:
        return ""
    best, _ = _best(rows, "autoattack_worst")
    more = 100 * (rows["autoattack_worst"] - rows["robust_worst"])
    return (
        f"{_name(best['method'].iloc[0], best['start'].iloc[0])} has the smallest error of the worst class "
        f"({best['autoattack_seeds'].iloc[0]:.0f} seeds); against the control it changes by "
        f"{_change(best, 'autoattack_difference')} points; AutoAttack finds {more.min():.1f} to {more.max():.1f} "
        "points more than PGD-20"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
