"""A lazy reader of files of ``torch.save``: the pickle is read as data, tensors when asked for. No torch here.

``torch.save`` writes a zip whose records are not compressed, one for each storage, so that every tensor is a range of
the file's bytes; before torch 1.6 it wrote three small pickles, the state dict's, and behind them the storages one
after another (`torch/serialization.py`, ``_save`` and ``_legacy_save``). Either way only names, shapes and places are
read; of the checksums that a zip keeps of its records, those of tensors are not computed again here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import BytesIO, RawIOBase
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from elastic_ir.errors import SourceError
from elastic_ir.formats.distant import DistantFile, DistantReader, state_of
from elastic_ir.formats.files import opened
from elastic_ir.formats.pickles.state import StorageReference, StoredTensor, read_state_pickle
from elastic_ir.formats.ranges import CHUNK, FileTensor, lying_in
from elastic_ir.formats.torch_zip import (
    AGAIN,
    Archive,
    Place,
    archive_of,
    check_content,
    content,
    records_in,
)
from elastic_ir.safety.limits import REPEATED
from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData, item_size

_MAGIC = 0x1950A86A20F9469CFC6C  #: what the older form begins with, as a pickled number
_DATA = "data/"  #: before the key of a storage


@dataclass(frozen=True)
class _Home:
    """The file that tensors lie in, here or elsewhere."""

    path: Path
    stamp: tuple[int, int, int] | None
    file: DistantFile | None = None

    def range(self, offset: int, shape: tuple[int, ...], dtype: str, crc: int | None = None) -> FileTensor:
        """A tensor at a place in it."""
        return lying_in(self.file, FileTensor(self.path, offset, shape, dtype, self.stamp, crc))


def read_bin(path: Path, distant: DistantFile | None = None) -> dict[str, TensorData]:
    """The tensors of a bare state dict by name, unread, in the order in which they were saved.

    Names of one tensor get equal data. ``distant`` is the file where it lies elsewhere. Raises UntrustedError for a
    pickle that names or does what plain weights have no need of (nothing of it is run), SourceError, one line: missing,
    truncated or damaged, no file of torch.save, big-endian, compressed, a storage that is missing or too small, or
    something else than a state dict.
    """
    with opened(path, "weights") if distant is None else nullcontext(DistantReader(distant)) as file:
        found, places, home = _read(file, path, archive_of(file, str(path)))
    if not isinstance(found, dict):
        raise SourceError(f"{path} holds a {type(found).__name__} and no state dict")
    odd = next((key for key, value in found.items() if type(value) is not StoredTensor), None)
    odd = odd if odd is not None else next((key for key in found if type(key) is not str), None)
    if odd is not None:
        kind = "tensor" if type(found[odd]) is StoredTensor else type(found[odd]).__name__
        raise SourceError(f"{path} is not a bare state dict: under {odd!r} it holds a {kind}; {AGAIN} as one")
    return {name: _data(name, tensor, places, home) for name, tensor in found.items()}


def read_saved(
    file: BinaryIO, path: Path, archive: Archive | None, whole: bool = True
) -> tuple[Any, dict[str, bytes]]:
    """What an open file holds: plain data, dictionaries, and tensors, which are unread; and the records that are ours.

    ``archive`` is what it shows as a zip, if it is one, whose checksums are compared; those of tensors, which takes
    reading all of it, only with ``whole``, and not in a file elsewhere. Raises SourceError as :func:`read_bin` does,
    also for what only torch can read (modules, quantized tensors).
    """
    found, places, home = _read(file, path, archive)
    for name, place in places.items():
        if whole and name.startswith(_DATA) and home.file is None:
            check_content(file, place, name, path.name)
    records = records_in(file, places, path.name) if archive is not None else {}
    return _with_data(found, places, home), records


def read_within(file: BinaryIO, path: Path, offset: int, size: int, stamp: tuple[int, int, int]) -> Any:
    """What a file of ``torch.save`` holds that is a range of another, which is open and has that stamp.

    Plain data, dictionaries, and tensors, which are unread. Raises SourceError as :func:`read_bin` does.
    """
    window: Any = _Window(file, offset, size)
    archive = archive_of(window, str(path))
    if archive is None:
        raise SourceError(f"{path} is damaged: at byte {offset} it has no file of torch.save")
    found = _read_zip(window, path, size, archive)
    places = {name: replace(place, offset=offset + place.offset) for name, place in archive.records.items()}
    return _with_data(found, places, _Home(path, stamp))


class _Window(RawIOBase):
    """A range of an open file, as a file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        if begin + offset < 0:
            raise ValueError("a place before the beginning")
        self.at = begin + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            self.file.seek(self.offset + self.at)
            found = self.file.read(max(0, min(len(view), self.size - self.at)))
            view[: len(found)] = found
        self.at += len(found)
        return len(found)


def _with_data(found: Any, places: Mapping[str, Place], home: _Home) -> Any:
    """The same with the file's ranges in place of tensors, at any level."""
    if type(found) is StoredTensor:
        return _data("it", found, places, home)
    waiting, seen = [found], set()
    for item in waiting:  # it grows; what several hold is one object, so that each is entered once
        if type(item) not in (dict, list) or id(item) in seen:
            continue
        seen.add(id(item))
        for key, value in list(item.items() if type(item) is dict else enumerate(item)):
            if type(value) is StoredTensor:
                item[key] = _data(str(key), value, places, home)
            else:
                waiting.append(value)
    return found


