"""Small networks and data for the tests of training; other processes import them by name."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn

from elastic_ir.training.data import Data, load_data
from elastic_ir.training.settings import Pruning, Training

QUICK = Training(steps=40, batch_size=64, lr=0.1)
TWO_LEVELS = Pruning(levels=2, rewind=5, share=0.5)


class Block(nn.Module):
    """A residual block without norms, so that a batch may be shared out among processes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(self.fc1(x).relu())
        return out


class Perceptron(nn.Module):
    """A stem, residual blocks and a head on the pixels of an image."""

    def __init__(self, blocks: int = 2, width: int = 16, pixels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(pixels, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x.flatten(1)).relu()))
        return out


class Doomed(Perceptron):
    """A network that cannot be built."""

    def __init__(self) -> None:
        raise ValueError("no such network")


class Signalled(Perceptron):
    """Sends its own process a signal in its first step of training; the mark says that it has."""

    def __init__(self, mark: str, number: int, blocks: int = 2) -> None:
        super().__init__(blocks)
        self.mark, self.number = mark, number

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not os.path.exists(self.mark):
            assert signal.getsignal(self.number) is not signal.SIG_DFL, "Lightning is to have a handler here"
            with open(self.mark, "w") as file:
                file.write("sent")
            os.kill(os.getpid(), self.number)
        return super().forward(x)


def perceptron(seed: int = 0, blocks: int = 2) -> Perceptron:
    """A freshly initialized network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Perceptron(blocks)


def digits() -> Data:
    """scikit-learn's digits."""
    return load_data("digits")


def pair() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Data as a user's function gives them: two pairs of images and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 1, 4, 4, generator=generator)
    labels = torch.arange(20) % 3
    return (images[:15], labels[:15]), (images[15:], labels[15:])


class Large(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Ten grey images of which each is all its own number."""

    classes = ("even", "odd")

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 4, 4), float(index)), index % 2


def large() -> tuple[Large, Large]:
    """Data as a user's function gives them: two datasets."""
    return Large(), Large()


def nothing() -> int:
    """No data at all."""
    return 3


def failing() -> object:
    """Data that fail for a reason of their own."""
    return (3).absent  # type: ignore[attr-defined]


def uneven() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Fewer labels than images."""
    return (torch.zeros(6, 1, 8, 8), torch.zeros(5)), (torch.zeros(2, 1, 8, 8), torch.zeros(2))
