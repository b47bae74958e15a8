"""Sparse initializers: a pruned weight as its surviving values and their places, where that takes less room.

An index costs 8 bytes, so a weight of 4-byte numbers gains below a density of 1/3, and one of 2-byte numbers below 1/5.
Runtimes make such weights dense when they load them (onnxruntime does): the gain is the file's size, not time.
Layout: onnx.proto, SparseTensorProto; indices are flat positions in ascending order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elastic_ir.onnx_source import MARK
from elastic_ir.tensors import ITEM_SIZES, Mask, TensorData, nbytes

if TYPE_CHECKING:
    import onnx

_OVERHEAD = 64  #: bytes of the second tensor's messages


@dataclass(frozen=True)
class Survivors:
    """The values of a tensor where a mask is 1, in order: [NNZ]."""

    data: TensorData
    mask: Mask

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.mask.size - self.mask.zeros,)

    @property
    def dtype(self) -> str:
        return self.data.dtype

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        item = ITEM_SIZES[self.dtype]
        keep = self.mask.array().reshape(-1)
        done = 0
        for chunk in self.data.chunks():
            elements = np.frombuffer(chunk, np.uint8).reshape(-1, item)
            yield elements[keep[done : done + len(elements)]].reshape(-1).data
            done += len(elements)


@dataclass(frozen=True)
class Positions:
    """The flat positions at which a mask is 1: int64 [NNZ]."""

    mask: Mask

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.mask.size - self.mask.zeros,)

    @property
    def dtype(self) -> str:
        return "int64"

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        found = np.flatnonzero(self.mask.array()).astype(np.int64)
        yield found.view(np.uint8).data


def sparsify(model: onnx.ModelProto, tensors: dict[str, TensorData]) -> int:
    """Turn initializers into sparse ones where that takes less room; how many were turned.

    What survives is what the mask keeps, or else what is no exact zero. ``model`` and ``tensors`` are changed.
    """
    graph = model.graph
    dense = list(graph.initializer)
    graph.ClearField("initializer")
    turned = 0
    for tensor in dense:
        mark = next((entry.value for entry in tensor.external_data if entry.key == MARK), None)
        data = tensors.get(mark) if mark is not None else None
        mask = _mask_of(data) if data is not None else None
        if data is None or mask is None or _sparse_size(data, mask) >= nbytes(data):
            graph.initializer.add().CopyFrom(tensor)
            continue
        turned += 1
        sparse = graph.sparse_initializer.add()
        sparse.dims.extend(data.shape)
        values, indices = Survivors(data, mask), Positions(mask)
        for proto, part, kind in ((sparse.values, values, tensor.data_type), (sparse.indices, indices, 7)):
            made = f"{len(tensors)}:9"
            tensors[made] = part
            proto.dims.extend(part.shape)
            proto.data_type = kind
            proto.data_location = 1  # type: ignore[assignment]  # the stubs want the enum's member
            entry = proto.external_data.add()
            entry.key, entry.value = MARK, made
        sparse.values.name = tensor.name
    return turned


def _sparse_size(data: TensorData, mask: Mask) -> int:
    return (mask.size - mask.zeros) * (ITEM_SIZES[data.dtype] + 8) + _OVERHEAD


def _mask_of(data: Any) -> Mask | None:
    """What survives in a tensor: told by its recipe, else by looking for exact zeros."""
    mask = getattr(data, "mask", None)
    if isinstance(mask, Mask):
        return mask
    if not data.dtype.startswith(("float", "bfloat")) or len(data.shape) < 2:
        return None
    import numpy as np

    item = ITEM_SIZES[data.dtype]
    found = [
        np.frombuffer(chunk, np.uint8).reshape(-1, item).any(axis=1) for chunk in data.chunks()
    ]  # -0.0 has a bit set and counts as a value
    keep = np.concatenate(found) if found else np.zeros(0, np.bool_)
    return Mask(tuple(data.shape), np.packbits(keep).tobytes())
