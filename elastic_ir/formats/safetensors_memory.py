"""The tensors of a small ``.safetensors`` file in memory, for data that a network is measured on.

Weights are read lazily by the front end; what is read here is used whole, and at once.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.formats.safetensors_format import DTYPES, MAX_HEADER, METADATA

if TYPE_CHECKING:
    import torch


def tensors_of_file(file: Path) -> dict[str, torch.Tensor]:
    """The tensors by name: eight bytes of length, a header in JSON, then the bytes that it points into.

    Raises OSError, ValueError, KeyError or TypeError for a file that is damaged or cannot be read.
    """
    import torch

    dtypes = {short: getattr(torch, name) for name, short in DTYPES.items()}
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > min(MAX_HEADER, len(raw) - 8):
        raise ValueError("its header is cut short")
    tensors: dict[str, torch.Tensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name == METADATA:
            continue
        start, end = entry["data_offsets"]
        dtype, shape = dtypes[entry["dtype"]], [int(extent) for extent in entry["shape"]]
        if not 0 <= start <= end <= len(raw) - 8 - size or math.prod(shape) * dtype.itemsize != end - start:
            raise ValueError(f"{name!r} lies outside of it")
        spans.append((start, end))
        body = bytearray(raw[8 + size + start : 8 + size + end])  # torch wants memory that may be written to
        flat = torch.frombuffer(body, dtype=dtype) if body else torch.empty(0, dtype=dtype)
        tensors[str(name)] = flat.reshape(shape)
    ends = [0, *(end for _, end in sorted(spans))]
    if [start for start, _ in sorted(spans)] != ends[:-1] or ends[-1] != len(raw) - 8 - size:
        raise ValueError("its tensors overlap or leave gaps")
    return tensors
