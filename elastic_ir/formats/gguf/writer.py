"""GGUF files written as a stream: what was there is copied from where it lies, and the rest is little. No torch here.

An entry of the metadata that stays is a range of the source's bytes, as a tensor is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elastic_ir.errors import EmitError
from elastic_ir.formats.gguf.header import ARRAY, MAGIC, NUMBERS, STRING, Entry, Value, padded
from elastic_ir.formats.gguf.types import type_number
from elastic_ir.formats.parts import Part, write_parts
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.tensors.lazy import TensorData, nbytes


@dataclass(frozen=True)
class File:
    """What a file is to hold: its entries of metadata as bytes, and its tensors in order."""

    version: int
    alignment: int
    #: runs of entries, ranges of the source or new ones, each with how many it has
    entries: Sequence[tuple[FileTensor | bytes, int]]
    tensors: Mapping[str, TensorData]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.parts()[-1].at

    @property
    def start(self) -> int:
        """Where the tensors' bytes begin."""
        return self.size - self.data_size

    @property
    def data_size(self) -> int:
        """Bytes of the tensors, each brought up to the alignment."""
        return sum(padded(nbytes(data), self.alignment) for data in self.tensors.values())

    @property
    def moved(self) -> int:
        """Bytes of tensors, and of entries that are ranges of the source."""
        ranges = [data for data, _ in self.entries if not isinstance(data, bytes)]
        return sum(map(nbytes, (*ranges, *self.tensors.values())))

    def parts(self) -> list[Part]:
        """What lies where; the last part is empty, and stands where the file ends."""
        count = sum(number for _, number in self.entries)
        found = [Part(0, MAGIC + struct.pack("<IQQ", self.version, len(self.tensors), count))]
        at = len(found[0].data) if isinstance(found[0].data, bytes) else 0
        for data, _ in self.entries:
            found.append(Part(at, data, "the metadata"))
            at += len(data) if isinstance(data, bytes) else nbytes(data)
        infos = self._infos()
        found.append(Part(at, infos))
        at = padded(at + len(infos), self.alignment)
        for name, tensor in self.tensors.items():
            found.append(Part(at, tensor, name))
            at = padded(at + nbytes(tensor), self.alignment)
        return [*found, Part(at, b"")]

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

    def write(self, path: Path, tell: Callable[[int], None] | None = None, synced: bool = True) -> None:
        """Write the file; errors and options as of :func:`elastic_ir.formats.ranges.write_parts`."""
        write_parts(path, self.parts(), tell, synced)


def text_entry(key: str, text: str) -> bytes:
    """An entry whose value is a text."""
    raw = text.encode()
    return _key(key) + struct.pack("<IQ", STRING, len(raw)) + raw


def number_entry(key: str, kind: int, value: int) -> bytes:
    """An entry whose value is a number of a type; EmitError where the type cannot hold it."""
    return _key(key) + struct.pack("<I", kind) + _packed(key, kind, [value])


def changed_entry(entry: Entry, value: Value) -> bytes:
    """An entry with another value of its type."""
    head = _key(entry.key)
    if entry.count is None:
        return head + struct.pack("<I", entry.kind) + _packed(entry.key, entry.kind, [value])
    if not isinstance(value, list):
        raise EmitError(f"{entry.key} is a list, and cannot become {value!r}")
    head += struct.pack("<IIQ", ARRAY, entry.kind, len(value))
    return head + _packed(entry.key, entry.kind, value)


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
