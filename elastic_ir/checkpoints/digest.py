"""What tells one plan of a checkpoint folder, and one state of its source, from every other. No torch here.

Lazy tensors and recipes are frozen dataclasses, so that their fields say all that they will yield; of a file that one
refers to, the stamp (inode, size, time of change) goes into the source's digest and the rest into the plan's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_ir.tensors.lazy import Mask, TensorData


class _Unknown(Exception):
    """Something whose content cannot be told from its fields."""


def digests(files: Mapping[str, Mapping[str, TensorData]], texts: Mapping[str, str]) -> tuple[str, str]:
    """The digests of a plan (names, shapes, shards, origins, recipes, texts) and of the source files' stamps.

    A tensor whose fields do not say what it yields gives a digest that no other plan has: such work is not resumed.
    """
    describer = _Describer()
    try:
        plan = [
            [file, [[name, describer.of(data)] for name, data in tensors.items()]]
            for file, tensors in files.items()
        ]
    except _Unknown:
        return secrets.token_hex(32), ""
    return _digest([plan, sorted(texts.items())]), _digest(sorted(map(str, describer.stamps)))


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


class _Describer:
    def __init__(self) -> None:
        self.stamps: set[tuple[str, Any]] = set()
        self._masks: dict[
            int, tuple[Mask, str]
        ] = {}  # clones share them; the mask is held, so that its id is its own

    def of(self, item: Any) -> Any:
        """An object as JSON has it."""
        if item is None or isinstance(item, str | int | float | bool):
            return item
        if isinstance(item, Path):
            return item.name  # however it is reached, now or after a move; what it holds is in the stamp
        if isinstance(item, bytes | bytearray | memoryview):
            return hashlib.sha256(item).hexdigest()
        if isinstance(item, tuple | list):
            return [self.of(part) for part in item]
        if isinstance(item, Mapping):
            return [[self.of(key), self.of(value)] for key, value in item.items()]
        stored = getattr(item, "stored", None)
        if isinstance(item, Mask) and stored is None:
            if id(item) not in self._masks:
                self._masks[id(item)] = item, hashlib.sha256(item.bits).hexdigest()
            return ["Mask", list(item.shape), item.dtype, self._masks[id(item)][1]]
        if isinstance(item, Mask):  # its bits are in a file
            return ["Mask", list(item.shape), item.dtype, self.of(stored)]
        if not dataclasses.is_dataclass(item) or isinstance(item, type):
            raise _Unknown
        parts = [type(item).__name__]
        for part in dataclasses.fields(item):
            value = getattr(item, part.name)
            if part.name == "stamp":
                self.stamps.add((Path(getattr(item, "path", "")).name, value))
            else:
                parts.append(self.of(value))
        return parts
