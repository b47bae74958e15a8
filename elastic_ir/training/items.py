"""Items: pairs of an input and a target, as a dataset gives them and as a network takes them.

What is random in an item follows from a seed and a place alone, in torch, Python and NumPy alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def weights_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of a network's weights, in which it takes floats."""
    floats = (weight.dtype for weight in network.parameters() if weight.is_floating_point())
    return next(floats, torch.get_default_dtype())


def extents(shape: Iterable[int]) -> str:
    """A shape for a reader: ``3x32x32``."""
    return "x".join(map(str, shape)) or "a single number"


def taken(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Floats in the dtype of a network's weights; whole numbers (token ids, classes, bytes) as they are."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def read_item(dataset: Any, index: int) -> tuple[Tensor, Tensor]:
    """An item of a dataset as (input, target), random parts drawn alike every time; see :func:`read_items`."""
    return read_items(dataset, [(index, 0)])[0]


def read_items(dataset: Any, places: Iterable[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
    """Items of a dataset by index as (input, target), with what is random in each decided by the seed beside it.

    The global generators keep their states. TypeError for an item that is not such a pair.
    """
    found = []
    with _preserved():
        for index, seed in places:
            _seed_all(seed)
            found.append(_pair(dataset[index], index))
    return found


def _pair(item: Any, index: int) -> tuple[Tensor, Tensor]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        many = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise TypeError(f"item {index} is a {type(item).__name__}{many}; expected a pair (input, target)")
    return as_tensor(item[0], f"the input of item {index}"), as_tensor(item[1], f"the target of item {index}")


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor of the same dtype; TypeError for what is not one tensor, array or number."""
    try:
        if isinstance(value, tuple) and any(getattr(part, "ndim", 0) for part in value):
            raise TypeError("several arrays, which would be taken for one")
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what} is a {type(value).__name__}; expected one tensor, array or number"
        ) from error


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits for these numbers; hashed, since torch's generator looks at the low half of its seed only."""
    (found,) = np.random.SeedSequence(numbers).generate_state(1)
    return int(found)


def generator_for(*numbers: int) -> torch.Generator:
    """A random stream of its own for these numbers: a seed, a purpose, an epoch or a step."""
    return torch.Generator().manual_seed(seed_of(*numbers))


@contextmanager
def _preserved() -> Iterator[None]:
    """The global generators (torch's on the CPU, Python's, NumPy's) get their states back after the block."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _seed_all(seed: int) -> None:
    """Seed the global generators (torch's on the CPU, Python's, NumPy's) with 32 bits."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
