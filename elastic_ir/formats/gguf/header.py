"""What stands in a GGUF file before the tensors' bytes: read once, checked whole, its texts passed over and not kept.

A file may come from anybody. Every length and every count is held against the bytes that are left before anything is
made of it, so a file takes memory for its tensors and its short entries, whatever it claims. A tokenizer's lists of a
million words stay in the file: an entry knows where its bytes lie, and is copied from there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from elastic_ir.errors import SourceError
from elastic_ir.formats import GGUF
from elastic_ir.formats.distant import DistantFile, opened_anywhere, state_of
from elastic_ir.formats.gguf.types import dtype_of
from elastic_ir.formats.ranges import FileTensor, lying_in
from elastic_ir.safety.limits import NAME_LENGTH
from elastic_ir.tensors.lazy import BLOCK_SIZES, nbytes

MAGIC = b"GGUF"
VERSIONS = (2, 3)  #: which have one form where a file is little-endian
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
#: The types of values, by the numbers that the format has for them.
NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9
INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)

#: What no honest file comes near: each is answered in seconds and some ten megabytes.
_ENTRIES, _TENSORS, _KEY, _AXES, _LARGEST_ALIGNMENT = 50_000, 100_000, 65_535, 4, 1 << 20
_TEXTS = 4_000_000  #: texts in all lists together, and lists inside of lists
_LEVELS = 8  #: lists in one another
_KEPT = 128 << 10  #: bytes of an entry that is short
_ALL_KEPT = 32 << 20  #: bytes of all short ones
_WINDOW = 1 << 20  #: bytes of texts that are looked through at once
_DISTANT_WINDOW = 1 << 16  #: of a file elsewhere, whose reader has what comes next as well
_LENGTH = struct.Struct("<Q").unpack_from

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class Entry:
    """An entry of the metadata: its key, the type of its value, and where its bytes lie."""

    key: str
    kind: int  #: of the value; of a list's items where it is a list
    count: int | None  #: of a list's items; None where it is no list
    begin: int  #: where the entry begins in the file, its key included
    at: int  #: where the value begins, or the items do
    end: int
    raw: bytes | None  #: the value's bytes where they are few

    @cached_property
    def value(self) -> Value | None:
        """What it states; None for what is long, and for lists in lists."""
        raw = self.raw
        if raw is None or self.kind == ARRAY:
            return None
        if self.kind == STRING:
            texts: list[str] = []
            at = 0
            while at < len(raw):
                end = at + 8 + int.from_bytes(raw[at : at + 8], "little")
                texts.append(raw[at + 8 : end].decode("utf-8", "replace"))
                at = end
            return texts[0] if self.count is None else texts
        form = NUMBERS[self.kind]
        found = list(struct.unpack(f"<{len(raw) // struct.calcsize(form)}{form}", raw))
        return found[0] if self.count is None else found


@dataclass(frozen=True)
class Header:
    """The header of a file: its metadata, its tensors, and how both are laid out."""

    path: Path
    version: int
    entries: Mapping[str, Entry]
    tensors: Mapping[str, FileTensor]
    alignment: int
    start: int  #: where the tensors' bytes begin in the file
    stamp: tuple[int, int, int] | None
    file: DistantFile | None = None  #: where it lies elsewhere

    def value(self, key: str) -> Value | None:
        """What an entry states; None where there is none, or it is long."""
        entry = self.entries.get(key)
        return entry.value if entry is not None else None

    def count(self, key: str) -> int | None:
        """The whole number, 0 or more, of an entry; None where there is none. SourceError for anything else."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        value = entry.value
        if entry.count is not None or entry.kind not in INTEGERS or not isinstance(value, int) or value < 0:
            raise SourceError(f"{self.path} is damaged: {key} is not a count")
        return value

    def text(self, key: str) -> str | None:
        """The text that an entry states; None where there is none. SourceError for anything else."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.kind != STRING or entry.count is not None or not isinstance(entry.value, str):
            raise SourceError(f"{self.path} is damaged: {key} is not a short text")
        return entry.value

    def bytes_of(self, begin: int, end: int) -> FileTensor:
        """A range of the file, as it is."""
        return lying_in(self.file, FileTensor(self.path, begin, (end - begin,), "uint8", self.stamp))

    def read(self, entry: Entry) -> bytes:
        """An entry's whole value."""
        return b"".join(self.bytes_of(entry.at, entry.end).chunks())


def read_header(path: str | os.PathLike[str], distant: DistantFile | None = None) -> Header:
    """The header of a GGUF file; its tensors are unread. ``distant`` is the file where it lies elsewhere.

    Raises SourceError: the file is missing, a folder, empty or truncated, of another byte order or version, an entry or
    a tensor stands twice, a length or count does not fit the bytes, tensors overlap or leave gaps, a type is unknown.
    """
    path = Path(path)
    with opened_anywhere(path, GGUF.suffixes[0], distant) as file:
        return _Reader(path, file, distant).header()


