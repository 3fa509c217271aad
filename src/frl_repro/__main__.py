"""``python -m frl_repro``: what ``train.py`` does, where there is no checkout."""

import sys

from frl_repro.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
