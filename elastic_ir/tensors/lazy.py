"""Lazy tensors and masks: what a weight is made of before anything reads its bytes.

No torch here. A :class:`TensorData` knows its shape and dtype without touching its bytes; asking for either never
causes reading (the idea of a lazy tensor behind a protocol is onnx_ir's). A :class:`Mask` is immutable and packed
to one bit for each weight, so that any number of clones may share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from elastic_ir.errors import EmitError, MaskError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Bytes of one element, by dtype name. The names are torch's, without the ``torch.`` in front.
ITEM_SIZES: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}

#: Bits of one element, where several share a byte; nobody computes with them, so they have no :data:`ITEM_SIZES`.
PACKED_BITS: dict[str, int] = {
    "float4_e2m1fn": 4,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "int4": 4,
    "uint4": 4,
}

#: Elements and bytes of a block of quantised numbers, the last axis being made of such; nobody computes with them
#: either. Formats that have such types enter them: which there are is theirs to say.
BLOCK_SIZES: dict[str, tuple[int, int]] = {}

_PIECE = 1 << 18  #: bytes that are compared at once; more would leave the processor's cache
_STEP = 1 << 20  #: elements that are made dense at once


@runtime_checkable
class TensorData(Protocol):
    """A tensor whose bytes are read only by :meth:`chunks`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """A key of :data:`ITEM_SIZES`, e.g. ``"float32"``, of :data:`PACKED_BITS` or of :data:`BLOCK_SIZES`."""
        ...

    def chunks(self) -> Iterator[memoryview]:
        """The tensor's bytes in order, little-endian, C-contiguous, each chunk a whole number of elements."""
        ...


def nbytes(data: TensorData) -> int:
    """The size of a tensor in bytes, from its shape and dtype alone."""
    return size_of(data.shape, data.dtype)


def grouped(tensors: Mapping[str, TensorData], limit: int | None) -> list[dict[str, TensorData]]:
    """Tensors in files, in order, each as full as the limit of bytes allows; a larger tensor has one of its own."""
    groups: list[dict[str, TensorData]] = [{}]
    held = 0
    for name, data in tensors.items():
        size = nbytes(data)
        if limit is not None and groups[-1] and held + size > limit:
            groups.append({})
            held = 0
        groups[-1][name] = data
        held += size
    return groups


def same_bytes(one: TensorData, other: TensorData) -> bool:
    """Whether two tensors hold the same bytes; they are read side by side, up to the first piece that differs."""
    if one is other:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(mine == its for mine, its in side_by_side(one, other))


def side_by_side(one: TensorData, other: TensorData) -> Iterator[tuple[bytes, bytes]]:
    """The bytes of two tensors of one size, in pieces of equal length."""
    others = iter(other.chunks())
    rest = memoryview(b"")
    for chunk in one.chunks():
        mine = chunk.cast("B")
        while mine:
            rest = rest or next(others).cast("B")
            size = min(len(mine), len(rest), _PIECE)
            yield bytes(mine[:size]), bytes(rest[:size])
            mine, rest = mine[size:], rest[size:]


