"""``.safetensors`` files: read lazily (the header now, tensors when asked for), and written as a stream. No torch.

The format: the header's length as 8 bytes, little-endian; the header, JSON padded with spaces to a multiple of 8; the
tensors' bytes. The library's reader sorts the tensors by their offsets and wants them without gap or overlap from the
first byte after the header to the end of the file; the order of names in the header is free. So the header keeps the
order given (that of the state dict, which readers show), and the bytes lie by falling size of their elements, as the
library itself writes them: every tensor is then aligned, whatever odd-sized booleans there are. At most one chunk of a
tensor is in memory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from elastic_ir.errors import EmitError, SourceChangedError, SourceError, reason
from elastic_ir.formats import SAFETENSORS
from elastic_ir.formats.files import opened, parse_json
from elastic_ir.formats.model_folder import stamp_of
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

#: The one key of the header that names no tensor.
METADATA = "__metadata__"

NAMES = {**DTYPES, **PACKED}
_DTYPES = {theirs: ours for ours, theirs in NAMES.items()}


# -- reading -----------------------------------------------------------------------------------------------------------

CHUNK = 1 << 24  #: bytes read at once; a multiple of every element's size
BUFFER = 1 << 18  #: bytes that go through this process at once where the system cannot copy; more is slower
#: What copying within the system fails with where it cannot be done: other file systems, old kernels, odd files.
_NOT_SO = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


@dataclass(frozen=True)
class FileTensor:
    """A tensor's bytes at a place in a file; the file must stay as it is until they are read."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    stamp: tuple[int, int, int] | None = None  #: of the file whose header was read

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in pieces of at most 16 MiB; SourceError if the file was replaced, cut short, or is gone."""
        with self._open() as file:
            file.seek(self.offset)
            for piece in self._pieces(file, nbytes(self), CHUNK):
                yield memoryview(piece)

    def copy_into(self, target: BinaryIO) -> None:
        """Append the bytes to an open file without their passing through this process, where the system can do that.

        Raises SourceError as :meth:`chunks` does, and OSError where the target cannot be written.
        """
        left = nbytes(self)
        target.flush()
        with self._open() as file:
            at = self.offset
            while left and hasattr(os, "copy_file_range"):
                try:
                    done = os.copy_file_range(file.fileno(), target.fileno(), left, at)
                except OSError as error:
                    if error.errno in _NOT_SO:
                        break
                    raise
                if done == 0:
                    raise self._cut_short()
                at, left = at + done, left - done
            file.seek(at)
            target.writelines(self._pieces(file, left, BUFFER))

    def _pieces(self, file: BinaryIO, left: int, size: int) -> Iterator[bytes]:
        """So many bytes from where the file stands, in pieces of that size."""
        while left:
            piece = file.read(min(left, size))
            if len(piece) < min(left, size):
                raise self._cut_short()
            yield piece
            left -= len(piece)

    def _cut_short(self) -> SourceError:
        return SourceChangedError(f"{self.path} was cut short while it was being read")

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise SourceError(f"{self.path} could not be read: {reason(error)}") from error
        with file:
            self._check_stamp(file)
            yield file
            self._check_stamp(file)  # what was read is what was there when the reading began

    def _check_stamp(self, file: BinaryIO) -> None:
        if self.stamp not in (None, stamp_of(os.fstat(file.fileno()))):
            raise SourceChangedError(f"{self.path} was changed after it was read; read it again")


def read_safetensors(
    path: str | os.PathLike[str], form: str = SAFETENSORS.suffixes[0]
) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The tensors, in the header's order and unread, and the metadata; ``form`` is what errors call the file.

    Raises SourceError: the file is missing, a folder, empty, truncated or longer than its header says, or the header
    is garbage, names an unknown dtype, or has offsets that overlap, leave gaps or do not fit the shapes.
    """
    path = Path(path)
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
    header = _parse(text, path, form)
    metadata = header.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{path} is damaged: its metadata is not a table of texts")
    start = 8 + length
    tensors: dict[str, FileTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, item in header.items():
        shape, dtype, begin, end = _entry(name, item, path)
        tensors[name] = FileTensor(path, start + begin, shape, dtype, stamp_of(status))
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
