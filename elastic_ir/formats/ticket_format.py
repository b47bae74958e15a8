"""What the writer and the reader of ``.ticket`` files must agree on; docs/ticket-file.md has it byte by byte.

A ticket file is a ``.safetensors`` file. Of a masked weight it holds the bits of the mask as ``NAME:mask`` and, where
the mask prunes anything, only the surviving values as ``NAME:kept``. No torch here.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING

from elastic_ir.formats.safetensors import MAX_HEADER
from elastic_ir.tensors.lazy import ITEM_SIZES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The version that is written, and the newest that is read.
VERSION = 1

EXTENSION = ".ticket"

#: Metadata: the index as JSON, ``{"version": 1, "masked": {NAME: {"shape": [...], "mask": DTYPE}}}``.
INDEX = "elastic_ir.ticket"

#: Metadata: the graph's JSON, compressed by zlib, in base64.
GRAPH = "elastic_ir.graph.zlib"

#: What is put behind a weight's name for the two parts of it; no tensor's own name may end so.
MASK, KEPT = ":mask", ":kept"

#: A graph's JSON is no longer than what fits into the header of a ``.safetensors``; nor may it expand to more.
MAX_GRAPH = MAX_HEADER


def elements(raw: memoryview | bytes, dtype: str) -> NDArray[np.generic]:
    """Bytes as an array with one entry for each element: an integer of its size, because only places matter."""
    import numpy as np

    return np.frombuffer(raw, f"<u{ITEM_SIZES[dtype]}")


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
