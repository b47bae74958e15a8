"""A tensor whose elements do not lie in order: a transposed matrix, a slice of columns. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from elastic_ir.formats.safetensors import CHUNK, FileTensor
from elastic_ir.tensors.lazy import item_size


@dataclass(frozen=True)
class Strided:
    """The recipe "these elements, by strides"; to be read, the range that they lie in is held in memory."""

    flat: FileTensor  #: one axis, from the first element to the last one that is reached
    shape: tuple[int, ...]
    stride: tuple[int, ...]  #: in elements

    @property
    def dtype(self) -> str:
        return self.flat.dtype

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in the tensor's order, some rows at a time; SourceError as of a range of a file."""
        import numpy as np

        item = item_size(self.dtype)
        raw = np.frombuffer(b"".join(self.flat.chunks()), np.uint8)
        steps = (*(step * item for step in self.stride), 1)
        view = np.lib.stride_tricks.as_strided(raw, (*self.shape, item), steps, writeable=False)
        rows = max(1, CHUNK // max(1, item * prod(self.shape[1:])))
        for at in range(0, self.shape[0], rows):
            yield np.ascontiguousarray(view[at : at + rows]).reshape(-1).data
