"""``.safetensors`` files: read lazily (the header now, tensors when asked for), and written as a stream. No torch.

The format: the header's length as 8 bytes, little-endian; the header, JSON padded with spaces to a multiple of 8; the
tensors' bytes. The library's reader sorts the tensors by their offsets and wants them without gap or overlap from the
first byte after the header to the end of the file; the order of names in the header is free. So the header keeps the
order given (that of the state dict, which readers show), and the bytes lie by falling size of their elements, as the
library itself writes them: every tensor is then aligned, whatever odd-sized booleans there are. Among elements of one
size what comes from files lies as it does there, first copies before second ones, so that much of it is copied at
once: a stack of layers stretched into two overlapping halves is two ranges of its file. At most one chunk of a tensor
is in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats import SAFETENSORS
from elastic_ir.formats.distant import DistantFile
from elastic_ir.formats.files import opened, parse_json, stamp_of
from elastic_ir.formats.parts import LARGE, PAGE, Part, write_parts
from elastic_ir.formats.ranges import FileTensor, lying_in
from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData, nbytes, size_of

if TYPE_CHECKING:
    import torch

#: The format's name of each dtype; ``complex128`` has none.
DTYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "int64": "I64",
    "uint64": "U64",
    "float64": "F64",
    "complex64": "C64",
}

#: Dtypes of less than a byte an element, which nothing here computes with: their bytes are carried as they are.
PACKED: dict[str, str] = {
    "float4_e2m1fn": "F4",
    "float6_e2m3fn": "F6_E2M3",
    "float6_e3m2fn": "F6_E3M2",
    "int4": "I4",
    "uint4": "U4",
}

#: The safetensors library reads no file whose header is longer.
MAX_HEADER = 100_000_000

_FIRST = 1 << 17  #: bytes of a file elsewhere that are asked for first

#: The one key of the header that names no tensor.
METADATA = "__metadata__"

NAMES = {**DTYPES, **PACKED}
_DTYPES = {theirs: ours for ours, theirs in NAMES.items()}


# -- reading -----------------------------------------------------------------------------------------------------------


def read_safetensors(
    path: str | os.PathLike[str], form: str = SAFETENSORS.suffixes[0], distant: DistantFile | None = None
) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The tensors, in the header's order and unread, and the metadata; ``form`` is what errors call the file.

    ``distant`` is the file where it lies elsewhere, of which no more than the header is asked for.

    Raises SourceError: the file is missing, a folder, empty, truncated or longer than its header says, or the header
    is garbage, names an unknown dtype, or has offsets that overlap, leave gaps or do not fit the shapes.
    """
    path = Path(path)
    if distant is not None:
        size = distant.size
        head = whole_head(lambda length: distant.read(0, min(length, size)))
        tensors, metadata = read_head(head, size, path)
        return {name: lying_in(distant, data) for name, data in tensors.items()}, metadata
    with opened(path, form) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        length = int.from_bytes(file.read(8), "little")
        if size == 0:
            raise SourceError(f"{path} is empty")
        if size < 8:
            raise SourceError(f"{path} is not a {form} file: it has only {size} bytes")
        if length > MAX_HEADER:
            raise SourceError(
                f"{path} is not a {form} file: its first 8 bytes ask for a header of {length} bytes"
            )
        if 8 + length > size:
            raise SourceError(
                f"{path} is truncated: the header should have {length} bytes, the file has {size}"
            )
        text = file.read(length)
    return _described(text, size, path, form, stamp_of(status))


def whole_head(read: Callable[[int], bytes]) -> bytes:
    """At least the header of a file of which the first bytes can be asked for; most headers need one question."""
    head = read(_FIRST)
    length = 8 + int.from_bytes(head[:8], "little")
    return read(length) if _FIRST < length <= MAX_HEADER else head


def read_head(head: bytes, size: int, path: Path) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The same of a file of that size, of which only the beginning is at hand: at least all of its header.

    Raises SourceError as :func:`read_safetensors` does.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or 8 + length > min(len(head), size):
        raise SourceError(
            f"{path} is not a {SAFETENSORS.suffixes[0]} file, or truncated: it has no whole header"
        )
    return _described(head[8 : 8 + length], size, path, SAFETENSORS.suffixes[0], None)


