"""Images of the worst and of the best class: clean, perturbation, attacked, with what the model says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from frl_repro.basics.radii import format_epsilon
from frl_repro.results.figures.style import COLUMN_WIDTH, RED, paper_style, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from pandas import DataFrame

    from frl_repro.results.tables.examples import Examples

_COLUMNS = ("clean", "perturbation", "attacked")
_ROW_HEIGHT = 1.02  # inches: an image and the prediction above it
_LABEL_LENGTH = 14  # characters of a class name above an image
_TITLE_HEIGHT = 0.55  # three lines


def examples_figure(examples: Examples) -> Figure:
    """One row an image: clean, perturbation and attacked, predictions above.

    The perturbation is grey where there is none; in grey images white is +ε and black -ε, in colour images each channel
    is so, bright for +ε and dark for -ε. Wrong predictions are red.
    """
    class_names, epsilon = examples.about["class_names"], float(examples.about["epsilon"])
    names = shortened(class_names, _LABEL_LENGTH)
    num = len(examples.labels)
    with paper_style():
        height = _TITLE_HEIGHT + _ROW_HEIGHT * num
        figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
        rows: NDArray[np.object_] = figure.subplots(num, len(_COLUMNS), squeeze=False)
        for place, axes in enumerate(rows):
            clean, attacked = examples.clean[place], examples.attacked[place]
            scaled = (attacked - clean) / (2 * epsilon) + 0.5 if epsilon > 0 else np.full_like(clean, 0.5)
            for one, image in zip(axes, (clean, scaled, attacked), strict=True):
                _show(one, image)
            label = examples.labels[place]
            for one, predicted in ((axes[0], examples.clean_predictions), (axes[2], examples.attacked_predictions)):
                is_wrong = predicted[place] != label
                one.set_title(
                    f"“{_called(predicted[place], names)}”", color=RED if is_wrong else "black", fontsize=6.5, pad=2
                )
            which = "worst" if class_names[label] == examples.about["worst"] else "best"
            axes[0].set_ylabel(f"{names[label]}\n({which} class)")
            if place == 0:
                axes[1].set_title("perturbation", fontsize=6.5, pad=2)
        is_colour = examples.clean.shape[1] > 1
        signs = "each channel bright +ε, dark -ε" if is_colour else "white +ε, black -ε"
        figure.suptitle(
            f"{examples.about['method']}, {examples.about['attack'].upper()}, ε = {format_epsilon(epsilon)}\n"
            "above images: prediction before (left) and after the attack (right)\n"
            f"perturbation: {signs}, grey none",
            fontsize=6.5,
        )
    return figure


def examples_numbers(examples: Examples) -> DataFrame:
    """What the figure says in words: class, prediction before and after the attack, one row an image."""
    names = examples.about["class_names"]

    def called(classes: NDArray[np.int64]) -> list[str]:
        return [_called(index, names) for index in classes]

    return pd.DataFrame(
        {
            "class_name": called(examples.labels),
            "predicted_before": called(examples.clean_predictions),
            "predicted_after": called(examples.attacked_predictions),
        }
    )


def _called(predicted: int, names: Sequence[str]) -> str:
    return "no class" if predicted < 0 else names[predicted]  # logits that are not finite


def _show(axes: Axes, image: NDArray[np.float32]) -> None:
    pixels = np.clip(image, 0, 1).transpose(1, 2, 0)
    axes.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
