"""Dice: random numbers that follow from a seed and a place alone, torch's, Python's and NumPy's alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def hashed(*numbers: int) -> int:
    """A seed of 32 bits for these numbers; hashed, since torch's generator looks at the low half of its seed only."""
    (found,) = np.random.SeedSequence(numbers).generate_state(1)
    return int(found)


def generator(*numbers: int) -> torch.Generator:
    """A random stream of its own for these numbers: a seed, a purpose, an epoch or a step."""
    return torch.Generator().manual_seed(hashed(*numbers))


@contextmanager
def kept() -> Iterator[None]:
    """The dice that all share (torch's on the CPU, Python's, NumPy's) put back behind the block as they were."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def begin(seed: int) -> None:
    """The dice that all share begun at a seed of 32 bits."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
