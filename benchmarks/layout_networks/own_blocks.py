"""Blocks that the minimal networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

D = 8


class Attend(nn.Module):
    """Attention of one head, behind a norm."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        result: Tensor = self.out(torch.softmax(q @ k.transpose(-1, -2), -1) @ v)
        return result


class Feed(nn.Module):
    """A feed-forward behind a norm."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result


class Residual(nn.Module):
    """A block with a residual of its own."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.b(torch.relu(self.a(x)))
        return result


class Bottle(nn.Module):
    """Two convolutions and a residual."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.b(torch.relu(self.a(x)))
        return result
