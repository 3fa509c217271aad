"""Check that a checkpoint's robustness is real: ``python scripts/sanity.py --help``."""

import sys
from pathlib import Path

# A source checkout works without installing the package, from any directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from frl_repro.commands.cli import sanity_main

if __name__ == "__main__":
    sys.exit(sanity_main())
