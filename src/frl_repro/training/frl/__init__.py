"""Class policies: what a fairness method varies by class, and how class errors change it.

A new method is one file here with a subclass of `ClassPolicy`, its line in ``POLICIES``, a YAML file of its name in
``conf/frl`` and one in ``conf/retrain/<recipe>`` that says which alphas and settings it has, and a test.
"""

from frl_repro.basics.errors import UserError
from frl_repro.training.frl.baseline_reweight import BaselineReweight
from frl_repro.training.frl.combined import Combined
from frl_repro.training.frl.policy import ClassPolicy, ErrorRates, Finetune, Rules
from frl_repro.training.frl.remargin import Remargin
from frl_repro.training.frl.reweight import Reweight

__all__ = [
    "POLICIES",
    "BaselineReweight",
    "ClassPolicy",
    "Combined",
    "ErrorRates",
    "Finetune",
    "Remargin",
    "Reweight",
    "Rules",
    "new_policy",
]

POLICIES: dict[str, type[ClassPolicy]] = {
    "finetune": Finetune,
    "reweight": Reweight,
    "remargin": Remargin,
    "combined": Combined,
    "baseline_reweight": BaselineReweight,
}


def new_policy(name: str, rules: Rules, *, shape: tuple[int, ...]) -> ClassPolicy:
    """Return a policy by name, its multipliers at their start; UserError for an unknown name. See `ClassPolicy`."""
    if name not in POLICIES:
        raise UserError(f"unknown class policy {name!r}; known: {', '.join(POLICIES)}")
    return POLICIES[name](rules, shape=shape)
