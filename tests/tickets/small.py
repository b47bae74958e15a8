"""A small network with masks, and what the tests of enforcement do with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

#: The weights that :func:`some_masks` prunes.
MASKED = ("0.weight", "4.weight")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))


def some_masks() -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(7)
    shapes = {"0.weight": (8, 3, 3, 3), "4.weight": (5, 128)}
    return {name: (torch.rand(shape, generator=dice) < 0.3) for name, shape in shapes.items()}


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 6, 6, generator=dice), torch.randint(5, (6,), generator=dice)


def loss_of(model: nn.Module, seed: int = 1) -> Tensor:
    images, labels = batch(seed)
    return F.cross_entropy(model(images).float(), labels)


def backward(loss: Tensor, **options: Any) -> None:
    loss.backward(**options)  # type: ignore[no-untyped-call]


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            backward(loss)
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]  # LBFGS returns the loss as a tensor


def assert_dead(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Each pruned weight is +0 (no sign bit), and the others are alive."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters[name].detach().cpu()
        dead = weight[mask == 0]
        assert torch.equal(dead, torch.zeros_like(dead)), name
        assert not dead.signbit().any(), name
        assert weight[mask == 1].count_nonzero() == mask.sum(), name
