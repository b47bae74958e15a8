"""Tensors of layers that hand on what they read: identity kernels, and batch norms that do nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Recipe, written


@dataclass(frozen=True)
class IdentityKernel(Recipe):
    """The weight of a convolution or linear layer that returns its input: 1 in the middle of each channel's own kernel.

    ``shape`` is (channels, channels / groups, \\*kernel), each extent of the kernel odd.
    """

    shape: tuple[int, ...]
    dtype: str
    groups: int = 1

    def chunks(self) -> Iterator[memoryview]:
        import torch

        rows, columns, *kernel = self.shape
        weight = torch.zeros(self.shape)
        place: Any = (..., *(extent // 2 for extent in kernel))
        middle = weight[place]  # a view of (rows, columns)
        at = torch.arange(rows)
        middle[at, at % columns] = 1
        assert rows == columns * self.groups
        yield from written(weight, self.dtype)


@dataclass(frozen=True)
class Constant(Recipe):
    """A tensor that holds one number everywhere."""

    shape: tuple[int, ...]
    dtype: str
    value: float

    def chunks(self) -> Iterator[memoryview]:
        import torch

        yield from written(torch.full(self.shape, self.value, dtype=getattr(torch, self.dtype)), self.dtype)


def idle_norm(shapes: dict[str, tuple[tuple[int, ...], str]], epsilon: float) -> dict[str, TensorData]:
    """The tensors of a batch norm that is the identity in evaluation, for its roles with their shapes and dtypes.

    Its scale undoes what epsilon adds to a variance of one; where it has no scale, the variance leaves epsilon room.
    """
    values = {"running_mean": 0.0, "bias": 0.0, "num_batches_tracked": 0.0, "running_var": 1.0,
              "weight": math.sqrt(1 + epsilon)}  # fmt: skip
    if "weight" not in shapes:
        values["running_var"] = 1 - epsilon
    return {role: Constant(shape, dtype, values[role]) for role, (shape, dtype) in shapes.items()}
