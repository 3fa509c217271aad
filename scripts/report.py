"""Answer the study's questions and write the HTML report: ``python scripts/report.py runs=outputs``."""

import sys
from pathlib import Path

# A source checkout works without installing the package, from any directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from frl_repro.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
