"""Sparse initializers read as a weight with its mask: indices are what survives, everything else is pruned.

Layout (onnx.proto, SparseTensorProto): ``values`` [NNZ]; ``indices`` int64, [NNZ] of flat positions or [NNZ, rank] of
coordinates, in ascending order without repetition; ``dims`` of the dense tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError
from elastic_ir.tensors import ITEM_SIZES, Mask, TensorData

if TYPE_CHECKING:
    import onnx

    from elastic_ir.frontends.onnx_file import OnnxFile

_LIMIT = 1 << 36  #: elements of a dense tensor; more is damage, not a network


@dataclass(frozen=True)
class Scattered:
    """The dense tensor of a sparse one, zero outside its mask; made when it is read."""

    values: TensorData
    mask: Mask

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask.shape

    @property
    def dtype(self) -> str:
        return self.values.dtype

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        item = ITEM_SIZES[self.dtype]
        dense = np.zeros((self.mask.size, item), np.uint8)
        raw = b"".join(map(bytes, self.values.chunks()))
        dense[self.mask.array().reshape(-1)] = np.frombuffer(raw, np.uint8).reshape(-1, item)
        yield dense.reshape(-1).data


def read_sparse(opened: OnnxFile, sparse: onnx.SparseTensorProto) -> tuple[TensorData, Mask]:
    """A sparse initializer as lazy dense data and its mask; SourceError where its parts do not fit."""
    import numpy as np

    name = sparse.values.name
    owner = f"the sparse initializer {name!r}"
    values = opened.data(sparse.values, owner)
    indices = opened.data(sparse.indices, f"the indices of {owner}")
    shape = tuple(sparse.dims)
    if values is None or indices is None or indices.dtype != "int64":
        raise SourceError(f"{opened.path.name}: {owner} has values or indices of a type that is not read")
    if any(extent < 0 for extent in shape) or prod(shape) > _LIMIT:
        raise SourceError(f"{opened.path.name}: {owner} has the shape {list(shape)}")
    flat = np.frombuffer(b"".join(map(bytes, indices.chunks())), np.int64)
    count, size = prod(values.shape), prod(shape)
    if len(indices.shape) == 2:
        if indices.shape != (count, len(shape)):
            raise SourceError(
                f"{opened.path.name}: {owner} has {count} values and indices {list(indices.shape)}"
            )
        table = flat.reshape(indices.shape)
        if count and bool(((table < 0) | (table >= np.array(shape))).any()):
            raise SourceError(f"{opened.path.name}: {owner} has an index outside its shape {list(shape)}")
        flat = np.asarray(np.ravel_multi_index(tuple(table.T), shape), np.int64) if count else flat
    if len(flat) != count or (
        count and (flat[0] < 0 or flat[-1] >= size or bool((np.diff(flat) <= 0).any()))
    ):
        raise SourceError(
            f"{opened.path.name}: {owner} has indices that do not rise within its {size} elements"
        )
    keep = np.zeros(size, np.bool_)
    keep[flat] = True
    mask = Mask.from_array(keep.reshape(shape), name, "bool")
    return Scattered(values, mask), mask
