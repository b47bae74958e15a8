"""What the writer and the reader of packed mask files must agree on, and a mask that stays in such a file. No torch.

A packed mask file is a ``.safetensors`` file: of each mask the bits as ``NAME:mask``, as ``.ticket`` files have them,
and in the metadata an index of shapes. Files of plain zeros and ones under the weights' names are masks, too.
"""

from __future__ import annotations

from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask, TensorData

#: The version that is written, and the newest that is read.
VERSION = 1

#: Metadata: the index as JSON, ``{"version": 1, "masks": {NAME: {"shape": [...], "mask": DTYPE}}}``.
INDEX = "elastic_ir.masks"

#: What is put behind a weight's name for the bits of its mask.
SUFFIX = ":mask"


def packed_size(size: int) -> int:
    """Bytes of a mask of so many weights: a bit for each, the last byte filled up."""
    return -(-size // 8)


def mask_entry(entry: Any) -> tuple[list[int], str]:
    """Shape and dtype that an index gives a mask; ValueError for an entry that has none."""
    shape, dtype = (entry.get("shape"), entry.get("mask")) if isinstance(entry, dict) else (None, None)
    if (
        not isinstance(shape, list)
        or not all(type(extent) is int and extent >= 0 for extent in shape)
        or not isinstance(dtype, str)
        or dtype not in ITEM_SIZES
    ):
        raise ValueError("no shape, or no dtype of a mask")
    return shape, dtype


class StoredMask(Mask):
    """A mask whose bits stay in their file: each use reads them, and none keeps them."""

    def __init__(self, name: str, stored: TensorData, shape: tuple[int, ...], dtype: str) -> None:
        # a mask is frozen, and its bits are not here
        for field, value in (("name", name), ("stored", stored), ("shape", shape), ("dtype", dtype)):
            object.__setattr__(self, field, value)

    name: str
    stored: TensorData  #: packed bits, most significant bit first

    @property
    def bits(self) -> bytes:
        """The bits, read anew; SourceError where the file was changed, or ones stand behind the mask's end."""
        bits = b"".join(self.stored.chunks())
        if self.size % 8 and bits[-1] & (0xFF >> self.size % 8):
            where = getattr(self.stored, "path", "the file")
            raise SourceError(f"{where} is damaged: the mask of {self.name!r} has ones behind its end")
        return bits

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return (self.shape, self.dtype) == (other.shape, other.dtype) and self.bits == other.bits

    def __hash__(self) -> int:
        return hash((self.shape, self.dtype))
