"""Draw a figure from the tables of finished runs: ``python scripts/plot.py figure=1 runs=outputs/reference``."""

import sys
from pathlib import Path

# A source checkout works without installing the package, from any directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from frl_repro.commands.plot import main

if __name__ == "__main__":
    sys.exit(main())
