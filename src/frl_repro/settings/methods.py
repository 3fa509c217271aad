"""Settings that belong to methods: files of ``conf/retrain/<recipe>/<frl>.yaml`` say which method has which.

The one place that knows them. A method that brings settings of its own adds its dataclass to `SECTIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from frl_repro.settings.keys import COUNT, key, own


@dataclass
class FRLConfig:
    """How the class policy is steered."""

    name: str = key("")
    accumulate: bool | None = own("add each update to the multipliers (dual ascent); false: start anew at every update")
    update_every: str | None = own(f"update the policy after so many steps, or once an epoch: epoch. {COUNT}")
    num_validation: int | None = own(
        "validation images measured for an update, drawn anew each time, at most those there are; null: all", COUNT
    )
    epsilon: float | None = own("radius of the attack that measures them, in pixel units", "(0, 1]")
    step_size: float | None = own("its step, in pixel units", "(0, 1]")
    num_steps: int | None = own("its steps", COUNT)
    weight_rule: str | None = own(
        "multipliers to class weights: softmax (report) or simplex (paper)", one_of=("softmax", "simplex")
    )
    margin_centred: bool | None = own("compare a class's boundary error with the overall one; false: with 0")
    margin_bounds: list[float] | None = own("smallest and largest margin factor", "[0, inf)")


@dataclass
class AlphaConfig:
    """Step lengths of the multipliers; None where the method has no such multiplier."""

    nat: float | None = own("natural loss weights: step length on violations of natural error", "[0, inf)")
    bndy: float | None = own("boundary loss weights: step length on violations of boundary error", "[0, inf)")
    margin: float | None = own("class margins: step length on violations of boundary error", "[0, inf)")
    rob: float | None = own(
        "weights of both losses: step length on violations of robust error", "[0, inf)", added_as=None
    )


@dataclass
class TauConfig:
    """Tolerated gaps to the overall error; None where the method does not read it."""

    nat: float | None = own("tolerated gap of a class's natural error to the overall one", "[0, 1]")
    bndy: float | None = own("tolerated gap of a class's boundary error to the overall one", "[0, 1]")
    rob: float | None = own("tolerated gap of a class's robust error to the overall one", "[0, 1]", added_as=None)


@dataclass
class DeparturesConfig:
    """Departures of the report's public code from its text; all off unless its recipe turns them on."""

    scrambled_labels: bool | None = own("score the shuffled mixed batch against unshuffled labels (departure 1)")
    flipped_boundary: bool | None = own(
        "count flipped predictions as boundary errors, of wrong samples too (departure 5)"
    )
    overall_over_22: bool | None = own("divide the sum over 21 batches by 22 for the overall error (departure 4)")
    ignored_tau_nat: bool | None = own("use tau.bndy in place of tau.nat (departure 4)")
    weight_by_prediction: bool | None = own("take boundary weights by predicted instead of true class (departure 8)")
    fixed_step: bool | None = own("attack steps do not grow with the margin (departure 9)")
    base_saw_validation: bool | None = own(
        "train the base model on all images, those of validation included (departure 7)"
    )


SECTIONS: dict[str, type] = {"alpha": AlphaConfig, "tau": TauConfig, "departures": DeparturesConfig}
"""Parts of a run's configuration that hold settings of methods alone, beside the group ``frl``."""
