"""CIFAR ResNets (He et al. 2016, section 4.2), the networks on which elastic tickets were first shown.

Three stages of n basic blocks make depth 6n + 2. Projection shortcuts stand where a stage begins, as in the lottery
ticket literature. The parameters carry either the usual names (``layer1.0.conv1``) or those of open_lth
(``blocks.0.conv1``, one flat Sequential for all stages), so that tickets of either kind load strictly.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from elastic_ir.choices import check_choice
from elastic_ir.errors import PlanError

#: Whose parameter names a network carries.
Names: TypeAlias = Literal["torchvision", "open_lth"]


def check_names(names: str) -> None:
    """PlanError unless ``names`` is a naming that the zoo knows."""
    check_choice("names", names, Names)


def initialize(model: nn.Module) -> None:
    """He's initialization of convolutions and linear layers, in place; norms keep their ones and zeros."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _conv3x3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _projection(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(channels),
    )


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; the subclasses differ only in the shortcut's name."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def skip(self, x: Tensor) -> Tensor:
        """What is added to the block's result."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.skip(x))


class BasicBlock(_Block):
    """A block with torchvision's names: the projection, where there is one, is ``downsample``."""

    downsample: nn.Sequential | None

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels, stride)
        changes = stride != 1 or channels_in != channels
        self.downsample = _projection(channels_in, channels, stride) if changes else None

    def skip(self, x: Tensor) -> Tensor:
        added: Tensor = x if self.downsample is None else self.downsample(x)
        return added


class OpenLTHBlock(_Block):
    """A block with open_lth's names: ``shortcut`` is there in every block, and empty where nothing changes."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels, stride)
        changes = stride != 1 or channels_in != channels
        self.shortcut = _projection(channels_in, channels, stride) if changes else nn.Sequential()

    def skip(self, x: Tensor) -> Tensor:
        added: Tensor = self.shortcut(x)
        return added


def _stage(
    block: type[BasicBlock | OpenLTHBlock], channels_in: int, channels: int, count: int
) -> list[nn.Module]:
    """The first stage keeps the resolution, and a stage that widens halves it in its first block."""
    first = block(channels_in, channels, 1 if channels_in == channels else 2)
    return [first, *(block(channels, channels) for _ in range(count - 1))]


class CifarResNet(nn.Module):
    """A CIFAR ResNet with the usual names: ``conv1``, ``bn1``, ``layer1`` to ``layer3``, ``fc``."""

    def __init__(self, blocks_per_stage: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*_stage(BasicBlock, width, width, blocks_per_stage))
        self.layer2 = nn.Sequential(*_stage(BasicBlock, width, 2 * width, blocks_per_stage))
        self.layer3 = nn.Sequential(*_stage(BasicBlock, 2 * width, 4 * width, blocks_per_stage))
        self.fc = nn.Linear(4 * width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class OpenLTHResNet(nn.Module):
    """The same network with open_lth's names: ``conv``, ``bn``, ``blocks`` (all stages in one Sequential), ``fc``."""

    def __init__(self, blocks_per_stage: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv = _conv3x3(3, width)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            *_stage(OpenLTHBlock, width, width, blocks_per_stage),
            *_stage(OpenLTHBlock, width, 2 * width, blocks_per_stage),
            *_stage(OpenLTHBlock, 2 * width, 4 * width, blocks_per_stage),
        )
        self.fc = nn.Linear(4 * width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


def _blocks_per_stage(depth: int) -> int:
    """The n of 6n + 2; PlanError names the nearest depths of that form."""
    if depth >= 8 and (depth - 2) % 6 == 0:
        return (depth - 2) // 6
    below = max(8, depth - (depth - 2) % 6)
    candidates = (below, below + 6)
    distance = min(abs(depth - candidate) for candidate in candidates)
    nearest = [str(candidate) for candidate in candidates if abs(depth - candidate) == distance]
    word = "nearest is" if len(nearest) == 1 else "nearest are"
    raise PlanError(
        f"a CIFAR ResNet has depth 6n + 2 (8, 14, 20, ...), and {depth} is not; the {word} {' and '.join(nearest)}"
    )


def cifar_resnet(
    depth: int, num_classes: int = 10, width: int = 16, names: Names = "torchvision"
) -> nn.Module:
    """A CIFAR ResNet of depth 6n + 2, freshly initialized.

    >>> sum(p.numel() for p in cifar_resnet(20).parameters())
    272474
    """
    check_names(names)
    blocks = _blocks_per_stage(depth)
    network = CifarResNet if names == "torchvision" else OpenLTHResNet
    return network(blocks, num_classes, width)


#: 2, 3, 5, 7, 9, 18 and 200 blocks in each stage; the last is the deepest of He et al., here to measure growth.
cifar_resnet14 = partial(cifar_resnet, 14)
cifar_resnet20 = partial(cifar_resnet, 20)
cifar_resnet32 = partial(cifar_resnet, 32)
cifar_resnet44 = partial(cifar_resnet, 44)
cifar_resnet56 = partial(cifar_resnet, 56)
cifar_resnet110 = partial(cifar_resnet, 110)
cifar_resnet1202 = partial(cifar_resnet, 1202)
