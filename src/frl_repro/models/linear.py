"""A linear classifier: what the theorems of docs/theory.md are about."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frl_repro.basics.errors import UserError


class LinearModel(nn.Module):
    """Logits that are linear in the pixels.

    Parameters
    ----------
    num_classes : int
        K.
    image_shape : tuple of int
        (C, H, W), any size.
    mean, std : sequence of one float
        What pixels are centred on and divided by: it sets the scale of the weights, not what can be learnt. They follow
        from the settings and are no buffers, so that runs can be stacked.

    Raises
    ------
    UserError
        Another number of values than one.
    """

    def __init__(
        self, *, num_classes: int, image_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 1:
                raise UserError(f"model.{name} has {len(values)} numbers: model=linear takes one for all pixels")
        self.mean, self.std = float(mean[0]), float(std[0])
        channels, height, width = image_shape
        self.linear = nn.Linear(channels * height * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, K), of images ``x``, shape (N, C, H, W), in [0, 1]."""
        logits: Tensor = self.linear(((x - self.mean) / self.std).flatten(1))
        return logits

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return weights, shape (K, C H W), and intercepts, shape (K,), of the logits in pixel units."""
        weight = self.linear.weight.detach() / self.std
        return weight, self.linear.bias.detach() - self.mean * weight.sum(1)
