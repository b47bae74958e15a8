"""Tensors whose bytes lie in files: here, to be fetched first, or elsewhere and asked for by ranges. No torch here.

A file must not change between its header and its tensors: each is opened once, and compared with its stamp when it is
opened and before it is closed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from elastic_ir.errors import SourceChangedError, SourceError, reason
from elastic_ir.formats.files import stamp_of
from elastic_ir.tensors.lazy import TensorData, nbytes

CHUNK = 1 << 24  #: bytes read at once; a multiple of every element's size
_OPEN = 64  #: files that are open at once in a thread


@dataclass(frozen=True)
class FileTensor:
    """A tensor's bytes at a place in a file; the file must stay as it is until they are read."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    stamp: tuple[int, int, int] | None = None  #: of the file whose header was read
    crc: int | None = None  #: the checksum of the bytes, where the file keeps one

    def ready(self) -> None:
        """Called before the file is opened, for tensors whose file has to be fetched first."""

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in pieces of at most 16 MiB; SourceError if the file was replaced, cut short, or is gone."""
        return self.pieces(CHUNK)

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The bytes in pieces of at most so many."""
        with Sources() as sources:
            file = sources.file(self)
            file.seek(self.offset)
            for piece in _pieces(file, nbytes(self), size, self.path):
                yield memoryview(piece)


@dataclass(frozen=True)
class AwaitedTensor(FileTensor):
    """A tensor in a file that is fetched when it is first needed."""

    fetch: Callable[[], None] | None = field(default=None, compare=False)

    def ready(self) -> None:
        """Have the file here."""
        if self.fetch is not None:
            self.fetch()


class Ranges(Protocol):
    """A file that no path leads to, of which ranges of bytes can be asked for, by several threads at once."""

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes; SourceError where they cannot be had."""

    def check(self) -> None:
        """SourceError where the file is another by now than it was when it was looked at."""


@dataclass(frozen=True)
class DistantTensor(FileTensor):
    """A tensor whose bytes are asked for by ranges; its path is what the file would be called here."""

    file: Ranges | None = None

    def ranges(self) -> Ranges:
        """The file."""
        assert self.file is not None
        return self.file

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The bytes in pieces of at most so many."""
        end = self.offset + nbytes(self)
        for at in range(self.offset, end, size):
            yield memoryview(self.ranges().read(at, min(size, end - at)))


def lying_in(file: Ranges | None, data: FileTensor) -> FileTensor:
    """A tensor as a range of a file elsewhere, if one is given."""
    if file is None:
        return data
    return DistantTensor(data.path, data.offset, data.shape, data.dtype, crc=data.crc, file=file)


def distant_files(data: TensorData) -> Iterator[Ranges]:
    """The files elsewhere that a tensor, or a recipe over some, is read from."""
    if isinstance(data, DistantTensor):
        yield data.ranges()
        return
    for inner in getattr(data, "__dict__", {}).values():
        if inner is not data and hasattr(inner, "chunks"):
            yield from distant_files(inner)


def check_distant(tensors: Iterable[TensorData]) -> None:
    """SourceError where a file elsewhere that one of the tensors is read from was changed meanwhile."""
    found = (file for data in tensors for file in distant_files(data))
    for file in {id(file): file for file in found}.values():
        file.check()


def settled(data: TensorData) -> TensorData:
    """A tensor, or a recipe over some, with those whose files are here by now as ordinary ranges of them."""
    if isinstance(data, AwaitedTensor) and data.path.exists():
        return FileTensor(data.path, data.offset, data.shape, data.dtype, stamp_of(data.path.stat()))
    recipe: Any = data
    if isinstance(data, FileTensor) or not is_dataclass(type(recipe)):
        return data
    parts = {part.name: getattr(data, part.name) for part in fields(recipe)}
    inner = {name: settled(part) for name, part in parts.items() if hasattr(part, "chunks")}
    changed = {name: part for name, part in inner.items() if part is not parts[name]}
    made: TensorData = replace(recipe, **changed) if changed else data
    return made


class Sources:
    """Files that are open for reading; each is compared with its stamp when it is opened, and before it is closed."""

    def __init__(self) -> None:
        self.files: dict[tuple[Path, tuple[int, int, int] | None], BinaryIO] = {}

    def file(self, tensor: FileTensor) -> BinaryIO:
        """The file that a tensor lies in."""
        key = tensor.path, tensor.stamp
        if key not in self.files:
            if len(self.files) == _OPEN:
                self._close(next(iter(self.files)))
            tensor.ready()
            try:
                file = tensor.path.open("rb", buffering=0)
            except OSError as error:
                raise SourceError(f"{tensor.path} could not be read: {reason(error)}") from error
            self.files[key] = file
            _check_stamp(file, *key)
            if hasattr(os, "posix_fadvise"):
                with contextlib.suppress(OSError):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self.files[key]

    def _close(self, key: tuple[Path, tuple[int, int, int] | None]) -> None:
        with self.files.pop(key) as file:
            _check_stamp(file, *key)  # what was read is what was there when the reading began

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            while kind is None and self.files:
                self._close(next(iter(self.files)))
        finally:
            for file in self.files.values():
                file.close()


def _check_stamp(file: BinaryIO, path: Path, stamp: tuple[int, int, int] | None) -> None:
    if stamp not in (None, stamp_of(os.fstat(file.fileno()))):
        raise SourceChangedError(f"{path} was changed after it was read; read it again")


def _pieces(file: BinaryIO, left: int, size: int, path: Path) -> Iterator[bytes]:
    """So many bytes from where the file stands, in pieces of that size."""
    while left:
        wanted = min(left, size)
        piece = file.read(wanted)
        while 0 < len(piece) < wanted and (more := file.read(wanted - len(piece))):
            piece += more
        if len(piece) < wanted:
            raise SourceChangedError(f"{path} was cut short while it was being read")
        yield piece
        left -= len(piece)
