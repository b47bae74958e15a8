"""Randomness that follows from a seed and a place alone, in torch, Python and NumPy alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits for these numbers; hashed, since torch's generator looks at the low half of its seed only."""
    (found,) = np.random.SeedSequence(numbers).generate_state(1)
    return int(found)


def generator(*numbers: int) -> torch.Generator:
    """A random stream of its own for these numbers: a seed, a purpose, an epoch or a step."""
    return torch.Generator().manual_seed(seed_of(*numbers))


@contextmanager
def preserved() -> Iterator[None]:
    """The global generators (torch's on the CPU, Python's, NumPy's) get their states back after the block."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def seed_all(seed: int) -> None:
    """Seed the global generators (torch's on the CPU, Python's, NumPy's) with 32 bits."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