def _described(
    text: bytes, size: int, path: Path, form: str, stamp: tuple[int, int, int] | None
) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The tensors and the metadata that a header states, of a file of that size."""
    header = _parse(text, path, form)
    metadata = header.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{path} is damaged: its metadata is not a table of texts")
    start = 8 + len(text)
    tensors: dict[str, FileTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, item in header.items():
        shape, dtype, begin, end = _entry(name, item, path)
        tensors[name] = FileTensor(path, start + begin, shape, dtype, stamp)
        spans.append((begin, end, name))
    _check_spans(sorted(spans), size - start, path)
    return tensors, metadata


def _parse(text: bytes, path: Path, form: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):  # which of the two is meant cannot be known
            raise SourceError(f"{path} is damaged: a name stands twice in its header")
        return table

    try:
        header = parse_json(text, unique)
    except ValueError as error:
        raise SourceError(
            f"{path} is not a {form} file, or damaged: its header is not JSON ({error})"
        ) from error
    if not isinstance(header, dict):
        raise SourceError(f"{path} is damaged: its header is not a table of tensors")
    return header


def _entry(name: str, item: Any, path: Path) -> tuple[tuple[int, ...], str, int, int]:
    where = f"{path} is damaged: the header's entry for {name!r}"
    if not isinstance(item, dict) or not {"dtype", "shape", "data_offsets"} <= item.keys():
        raise SourceError(f"{where} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise SourceError(
            f"{path}: the tensor {name!r} has the dtype {dtype!r}, which ElasticIR does not know"
        )
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise SourceError(f"{where} has a shape or offsets that are not counts: {shape!r}, {offsets!r}")
    needed = size_of(shape, _DTYPES[dtype])
    if offsets[1] - offsets[0] != needed:
        raise SourceError(f"{where} has offsets {offsets}, but {dtype} of shape {shape} takes {needed} bytes")
    return tuple(shape), _DTYPES[dtype], offsets[0], offsets[1]


def _counts(item: Any) -> bool:
    return isinstance(item, list) and all(type(part) is int and part >= 0 for part in item)


def _check_spans(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
    done, before = 0, "the header"
    for begin, end, name in spans:
        if begin < done:
            raise SourceError(
                f"{path} is damaged: the bytes of {name!r} and {before!r} overlap in the header's offsets"
            )
        if begin > done:
            raise SourceError(f"{path} is damaged: {begin - done} bytes before {name!r} belong to no tensor")
        if end > size:
            raise SourceError(
                f"{path} is truncated: {name!r} should end at byte {end} of the data, which has {size}"
            )
        done, before = end, name
    if done < size:
        raise SourceError(f"{path} is damaged: {size - done} bytes at its end belong to no tensor")


# -- writing -----------------------------------------------------------------------------------------------------------


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, TensorData],
    metadata: Mapping[str, str] | None = None,
    tell: Callable[[int], None] | None = None,
    synced: bool = True,
) -> None:
    """Write tensors and text metadata; wrap it in :func:`elastic_ir.formats.files.atomic_output`.

    ``tell`` is called with the bytes that were written since the call before; ``synced`` is that of
    :func:`~elastic_ir.formats.ranges.write_parts`.

    Raises EmitError where the format has no such dtype or name, where the header is beyond what readers accept, or
    where a tensor yields another number of bytes than its shape says. OSError is left to the caller.
    """
    write_parts(path, safetensors_parts(tensors, metadata), tell, synced)


def safetensors_parts(
    tensors: Mapping[str, TensorData], metadata: Mapping[str, str] | None = None
) -> list[Part]:
    """The parts of a file, which follow each other without a gap; EmitError as :func:`write_safetensors` raises it."""
    head = safetensors_head(tensors, metadata)
    parts, at = [Part(0, head)], len(head)
    for name in _layout(tensors):
        parts.append(Part(at, tensors[name], name))
        at += nbytes(tensors[name])
    return parts


def safetensors_head(tensors: Mapping[str, TensorData], metadata: Mapping[str, str] | None) -> bytes:
    """All that stands in a file before the tensors' bytes: the header's length, and the header."""
    layout = _layout(tensors)
    header = _header(tensors, layout, metadata)
    if layout and sum(map(nbytes, tensors.values())) >= LARGE:
        # pages of the target then are pages of the source, which are copied faster, and can be shared
        first = tensors[layout[0]]
        offset = first.offset if isinstance(first, FileTensor) else 0
        header += b" " * ((offset - 8 - len(header)) % PAGE // 8 * 8)
    return len(header).to_bytes(8, "little") + header


def _layout(tensors: Mapping[str, TensorData]) -> list[str]:
    """The names in the order of their bytes; see the module."""
    files: dict[Path, int] = {}
    copies: dict[tuple[Path, int, int], int] = {}
    places: dict[str, tuple[int, ...]] = {}
    for name, data in tensors.items():
        item = -ITEM_SIZES.get(data.dtype, 0)
        if not isinstance(data, FileTensor):
            places[name] = (item, len(tensors))
            continue
        place = data.path, data.offset, nbytes(data)
        copies[place] = copies.get(place, -1) + 1
        file = files.setdefault(data.path, len(files))
        places[name] = (item, copies[place], file, data.offset, nbytes(data))
    return sorted(places, key=places.__getitem__)


def _header(
    tensors: Mapping[str, TensorData], layout: list[str], metadata: Mapping[str, str] | None
) -> bytes:
    begins: dict[str, int] = {}
    end = 0
    for name in layout:
        if tensors[name].dtype not in NAMES:
            dtype = tensors[name].dtype
            raise EmitError(f"the tensor {name!r} is {dtype}, which .safetensors cannot hold; write a .pt")
        begins[name] = end
        end += nbytes(tensors[name])
    if METADATA in tensors:
        raise EmitError(f"a tensor in a .safetensors file cannot be named {METADATA!r}; write a .pt")
    fields: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, data in tensors.items():
        offsets = [begins[name], begins[name] + nbytes(data)]
        fields[name] = {"dtype": NAMES[data.dtype], "shape": list(data.shape), "data_offsets": offsets}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise EmitError(
            f"the header of the .safetensors file would have {len(text)} bytes, and readers refuse more than "
            f"{MAX_HEADER}; write a .pt"
        )
    return text


# -- small files in memory ---------------------------------------------------------------------------------------------


def tensors_of_file(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, read whole; SourceError as :func:`read_safetensors` raises it."""
    from elastic_ir.tensors.torch_bridge import to_torch

    return {name: to_torch(data) for name, data in read_safetensors(file)[0].items()}
