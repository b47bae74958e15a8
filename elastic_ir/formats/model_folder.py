"""What emission needs again of a checkpoint folder that was read by its headers alone. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from elastic_ir.ir.info import Origin

if TYPE_CHECKING:
    from elastic_ir.tensors.gathered import ByLayer

#: The configuration beside the weights.
CONFIG = "config.json"
#: One file of weights, and the index where they lie in several.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: The same as ``torch.save`` writes them; read where there are no safetensors, and never written.
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
#: Masks, and what was done to a checkpoint, as ElasticIR writes them.
MASKS, RECORD = "model.masks.safetensors", "elastic_ir.json"
#: The names of one file of weights and of an index, in the order in which transformers looks for them.
WEIGHT_FORMS = ((WEIGHTS, None), (None, INDEX), (BIN, None), (None, BIN_INDEX))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds weights under the names that transformers gives them."""
    return path.is_dir() and any((path / str(file or index)).is_file() for file, index in WEIGHT_FORMS)


@dataclass(eq=False)
class CheckpointSource(Origin):
    """A folder, its configuration as data, and the files that its tensors lie in."""

    streamed: ClassVar[bool] = True
    folder: Path
    root: Path  #: outside of it no link may lead
    config: dict[str, Any]
    shards: tuple[Path, ...]
    #: of the shards, the first one's where they differ
    metadata: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  #: of all its tensors
    #: for each stack, by its label, what each layer holds: its kind, as a number
    kinds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: how tensors beside the stacks are indexed by their layers; None until its network was asked
    indexed: Mapping[str, ByLayer] | None = None
    #: the further folders that layers come from, in the order of their numbers from 1 on
    others: tuple[CheckpointSource, ...] = ()


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written anew or replaced by another: its inode, size and time of change."""
    return status.st_ino, status.st_size, status.st_mtime_ns
