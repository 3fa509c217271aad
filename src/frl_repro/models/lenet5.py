"""LeNet-5 as the reproduction report uses it."""

import torch
from torch import Tensor, nn

IMAGE_SIZE = 32  # three valid 5x5 convolutions and two halvings take 32 to exactly 1


class LeNet5(nn.Module):
    """LeNet-5 with tanh and average pooling: [0, 1] images in, logits out. 61,706 parameters for ten classes.

    Parameters
    ----------
    num_classes : int
        K.
    in_channels : int
        Channels of the images.

    Notes
    -----
    Source: the reproduction report, section 3.2: 5x5 convolutions 1-6-16-120, tanh, 2x2 average pooling after the first
    two, linear 84, linear 10. No input normalisation: images in [0, 1] are the input.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.conv3 = nn.Conv2d(16, 120, kernel_size=5)
        self.fc1 = nn.Linear(120, 84)
        self.fc2 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, K), of images ``x``, shape (N, C, 32, 32), in [0, 1]."""
        x = nn.functional.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = nn.functional.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        x = torch.tanh(self.conv3(x)).flatten(1)
        logits: Tensor = self.fc2(torch.tanh(self.fc1(x)))
        return logits
