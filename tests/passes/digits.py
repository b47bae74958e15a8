"""Eight-by-eight digits of scikit-learn as small images, and a few steps of training on them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import sklearn.datasets
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.tickets import enforce, magnitude_masks


@functools.cache
def images(count: int = 256, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images of three channels, about -1 to 1, and their labels."""
    found = sklearn.datasets.load_digits()
    pixels = torch.tensor(found.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    pixels = nn.functional.interpolate(pixels, size=size, mode="nearest")
    return pixels.expand(-1, 3, -1, -1).contiguous(), torch.tensor(found.target[:count])


def batches(count: int = 256, batch: int = 32, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    x, y = images(count, size)
    return list(zip(torch.split(x, batch), torch.split(y, batch), strict=True))


def ticket(model: nn.Module, sparsity: float = 0.8, size: int = 8) -> eir.Graph:
    """A sparse graph of a network, traced on digits."""
    masks = magnitude_masks(model, sparsity, leave_out=["conv1"] if hasattr(model, "conv1") else ())
    return eir.trace(model, (images(4, size)[0],), masks=masks)


def train(
    module: nn.Module, graph: eir.Graph, steps: int, before: Callable[[float], object] = lambda _: None
) -> list[float]:
    """Plain SGD with masks held; ``before`` is told the progress before each step, and at the end. The losses."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    data, losses = batches(), []
    module.train()
    with enforce(module, optimizer, graph.masks()):
        for step in range(steps):
            before(step / steps)
            x, y = data[step % len(data)]
            loss = nn.functional.cross_entropy(module(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    before(1.0)
    return losses
