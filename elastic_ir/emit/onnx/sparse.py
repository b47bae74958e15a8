"""Sparse initializers: a pruned weight as its surviving values and their places, where that takes less room.

An index costs 8 bytes, so a weight of 4-byte numbers gains below a density of 1/3, and one of 2-byte numbers below 1/5.
Runtimes make such weights dense when they load them (onnxruntime does): the gain is the file's size, not time.
Layout: onnx.proto, SparseTensorProto; indices are flat positions in ascending order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.formats.ranges import FileTensor
from elastic_ir.onnx_model import DTYPES, constant_tensor, is_external, mark_of, set_aside
from elastic_ir.tensors.arrays import nonzero
from elastic_ir.tensors.lazy import ITEM_SIZES, InlineData, KeptData, Mask, TensorData, nbytes, size_of

if TYPE_CHECKING:
    import onnx

_OVERHEAD = 64  #: bytes of the second tensor's messages
_FEWEST = 16  #: elements; below, the messages alone are longer
_SPARSE_IR = 5  #: the first version of ONNX's IR that has sparse initializers


@dataclass(frozen=True)
class Positions:
    """The flat positions at which a mask is 1: int64 [NNZ]."""

    mask: Mask
    dtype: str = "int64"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.mask.ones,)

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        found = np.flatnonzero(self.mask.array()).astype(np.int64)
        yield found.view(np.uint8).data


def sparsify(model: onnx.ModelProto, tensors: dict[str, TensorData]) -> None:
    """Turn initializers, and constants that are nodes, into sparse initializers where that takes less room.

    What survives is what the mask keeps, or else what is not exactly zero. ``model`` and ``tensors`` are changed.
    """
    graph = model.graph
    turned = [i for i, tensor in enumerate(graph.initializer) if _turn(graph, tensor, tensor.name, tensors)]
    for place in reversed(turned):
        del graph.initializer[place]
    constants = [(i, node, constant_tensor(node)) for i, node in enumerate(graph.node)]
    gone = [i for i, node, t in constants if t is not None and _turn(graph, t, node.output[0], tensors)]
    for place in reversed(gone):
        del graph.node[place]
    if (turned or gone) and model.ir_version < _SPARSE_IR:
        model.ir_version = _SPARSE_IR


def dense_size(model: onnx.ModelProto, tensors: dict[str, TensorData]) -> int:
    """How many bytes the model's file would have with all of its sparse initializers dense."""
    from elastic_ir.emit.onnx.file import size_of as size_of_file

    size = size_of_file(model, tensors)
    for sparse in model.graph.sparse_initializer:
        dtype, count = DTYPES[sparse.values.data_type], prod(sparse.values.dims)
        indices = prod(sparse.indices.dims) * ITEM_SIZES["int64"]
        size += size_of(tuple(sparse.dims), dtype) - count * ITEM_SIZES[dtype] - indices
    return size


def _turn(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str, tensors: dict[str, TensorData]
) -> bool:
    """Add a tensor to the sparse initializers, unless that takes as much room."""
    data = _data_of(tensor, tensors)
    mask = _mask_of(data) if data is not None else None
    if data is None or mask is None or _sparse_size(data, mask) >= nbytes(data):
        return False
    sparse = graph.sparse_initializer.add()
    sparse.dims.extend(data.shape)
    set_aside(sparse.values, KeptData(data, mask), tensors)
    set_aside(sparse.indices, Positions(mask), tensors)
    sparse.values.name = name
    return True


def _data_of(tensor: onnx.TensorProto, tensors: dict[str, TensorData]) -> TensorData | None:
    """A tensor of the model, wherever its bytes are; None where torch has no such dtype, or it is too small."""
    shape, dtype = tuple(tensor.dims), DTYPES.get(tensor.data_type)
    if dtype is None or prod(shape) < _FEWEST:
        return None
    mark = mark_of(tensor)
    if is_external(tensor):
        return None
    if mark is None:
        from onnx import numpy_helper

        return InlineData(shape, dtype, numpy_helper.to_array(tensor).tobytes())
    data = tensors[mark]
    # what lies in a file is known there as bytes
    return replace(data, shape=shape, dtype=dtype) if isinstance(data, FileTensor) else data


def _sparse_size(data: TensorData, mask: Mask) -> int:
    return mask.ones * (ITEM_SIZES[data.dtype] + 8) + _OVERHEAD


def _mask_of(data: Any) -> Mask | None:
    """What survives in a tensor: by the mask of its recipe, else by looking for zeros of either sign."""
    mask = getattr(data, "mask", None)
    if isinstance(mask, Mask):
        return mask
    if not data.dtype.startswith(("float", "bfloat")) or len(data.shape) < 2:
        return None
    import numpy as np

    return Mask(tuple(data.shape), np.packbits(nonzero(data).reshape(-1)).tobytes())
