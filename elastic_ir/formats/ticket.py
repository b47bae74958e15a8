"""A lazy reader of ``.ticket`` files that needs no torch: the header is read, a weight is expanded when asked for.

The format is docs/ticket-file.md. A claimed shape is held against the bytes that are there before anything is made of
that size, and what is expanded at once is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.formats.files import parse_json
from elastic_ir.formats.packed_masks import mask_entry
from elastic_ir.formats.safetensors import FileTensor, read_safetensors
from elastic_ir.formats.ticket_format import (
    EXTENSION,
    GRAPH,
    INDEX,
    KEPT,
    MASK,
    VERSION,
    elements,
    unpack_graph,
)
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask, TensorData, ones_between

STEP = 1 << 20  #: elements expanded at once
_MAX_DIMENSIONS = 64  #: numpy has no more
_MAX_BYTES = (1 << 63) - 1  #: of a tensor, empty dimensions not counted: sizes are 64-bit numbers everywhere


@dataclass(frozen=True)
class PackedMask:
    """A mask whose bits are still in the file."""

    name: str
    bits: FileTensor
    shape: tuple[int, ...]
    dtype: str
    kept: int  #: how many values the file holds for its weight

    def read(self) -> Mask:
        """The mask; SourceError where its ones are not as many as the values, or bits stand behind its end."""
        bits = b"".join(self.bits.chunks())
        mask = Mask(self.shape, bits, self.dtype)
        if mask.size % 8 and bits[-1] & (0xFF >> mask.size % 8):
            raise SourceError(
                f"{self.bits.path} is damaged: the mask of {self.name!r} has ones behind its end"
            )
        ones = mask.size - mask.zeros
        if ones != self.kept:
            raise SourceError(
                f"{self.bits.path} is damaged: the mask of {self.name!r} keeps {ones} values, "
                f"the file holds {self.kept}"
            )
        return mask


@dataclass(frozen=True)
class PackedData:
    """A weight of which the file holds the surviving values; zero elsewhere."""

    mask: PackedMask
    kept: FileTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask.shape

    @property
    def dtype(self) -> str:
        return self.kept.dtype

    def chunks(self) -> Iterator[memoryview]:
        """The expanded bytes, about a million elements at a time; SourceError as the mask and the file give it."""
        import numpy as np

        mask = self.mask.read()
        item = ITEM_SIZES[self.dtype]
        pieces, unused = self.kept.chunks(), memoryview(b"")
        for begin in range(0, mask.size, STEP):
            ones = ones_between(mask.bits, begin, min(STEP, mask.size - begin))
            needed = int(np.count_nonzero(ones)) * item
            while len(unused) < needed:  # the mask was counted: so many are there
                unused = memoryview(b"".join((unused, next(pieces))))
            values = np.zeros(len(ones), f"<u{item}")
            values[ones] = elements(unused[:needed], self.dtype)
            unused = unused[needed:]
            yield values.view(np.uint8).data


@dataclass(frozen=True)
class Ticket:
    """What a ticket file holds, unread: weights in their order, masks by their weights' names, the graph's JSON."""

    tensors: dict[str, TensorData]
    masks: dict[str, PackedMask]
    graph: str | None

    def read_masks(self) -> dict[str, Mask]:
        """All masks, one bit for each weight."""
        return {name: mask.read() for name, mask in self.masks.items()}


def read_ticket(path: str | os.PathLike[str]) -> Ticket:
    """The weights and masks of a ticket file, unread.

    Raises SourceError where the file is no ticket file, of a newer version, truncated, or its parts do not fit
    together; each names the weight.
    """
    path = Path(path)
    stored, metadata = read_safetensors(path, EXTENSION)
    index = _index(metadata, path)
    tensors: dict[str, TensorData] = {}
    masks: dict[str, PackedMask] = {}
    for key, tensor in stored.items():
        name = next((key.removesuffix(end) for end in (MASK, KEPT) if key.endswith(end)), key)
        if name in index:
            if name not in tensors:  # where the first of its parts stands
                tensors[name], masks[name] = _masked(name, index[name], stored, path)
        elif key == name:
            tensors[name] = tensor
        else:
            raise SourceError(f"{path} is damaged: it holds {key!r}, but its index has no weight {name!r}")
    for name in index:
        if name not in tensors:
            raise SourceError(f"{path} is damaged: the mask and the values of {name!r} are missing")
    return Ticket(tensors, masks, _graph(metadata, path))


def _index(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    if INDEX not in metadata:
        raise SourceError(f"{path} is no ticket file: its metadata has no {INDEX!r}")
    try:
        data = parse_json(metadata[INDEX])
        version = data["version"]
        if type(version) is int and version > VERSION:
            raise SourceError(
                f"{path} has version {version} of the ticket format; this ElasticIR reads version {VERSION}"
            )
        if type(version) is not int or version < 1 or not isinstance(data["masked"], dict):
            raise ValueError("no version, or no table of masked weights")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{path} is damaged: its index cannot be read ({error})") from error
    masked: dict[str, Any] = data["masked"]
    return masked


def _masked(
    name: str, entry: Any, stored: Mapping[str, FileTensor], path: Path
) -> tuple[TensorData, PackedMask]:
    """A masked weight and its mask; SourceError where its parts and its index entry do not fit."""
    where = f"{path} is damaged: "
    try:
        shape, dtype = mask_entry(entry)
    except ValueError as error:
        raise SourceError(f"{where}the index entry of {name!r} has {error}: {str(entry)[:80]}") from error
    bits, kept, whole = (stored.get(key) for key in (name + MASK, name + KEPT, name))
    if bits is None:
        raise SourceError(f"{where}the mask of {name!r} is missing")
    values = kept if whole is None else whole
    if values is None:
        raise SourceError(f"{where}the values of {name!r} are missing")
    if kept is not None and whole is not None:
        raise SourceError(f"{where}it holds {name!r} twice, whole and packed")
    item = ITEM_SIZES[values.dtype]
    if len(shape) > _MAX_DIMENSIONS or item * prod(extent or 1 for extent in shape) > _MAX_BYTES:
        raise SourceError(f"{where}the shape of {name!r} is beyond any tensor: {str(shape)[:80]}")
    size = prod(shape)
    if bits.dtype != "uint8" or bits.shape != (-(-size // 8),):
        raise SourceError(
            f"{where}the mask of {name!r} is {bits.dtype} {list(bits.shape)}, "
            f"shape {shape} needs {-(-size // 8)} bytes of uint8"
        )
    if whole is not None and whole.shape != tuple(shape):
        raise SourceError(f"{where}{name!r} has the shape {list(whole.shape)}, its index entry {shape}")
    if kept is not None and len(kept.shape) != 1:
        raise SourceError(f"{where}the values of {name!r} have {len(kept.shape)} dimensions, not one")
    mask = PackedMask(name, bits, tuple(shape), dtype, prod(values.shape))
    return (PackedData(mask, values) if whole is None else whole), mask


def _graph(metadata: Mapping[str, str], path: Path) -> str | None:
    if GRAPH not in metadata:
        return None
    try:
        return unpack_graph(metadata[GRAPH])
    except ValueError as error:
        raise SourceError(f"{path}: the graph in its metadata is damaged ({error})") from error
