"""What a training checkpoint of ``torch.save`` holds, with torch's tensors, and where the network lies in it."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elastic_ir.checkpoints.record import key_of, steps_of
from elastic_ir.errors import SourceError, first_line
from elastic_ir.formats.torch_zip import STEPS, read_zip_records
from elastic_ir.frontends.saved_state import choose, is_network


@dataclass(frozen=True)
class TrainingState:
    """What a file holds, tensors mapped from it."""

    held: Any
    at: tuple[str, ...]  #: the keys of its network's table
    key: str | None  #: the key by which that was chosen, where there are several


def read_training_state(source: str | os.PathLike[str], key: str | None) -> TrainingState:
    """Read a file; without a key the one that a record of ElasticIR in it states.

    Raises SourceError where there is none, or several and no ``key``, and where the file holds more than plain data
    and tensors: it is read by ``torch.load(weights_only=True)``, since all of it is written again.
    """
    path = Path(source)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError) as error:
        raise SourceError(
            f"{path.name} holds more than tensors and plain data, and cannot be written again as it is "
            f"({first_line(error)[:120]}); leave out --with-optimizer"
        ) from error
    record = read_zip_records(path).get(STEPS)
    if key is None and record is not None:
        key = key_of(steps_of(record, path.name))
    chosen = choose(found, path.name, key)
    if chosen is None or is_network(chosen.held):
        raise SourceError(f"{path.name} holds no state dict beside an optimizer")
    return TrainingState(found, chosen.at, key)
