"""GGUF files written as a stream: what was there is copied from where it lies, and the rest is little. No torch here.

An entry of the metadata that stays is a range of the source's bytes, as a tensor is. At most one piece of either is in
memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elastic_ir.errors import EmitError
from elastic_ir.formats.gguf.header import ARRAY, MAGIC, NUMBERS, STRING, Entry, Value, padded
from elastic_ir.formats.gguf.types import type_number
from elastic_ir.tensors.lazy import InlineData, TensorData, nbytes


@dataclass(frozen=True)
class File:
    """What a file is to hold: its entries of metadata as bytes, and its tensors in order."""

    version: int
    alignment: int
    #: runs of entries, each with how many it has
    entries: Sequence[tuple[TensorData, int]]
    tensors: Mapping[str, TensorData]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        head = 24 + sum(nbytes(data) for data, _ in self.entries) + len(self._infos())
        return padded(head, self.alignment) + self.data_size

    @property
    def data_size(self) -> int:
        """Bytes of the tensors, each brought up to the alignment."""
        return sum(padded(nbytes(data), self.alignment) for data in self.tensors.values())

    def _infos(self) -> bytes:
        """Names, extents, types and places of the tensors."""
        made = bytearray()
        at = 0
        for name, data in self.tensors.items():
            raw = name.encode()
            extents = tuple(reversed(data.shape))
            made += struct.pack(
                f"<Q{len(raw)}sI{len(extents)}QIQ",
                len(raw),
                raw,
                len(extents),
                *extents,
                type_number(data.dtype),
                at,
            )
            at += padded(nbytes(data), self.alignment)
        return bytes(made)

    def write(self, path: Path, tell: Callable[[int], None] | None = None) -> None:
        """Write the file; ``tell`` is called after each tensor with its bytes. OSError is left to the caller."""
        count = sum(number for _, number in self.entries)
        with open(path, "wb") as file:
            file.write(MAGIC + struct.pack("<IQQ", self.version, len(self.tensors), count))
            for data, _ in self.entries:
                _append(file, data, "the metadata")
            file.write(self._infos())
            _pad(file, file.tell(), self.alignment)
            for name, data in self.tensors.items():
                _append(file, data, name)
                _pad(file, nbytes(data), self.alignment)
                if tell is not None:
                    tell(nbytes(data))


def _append(file: BinaryIO, data: TensorData, name: str) -> None:
    """Append a tensor's bytes; where it lies in a file as it is, they need not pass through this process."""
    copy = getattr(data, "copy_into", None)
    if copy is not None:
        copy(file)
        return
    written = 0
    for chunk in data.chunks():
        written += chunk.nbytes
        file.write(chunk)
    if written != nbytes(data):
        raise EmitError(f"{name!r} gave {written} bytes where its shape and type need {nbytes(data)}")


def _pad(file: BinaryIO, size: int, alignment: int) -> None:
    file.write(bytes(padded(size, alignment) - size))


def text_entry(key: str, text: str) -> InlineData:
    """An entry whose value is a text."""
    raw = text.encode()
    return _inline(_key(key) + struct.pack("<IQ", STRING, len(raw)) + raw)


def number_entry(key: str, kind: int, value: int) -> InlineData:
    """An entry whose value is a number of a type; EmitError where the type cannot hold it."""
    return _inline(_key(key) + struct.pack("<I", kind) + _packed(key, kind, [value]))


def changed_entry(entry: Entry, value: Value) -> InlineData:
    """An entry with another value of its type."""
    head = _key(entry.key)
    if entry.count is None:
        return _inline(head + struct.pack("<I", entry.kind) + _packed(entry.key, entry.kind, [value]))
    if not isinstance(value, list):
        raise EmitError(f"{entry.key} is a list, and cannot become {value!r}")
    head += struct.pack("<IIQ", ARRAY, entry.kind, len(value))
    return _inline(head + _packed(entry.key, entry.kind, value))


def _key(key: str) -> bytes:
    raw = key.encode()
    return struct.pack("<Q", len(raw)) + raw


def _packed(key: str, kind: int, values: Iterable[object]) -> bytes:
    if kind == STRING:
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    items = list(values)
    try:
        return struct.pack(f"<{len(items)}{NUMBERS[kind]}", *items)
    except (struct.error, KeyError) as error:
        raise EmitError(f"{key} cannot hold {str(items)[:100]} in the type that it has ({error})") from error


def _inline(raw: bytes) -> InlineData:
    return InlineData((len(raw),), "uint8", raw)
