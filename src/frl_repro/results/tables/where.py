"""``where=``: rows of tables that have the values somebody wrote. Needs no torch."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import pandas as pd

from frl_repro.basics.errors import UserError
from frl_repro.basics.radii import parse_fraction
from frl_repro.basics.suggestions import choice_hint
from frl_repro.results.tables.selection import MAX_LISTED, listed, shown
from frl_repro.results.tables.variants import VARIANT_COLUMN, parts_of, unquoted

if TYPE_CHECKING:
    from pandas import DataFrame

# A comma parts but within [0.5,2] and within a value in double quotes, where two of them stand for one.
_WHERE_PART = re.compile(r'\s*([^=,]*="(?:[^"]|"")*"|(?:\[[^\]]*\]|[^,])+)\s*(?:,|$)')


def select_where(df: DataFrame, where: str) -> DataFrame:
    """Rows whose columns have the values of ``"alpha_nat=5,alpha_bndy=1"``, or whose variant has ``ema_decay=0.998``.

    A value with a comma stands in double quotes: ``class_name="cats, dogs"``; two of these stand for one in it.

    Raises
    ------
    UserError
        A column does not exist, or no row has these values.
    """
    for part in _where_parts(where):
        name, equals, value = part.partition("=")
        value = unquoted(value)
        variants = sorted(set(df[VARIANT_COLUMN])) if VARIANT_COLUMN in df.columns else []
        if any(name in parts_of(variant) for variant in variants):
            chosen = [variant for variant in variants if _is_alike(parts_of(variant).get(name), value)]
            df = df[df[VARIANT_COLUMN].isin(chosen)]
            if df.empty:
                raise UserError(f"no rows with {part}; the tables have {'; '.join(variants)}")
            continue
        if not equals or name not in df.columns:
            hint = choice_hint(name.replace(".", "_"), df.columns) if equals else ""
            raise UserError(
                f"where={part!r}: expected column=value; {hint}columns are {', '.join(df.columns)}; "
                "a value with a comma stands in double quotes"
            )
        column = df[name]
        try:
            wanted = parse_fraction(value) if pd.api.types.is_numeric_dtype(column) else value
        except UserError as problem:
            raise UserError(f"where={part!r}: {problem}") from None
        df = df[column == wanted]
        if df.empty:
            cut = next((held for held in column.dropna().map(shown) if held.startswith(f"{value},")), None)
            hint = f"; a value with a comma stands in double quotes: {name}={_in_quotes(cut)}" if cut else ""
            raise UserError(f"no rows with {part}; the tables have {name}={listed(column.dropna().map(shown))}{hint}")
    return df


def classes_alone(all_rows: DataFrame, chosen: DataFrame) -> str:
    """Names of the classes that a choice of rows was narrowed to; empty where it has all classes of its runs.

    What is then called overall, or worst, is so among these classes.
    """
    of_runs = all_rows[all_rows["run_id"].isin(chosen["run_id"])]
    if chosen["class_name"].nunique() == of_runs["class_name"].nunique():
        return ""
    names = [str(name) for name in chosen["class_name"].unique()]
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")


def _in_quotes(value: str) -> str:
    return '"{}"'.format(value.replace('"', '""'))


def _where_parts(where: str) -> list[str]:
    parts, place = [], 0
    while where[place:].strip(" ,"):
        match = _WHERE_PART.match(where, place)
        if match is None:
            if where[place] != ",":
                raise UserError(f'where={where[place:]!r}: expected column=value, or column="value, with a comma"')
            place += 1
            continue
        parts.append(match[1].strip())
        place = match.end()
    return parts


def _is_alike(held: str | None, wanted: str) -> bool:
    """Whether a setting is what somebody wrote: the same text or, up to the digits that names show, the same number."""
    if held is None or held == wanted:
        return held is not None
    try:
        return math.isclose(parse_fraction(held), parse_fraction(wanted), rel_tol=1e-5)
    except UserError:
        return False
