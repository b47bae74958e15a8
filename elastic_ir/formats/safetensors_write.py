"""A streaming writer of ``.safetensors`` files: at most one chunk of a tensor is in memory, and no torch is needed.

The format: the header's length as 8 bytes, little-endian; the header, JSON padded with spaces to a multiple of 8; the
tensors' bytes. The library's reader sorts the tensors by their offsets and wants them without gap or overlap from the
first byte after the header to the end of the file; the order of names in the header is free. So the header keeps the
order given (that of the state dict, which readers show), and the bytes lie by falling size of their elements, as the
library itself writes them: every tensor is then aligned, whatever odd-sized booleans there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from elastic_ir.errors import EmitError
from elastic_ir.formats.safetensors_format import DTYPES, MAX_HEADER, METADATA, PACKED
from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData, nbytes

_NAMES = {**DTYPES, **PACKED}


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, TensorData],
    metadata: Mapping[str, str] | None = None,
    tell: Callable[[int], None] | None = None,
) -> None:
    """Write tensors and text metadata; wrap it in :func:`elastic_ir.formats.files.atomic_output`.

    ``tell`` is called after each tensor with the bytes it took.

    Raises EmitError where the format has no such dtype or name, where the header is beyond what readers accept, or
    where a tensor yields another number of bytes than its shape says. OSError is left to the caller.
    """
    layout, head = _layout(tensors), safetensors_head(tensors, metadata)
    with open(path, "wb") as file:
        file.write(head)
        for name in layout:
            expected = nbytes(tensors[name])
            copy = getattr(tensors[name], "copy_into", None)
            if copy is not None:  # it lies in a file as it is, and need not pass through this process
                copy(file)
                written = expected
            else:
                written = 0
                for chunk in tensors[name].chunks():
                    written += chunk.nbytes
                    file.write(chunk)
            if tell is not None:
                tell(expected)
            if written != expected:
                raise EmitError(
                    f"the tensor {name!r} gave {written} bytes where its shape and dtype need {expected}"
                )


def safetensors_head(tensors: Mapping[str, TensorData], metadata: Mapping[str, str] | None) -> bytes:
    """All that stands in a file before the tensors' bytes: the header's length, and the header."""
    header = _header(tensors, _layout(tensors), metadata)
    return len(header).to_bytes(8, "little") + header


def _layout(tensors: Mapping[str, TensorData]) -> list[str]:
    return sorted(tensors, key=lambda name: -ITEM_SIZES.get(tensors[name].dtype, 0))


def _header(
    tensors: Mapping[str, TensorData], layout: list[str], metadata: Mapping[str, str] | None
) -> bytes:
    begins: dict[str, int] = {}
    end = 0
    for name in layout:
        if tensors[name].dtype not in _NAMES:
            dtype = tensors[name].dtype
            raise EmitError(f"the tensor {name!r} is {dtype}, which .safetensors cannot hold; write a .pt")
        begins[name] = end
        end += nbytes(tensors[name])
    if METADATA in tensors:
        raise EmitError(f"a tensor in a .safetensors file cannot be named {METADATA!r}; write a .pt")
    fields: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, data in tensors.items():
        offsets = [begins[name], begins[name] + nbytes(data)]
        fields[name] = {"dtype": _NAMES[data.dtype], "shape": list(data.shape), "data_offsets": offsets}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise EmitError(
            f"the header of the .safetensors file would have {len(text)} bytes, and readers refuse more than "
            f"{MAX_HEADER}; write a .pt"
        )
    return text