def _read(file: BinaryIO, path: Path, archive: Archive | None) -> tuple[Any, dict[str, Place], _Home]:
    """What the pickle holds, the records, those of storages behind ``data/``, and where all that lies."""
    size, stamp = state_of(file)
    home = _Home(path, stamp, file.source if isinstance(file, DistantReader) else None)
    if archive is not None:
        return _read_zip(file, path, size, archive), archive.records, home
    head = file.read(64)
    file.seek(0)
    if not head.startswith(b"\x80"):
        raise SourceError(_no_form(path, head))
    found, places = _read_legacy(file, path, size)
    return found, places, home


def _no_form(path: Path, head: bytes) -> str:
    if not head:
        return f"{path} is empty"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is only a pointer to a file in Git LFS; get the file itself with `git lfs pull`"
    return f"{path} is not a file of torch.save: it begins with {head[:8]!r}"


def _data(name: str, tensor: StoredTensor, places: Mapping[str, Place], home: _Home) -> TensorData:
    """The tensor as a range of the file, or as what is picked out of one."""
    path = home.path
    place = places.get(_DATA + tensor.storage.key)
    if place is None:
        raise SourceError(f"{path} is damaged: the storage of {name!r} is missing")
    item = ITEM_SIZES[tensor.dtype]
    begin, end = tensor.offset * item, (tensor.offset + tensor.span) * item
    if place.size != tensor.storage.nbytes or end > place.size:  # torch takes no larger one either
        needed = max(end, tensor.storage.nbytes)
        raise SourceError(
            f"{path} is damaged: {name!r} needs {needed} bytes of a storage, which has {place.size}"
        )
    if tensor.contiguous:
        crc = place.crc if place.crc and end - begin == place.size else None
        return home.range(place.offset + begin, tensor.shape, tensor.dtype, crc)
    if prod(tensor.shape) > max(REPEATED, tensor.span):
        raise SourceError(
            f"{path}: {name!r} repeats {tensor.span} numbers to {prod(tensor.shape)}; {AGAIN}, without expand"
        )
    flat = home.range(place.offset + begin, (tensor.span,), tensor.dtype)
    return Strided(flat, tensor.shape, tensor.stride)


# -- since torch 1.6 -----------------------------------------------------------------------------------------------


def _read_zip(file: BinaryIO, path: Path, size: int, archive: Archive) -> Any:
    where, records = str(path), archive.records
    order = content(file, records["byteorder"], "byteorder", where) if "byteorder" in records else b"little"
    if order.strip() != b"little":
        raise SourceError(f"{path} was written on a big-endian machine ({order[:16]!r}); {AGAIN} on this one")
    return read_state_pickle(BytesIO(archive.pickle), where, size)


# -- before --------------------------------------------------------------------------------------------------------


def _read_legacy(file: BinaryIO, path: Path, size: int) -> tuple[Any, dict[str, Place]]:
    where = str(path)
    if read_state_pickle(file, where) != _MAGIC:
        raise SourceError(f"{path} is a pickle, but none of torch.save; {AGAIN}")
    version, system = read_state_pickle(file, where), read_state_pickle(file, where)
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise SourceError(f"{path} is of an unknown version of torch.save, or big-endian; {AGAIN}")
    found = read_state_pickle(file, where, size)
    keys = read_state_pickle(file, where, size)
    widths: dict[str, int] = {}
    for storage in _storages(found):  # the first tensor's dtype is what the storage was counted in
        widths.setdefault(storage.key, ITEM_SIZES[storage.dtype or "uint8"])
    places: dict[str, Place] = {}
    for key in keys if isinstance(keys, list) else ():
        count = file.read(8)
        if len(count) < 8 or key not in widths:
            raise SourceError(f"{path} is truncated or damaged: the storage {key!r} is missing")
        place = Place(file.tell(), int.from_bytes(count, "little") * widths[key])
        if place.offset + place.size > size:
            raise SourceError(
                f"{path} is truncated: a storage should end at byte {place.offset + place.size}, the file has {size}"
            )
        file.seek(place.size, os.SEEK_CUR)
        places[_DATA + key] = place
    return found, places


def _storages(found: Any) -> list[StorageReference]:
    """The storages that tensors of a state dict lie in."""
    values = found.values() if isinstance(found, dict) else ()
    return [value.storage for value in values if type(value) is StoredTensor]


# -- tensors whose elements do not lie in order: a transposed matrix, a slice of columns -------------------------------


@dataclass(frozen=True)
class Strided:
    """The recipe "these elements, by strides"; to be read, the range that they lie in is held in memory."""

    flat: FileTensor  #: one axis, from the first element to the last one that is reached
    shape: tuple[int, ...]
    stride: tuple[int, ...]  #: in elements

    @property
    def dtype(self) -> str:
        return self.flat.dtype

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in the tensor's order, some rows at a time; SourceError as of a range of a file."""
        import numpy as np

        item = item_size(self.dtype)
        raw = np.frombuffer(b"".join(self.flat.chunks()), np.uint8)
        steps = (*(step * item for step in self.stride), 1)
        view = np.lib.stride_tricks.as_strided(raw, (*self.shape, item), steps, writeable=False)
        rows = max(1, CHUNK // max(1, item * prod(self.shape[1:])))
        for at in range(0, self.shape[0], rows):
            yield np.ascontiguousarray(view[at : at + rows]).reshape(-1).data