def size_of(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor; elements of less than a byte fill the last one up, and blocks are whole."""
    if dtype in PACKED_BITS:
        return -(-prod(shape) * PACKED_BITS[dtype] // 8)
    if dtype in BLOCK_SIZES:
        elements, size = BLOCK_SIZES[dtype]
        return prod(shape) // elements * size
    return prod(shape) * ITEM_SIZES[dtype]


def item_size(dtype: str) -> int:
    """Bytes of one element; EmitError where several share a byte, which can be carried and not computed with."""
    if dtype not in ITEM_SIZES:
        raise EmitError(
            f"tensors of {dtype} can only be copied as they are; leave them without masks and recipes"
        )
    return ITEM_SIZES[dtype]


@dataclass(frozen=True)
class Mask:
    """A 0/1 mask of a weight, packed to bits; ``dtype`` is the one its owner gave it and gets it back in."""

    shape: tuple[int, ...]
    bits: bytes
    dtype: str = "bool"

    @staticmethod
    def from_array(array: NDArray[np.generic], name: str = "mask", dtype: str | None = None) -> Mask:
        """Pack an array of zeros and ones; MaskError names ``name`` where it holds anything else."""
        import numpy as np

        bits = np.packbits(_ones(array.reshape(-1), name)).tobytes()
        return Mask(tuple(array.shape), bits, dtype or str(array.dtype))

    @staticmethod
    def of(given: Any, name: str = "mask") -> Mask:
        """A mask as it is, or packed from zeros and ones (lazy tensor, numpy array, torch tensor of any layout).

        MaskError for anything else, SourceError where the indices of a sparse tensor are not within its shape.
        """
        if isinstance(given, Mask):
            return given
        if hasattr(given, "detach") and hasattr(given, "shape"):  # whoever has such a tensor has torch
            from elastic_ir.tensors.sparse import data_of

            given = data_of(given, name)
        if isinstance(given, TensorData):
            if given.dtype == "float8_e8m0fnu":
                raise MaskError(
                    f"the mask of {name!r} has the dtype {given.dtype}, which has no zero; give it as bool"
                )
            return Mask(tuple(given.shape), _packed(given, name), given.dtype)
        import numpy as np

        if isinstance(given, np.ndarray):
            return Mask.from_array(given, name)
        raise MaskError(
            f"the mask of {name!r} is of type {type(given).__name__}; "
            "give Mask.from_array(array), or an array of zeros and ones"
        )

    def array(self) -> NDArray[np.bool_]:
        """The mask unpacked, as a boolean array of its shape."""
        import numpy as np

        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.size)
        return flat.view(np.bool_).reshape(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @cached_property
    def ones(self) -> int:
        """How many weights it keeps."""
        return int.from_bytes(self.bits, "big").bit_count()

    @property
    def zeros(self) -> int:
        """How many weights it prunes."""
        return self.size - self.ones


def _ones(flat: NDArray[np.generic], name: str) -> NDArray[np.bool_]:
    """Where an array of zeros and ones has ones; MaskError where it holds anything else."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # a NaN of eight bits
        ones, zeros = flat == 1, flat == 0
    if not bool((ones | zeros).all()):
        bad = flat[~(ones | zeros)][0]
        raise MaskError(f"the mask of {name!r} holds the value {bad}; a mask holds only 0 and 1")
    found: NDArray[np.bool_] = ones
    return found


def _packed(data: TensorData, name: str) -> bytes:
    """The bits of a lazy tensor of zeros and ones, of which a piece at a time is in memory."""
    import numpy as np

    from elastic_ir.tensors.arrays import array_dtype

    bits, rest, dtype = bytearray(), np.empty(0, np.bool_), array_dtype(data.dtype)
    for chunk in data.chunks():
        rest = np.concatenate((rest, _ones(np.frombuffer(chunk, dtype), name)))
        whole = len(rest) // 8 * 8
        bits += np.packbits(rest[:whole]).tobytes()
        rest = rest[whole:]
    return bytes(bits + np.packbits(rest).tobytes())


def ones_between(bits: bytes, begin: int, count: int) -> NDArray[np.bool_]:
    """The mask's entries from ``begin`` on, unpacked."""
    import numpy as np

    part = np.frombuffer(bits, np.uint8)[begin // 8 : (begin + count + 7) // 8]
    skip = begin % 8
    return np.unpackbits(part, count=skip + count)[skip:].view(np.bool_)


@dataclass(frozen=True)
class OfTensor:
    """What is made of another tensor, of its shape and dtype unless a subclass says otherwise."""

    data: TensorData

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> str:
        return self.data.dtype


@dataclass(frozen=True)
class MaskedData(OfTensor):
    """The recipe "this tensor, zero wherever its mask is 0"; evaluated chunk by chunk when it is read."""

    mask: Mask

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        item = item_size(self.dtype)
        bits = self.mask.bits  # unpacked with each chunk: as bytes they may be more than the tensor itself
        done = 0
        for chunk in self.data.chunks():
            elements = np.frombuffer(chunk, np.uint8).reshape(-1, item)
            step = len(elements)
            keep = ones_between(bits, done, step)
            # np.where writes true zeros; a product would leave -0.0, and NaN where the weight is not finite
            yield np.where(keep[:, None], elements, np.uint8(0)).reshape(-1).data
            done += step


@dataclass(frozen=True)
class KeptData(OfTensor):
    """The recipe "the values of this tensor where a mask is 1, in order", of shape [ones]; evaluated chunk by chunk."""

    mask: Mask

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.mask.ones,)

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        item, bits = item_size(self.dtype), self.mask.bits
        done = 0
        for chunk in self.data.chunks():
            elements = np.frombuffer(chunk, f"V{item}")
            yield elements[ones_between(bits, done, len(elements))].view(np.uint8).data
            done += len(elements)


@dataclass(frozen=True)
class ScatteredData:
    """The tensor whose values where a mask is 1 are stored, in order; zero elsewhere."""

    mask: Mask
    kept: TensorData  #: of shape [ones]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask.shape

    @property
    def dtype(self) -> str:
        return self.kept.dtype

    def chunks(self) -> Iterator[memoryview]:
        """The dense bytes, about a million elements at a time; errors are those of reading the mask and the values."""
        import numpy as np

        size, bits, item = self.mask.size, self.mask.bits, item_size(self.dtype)
        pieces, unused = self.kept.chunks(), memoryview(b"")
        for begin in range(0, size, _STEP):
            ones = ones_between(bits, begin, min(_STEP, size - begin))
            needed = int(np.count_nonzero(ones)) * item
            while len(unused) < needed:  # the mask was counted: so many are there
                unused = memoryview(b"".join((unused, next(pieces))))
            values = np.zeros(len(ones), f"V{item}")
            values[ones] = np.frombuffer(unused[:needed], values.dtype)
            unused = unused[needed:]
            yield values.view(np.uint8).data


@dataclass(frozen=True)
class InlineData:
    """A small tensor held in memory as bytes."""

    shape: tuple[int, ...]
    dtype: str
    raw: bytes

    def chunks(self) -> Iterator[memoryview]:
        yield memoryview(self.raw)


@dataclass(frozen=True)
class ShapeOnly:
    """A tensor of which only the shape is known: a model on the meta device, or a reference."""

    shape: tuple[int, ...]
    dtype: str

    def chunks(self) -> Iterator[memoryview]:
        raise EmitError(
            f"a tensor of shape {list(self.shape)} was read on the meta device and has no values; "
            "load the model with its weights to emit it"
        )
