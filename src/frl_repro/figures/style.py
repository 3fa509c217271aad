"""The look all figures share, and saving them so that equal tables give equal bytes."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from frl_repro.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

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

# Any: matplotlib 3.11 types the keys one by one, earlier versions as plain text.
_RC: Any = {
    # DejaVu comes with matplotlib: the same glyphs on every machine.
    "font.family": "DejaVu Sans",
    "font.size": 6.5,
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


def save(figure: Figure, folder: str | Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write ``figure`` as ``folder/name.<format>`` for each format, atomically; returns the paths.

    Equal figures give equal bytes: neither date nor version nor random ids are stored.

    Raises
    ------
    OSError
        The folder cannot be made or written to.
    """
    paths = []
    with paper_style():
        for file_format in formats:
            path = Path(folder) / f"{name}.{file_format}"
            with replacing(path) as temporary:
                figure.savefig(temporary, format=file_format, dpi=_PNG_DOTS_PER_INCH, metadata=_METADATA[file_format])
            paths.append(path)
    return paths