class _Reader:
    """A file, and how far it has been read."""

    def __init__(self, path: Path, file: BinaryIO, distant: DistantFile | None) -> None:
        self.path, self.file, self.distant = path, file, distant
        self.size, self.stamp = state_of(file)
        self.at = 0
        self.texts = 0
        self.kept = 0

    def header(self) -> Header:
        if self.size == 0:
            raise SourceError(f"{self.path} is empty")
        version = self._version()
        tensor_count, entry_count = self._number(8), self._number(8)
        self._check_count(tensor_count, 24, _TENSORS, "tensors")
        self._check_count(entry_count, 13, _ENTRIES, "entries of metadata")
        entries: dict[str, Entry] = {}
        for _ in range(entry_count):
            entry = self._entry()
            if entry.key in entries:
                raise SourceError(
                    f"{self.path} is damaged: the key {entry.key!r} stands twice in its metadata"
                )
            entries[entry.key] = entry
        alignment = self._alignment(entries)
        infos = [self._info(alignment) for _ in range(tensor_count)]
        start = padded(self.at, alignment)
        tensors = self._placed(infos, alignment, start)
        return Header(self.path, version, entries, tensors, alignment, start, self.stamp, self.distant)

    def _version(self) -> int:
        magic = self.file.read(4)
        if magic != MAGIC:
            raise SourceError(f"{self.path} is not a GGUF file: it does not begin with GGUF")
        self.at = 4
        version = self._number(4)
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
        if 0 < swapped < 1 << 16 and version >= 1 << 16:
            raise SourceError(
                f"{self.path} is big-endian, and little-endian files are read; convert it first "
                "(gguf_convert_endian of llama.cpp)"
            )
        if version not in VERSIONS:
            raise SourceError(
                f"{self.path} is of version {version} of GGUF, and versions 2 and 3 are read; convert it first"
            )
        return version

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _left(self, size: int) -> None:
        if size > self.size - self.at:
            raise SourceError(
                f"{self.path} is truncated, or a length in it is wrong: at byte {self.at} it should go on for {size} "
                f"bytes, and {self.size - self.at} are left"
            )

    def _take(self, size: int) -> bytes:
        self._left(size)
        found = self.file.read(size)
        if len(found) < size:
            raise SourceError(f"{self.path} was cut short while it was being read")
        self.at += size
        return found

    def _pass(self, size: int) -> None:
        self._left(size)
        self.at += size
        self.file.seek(self.at)

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _check_count(self, count: int, least: int, most: int, what: str) -> None:
        """SourceError where so many things, each of so many bytes at least, are more than there can be."""
        if count > (self.size - self.at) // least:
            raise SourceError(
                f"{self.path} is truncated, or damaged: it should hold {count} {what}, and has {self.size} bytes"
            )
        if count > most:
            raise SourceError(f"{self.path} states {count:,} {what}, and up to {most:,} are read")

    def _text(self, most: int, what: str) -> str:
        size = self._number(8)
        self._left(size)
        if size > most:
            raise SourceError(f"{self.path} is damaged: {what} has {size} bytes, and up to {most} are read")
        raw = self._take(size)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path} is damaged: {what} is not text (UTF-8)") from error

    # -- metadata ------------------------------------------------------------------------------------------------------

    def _entry(self) -> Entry:
        begin = self.at
        key = self._text(_KEY, "a key of its metadata")
        kind, count = self._number(4), None
        if kind == ARRAY:
            kind, count = self._number(4), self._number(8)
        at = self.at
        self._pass_values(kind, 1 if count is None else count, key, 0)
        raw = None
        size = self.at - at
        if size <= _KEPT and not key.startswith("tokenizer."):
            self.kept += size
            if self.kept > _ALL_KEPT:
                raise SourceError(
                    f"{self.path} has more than {_ALL_KEPT >> 20} MiB of short entries of metadata"
                )
            end, self.at = self.at, at
            self.file.seek(at)
            raw = self._take(end - at)
        return Entry(key, kind, count, begin, at, self.at, raw)

    def _pass_values(self, kind: int, count: int, key: str, level: int) -> None:
        """Pass over so many values of a type."""
        where = f"{self.path} is damaged: the value of {key!r}"
        if kind in NUMBERS:
            self._pass(count * struct.calcsize(NUMBERS[kind]))
        elif kind == STRING:
            self._pass_texts(count, where)
        elif kind == ARRAY:
            if level == _LEVELS:
                raise SourceError(f"{where} has lists in lists, more than {_LEVELS} deep")
            self._count_texts(count, 12, where)
            for _ in range(count):
                inner, size = self._number(4), self._number(8)
                self._pass_values(inner, size, key, level + 1)
        else:
            raise SourceError(f"{where} is of the type {kind}, which the format does not have")

    def _count_texts(self, count: int, least: int, where: str) -> None:
        if count > (self.size - self.at) // least:
            raise SourceError(f"{where} should be a list of {count}, for which the file is too short")
        self.texts += count
        if self.texts > _TEXTS:
            raise SourceError(f"{self.path} has more than {_TEXTS:,} texts in its metadata, which none needs")

    def _pass_texts(self, count: int, where: str) -> None:
        self._count_texts(count, 8, where)
        at, size = self.at, self.size
        window, begin, end = b"", at, at
        for _ in range(count):
            if at + 8 > end:
                self.file.seek(at)
                window, begin = self.file.read(_WINDOW if self.distant is None else _DISTANT_WINDOW), at
                end = begin + len(window)
                if end < at + 8:
                    raise SourceError(f"{where} is a list of {count} texts, and the file ends within it")
            (length,) = _LENGTH(window, at - begin)
            at += 8
            if length > size - at:
                raise SourceError(f"{where} holds a text of {length} bytes, and {max(0, size - at)} are left")
            at += length
        self.at = at
        self.file.seek(at)

    def _alignment(self, entries: Mapping[str, Entry]) -> int:
        entry = entries.get(ALIGNMENT)
        if entry is None:
            return DEFAULT_ALIGNMENT
        value = entry.value
        if entry.count is not None or entry.kind not in INTEGERS or not isinstance(value, int):
            raise SourceError(f"{self.path} is damaged: {ALIGNMENT} is not a count")
        if not 0 < value <= _LARGEST_ALIGNMENT or value & (value - 1):
            raise SourceError(
                f"{self.path} is damaged: {ALIGNMENT} is {value}, and has to be a power of two, at most "
                f"{_LARGEST_ALIGNMENT}"
            )
        return value

    # -- tensors -------------------------------------------------------------------------------------------------------

    def _info(self, alignment: int) -> tuple[str, tuple[int, ...], str, int]:
        """A tensor's name, shape, dtype, and where its bytes begin behind the header."""
        name = self._text(NAME_LENGTH, "the name of a tensor")
        axes = self._number(4)
        if axes > _AXES:
            raise SourceError(
                f"{self.path} is damaged: the tensor {name!r} has {axes} axes, and up to {_AXES} are read"
            )
        extents = [self._number(8) for _ in range(axes)]
        kind, offset = self._number(4), self._number(8)
        dtype = dtype_of(kind)
        if dtype is None:
            raise SourceError(
                f"{self.path}: the tensor {name!r} is of type {kind}, which neither ElasticIR nor an installed gguf "
                "package knows; the file is damaged, or needs a later one (pip install -U gguf)"
            )
        elements = BLOCK_SIZES[dtype][0] if dtype in BLOCK_SIZES else 1
        row = extents[0] if extents else 1
        if row % elements:
            raise SourceError(
                f"{self.path} is damaged: the rows of {name!r} have {row} elements, no multiple of the {elements} in a "
                f"block of {dtype}"
            )
        if offset % alignment:
            raise SourceError(
                f"{self.path} is damaged: {name!r} begins at byte {offset}, no multiple of the alignment {alignment}"
            )
        return name, tuple(reversed(extents)), dtype, offset

    def _placed(
        self, infos: Sequence[tuple[str, tuple[int, ...], str, int]], alignment: int, start: int
    ) -> dict[str, FileTensor]:
        """The tensors at their places, which follow one another from the first byte behind the header to the end."""
        found: dict[str, FileTensor] = {}
        spans: list[tuple[int, int, str]] = []
        for name, shape, dtype, offset in infos:
            if name in found:
                raise SourceError(f"{self.path} is damaged: the tensor {name!r} stands twice in its header")
            data = FileTensor(self.path, start + offset, shape, dtype, self.stamp)
            found[name] = data = lying_in(self.distant, data)
            spans.append((offset, offset + nbytes(data), name))
        done, before = 0, "the header"
        for begin, end, name in sorted(spans):
            if begin < done:
                raise SourceError(f"{self.path} is damaged: the bytes of {name!r} and {before!r} overlap")
            if begin - done >= alignment:
                raise SourceError(
                    f"{self.path} is damaged: {begin - done} bytes before {name!r} belong to no tensor"
                )
            if end > self.size - start:
                raise SourceError(
                    f"{self.path} is truncated: {name!r} should end at byte {start + end}, and the file has {self.size}"
                )
            done, before = end, name
        if self.size - start - done >= alignment:
            raise SourceError(
                f"{self.path} is damaged: {self.size - start - done} bytes at its end belong to no tensor"
            )
        return found


def padded(size: int, alignment: int) -> int:
    """A size brought up to a multiple of the alignment."""
    return -(-size // alignment) * alignment
