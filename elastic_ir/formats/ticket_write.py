"""Writing ``.ticket`` files: bit-packed masks and only the surviving weights, one chunk in memory at a time, no torch.

The format is docs/ticket-file.md; the bytes go through the writer of ``.safetensors``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from elastic_ir.errors import EmitError
from elastic_ir.formats.safetensors import METADATA, write_safetensors
from elastic_ir.formats.ticket_format import (
    GRAPH,
    INDEX,
    KEPT,
    MASK,
    MAX_GRAPH,
    VERSION,
    elements,
    pack_graph,
)
from elastic_ir.ir.serialise import InlineData
from elastic_ir.tensors.lazy import Mask, TensorData, ones_between
from elastic_ir.tensors.weights import Storage


@dataclass(frozen=True)
class KeptData:
    """The recipe "the values of this tensor where its mask is 1, in order"; evaluated chunk by chunk."""

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

        done = 0
        for chunk in self.data.chunks():
            values = elements(chunk, self.dtype)
            yield values[ones_between(self.mask.bits, done, len(values))].view(np.uint8).data
            done += len(values)


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
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    masked = json.loads(header.pop(METADATA)[INDEX])["masked"]
    shapes = {name: tuple(item["shape"]) for name, item in masked.items()}
    for name, item in header.items():
        if not name.endswith((MASK, KEPT)):
            shapes[name] = tuple(item["shape"])
    return shapes
