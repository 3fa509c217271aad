"""Measure a checkpoint class by class: ``python scripts/evaluate.py --help``."""

import sys
from pathlib import Path

# A source checkout works without installing the package, from any directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from frl_repro.commands.cli import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main())
