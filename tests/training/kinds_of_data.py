"""Data of kinds other than labelled images, as a user's functions give them, and networks for them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from elastic_ir.training.data import load_data

HERE = "tests.training.kinds_of_data"
Pair = tuple[Tensor, Tensor]


def split(inputs: Any, targets: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Three quarters for the training, the rest for the test."""
    cut = len(inputs) * 3 // 4
    return (inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:])


def dice() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rows(count: int = 120) -> Pair:
    """Rows of eight numbers, and a number that follows from each: targets between 0 and 1, all of them."""
    x = torch.randn(count, 8, generator=dice())
    return x, (x @ torch.linspace(-1, 1, 8) / 4).sigmoid()


def flat() -> object:
    """Targets [N]."""
    return split(*rows())


def column() -> object:
    """Targets [N, 1] in float32."""
    x, y = rows()
    return split(x, y[:, None])


def doubles() -> object:
    """NumPy's float64, inputs and targets [N, 3]."""
    x, y = rows()
    return split(x.double().numpy(), torch.stack([y, 1 - y, y / 2], 1).double().numpy())


def several_labels() -> object:
    """Multi-label targets: each of three is there or not."""
    x, _ = rows()
    return split(x, (x[:, :3] > 0).float())


def shares() -> object:
    """Targets that are shares of three classes."""
    x, _ = rows()
    return split(x, x[:, :3].softmax(1))


def tokens() -> object:
    """Token ids, and classes as int32: whether the first token is one of the even ones."""
    x = torch.randint(0, 12, (120, 5), generator=dice())
    return split(x, (x[:, 0] % 2).to(torch.int32))


def masks() -> object:
    """Images, and a class for each pixel: the last row counts for nothing."""
    x = torch.randn(40, 1, 8, 8, generator=dice())
    y = (x[:, 0] > 0).long()
    y[:, -1] = -100
    return split(x, y)


def counts() -> object:
    """Whole numbers that are no classes, beside one output."""
    x, y = rows()
    return split(x, (10 * y).long()[:, None])


def pixels() -> object:
    """Images as bytes."""
    return split(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2)


def tensor_datasets() -> object:
    """Tensors in torch's own wrapping, whole and shared out by chance."""
    x, y = rows()
    whole = TensorDataset(x, y[:, None])
    part: Subset[tuple[Tensor, ...]] = random_split(whole, [90, 30], generator=dice())[1]
    return whole, part


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Rows that torch's, Python's and NumPy's dice move whenever they are read; the item's number comes last."""

    def __init__(self, count: int = 12) -> None:
        self.count, self.reads = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        moved = torch.tensor([torch.rand(()).item(), random.random(), np.random.rand()])
        return torch.cat([moved, torch.zeros(4), torch.tensor([float(index)])]), torch.tensor([float(index)])


def augmented() -> object:
    return Augmented(), Augmented(4)


def named() -> object:
    """Items that are dictionaries."""
    return ([{"x": 1.0, "y": 2.0}] * 3, [{"x": 1.0, "y": 2.0}] * 3)


def boxes() -> object:
    """Targets that are dictionaries."""
    items = [(torch.zeros(8), {"boxes": torch.zeros(2, 4)})] * 3
    return items, items


def two_inputs() -> object:
    """Inputs that are tuples."""
    items = [((torch.zeros(8), torch.ones(8)), 1)] * 3
    return items, items


def two_arrays() -> object:
    """Two arrays of inputs, which would make one of twice the size."""
    part = (np.zeros((4, 8)), np.zeros((4, 8))), np.zeros(4)
    return part, part


def ordered() -> object:
    """Rows class by class, the classes in no order."""
    return split(torch.arange(80.0)[:, None], torch.tensor([2, 0, 3, 1]).repeat_interleave(20))


def listed() -> object:
    """A list of items: Python's numbers beside arrays."""
    items = [(np.full(8, index, np.float32), index % 3) for index in range(9)]
    return items[:6], items[6:]


def line(outputs: int = 1) -> nn.Sequential:
    """Three layers on rows of eight numbers."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs))


def single() -> nn.Module:
    """One number without an axis of its own."""
    return nn.Sequential(line(), nn.Flatten(0))


def three() -> nn.Sequential:
    return line(3)


class Reader(nn.Module):
    """An embedding and layers on token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.embed(ids)[:, 0]).relu())
        return out


class Painter(nn.Module):
    """A class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def made(network: str, seed: int = 0) -> nn.Module:
    """A network of this file, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found: nn.Module = globals()[network]()
    return found


def given(name: str, limit: int = 0) -> Any:
    """Data of this file."""
    return load_data(f"{HERE}:{name}", limit=limit)
