"""Train and measure: ``python train.py --help``."""

import sys
from pathlib import Path

# A source checkout works without installing the package, from any directory.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from frl_repro.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
