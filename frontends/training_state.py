"""What a training checkpoint of ``torch.save`` holds, with torch's tensors, and where the network lies in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.record import key_of, steps_of
from elastic_ir.errors import SourceError
from elastic_ir.formats.plain_file import load_plain
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

    Raises SourceError where there is none, or several and no ``key``, and as
    :func:`elastic_ir.formats.plain_file.load_plain` does: all of the file is written again.
    """
    path = Path(source)
    found = load_plain(path, "leave out --with-optimizer")
    record = read_zip_records(path).get(STEPS)
    if key is None and record is not None:
        key = key_of(steps_of(record, path.name))
    chosen = choose(found, path.name, key)
    if chosen is None or is_network(chosen.held):
        raise SourceError(f"{path.name} holds no state dict beside an optimizer")
    return TrainingState(found, chosen.at, key)
