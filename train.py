"""Train and measure: ``python train.py --help``."""

import sys

from frl_repro.cli import main

if __name__ == "__main__":
    sys.exit(main())
