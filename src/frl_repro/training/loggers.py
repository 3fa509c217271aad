"""Where a run shows what it records besides its tables: nowhere, or in TensorBoard.

A logger repeats rows of the tables and knows nothing else. It writes all that have been recorded so far, also what an
earlier process recorded: a run that continues, or that asks for a logger late, has every epoch in it once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from frl_repro.basics import radii
from frl_repro.basics.errors import UserError
from frl_repro.basics.progress import LOGGER
from frl_repro.results.tables import subsets

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_FOLDER = "tensorboard"

Rows = Sequence[Mapping[str, Any]]

_EVENT_FILES = "events.out.tfevents.*"
_QUANTITIES = ("natural_error", "boundary_error", "robust_error")
_POLICY = ("weight_nat", "weight_bndy", "margin", "natural_error", "boundary_error")


class Logger:
    """logger=none: shows nothing.

    Parameters
    ----------
    folder : Path
        The run's folder.
    settings : mapping
        The run's settings, as they are recorded.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    @staticmethod
    def check() -> None:
        """Raise a `UserError` where a package is missing."""

    def update(self, history: Rows, rows: Rows, policy_rows: Rows) -> None:
        """Show what is new; never raises.

        Parameters
        ----------
        history, rows, policy_rows : sequence of mapping
            All rows so far of ``history.csv``, ``classwise.csv`` and ``policy.csv``: those of the last call and more.
        """

    def close(self) -> None:
        """Let go of files; never raises."""


class TensorBoard(Logger):
    """logger=tensorboard: scalars over epochs and the settings as text, in the run's folder ``tensorboard``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, settings)
        self._writer: SummaryWriter | None = None
        self._num_shown = (0, 0, 0)
        self._has_failed = False

    @staticmethod
    def check() -> None:
        """Raise a `UserError` where the package is missing."""
        try:
            import torch.utils.tensorboard  # noqa: F401, PLC0415
        except ImportError as problem:
            raise UserError(
                f"logger=tensorboard needs the package tensorboard ({problem}): pip install 'tensorboard>=2.18', "
                "or with this project: pip install -e '.[tensorboard]'"
            ) from None

    def update(self, history: Rows, rows: Rows, policy_rows: Rows) -> None:
        """Write what is new; the first call replaces the event files of earlier processes."""
        if self._has_failed:
            return
        try:
            known = (history, rows, policy_rows)
            new = scalars(*(part[num:] for part, num in zip(known, self._num_shown, strict=True)))
            if self._writer is None:
                self._writer = self._open()
            # In order of epochs: TensorBoard takes a step that goes back for the end of a crashed run.
            for (tag, epoch), value in sorted(new.items(), key=lambda item: item[0][1]):
                self._writer.add_scalar(tag, value, epoch)
            self._writer.flush()
            self._num_shown = (len(history), len(rows), len(policy_rows))
        except Exception as problem:  # whatever it is, the training is worth more
            self._give_up(problem)

    def _open(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        forget(self.folder)
        # A TensorBoard that is open at this moment drops what it read from the files that are gone.
        writer = SummaryWriter(str(self.folder / TENSORBOARD_FOLDER), purge_step=0)
        text = json.dumps(self.settings, indent=2, ensure_ascii=False)
        writer.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        return writer

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as problem:
                self._give_up(problem)

    def _give_up(self, problem: Exception) -> None:
        self._has_failed = True
        LOGGER.info("%s: TensorBoard gets no more of this run, which goes on: %s", self.folder, problem)


LOGGERS: dict[str, type[Logger]] = {"none": Logger, "tensorboard": TensorBoard}
"""By their names in the configuration."""


def forget(folder: Path) -> None:
    """Delete the event files in a run's folder."""
    for path in (folder / TENSORBOARD_FOLDER).glob(_EVENT_FILES):
        path.unlink(missing_ok=True)


def scalars(history: Rows, rows: Rows, policy_rows: Rows) -> dict[tuple[str, int], float]:
    """Return the numbers of table rows by tag and epoch; empty cells are left out.

    Parameters
    ----------
    history, rows, policy_rows : sequence of mapping
        Rows of ``history.csv``, ``classwise.csv`` (of one attack) and ``policy.csv``.

    Returns
    -------
    dict
        Tags are ``train/<column>``, ``<split>/<overall or worst class error>[_<radius>]``,
        ``<split>_<error>[_<radius>]/<class>`` and ``policy_<column>/<class>``; the part before the slash is what
        TensorBoard groups by. A natural error needs no radius.
    """
    found: dict[tuple[str, int], float | None] = {}
    for row in history:
        for name in ("learning_rate", "train_loss", "train_clean_error", "train_attacked_error"):  # validation: `rows`
            found[f"train/{name.removeprefix('train_')}", row["epoch"]] = row[name]
    for row in rows:
        for quantity in _QUANTITIES:
            tag = f"{row['split']}_{_at(quantity, row['epsilon'])}/{_word(row['class_name'])}"
            found[tag, row["epoch"]] = row[quantity]
    for total in subsets.overall(pd.DataFrame(list(rows))).to_dict("records") if rows else []:
        for quantity in _QUANTITIES:
            for name in (f"overall_{quantity}", f"worst_class_{quantity}"):
                found[f"{total['split']}/{_at(name, total['epsilon'])}", total["epoch"]] = total[name]
    for row in policy_rows:
        for name in _POLICY:
            found[f"policy_{name}/{_word(row['class_name'])}", row["epoch"]] = row[name]
    return {key: value for key, value in found.items() if value is not None}


def _at(name: str, epsilon: float) -> str:
    return name if name.endswith("natural_error") else f"{name}_{_word(radii.format_epsilon(epsilon))}"


def _word(name: str) -> str:
    """Return a name with nothing in it that TensorBoard gives a meaning to."""
    return re.sub(r"[^\w.-]+", "_", name)
