"""Residual networks of pre-activation blocks: PreAct-ResNet18 and Wide ResNet 28, in their forms for small images.

Written from the papers: He et al. 2016, "Identity Mappings in Deep Residual Networks"; Zagoruyko & Komodakis 2016,
"Wide Residual Networks". Modules are named and ordered as in the forms that adversarial training commonly uses, so that
checkpoints of other code load.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from frl_repro.models.normalise import Normalise

MIN_IMAGE_SIDE = 8  # smaller images leave nothing to pool after three halvings
WRN_DEPTH = 28


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, batch norm and ReLU before each, added to the input.

    Where the shape changes, the input takes a 1x1 convolution of the first activation instead of the identity.

    Parameters
    ----------
    in_channels, out_channels : int
    stride : int
        Of the first convolution.

    Notes
    -----
    Source: He et al. 2016, figure 1b; the projection acts on the shared pre-activation (their section 4.1 and code).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, stride=1)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (N, out_channels, H / stride, W / stride), of ``x``, shape (N, in_channels, H, W)."""
        activated = torch.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(activated)
        changed: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return changed + kept


class ResidualNetwork(nn.Module):
    """A first convolution, stages of `PreActBlock`, global average pooling and a linear layer.

    Parameters
    ----------
    num_classes : int
        K.
    in_channels : int
        Channels of the images.
    normalise : nn.Module
        What the images pass first.
    first : int
        Channels of the first convolution.
    stages : sequence of (int, int, int)
        Channels, blocks and the first block's stride of each stage.
    has_last_norm : bool
        Whether batch norm and ReLU follow the last block.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        normalise: nn.Module,
        first: int,
        stages: list[tuple[int, int, int]],
        has_last_norm: bool,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.conv1 = _conv3x3(in_channels, first, stride=1)
        channels = first
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for place, (out_channels, num_blocks, stride) in enumerate(stages, start=1):
            stage = []
            for index in range(num_blocks):
                stage.append(PreActBlock(channels, out_channels, stride=stride if index == 0 else 1))
                channels = out_channels
            blocks[f"layer{place}"] = nn.Sequential(*stage)
        self.stages = nn.Sequential(blocks)
        self.bn = nn.BatchNorm2d(channels) if has_last_norm else None
        self.linear = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, K), of images ``x``, shape (N, C, H, W), in [0, 1]; H and W at least 8."""
        features = self.stages(self.conv1(self.normalise(x)))
        if self.bn is not None:
            features = torch.relu(self.bn(features))
        logits: Tensor = self.linear(features.mean((-2, -1)))
        return logits


def preact_resnet18(*, num_classes: int, in_channels: int, normalise: Normalise, width: int = 64) -> ResidualNetwork:
    """Return PreAct-ResNet18 for small images: four stages of two blocks; 11,171,146 parameters for ten classes.

    ``width`` is the number of channels of the first stage; each further stage doubles it and halves the image. As in
    the form that the paper and most work on adversarial training use, the first convolution is 3x3 without pooling, and
    no batch norm and ReLU follow the last block (He et al. 2016 have them: two more numbers per channel).
    """
    stages = [(width << place, 2, 1 if place == 0 else 2) for place in range(4)]
    return ResidualNetwork(
        num_classes=num_classes,
        in_channels=in_channels,
        normalise=normalise,
        first=width,
        stages=stages,
        has_last_norm=False,
    )


def wrn28(*, num_classes: int, in_channels: int, normalise: Normalise, width: int = 10) -> ResidualNetwork:
    """Return Wide ResNet 28 without dropout; 36,479,194 parameters for ten classes at a width of 10.

    ``width`` is the widening factor: three stages of 16, 32 and 64 times as many channels, four blocks each.
    """
    num_blocks = (WRN_DEPTH - 4) // 6
    stages = [(16 * width << place, num_blocks, 1 if place == 0 else 2) for place in range(3)]
    return ResidualNetwork(
        num_classes=num_classes,
        in_channels=in_channels,
        normalise=normalise,
        first=16,
        stages=stages,
        has_last_norm=True,
    )


def _conv3x3(in_channels: int, out_channels: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _initialise(network: nn.Module) -> None:
    """Draw convolutions as He et al. 2015 (the fan is that of the outputs); the linear layer keeps PyTorch's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
