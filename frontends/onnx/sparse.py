"""Sparse initializers read as a weight with its mask: indices are what survives, everything else is pruned.

Layout (onnx.proto, SparseTensorProto): ``values`` [NNZ]; ``indices`` int64, [NNZ] of flat positions or [NNZ, rank] of
coordinates, in ascending order without repetition; ``dims`` of the dense tensor.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError
from elastic_ir.tensors.arrays import as_array
from elastic_ir.tensors.lazy import Mask, ScatteredData, TensorData

if TYPE_CHECKING:
    import onnx

    from elastic_ir.frontends.onnx.file import OnnxFile

#: Elements that the dense tensors of a file may have in all, and how many more for each value that is stored: a mask
#: costs a bit for each, so that a small file could fill any memory. Beyond that it is damage, not a network.
_ELEMENTS, _FOR_EACH = 1 << 28, 1 << 9


class SparseReader:
    """Reads a file's sparse initializers, and counts how large they would be."""

    def __init__(self, opened: OnnxFile) -> None:
        self.opened = opened
        self.elements = self.stored = 0

    def read(self, sparse: onnx.SparseTensorProto) -> tuple[TensorData, Mask]:
        """A sparse initializer as lazy dense data and its mask; SourceError where its parts do not fit."""
        name, file = sparse.values.name, self.opened.path.name
        owner = f"the sparse initializer {name!r}"
        values = self.opened.data(sparse.values, owner)
        indices = self.opened.data(sparse.indices, f"the indices of {owner}")
        shape = tuple(sparse.dims)
        if values is None or indices is None or indices.dtype != "int64":
            raise SourceError(f"{file}: {owner} has values or indices of a type that is not read")
        if any(extent < 0 for extent in shape):
            raise SourceError(f"{file}: {owner} has the shape {list(shape)}")
        self.elements += prod(shape)
        self.stored += prod(values.shape)
        if self.elements > max(_ELEMENTS, _FOR_EACH * self.stored):
            raise SourceError(
                f"{file}: {owner} has the shape {list(shape)}, and with it {self.stored} values are stored of "
                f"{self.elements}; so few of so many are not read"
            )
        mask = _mask(indices, shape, prod(values.shape), owner, file)
        return ScatteredData(mask, values), mask


def _mask(indices: TensorData, shape: tuple[int, ...], count: int, owner: str, file: str) -> Mask:
    """Where values are, from their flat positions or their coordinates."""
    import numpy as np

    size = prod(shape)
    flat = as_array(indices).reshape(-1)
    if len(indices.shape) == 2:
        if indices.shape != (count, len(shape)) or not shape:
            raise SourceError(f"{file}: {owner} has {count} values and indices {list(indices.shape)}")
        table = flat.reshape(indices.shape)
        if count and bool(((table < 0) | (table >= np.array(shape))).any()):
            raise SourceError(f"{file}: {owner} has an index outside its shape {list(shape)}")
        flat = np.asarray(np.ravel_multi_index(tuple(table.T), shape), np.int64) if count else flat
    fits = len(flat) == count
    if not fits or (count and not bool(flat[0] >= 0 and flat[-1] < size and (np.diff(flat) > 0).all())):
        raise SourceError(f"{file}: {owner} has indices that do not rise within its {size} elements")
    bits = np.zeros(-(-size // 8), np.uint8)
    np.bitwise_or.at(bits, flat >> 3, (128 >> (flat & 7)).astype(np.uint8))
    return Mask(shape, bits.tobytes())
