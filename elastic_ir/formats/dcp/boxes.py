"""A tensor that lies in boxes, put together of them when it is read. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from elastic_ir.formats.dcp.metadata import Box
from elastic_ir.formats.ranges import CHUNK
from elastic_ir.tensors.lazy import TensorData, item_size


@dataclass(frozen=True, eq=False)
class Boxed:
    """A tensor of boxes that fill its shape; ``held`` gives what lies in one, and raises SourceError."""

    shape: tuple[int, ...]
    dtype: str
    boxes: Sequence[Box]
    held: Callable[[Box], TensorData]

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order: box by box where each has whole rows, else of the whole, which is held in memory."""
        boxes = sorted((box for box in self.boxes if prod(box.sizes)), key=lambda box: box.offsets)
        if all(box.sizes[1:] == self.shape[1:] for box in boxes):
            for box in boxes:
                yield from self.held(box).chunks()
            return
        import numpy as np

        whole = np.empty(self.shape, f"V{item_size(self.dtype)}")
        for box in boxes:
            part: Any = np.frombuffer(b"".join(self.held(box).chunks()), whole.dtype)
            where = tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))
            whole[where] = part.reshape(box.sizes)
        flat = whole.reshape(-1).view(np.uint8)
        for at in range(0, flat.size, CHUNK):
            yield flat[at : at + CHUNK].data
