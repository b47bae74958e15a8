"""Files of which only ranges of bytes can be asked for, open as the readers of formats take any other. No torch here.

A reader goes through a file from place to place, a few bytes at each. So more than is asked for comes at once, and
places that a reader knows beforehand (the headers of a zip's records) are asked for side by side.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

from elastic_ir.errors import SourceError

_BUFFER = 1 << 18  #: bytes that come at once
_AT_ONCE = 8  #: places that are asked for at the same time


class DistantFile(Protocol):
    """A file elsewhere, as it was when it was looked at; see :class:`elastic_ir.formats.ranges.Ranges`."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes: ...

    def check(self) -> None: ...


#: The file that a path stands for where that is not here; None for one that is.
Elsewhere: TypeAlias = "Callable[[Path], DistantFile | None]"


class WholeFileNeeded(SourceError):
    """A file elsewhere cannot be read by ranges of bytes; it is fetched and read again, so that no user meets this."""


class DistantReader(io.BufferedReader):
    """Such a file, open for reading."""

    def __init__(self, file: DistantFile) -> None:
        self._ranges = _Ranges(file)
        super().__init__(self._ranges, _BUFFER)

    @property
    def source(self) -> DistantFile:
        """The file."""
        return self._ranges.file

    def expect(self, places: Iterable[int], size: int) -> None:
        """Have so many bytes from each of these places on here, for a reader that goes to one after the other."""
        from concurrent.futures import ThreadPoolExecutor

        wanted, ranges = list(places), self._ranges
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            ranges.here = dict(zip(wanted, pool.map(lambda at: ranges.range(at, size), wanted), strict=True))


class _Ranges(io.RawIOBase):
    """The file without a buffer: each read is a question."""

    def __init__(self, file: DistantFile) -> None:
        self.file, self.at = file, 0
        self.here: dict[int, bytes] = {}  #: what was asked for beforehand, by its place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.file.size}[whence]
        if begin + offset < 0:
            raise ValueError("a place before the beginning")
        self.at = begin + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def range(self, at: int, size: int) -> bytes:
        size = min(size, self.file.size - at)
        return self.file.read(at, size) if size > 0 else b""

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            found = self.here.get(self.at)
            found = self.range(self.at, len(view)) if found is None else found[: len(view)]
            view[: len(found)] = found
        self.at += len(found)
        return len(found)


@contextlib.contextmanager
def opened_anywhere(path: Path, form: str, file: DistantFile | None) -> Iterator[BinaryIO]:
    """A file elsewhere, if one is given, else that of the path; see :func:`elastic_ir.formats.files.opened`."""
    if file is not None:
        yield DistantReader(file)
        return
    from elastic_ir.formats.files import opened

    with opened(path, form) as here:
        yield here


def state_of(file: BinaryIO) -> tuple[int, tuple[int, int, int] | None]:
    """The size of an open file, and its stamp; what lies elsewhere has none."""
    if isinstance(file, DistantReader):
        return file.source.size, None
    from elastic_ir.formats.files import stamp_of

    status = os.fstat(file.fileno())
    return status.st_size, stamp_of(status)
