"""Scikit-learn's handwritten digits (1,797 images of 8x8) and a small network for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (1,500), then those of the test (297)."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def batches(steps: int, size: int = 64, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels, _, _ = digits()
    dice = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (size,), generator=dice)
        yield images[chosen], labels[chosen]


def train(
    model: nn.Module, optimizer: Optimizer, steps: int, before_step: Callable[[], object], seed: int = 0
) -> None:
    model.train()
    for images, labels in batches(steps, seed=seed):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        before_step()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    _, _, images, labels = digits()
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean())
