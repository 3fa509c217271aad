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
from frl_repro.results.tables.variants import BEFORE_THE_KEY, SETTINGS_COLUMN, VARIANT_COLUMN, parts_of, unquoted

if TYPE_CHECKING:
    from pandas import DataFrame

# A comma parts but within [0.5,2] and within a value in double quotes, where two of them stand for one.
_WHERE_PART = re.compile(r'\s*([^=,]*="(?:[^"]|"")*"|(?:\[[^\]]*\]|[^,])+)\s*(?:,|$)')


def select_where(df: DataFrame, where: str) -> DataFrame:
    """Rows that have the values of ``"alpha_nat=5,alpha_bndy=1"``: of a column, or of a setting of their run.

    A setting goes by the name that ``variant`` has for it (``ema_decay=0.998``), by its key
    (``retrain.trainer.ema_decay=0.998``), or by the last part of its key where no other one ends so. A value with a
    comma stands in double quotes: ``class_name="cats, dogs"``; two of these stand for one in it.

    Raises
    ------
    UserError
        There is no such column or setting, a name stands for several settings, or no row has these values.
    """
    for part in _where_parts(where):
        name, equals, value = part.partition("=")
        value = unquoted(value)
        name = column if (column := _column_of(name)) in df.columns else name
        held = _held(df, name) if equals else {}
        if held:
            chosen = [texts for texts, values in held.items() if any(_is_alike(one, value) for one in values)]
            columns = [text for text in _TEXTS if text in df.columns]
            kept = df[[texts in chosen for texts in df[columns].itertuples(index=False, name=None)]]
            if kept.empty:
                found = sorted({_as_number(one) for values in held.values() for one in values})
                raise UserError(f"no rows with {part}; the tables have {name}={', '.join(found)}")
            df = kept
            continue
        if not equals or name not in df.columns:
            known = [column for column in df.columns if column != SETTINGS_COLUMN]
            hint = (choice_hint(name.replace(".", "_"), known) or choice_hint(name, _keys_of(df))) if equals else ""
            settings = ", and settings go by their keys, such as trainer.num_epochs" if _keys_of(df) else ""
            raise UserError(
                f"where={part!r}: expected column=value; {hint}columns are {', '.join(known)}{settings}; "
                "a value with a comma stands in double quotes"
            )
        cells = df[name]
        try:
            wanted = parse_fraction(value) if pd.api.types.is_numeric_dtype(cells) else value
        except UserError as problem:
            raise UserError(f"where={part!r}: {problem}") from None
        df = df[cells == wanted]
        if df.empty:
            cut = next((cell for cell in cells.dropna().map(shown) if cell.startswith(f"{value},")), None)
            hint = f"; a value with a comma stands in double quotes: {name}={_in_quotes(cut)}" if cut else ""
            raise UserError(f"no rows with {part}; the tables have {name}={listed(cells.dropna().map(shown))}{hint}")
    return df


def _as_number(text: str) -> str:
    """Return a number in its shortest form: runs may have written 1 and 1.0."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


_TEXTS = (VARIANT_COLUMN, SETTINGS_COLUMN)


def _column_of(name: str) -> str:
    """Return the column that a key has: ``alpha_nat`` of ``alpha.nat``, ``model`` of ``model.name``."""
    return name.removesuffix(".name").replace(".", "_")


def _keys_of(df: DataFrame) -> list[str]:
    texts = set(df[SETTINGS_COLUMN]) if SETTINGS_COLUMN in df.columns else ()
    return sorted({key for text in texts for key in parts_of(text)})


def _held(df: DataFrame, name: str) -> dict[tuple[str, ...], list[str]]:
    """Return what runs have for a setting, by their texts; empty where no run has one of that name, or a column has it.

    Raises
    ------
    UserError
        A run has several settings whose keys end so.
    """
    columns = [column for column in _TEXTS if column in df.columns]
    held: dict[tuple[str, ...], list[str]] = {}
    is_setting = is_of_variant = False
    for texts in dict.fromkeys(df[columns].itertuples(index=False, name=None)):
        variant, settings = (parts_of(text) for text in (*texts, "", "")[:2])
        keys = [name] if name in settings else [key for key in settings if key.endswith(f".{name}")]
        is_of_variant |= name in variant
        is_setting |= bool(keys) or (bool(settings) and name.rpartition(".")[2] in BEFORE_THE_KEY)
        if len(keys) > 1 and name not in variant and name not in df.columns:
            raise UserError(f"where={name}: several settings end so, write one of {', '.join(sorted(keys))}")
        found = [variant[name]] if name in variant else []
        found += [settings[key] for key in keys if len(keys) == 1]
        # A run that was before there was the setting did what it did without.
        before = [BEFORE_THE_KEY.get(name.rpartition(".")[2], "null")] if settings and not keys else []
        held[texts] = list(dict.fromkeys(found or before))
    return held if is_of_variant or (is_setting and name not in df.columns) else {}


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
