"""How far the training of runs is, in what their epochs cost, and how long it will still take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from frl_repro.basics.progress import Progress
from frl_repro.settings.config import RunConfig
from frl_repro.training.budget import image_steps
from frl_repro.training.trainer import EpochSummary

_NUM_TRAIN = 50_000  # images, where settings do not say: shares alone count, and one command has one data set mostly


class TrainingProgress(Progress):
    """Progress of all runs of a command that train in this process, their base models included."""

    def __init__(self) -> None:
        super().__init__("training")
        self._epoch: dict[Path, float] = {}  # image-steps of an epoch
        self._left: dict[Path, float] = {}  # image-steps that are still to come

    def plan(self, configs: Iterable[RunConfig]) -> None:
        """Expect these runs to be trained."""
        for config in configs:
            num_epochs = config.training[1].num_epochs
            self._epoch[config.folder] = _cost(config) / max(1, num_epochs)
            self._left[config.folder] = self._epoch[config.folder] * num_epochs
            self.expect(self._left[config.folder])

    def had(self, config: RunConfig, num_epochs: int) -> None:
        """Take note that another process has trained so many epochs."""
        before = min(self._epoch.get(config.folder, 0.0) * num_epochs, self._left.get(config.folder, 0.0))
        self._left[config.folder] = self._left.get(config.folder, 0.0) - before
        self.expect(-before)

    def trained(self, configs: Iterable[RunConfig], share: float) -> None:
        """Have trained a share of an epoch of each of these runs."""
        folders = [config.folder for config in configs]
        steps = {f: min(self._epoch.get(f, 0.0) * share, self._left.get(f, 0.0)) for f in folders}
        for folder, amount in steps.items():
            self._left[folder] = self._left.get(folder, 0.0) - amount
        self.advance(sum(steps.values()))

    def drop(self, config: RunConfig) -> None:
        """Expect nothing more of a run: it has ended, one way or the other."""
        self.expect(-self._left.pop(config.folder, 0.0))


def _cost(config: RunConfig) -> float:
    """Return the image-steps of a run without its base, whose data may not be there yet."""
    num_images = getattr(config.dataset, "num_train", None) or _NUM_TRAIN
    share = getattr(config.dataset, "validation_fraction", 0.0)
    steps = image_steps(config, num_train=num_images, num_validation=round(share * num_images))
    return steps.training + steps.attack + steps.steering


def epochs_text(epochs: Sequence[int], num_epochs: int) -> str:
    """Return which epoch it is: ``"epoch 3/15"``, of fused runs ``"epoch 3/15 of 8 runs"``."""
    first, last = min(epochs), max(epochs)
    text = f"epoch {first}/{num_epochs}" if first == last else f"epochs {first} to {last} of {num_epochs}"
    return (
        text
        if len(epochs) == 1
        else f"{text} of {len(epochs)} runs"
        if first == last
        else f"{text}, {len(epochs)} runs"
    )


def _span(numbers: Sequence[float], digits: int) -> str:
    """Return a number, or the smallest and the largest of several."""
    low, high = f"{min(numbers):.{digits}f}", f"{max(numbers):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def epoch_line(epochs: Sequence[int], num_epochs: int, summaries: Sequence[EpochSummary]) -> str:
    """Return what an epoch came to, of all fused runs together: each one's numbers are in its tables."""
    parts = [epochs_text(epochs, num_epochs), f"loss {_span([summary.train_loss for summary in summaries], 4)}"]
    for name in ("clean", "attacked"):
        errors = [getattr(summary, f"{name}_error") for summary in summaries]
        if errors[0] is not None:
            parts.append(f"{name} error {_span(errors, 3)}")
    return "  ".join(parts)
