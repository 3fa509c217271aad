"""frl_repro: class-wise fairness of adversarially trained image classifiers.

From Python: `evaluate` any PyTorch model class by class, `attack` it, `train` or retrain it with any method, by name or
as a `Method` of your own; `table` and `figure` of what came of it (a `Trained`). Mistakes are a `UserError`. See
docs/python.md. Importing this package imports neither PyTorch nor Hydra: a name does when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["Method", "Trained", "UserError", "attack", "evaluate", "figure", "table", "train"]
_PLACES = {
    "Method": "frl_repro.training.frl",
    "Trained": "frl_repro.api.training",
    "UserError": "frl_repro.basics.errors",
    "attack": "frl_repro.api.measuring",
    "evaluate": "frl_repro.api.measuring",
    "figure": "frl_repro.api.showing",
    "table": "frl_repro.api.showing",
    "train": "frl_repro.api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
