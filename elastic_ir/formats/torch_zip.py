"""The zip of a file of ``torch.save``: which records it has, where their bytes lie, and records of our own added to it.

``torch.load(mmap=True)`` and the readers here take a record's bytes as they stand in the file, so a record that is
compressed or encrypted, or that is not where its directory says, is refused. What is read into memory (the pickle, and
the records that ElasticIR wrote) is compared with its checksum. Further records, which ``torch.load`` ignores, are the
place of our graph and masks. No torch here at import.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.safety.limits import RECORD_BYTES

_LOCAL = struct.Struct("<4s5H3I2H")  #: the header before a record of a zip
_CHUNK = 1 << 20
AGAIN = "load it with torch and save it again"


@dataclass(frozen=True)
class Place:
    """The bytes of a storage, or of any other record."""

    offset: int
    size: int
    crc: int = 0  #: 0 where none was kept, as ``torch.serialization.set_crc32_options(False)`` has it


def directory(
    file: BinaryIO, where: str, *, exported: bool = False
) -> tuple[dict[str, zipfile.ZipInfo], int]:
    """The records by their names in the archive's folder, and where their bytes end.

    ``exported`` is for an exported program, which has no pickle of its own. Raises SourceError: no directory, a
    record that stands twice, TorchScript, an exported program, no file of torch.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            listed, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise SourceError(
            f"{where} is truncated or damaged: the zip's directory at its end is missing"
        ) from error
    records: dict[str, zipfile.ZipInfo] = {}
    twice = None
    for item in listed:
        name = item.filename.partition("/")[2]
        twice = name if name in records else twice
        records[name] = item
    if "constants.pkl" in records:
        raise SourceError(
            f"{where} is a TorchScript archive, which holds code; save the state dict of the model it was made "
            "from (torch.save(model.state_dict(), NAME))"
        )
    if exported:
        if twice is not None:
            raise SourceError(f"{where} is damaged: the record {twice!r} stands twice in it")
        return records, end
    if "archive_format" in records or "serialized_exported_program.json" in records:
        raise SourceError(f"{where} is an exported program of torch.export; name it .pt2")
    if "data.pkl" not in records:
        raise SourceError(f"{where} is a zip file, but none of torch.save: it has no record data.pkl")
    if records["data.pkl"].file_size > RECORD_BYTES:
        size = records["data.pkl"].file_size
        raise SourceError(f"{where} has a pickle of {size} bytes, which no state dict needs")
    if twice is not None:  # which of the two is meant cannot be known
        raise SourceError(f"{where} is damaged: the record {twice!r} stands twice in it")
    return records, end


def places_of(file: BinaryIO, where: str, *, exported: bool = False) -> dict[str, Place]:
    """Where the bytes of each record lie, by its name in the archive's folder.

    Raises SourceError as :func:`directory` does, and for a record whose bytes do not stand there as they are.
    """
    records, end = directory(file, where, exported=exported)
    found = {name: _place(file, item, end, where) for name, item in records.items() if item.file_size}
    done, before = 0, ""
    for name, place in sorted(found.items(), key=lambda pair: pair[1].offset):
        if place.offset < done:
            raise SourceError(f"{where} is damaged: its records {before!r} and {name!r} overlap")
        done, before = place.offset + place.size, name
    return {name: found.get(name, Place(0, 0)) for name in records}


def _place(file: BinaryIO, item: zipfile.ZipInfo, end: int, where: str) -> Place:
    """Where a record's bytes lie, by the header before them; SourceError where they are not as they stand."""
    if item.compress_type != zipfile.ZIP_STORED or item.flag_bits & 1 or item.compress_size != item.file_size:
        raise SourceError(f"{where}: the record {item.filename!r} is compressed or encrypted; {AGAIN}")
    file.seek(item.header_offset)
    head = file.read(_LOCAL.size)
    astray = f"{where} is damaged: the record {item.filename!r} is not where its directory says"
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
        raise SourceError(astray)
    _, _, flags, method, *_, packed, size, name, extra = _LOCAL.unpack(head)
    coding = "utf-8" if item.flag_bits & 0x800 else "cp437"
    # a record that was written as a stream has its sizes behind it, and zeros here; a large one has them elsewhere
    sizes = {item.file_size, 0, 0xFFFFFFFF}
    named = file.read(name) == item.orig_filename.encode(coding, "replace")
    if method != item.compress_type or flags & 1 or not {packed, size} <= sizes or not named:
        raise SourceError(astray)
    begin = item.header_offset + _LOCAL.size + name + extra
    if begin + item.file_size > end:
        raise SourceError(f"{where} is damaged: the record {item.filename!r} ends behind the file's data")
    return Place(begin, item.file_size, item.CRC)


def content(file: BinaryIO, place: Place, name: str, where: str) -> bytes:
    """A record's bytes; SourceError where they are not what was written."""
    file.seek(place.offset)
    found = file.read(place.size)
    if place.crc and zlib.crc32(found) != place.crc:
        raise _spoilt(name, where)
    return found


def check_content(file: BinaryIO, place: Place, name: str, where: str) -> None:
    """SourceError where a record's bytes are not what was written, by the checksum that the zip keeps of them."""
    if not place.crc:
        return
    file.seek(place.offset)
    crc, left = 0, place.size
    while left and (piece := file.read(min(left, _CHUNK))):
        crc, left = zlib.crc32(piece, crc), left - len(piece)
    if crc != place.crc:
        raise _spoilt(name, where)


def _spoilt(name: str, where: str) -> SourceError:
    return SourceError(
        f"{where} is damaged: the record {name!r} is not what was written, by its checksum; copy or download it again"
    )


# -- writing -----------------------------------------------------------------------------------------------------------


class _Watched:
    """An open file that remembers why a write failed: torch reports only that the place is not the expected one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_torch(item: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` with names that do not follow from the path's; OSError where the disk is full."""
    import torch

    with open(path, "wb") as file:  # given a path, torch names the records after it
        watched = _Watched(file)
        try:
            torch.save(item, watched)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise watched.error or error from error


def append_zip_records(path: str | os.PathLike[str], records: Mapping[str, bytes]) -> None:
    """Add records, name to bytes, to what ``torch.save`` wrote; the names are relative to the archive's own folder.

    They are stored uncompressed behind torch's records, whose places (which ``mmap=True`` relies on) do not change.
    Raises EmitError where the file is no such zip or has a record of that name already; OSError is left to the caller.
    """
    try:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
            present = set(archive.namelist())
            roots = [name.removesuffix("data.pkl") for name in present if name.count("/") == 1]
            roots = [root for root in roots if root + "data.pkl" in present]
            if len(roots) != 1:
                raise EmitError(
                    f"{os.fspath(path)} is not a file of torch.save, so nothing can be added to it"
                )
            for name, content in records.items():
                if roots[0] + name in present:
                    raise EmitError(f"{os.fspath(path)} already has a record {name!r}")
                # A ZipInfo of its own has a fixed date: the same graph gives the same bytes.
                archive.writestr(zipfile.ZipInfo(roots[0] + name), content)
    except zipfile.BadZipFile as error:
        raise EmitError(f"{os.fspath(path)} is not a zip file, so nothing can be added to it") from error
