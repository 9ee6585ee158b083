"""The blocks of the deeper networks. This module imports torch, so it is imported when a network is built."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride): two 3x3 convolutions and a shortcut.

    The shortcut is the identity, or a 1x1 convolution where the shape changes; unlike torchvision's it has no
    batch norm, and the convolutions have biases. He et al. (2016), as in Dive into Deep Learning, 8.6.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv3: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.conv3 = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.bn2(self.conv2(features))
        return F.relu(features + self.conv3(images))


class GroupedBottleneck(nn.Module):
    """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride): 1x1, grouped 3x3, 1x1 and a shortcut.

    The 3x3 convolution works on `groups * group_width` channels, in `groups` groups of `group_width` channels
    each. Xie et al. (2017), as in Dive into Deep Learning, 8.6.5. In the book's code `groups` is the width of a
    group, and torch gets `bot_channels // groups` as the number of groups.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, group_width: int, stride: int = 1
    ) -> None:
        super().__init__()
        if groups < 1 or group_width < 1:
            raise ValueError(f"groups and group_width must be at least 1, not {groups} and {group_width}")
        bot_channels = groups * group_width
        self.conv1 = nn.Conv2d(in_channels, bot_channels, kernel_size=1)
        self.conv2 = nn.Conv2d(
            bot_channels, bot_channels, kernel_size=3, stride=stride, padding=1, groups=groups
        )
        self.conv3 = nn.Conv2d(bot_channels, out_channels, kernel_size=1)
        self.bn1 = nn.BatchNorm2d(bot_channels)
        self.bn2 = nn.BatchNorm2d(bot_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = F.relu(self.bn2(self.conv2(features)))
        features = self.bn3(self.conv3(features))
        return F.relu(features + self.shortcut(images))


class Inception(nn.Module):
    """(N, in_channels, H, W) -> (N, sum of the branches' channels, H, W): four branches side by side.

    `one` is the width of the 1x1 branch, `three` and `five` are those of the 1x1 reduction and of the
    convolution after it, `pool` that of the 1x1 convolution after max pooling. Szegedy et al. (2015), as in
    Dive into Deep Learning, 8.4.
    """

    def __init__(
        self, in_channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int
    ) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(in_channels, one, kernel_size=1), nn.ReLU())
        self.three = nn.Sequential(
            nn.Conv2d(in_channels, three[0], kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(three[0], three[1], kernel_size=3, padding=1),
            nn.ReLU(),
        )
        self.five = nn.Sequential(
            nn.Conv2d(in_channels, five[0], kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(five[0], five[1], kernel_size=5, padding=2),
            nn.ReLU(),
        )
        self.pool = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1),
            nn.Conv2d(in_channels, pool, kernel_size=1),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat((self.one(images), self.three(images), self.five(images), self.pool(images)), dim=1)


class DenseBlock(nn.Module):
    """(N, in_channels, H, W) -> (N, in_channels + layers * growth_rate, H, W).

    Every layer takes the outputs of all layers before it. Huang et al. (2017), as in Dive into Deep Learning, 8.7.
    """

    def __init__(self, in_channels: int, layers: int, growth_rate: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.Conv2d(channels, growth_rate, kernel_size=3, padding=1),
                )
                for channels in range(in_channels, in_channels + layers * growth_rate, growth_rate)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for layer in self.layers:
            features = torch.cat((features, layer(features)), dim=1)
        return features
