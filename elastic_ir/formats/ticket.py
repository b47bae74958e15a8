"""``.ticket`` files: bit-packed masks and only the surviving weights, read lazily and written as a stream. No torch.

A ticket file is a ``.safetensors`` file; docs/ticket-file.md has it byte by byte. Of a masked weight it holds the bits
of the mask as ``NAME:mask`` and, where the mask prunes anything, only the surviving values as ``NAME:kept``. The header
is read at once, and a weight is expanded when asked for: a claimed shape is compared with the bytes that are there
before anything is made of that size, and what is expanded at once is bounded.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats import TICKET
from elastic_ir.formats.distant import DistantFile
from elastic_ir.formats.packed_masks import VERSION, StoredMask, mask_entry, packed_size, parse_index
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.formats.safetensors import MAX_HEADER, read_safetensors, write_safetensors
from elastic_ir.tensors.lazy import ITEM_SIZES, InlineData, KeptData, Mask, ScatteredData, TensorData
from elastic_ir.tensors.weights import Storage

#: Metadata: the index as JSON, ``{"version": 1, "masked": {NAME: {"shape": [...], "mask": DTYPE}}}``.
INDEX = "elastic_ir.ticket"

#: Metadata: the graph's JSON, compressed by zlib, in base64.
GRAPH = "elastic_ir.graph.zlib"

#: What is put behind a weight's name for the two parts of it; no tensor's own name may end so.
MASK, KEPT = ":mask", ":kept"

#: A graph's JSON is no longer than what fits into the header of a ``.safetensors``; nor may it expand to more.
MAX_GRAPH = MAX_HEADER


def pack_graph(text: str) -> str:
    """A graph's JSON as it stands in the metadata."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpack_graph(packed: str) -> str:
    """The graph's JSON; ValueError where it is damaged or would expand beyond :data:`MAX_GRAPH` bytes."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(base64.b64decode(packed, validate=True), MAX_GRAPH + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(raw) > MAX_GRAPH:
        raise ValueError(f"it expands to more than {MAX_GRAPH} bytes")
    if not stream.eof or stream.unused_data:
        raise ValueError("its compressed text is cut short" if not stream.eof else "bytes follow its end")
    return raw.decode()


# -- reading -----------------------------------------------------------------------------------------------------------

_MAX_DIMENSIONS = 64  #: numpy has no more
_MAX_BYTES = (1 << 63) - 1  #: of a tensor, empty dimensions not counted: sizes are 64-bit numbers everywhere


@dataclass(frozen=True)
class Ticket:
    """What a ticket file holds, unread: weights in their order, masks by their weights' names, the graph's JSON."""

    tensors: dict[str, TensorData]
    masks: dict[str, StoredMask]
    graph: str | None

    def read_masks(self) -> dict[str, Mask]:
        """All masks, one bit for each weight; SourceError as :class:`StoredMask` raises it."""
        return {name: Mask(mask.shape, mask.bits, mask.dtype) for name, mask in self.masks.items()}


def read_ticket(path: str | os.PathLike[str], distant: DistantFile | None = None) -> Ticket:
    """The weights and masks of a ticket file, unread; ``distant`` is the file where it lies elsewhere.

    Raises SourceError where the file is no ticket file, of a newer version, truncated, or its parts do not fit
    together; each names the weight.
    """
    path = Path(path)
    stored, metadata = read_safetensors(path, TICKET.suffixes[0], distant)
    if INDEX not in metadata:
        raise SourceError(f"{path} is not a ticket file: its metadata has no {INDEX!r}")
    index = parse_index(metadata[INDEX], "masked", "the ticket format", path)
    tensors: dict[str, TensorData] = {}
    masks: dict[str, StoredMask] = {}
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


def _masked(
    name: str, entry: Any, stored: Mapping[str, FileTensor], path: Path
) -> tuple[TensorData, StoredMask]:
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
    if bits.dtype != "uint8" or bits.shape != (packed_size(size),):
        raise SourceError(
            f"{where}the mask of {name!r} is {bits.dtype} {list(bits.shape)}, "
            f"shape {shape} needs {packed_size(size)} bytes of uint8"
        )
    if whole is not None and whole.shape != tuple(shape):
        raise SourceError(f"{where}{name!r} has the shape {list(whole.shape)}, its index entry {shape}")
    if kept is not None and len(kept.shape) != 1:
        raise SourceError(f"{where}the values of {name!r} have {len(kept.shape)} dimensions, not one")
    mask = StoredMask(name, bits, tuple(shape), dtype, kept=prod(values.shape))
    return (ScatteredData(mask, values) if whole is None else whole), mask


def _graph(metadata: Mapping[str, str], path: Path) -> str | None:
    if GRAPH not in metadata:
        return None
    try:
        return unpack_graph(metadata[GRAPH])
    except ValueError as error:
        raise SourceError(f"{path}: the graph in its metadata is damaged ({error})") from error


# -- writing -----------------------------------------------------------------------------------------------------------


def write_ticket(
    path: str | os.PathLike[str], weights: Mapping[str, Storage], graph: str | None = None
) -> None:
    """Write weights with their masks, and a graph's JSON; wrap it in :func:`elastic_ir.formats.files.atomic_output`.

    Values under a mask are not kept. A weight whose mask prunes nothing is written whole, beside its mask. Raises
    EmitError as :func:`~elastic_ir.formats.safetensors.write_safetensors` does, and for a name that ends like a
    part of a masked weight. OSError is left to the caller.
    """
    tensors: dict[str, TensorData] = {}
    masked: dict[str, dict[str, object]] = {}
    for name, storage in weights.items():
        mask = storage.mask
        if name.endswith((MASK, KEPT)):
            raise EmitError(f"a tensor in a ticket file cannot be named {name!r}; write a .pt")
        if mask is not None:
            masked[name] = {"shape": list(mask.shape), "mask": mask.dtype}
            tensors[name + MASK] = InlineData((len(mask.bits),), "uint8", mask.bits)
        if mask is not None and mask.zeros:
            tensors[name + KEPT] = KeptData(storage.data, mask)
        else:
            tensors[name] = storage.data
    metadata = {INDEX: json.dumps({"version": VERSION, "masked": masked}, separators=(",", ":"))}
    if graph is not None:
        if len(graph.encode()) > MAX_GRAPH:
            raise EmitError(f"the graph has more than {MAX_GRAPH} bytes of JSON; write a .pt")
        metadata[GRAPH] = pack_graph(graph)
    write_safetensors(path, tensors, metadata)


def ticket_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The weights' shapes by name, from a file just written."""
    return {name: data.shape for name, data in read_ticket(path).tensors.items()}
