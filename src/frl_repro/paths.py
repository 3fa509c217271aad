"""Where the package finds its own files."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the YAML files inside the package; a source checkout reads those at its top level.
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"
