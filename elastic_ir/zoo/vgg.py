"""CIFAR VGGs: the second family of the elastic ticket paper, plain chains without shortcuts.

The number in a VGG's name counts the ImageNet original's three linear layers; the CIFAR networks have one, so that
VGG-16 is 14 weight layers deep. The parameters carry either torchvision's names (one flat Sequential ``features``) or
open_lth's (``layers.N.conv``), so that tickets of either kind load strictly.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from elastic_ir.errors import PlanError
from elastic_ir.zoo.resnet import Names, check_names, initialize

#: Channels of the five stages in widths of the first, and by the network's number how many convolutions each stage has
#: (Simonyan & Zisserman 2015, table 1, configurations B, D and E).
WIDTHS = (1, 2, 4, 8, 8)
COUNTS: dict[int, tuple[int, ...]] = {
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class CifarVGG(nn.Module):
    """A CIFAR VGG with torchvision's names: a flat ``features`` of convolutions, norms, activations and pools.

    The linear head is ``classifier`` and reads the pooled channels of the last stage directly.
    """

    def __init__(
        self, counts: tuple[int, ...], num_classes: int = 10, batch_norm: bool = True, width: int = 64
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for widths, count in zip(WIDTHS, counts, strict=True):
            channels = widths * width
            for _ in range(count):
                layers.append(nn.Conv2d(channels_in, channels, kernel_size=3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                layers.append(nn.ReLU())
                channels_in = channels
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels_in, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return out


class OpenLTHConv(nn.Module):
    """A convolution with its norm and activation: one entry of open_lth's ``layers``."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel_size=3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class OpenLTHVGG(nn.Module):
    """A CIFAR VGG with open_lth's names: ``layers`` of convolution modules with pools between the stages, and ``fc``.

    No pool follows the last stage; an average over what is left takes its place.
    """

    def __init__(self, counts: tuple[int, ...], num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for widths, count in zip(WIDTHS, counts, strict=True):
            channels = widths * width
            if layers:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            for _ in range(count):
                layers.append(OpenLTHConv(channels_in, channels))
                channels_in = channels
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(channels_in, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))
        return out


def cifar_vgg(
    depth: int, num_classes: int = 10, batch_norm: bool = True, names: Names = "torchvision", width: int = 64
) -> nn.Module:
    """CIFAR VGG-13, -16 or -19 (``depth`` is the number in the name), freshly initialized.

    ``width`` is the number of channels of the first stage; open_lth's names need images of 16 pixels or more,
    torchvision's of 32.

    >>> sum(isinstance(module, nn.Conv2d) for module in cifar_vgg(16).modules())
    13
    """
    check_names(names)
    if depth not in COUNTS:
        nearest = min(COUNTS, key=lambda known: abs(known - depth))
        raise PlanError(
            f"there is no CIFAR VGG-{depth}; the family is VGG-13, 16 and 19, and the nearest is {nearest}"
        )
    if names == "torchvision":
        return CifarVGG(COUNTS[depth], num_classes, batch_norm, width)
    if not batch_norm:
        raise PlanError("open_lth's VGGs always have batch norm; give names='torchvision' for one without")
    return OpenLTHVGG(COUNTS[depth], num_classes, width)


cifar_vgg13 = partial(cifar_vgg, 13)
cifar_vgg16 = partial(cifar_vgg, 16)
cifar_vgg19 = partial(cifar_vgg, 19)
