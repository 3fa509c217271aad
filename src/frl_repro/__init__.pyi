# What type checkers and editors see of the names that __init__.py imports when they are first used.
from frl_repro.api.measuring import attack as attack
from frl_repro.api.measuring import evaluate as evaluate
from frl_repro.api.showing import figure as figure
from frl_repro.api.showing import table as table
from frl_repro.api.training import Trained as Trained
from frl_repro.api.training import train as train
from frl_repro.basics.errors import UserError as UserError
from frl_repro.training.frl import Method as Method

__version__: str
__all__ = ["Method", "Trained", "UserError", "attack", "evaluate", "figure", "table", "train"]
