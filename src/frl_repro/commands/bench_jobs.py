"""Every setting of the bench as overrides of ``train.py``, with the epochs that its budget pays for, and its cost."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from frl_repro.basics.errors import UserError
from frl_repro.results.protocol import BASE, CONTESTANTS, CONTROL, DECAYS, SCRATCH, Contestant, Track

if TYPE_CHECKING:
    from frl_repro.settings.config import RunConfig


@dataclass(frozen=True)
class Job:
    """One setting of a method on the bench, of all seeds.

    Attributes
    ----------
    method, start, setting : str
        The setting as the protocol writes it; empty for a method without numbers.
    overrides : tuple of str
        Settings of ``train.py``; the seed is not among them.
    image_steps : float
        What a run costs, without the base that retraining starts from.
    """

    method: str
    start: str
    setting: str
    overrides: tuple[str, ...]
    image_steps: float = field(compare=False)

    def config(self, seed: int, *more: str) -> RunConfig:
        """Return the settings of a seed's run; ``more`` are machine settings."""
        return of_seed(_configured(*self.overrides, *more), seed)


@functools.lru_cache(maxsize=512)
def _configured(*overrides: str) -> RunConfig:
    from frl_repro.commands.jobs import configure

    return configure(*overrides)


def of_seed(config: RunConfig, seed: int) -> RunConfig:
    """Return the settings with another seed; each seed has a split of its own. Composing them anew takes longer."""
    return dataclasses.replace(
        config,
        keys=dataclasses.replace(config.keys, seed=seed),
        dataset=dataclasses.replace(config.dataset, split_seed=seed),  # as conf/experiment/bench.yaml has it
    )


def starts_of(track: Track, method: str, starts: Sequence[str]) -> list[str]:
    """Return the starts, among those that are asked for, that a method has on a track; the control has both."""
    contestant = CONTESTANTS.get(method, Contestant(method))
    own = contestant.starts if track.other_start or method == CONTROL else contestant.starts[:1]
    return [start for start in starts if start in own]


def jobs(
    track: Track,
    methods: Sequence[str],
    starts: Sequence[str],
    *,
    is_published_only: bool,
    more: Sequence[str] = (),
    only: dict[str, str] | None = None,
) -> Iterator[Job]:
    """Yield every setting with the number of epochs that the budget pays for.

    The budget is what the control costs that retrains from its base for the recipe's epochs, the base included.

    Parameters
    ----------
    track : Track
    methods, starts : sequence of str
    is_published_only : bool
        Whether the first setting alone is tried.
    more : sequence of str
        Settings added to every run.
    only : dict of str to str, optional
        The one setting that some methods are run with.

    Raises
    ------
    UserError
        The budget does not pay for one epoch.
    """
    budget = Budget(track, of_start(BASE, more))
    for method in methods:
        contestant = CONTESTANTS.get(method, Contestant(method))
        if contestant.needs_imbalance and "imbalance" not in track.overrides:
            continue
        for start in starts_of(track, method, starts):
            settings = contestant.settings[: 1 if is_published_only else None]
            if only is not None and method in only:
                settings = (only[method],)
            for setting in settings:
                overrides = [*overrides_of(track, contestant, start, setting), *of_start(start, more)]
                overrides = budget.spent(overrides, start, contestant)
                yield Job(method, start, setting, tuple(overrides), budget.own_cost(overrides))


class Budget:
    """How many epochs a setting may train, so that no run costs more image-steps than the control.

    Attributes
    ----------
    image_steps : float
        Of the control, the base included.
    base : float
        Of the base alone.
    sizes : dict of str to int
        Images that train, and that steer methods.
    """

    def __init__(self, track: Track, more: Sequence[str]) -> None:
        from frl_repro.data import load_dataset
        from frl_repro.training.budget import image_steps

        shared = [one for one in more if not one.lstrip("+").startswith(("frl.", "alpha.", "tau."))]
        control = _configured(*overrides_of(track, CONTESTANTS[CONTROL], BASE, ""), *shared)
        dataset = load_dataset(control.dataset)
        self.sizes = {
            "num_train": len(dataset.train),
            "num_validation": 0 if dataset.validation is None else len(dataset.validation),
        }
        cost = image_steps(control, **self.sizes)
        self.image_steps, self.base = cost.total, cost.base or 0.0

    def num_epochs(self, overrides: Sequence[str]) -> int:
        """Return the epochs that the budget pays for.

        Raises
        ------
        UserError
            It does not pay for one.
        """
        from frl_repro.training.budget import epochs_within

        number = epochs_within(self.image_steps, _configured(*overrides), **self.sizes)
        if number < 1:
            raise UserError(f"{shlex.join(overrides)}: one epoch costs more than the control's whole training")
        return number

    def spent(self, overrides: Sequence[str], start: str, contestant: Contestant) -> list[str]:
        """Return the overrides with the number of epochs, and from scratch with what is a share of them."""
        num_epochs = self.num_epochs(overrides)
        if start == BASE:
            return with_values(overrides, {"retrain.trainer.num_epochs": num_epochs})
        shares = {**DECAYS, **contestant.shares}
        return with_values(
            overrides,
            {"trainer.num_epochs": num_epochs}
            | {key: max(1, round(share * num_epochs)) for key, share in shares.items()},
        )

    def own_cost(self, overrides: Sequence[str]) -> float:
        """Return the image-steps of a run without its base."""
        from frl_repro.training.budget import image_steps

        cost = image_steps(_configured(*overrides), **self.sizes)
        return cost.total - (cost.base or 0.0)


def with_values(overrides: Sequence[str], values: dict[str, int]) -> list[str]:
    """Return overrides with these values in place of earlier ones of the same keys."""
    kept = [one for one in overrides if one.partition("=")[0] not in values]
    return [*kept, *(f"{key}={value}" for key, value in values.items())]


def overrides_of(track: Track, contestant: Contestant, start: str, setting: str) -> tuple[str, ...]:
    """Return the overrides of a setting without its number of epochs."""
    for_start = track.base if start == BASE else f"recipe={SCRATCH} {track.scratch}"
    looks = track.looks if contestant.looks else ""
    text = f"experiment=bench {track.overrides} frl={contestant.frl} {for_start} {looks} {setting}"
    return tuple(text.split())


def of_start(start: str, settings: Sequence[str]) -> list[str]:
    """Return those of the settings that runs with this start have: from scratch there is no retraining."""
    return [one for one in settings if start == BASE or not one.startswith("retrain.")]


def without_seed(run_id: str) -> tuple[str, str]:
    """Return the part of a run's name that all seeds share, with ``{seed}`` in its place, and the hash at its end."""
    match = re.fullmatch(r"(.*-seed)\d+-([0-9a-f]{8})", run_id)
    assert match is not None, run_id
    return f"{match[1]}{{seed}}", match[2]
