"""The look all figures share, and saving them so that equal tables give equal bytes."""

from __future__ import annotations

import logging
import textwrap
import warnings
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from frl_repro.basics.atomic import replacing
from frl_repro.basics.errors import printable
from frl_repro.results.tables.text_tables import display_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

LOGGER = logging.getLogger(__name__)

COLUMN_WIDTH = 3.4
"""Width of one column of a two-column paper, in inches; figures are drawn at their final size."""

# Okabe and Ito's colour-blind safe palette (https://jfly.uni-koeln.de/color/). Blue is dark and orange light, so the
# two also part in grey print.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#999999"

# Savers stamp date and version into files unless told not to: a redraw would then differ from the committed figure.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

FORMATS = tuple(_METADATA)
"""File formats that `save` writes."""

_PNG_DOTS_PER_INCH = 300

TITLE_LINE_HEIGHT = 0.11  # inches of each line of a title after the first

_MAX_LABEL_LENGTH = 18  # characters; longer names would leave no room for what they name
_LINE_LENGTH = 68  # characters of a title at the width of a column
_BOXES = "Last Resort"  # comes with matplotlib: a box for each character there is
_FONT = "DejaVu Sans"  # comes with matplotlib: the same glyphs on every machine

# Any: matplotlib 3.11 types the keys one by one, earlier versions as plain text.
_RC: Any = {
    "font.family": _FONT,
    "font.size": 6.5,
    # Names of classes and folders are shown as they are: "$" begins no formula.
    "text.parse_math": False,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "hatch.linewidth": 0.5,
    # Element ids in SVG are random without a salt.
    "svg.hashsalt": "frl_repro",
    # TrueType rather than Type 3: publishers refuse the latter.
    "pdf.fonttype": 42,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Within this context figures are created and saved in the shared style, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def wrapped(text: str, length: int = _LINE_LENGTH) -> str:
    """Return a text with line breaks where a line would be longer than the figure is wide."""
    lines = printable(text).splitlines()
    return "\n".join("\n".join(textwrap.wrap(line, length, break_on_hyphens=False)) for line in lines)


def shortened(names: Sequence[str], length: int = _MAX_LABEL_LENGTH) -> list[str]:
    """Return labels of at most ``length`` columns for different names, different as well."""
    # Two names may look alike once control characters are shown by their codes.
    texts = {name: printable(name).replace("\n", "\\n") for name in names}
    labels = {name: _cut(text, length) for name, text in texts.items()}
    for label in set(labels.values()):
        alike = [name for name, of_name in labels.items() if of_name == label]
        if len(alike) > 1:
            labels |= dict(zip(alike, _cut_where_they_differ([texts[name] for name in alike], length), strict=True))
    taken: dict[str, int] = {}
    for name, label in labels.items():  # a number where even that is not enough
        taken[label] = taken.get(label, 0) + 1
        if taken[label] > 1:
            labels[name] = f"{_cut(label, length - 3)} #{taken[label]}"
    return [labels[name] for name in names]


def _cut(name: str, length: int) -> str:
    """A name without its middle: long names of one data set tend to differ at either end ("class 1", "class 2")."""
    if display_width(name) <= length:
        return name
    head, tail = 1, 0
    while display_width(name[:head] + name[len(name) - tail :]) < length - 1:
        head, tail = (head + 1, tail) if head <= tail else (head, tail + 1)
    return f"{name[:head]}…{name[len(name) - tail :]}"


def _cut_where_they_differ(names: Sequence[str], length: int) -> list[str]:
    """Names that agree at both ends, cut down to where they begin to differ."""
    shortest = min(map(len, names))
    start = next((k for k in range(shortest) if len({name[k] for name in names}) > 1), shortest)
    head = names[0][: min(3, start)]
    room = length - display_width(head) - 2
    parts = []
    for name in names:
        part = name[start:]
        while display_width(part) > room:
            part = part[:-1]
        parts.append(f"{head}…{part}" + ("…" if len(part) < len(name) - start else ""))
    return parts


def add_legend(figure: Figure, handles: Sequence[Artist], *, num_columns: int) -> None:
    """Add a legend below the panels; labels are shown as they are, also those that begin with ``_``."""
    names = [str(handle.get_label()) for handle in handles]
    # matplotlib leaves out labels that begin with "_": it gets others.
    legend = figure.legend(
        list(handles), ["label"] * len(names), loc="outside lower center", ncols=num_columns, frameon=False
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _with_glyphs(figure: Figure) -> None:
    """Give texts whose characters the usual font lacks an installed one that has them; one line where none has."""
    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # made when they are asked for
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    characters = {character for text in texts for character in text.get_text() if not character.isspace()}
    usual = font_manager.findfont(_FONT)
    missing = frozenset(character for character in characters if ord(character) not in _glyphs_of(usual))
    if not missing:
        return
    families, without = _fonts_with(missing)
    for text in texts:
        if missing & set(text.get_text()):
            text.set_fontfamily([_FONT, *families])
    if without and without not in _told:
        _told.add(without)
        LOGGER.warning(
            "no installed font has %s: boxes stand for them in figures; install one that has, for example "
            "fonts-noto-cjk for Chinese, Japanese and Korean",
            " ".join(sorted(without)),
        )


_told: set[frozenset[str]] = set()  # characters that a line was said about: the page has many figures


@cache
def _glyphs_of(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # no font, or none that is readable
        return frozenset()


@cache
def _fonts_with(missing: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families that together have the characters, found one by one, and the characters that none has."""
    families: list[str] = []
    left = {ord(character) for character in missing}
    # matplotlib keeps a list of fonts from when it first ran: fonts that were installed since are added.
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(RuntimeError, OSError, ValueError):  # no font that matplotlib can read
            font_manager.fontManager.addfont(path)
    regular = [
        entry
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight == 400 and not entry.name.startswith(_BOXES)
    ]
    while left:
        best = max(regular, key=lambda entry: (len(left & _glyphs_of(entry.fname)), entry.name), default=None)
        if best is None or not left & _glyphs_of(best.fname):
            break
        families.append(best.name)
        left -= _glyphs_of(best.fname)
    return tuple(families), frozenset(map(chr, left))


@contextmanager
def drawing(figure: Figure) -> Iterator[None]:
    """Within this context a figure is saved: in the shared style, with glyphs for all its characters."""
    with paper_style(), warnings.catch_warnings():
        _with_glyphs(figure)
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def save(figure: Figure, folder: str | Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write ``figure`` as ``folder/name.<format>`` for each format, atomically; returns the paths.

    Equal figures give equal bytes: neither date nor version nor random ids are stored.

    Raises
    ------
    OSError
        The folder cannot be made or written to.
    """
    paths = []
    with drawing(figure):
        for file_format in formats:
            path = Path(folder) / f"{name}.{file_format}"
            with replacing(path) as temporary:
                figure.savefig(temporary, format=file_format, dpi=_PNG_DOTS_PER_INCH, metadata=_METADATA[file_format])
            paths.append(path)
    return paths
