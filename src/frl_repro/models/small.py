"""Small networks that train adversarially on a processor: a plain one, and a residual one with batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two convolutions that halve the image and two linear layers; 214,918 parameters for ten classes, 3x32x32 images.

    Parameters
    ----------
    num_classes : int
        K.
    image_shape : tuple of int
        (C, H, W); H and W at least 8.
    normalise : nn.Module
        What the images pass first.

    Notes
    -----
    Source: Wong & Kolter 2018, "Provable defenses against adversarial examples via the convex outer adversarial
    polytope": 4x4 convolutions of stride 2 and padding 1 to 16 and 32 channels, a linear layer of 100, ReLU between.
    """

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int], normalise: nn.Module) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.normalise = normalise
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1)
        self.fc1 = nn.Linear(32 * (height // 4) * (width // 4), 100)
        self.fc2 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, K), of images ``x``, shape (N, C, H, W), in [0, 1]."""
        x = torch.relu(self.conv1(self.normalise(x)))
        x = torch.relu(self.conv2(x)).flatten(1)
        logits: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input; where the shape changes, to a 1x1 convolution of it."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (N, out_channels, H / stride, W / stride), of ``x``, shape (N, in_channels, H, W)."""
        changed = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(changed + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nn.Module):
    """A first convolution, three residual blocks, global average pooling and a linear layer.

    Parameters
    ----------
    num_classes : int
        K.
    image_shape : tuple of int
        (C, H, W); H and W at least 8.
    normalise : nn.Module
        What the images pass first.
    width : int
        Channels of the first block; the others have two and four times as many.

    Notes
    -----
    Source: the image classification network of MLPerf Tiny (Banbury et al. 2021), there for 3x32x32 images with a width
    of 16: 78,666 numbers for ten classes, the statistics of batch norm among them. Weights are drawn as there (He
    et al. 2015).
    """

    def __init__(
        self, *, num_classes: int, image_shape: tuple[int, int, int], normalise: nn.Module, width: int = 16
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.conv1 = nn.Conv2d(image_shape[0], width, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            _Block(width, width, stride=1),
            _Block(width, 2 * width, stride=2),
            _Block(2 * width, 4 * width, stride=2),
        )
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, K), of images ``x``, shape (N, C, H, W), in [0, 1]; H and W at least 8."""
        features = self.blocks(torch.relu(self.bn1(self.conv1(self.normalise(x)))))
        logits: Tensor = self.linear(features.mean((-2, -1)))
        return logits
