"""Measure a checkpoint class by class: ``python scripts/evaluate.py --help``."""

import sys

from frl_repro.cli import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main())
