"""Arrays of numpy's ``.npz``, lazily: a zip of ``.npy`` files, each with a header before its numbers. No pickles.

An array of objects is a pickle, which could run code: it is refused by name, unread. A header is compared with the size
that the zip states before anything of that size is made, and an array is unpacked piece by piece.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

from elastic_ir.errors import SourceError, first_line
from elastic_ir.formats.files import opened
from elastic_ir.safety.limits import RECORD_BYTES
from elastic_ir.tensors.lazy import ITEM_SIZES, item_size

_CHUNK = 1 << 20  #: a multiple of every element's size
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    struct.error,
)
#: What scipy.sparse.save_npz writes, of one matrix.
_SCIPY = {"format", "shape", "data"}


@dataclass(frozen=True)
class NpzArray:
    """An array that is still in its file."""

    path: Path
    member: str
    begin: int  #: bytes of the member before its numbers
    shape: tuple[int, ...]
    dtype: str
    swapped: bool = False  #: whether its numbers are big-endian
    turned: bool = False  #: whether its first axis runs fastest

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in C order, little-endian, a piece at a time where they lie so; SourceError where it is damaged."""
        import numpy as np

        pieces = self._pieces()
        if self.turned:
            flat = np.frombuffer(b"".join(pieces), f"V{item_size(self.dtype)}")
            pieces = iter((flat.reshape(self.shape, order="F").tobytes(),))
        for piece in pieces:
            yield memoryview(np.frombuffer(piece, self.dtype).byteswap().tobytes() if self.swapped else piece)

    def _pieces(self) -> Iterator[bytes]:
        left = prod(self.shape) * item_size(self.dtype)
        with opened(self.path, ".npz") as file:
            try:
                with zipfile.ZipFile(file) as archive, archive.open(self.member) as member:
                    member.read(self.begin)
                    while left and (piece := member.read(min(_CHUNK, left))):
                        left -= len(piece)
                        yield piece
            except _BROKEN as error:
                raise _damaged(self.path, self.member, error) from error
        if left:
            raise _damaged(self.path, self.member, EOFError(f"it ends {left} bytes too early"))


def read_npz(path: Path) -> dict[str, NpzArray]:
    """The arrays of a file by name, unread.

    Raises SourceError, one line: missing, no zip, damaged, two arrays of one name, an array of objects, of a dtype that
    no tensor has, or of another size than the zip states; a matrix of scipy, which has no weight's name.
    """
    with opened(path, ".npz") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _arrays(path, archive)
        except _BROKEN as error:
            raise SourceError(
                f"{path} is not an .npz file, or damaged ({first_line(error)[:160]})"
            ) from error


def _arrays(path: Path, archive: zipfile.ZipFile) -> dict[str, NpzArray]:
    found: dict[str, NpzArray] = {}
    members = archive.infolist()
    names = {member.filename.removesuffix(".npy") for member in members}
    if names >= _SCIPY and all("." not in name for name in names):
        raise SourceError(
            f"{path} is one sparse matrix of scipy without a weight's name; save arrays by name with "
            "numpy.savez(NAME, **{weight: matrix.toarray()})"
        )
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise SourceError(f"{path} is damaged: the array {name!r} stands twice in it")
        with archive.open(member) as content:
            found[name] = _header(path, member, content)
    return found


def _header(path: Path, member: zipfile.ZipInfo, content: IO[bytes]) -> NpzArray:
    """What the header of an array states, compared with its size."""
    from numpy.lib import format as npy

    name = member.filename.removesuffix(".npy")
    version = npy.read_magic(content)
    if version == (1, 0):
        shape, turned, dtype = npy.read_array_header_1_0(content)
    elif version == (2, 0):
        shape, turned, dtype = npy.read_array_header_2_0(content)
    else:
        raise ValueError(f"{name!r} is of version {version[0]}.{version[1]} of .npy")
    if dtype.hasobject:
        raise SourceError(
            f"{path}: {name!r} is an array of objects, a pickle, which may run code and is not read; save arrays by "
            "weight name with numpy.savez(NAME, **masks)"
        )
    begin, size = content.tell(), prod(shape) * dtype.itemsize
    if any(extent < 0 for extent in shape):
        raise SourceError(f"{path} is damaged: {name!r} has the shape {list(shape)}")
    if dtype.name not in ITEM_SIZES:
        raise SourceError(f"{path}: {name!r} has the dtype {dtype}, which no tensor has")
    if begin + size != member.file_size:
        raise SourceError(
            f"{path} is damaged: {name!r} of {dtype}{list(shape)} takes {begin + size} bytes, and has "
            f"{member.file_size}"
        )
    turned = turned and len(shape) > 1
    if turned and size > RECORD_BYTES:  # it has to be turned in memory
        raise SourceError(
            f"{path}: {name!r} lies in Fortran order; save it by numpy.ascontiguousarray(array)"
        )
    swapped = dtype.byteorder == ">"
    return NpzArray(path, member.filename, begin, tuple(shape), dtype.name, swapped, turned)


def _damaged(path: Path, member: str, error: Exception) -> SourceError:
    return SourceError(f"{path} is damaged: {member!r} cannot be read ({first_line(error)[:160]})")
