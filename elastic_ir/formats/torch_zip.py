"""The zip of a file of ``torch.save``: which records it has, where their bytes lie, and how a state dict is written.

``torch.load(mmap=True)`` and the readers here take a record's bytes as they stand in the file, so a record that is
compressed or encrypted, or that is not where its directory says, is refused. What is read into memory (the pickle, and
the records that ElasticIR wrote) is compared with its checksum. Further records, which ``torch.load`` ignores, are the
place of our graph and masks. No torch here at import.

The form is that of `torch/serialization.py` (``_save``): the pickle ``data.pkl`` makes each tensor over a storage that
it names by a key, and the record ``data/KEY`` has the storage's bytes, stored as they are at a multiple of 64.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats.distant import DistantReader
from elastic_ir.safety.limits import RECORD_BYTES, open_plain
from elastic_ir.tensors.lazy import TensorData, nbytes

_LOCAL = struct.Struct("<4s5H3I2H")  #: the header before a record of a zip
_HEAD = 512  #: bytes from its beginning on that hold it, with the name and the filling of nearly any record
_CHUNK = 1 << 20
RECORDS = "elastic_ir/"  #: the folder of our records in a .pt's zip
STEPS = f"{RECORDS}record.json"  #: the changes that led to a training's checkpoint, in the form of a folder's record
AGAIN = "load it with torch and save it again"
#: The dtype of each storage class that torch names in a pickle; an untyped one leaves it to the tensor.
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
#: A name in a pickle: its module, behind what stands before it.
_NAMED = re.compile(rb"([\w.]{1,200})\n[\w.]{1,200}\n")
#: The modules whose names make plain data and tensors.
_PLAIN = (b"torch", b"torch._utils", b"torch.storage", b"collections")


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
    if isinstance(file, DistantReader):
        file.expect((item.header_offset for item in records.values()), _HEAD)
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


@dataclass(frozen=True)
class Archive:
    """What a zip of ``torch.save`` shows at once: where its records lie, and its pickle."""

    records: dict[str, Place]
    pickle: bytes

    @property
    def names_classes(self) -> bool:
        """Whether it is evident that it makes more than plain data and tensors: a whole network."""
        return not all(module.endswith(_PLAIN) for module in _NAMED.findall(self.pickle))


def archive_of(file: BinaryIO, where: str) -> Archive | None:
    """The archive that an open file is, None for what is no zip; SourceError where it is damaged, or another zip."""
    head = file.read(2)
    file.seek(0)
    if head != b"PK":
        return None
    records = places_of(file, where)
    return Archive(records, content(file, records["data.pkl"], "data.pkl", where))


def records_in(
    file: BinaryIO, places: Mapping[str, Place], where: str, folder: str = RECORDS
) -> dict[str, bytes]:
    """The extra records under a folder, name (with the folder) to bytes; SourceError where one is damaged."""
    return {
        name: content(file, place, name, where) for name, place in places.items() if name.startswith(folder)
    }


def read_zip_records(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """The records that ElasticIR wrote into a ``.pt``'s zip, name (with the folder) to bytes; empty for other files.

    Raises SourceError where a record is damaged or compressed.
    """
    name = Path(path).name
    try:
        with open_plain(Path(path)) as file:
            if file.read(2) != b"PK":
                return {}
            return records_in(file, places_of(file, name), name)
    except OSError as error:
        raise SourceError(f"{name} is damaged in the records that ElasticIR wrote ({error})") from error


# -- writing -----------------------------------------------------------------------------------------------------------


_FOLDER = "archive"  #: that of torch where a file and no path is given
_ALIGNMENT = 64  #: torch's, of the bytes of storages
_CLASSES = {dtype: name for name, dtype in STORAGES.items()}
#: Dtypes without a class of storages; their tensors state them.
_UNTYPED = (
    "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu",
)  # fmt: skip


def write_state(path: str | os.PathLike[str], tensors: Mapping[str, TensorData]) -> None:
    """Write tensors by name; names of the same object share a storage.

    What is a whole record of another such file keeps the checksum that it has there. Raises EmitError where torch has
    no such dtype, or a tensor yields another number of bytes than its shape says; OSError is left to the caller.
    """
    for name, data in tensors.items():
        _check_dtype(name, data)
    keys: dict[int, str] = {}
    storages: dict[str, tuple[str, TensorData]] = {}
    for name, data in tensors.items():
        key = keys.setdefault(id(data), str(len(keys)))
        storages.setdefault(key, (name, data))
    _write_saved(
        path, _pickled(tensors, keys), {key: _Summed(data, name) for key, (name, data) in storages.items()}
    )


def write_tensor(path: str | os.PathLike[str], name: str, data: TensorData) -> None:
    """Write a tensor alone; its name is for errors, which are those of :func:`write_state`."""
    _check_dtype(name, data)
    _write_saved(path, pickle.PROTO + b"\2" + _tensor(data, "0") + pickle.STOP, {"0": _Summed(data, name)})


def write_plain(path: str | os.PathLike[str], item: object) -> None:
    """Write plain data, as :func:`elastic_ir.formats.pickles.writing.plain` takes it."""
    from elastic_ir.formats.pickles.writing import plain

    _write_saved(path, pickle.PROTO + b"\2" + plain(item) + pickle.STOP, {})


def _check_dtype(name: str, data: TensorData) -> None:
    if data.dtype not in _CLASSES and data.dtype not in _UNTYPED:
        raise EmitError(f"the tensor {name!r} is {data.dtype}, which torch cannot hold; write .safetensors")


def _write_saved(path: str | os.PathLike[str], pickled: bytes, storages: Mapping[str, _Summed]) -> None:
    """Write a pickle and the storages that it names by their keys."""
    records: dict[str, bytes | _Summed] = {"data.pkl": pickled, ".format_version": b"1"}
    records |= {".storage_alignment": str(_ALIGNMENT).encode(), "byteorder": b"little"}
    records |= {f"data/{key}": data for key, data in storages.items()}
    _write_zip(path, records | {"version": b"3\n"})


class _Summed:
    """A tensor with its checksum, which its file states, or which is computed while its bytes pass by."""

    def __init__(self, data: TensorData, name: str) -> None:
        from elastic_ir.formats.parts import BUFFER
        from elastic_ir.formats.ranges import FileTensor

        self.data, self.name, self.shape, self.dtype, self.crc = data, name, data.shape, data.dtype, 0
        self.part: TensorData = self
        self.pieces = data.chunks
        if isinstance(data, FileTensor):
            self.pieces = partial(data.pieces, BUFFER)
            if data.crc is not None:
                self.part, self.crc = data, data.crc

    def chunks(self) -> Iterator[memoryview]:
        for chunk in self.pieces():
            self.crc = zlib.crc32(chunk, self.crc)
            yield chunk


def _write_zip(path: str | os.PathLike[str], contents: Mapping[str, bytes | _Summed]) -> None:
    """Write a zip of stored records, each at a multiple of torch's alignment.

    The headers before them are written last, when all checksums are known.
    """
    from elastic_ir.formats.parts import Part, write_parts  # a network that torch saves needs none of it

    parts: list[Part] = []
    records: list[tuple[zipfile.ZipInfo, bytes | _Summed]] = []
    at = 0
    for name, content in contents.items():
        record = zipfile.ZipInfo(f"{_FOLDER}/{name}")  # of a fixed date: the same tensors give the same bytes
        record.external_attr = 0o600 << 16  # as the library sets it
        size = len(content) if isinstance(content, bytes) else nbytes(content)
        record.file_size = record.compress_size = size
        record.header_offset, record.CRC = at, 0
        at += len(record.FileHeader()) + 4
        padding = -at % _ALIGNMENT
        record.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # torch's own filling
        at += padding
        records.append((record, content))
        parts.append(
            Part(at, content) if isinstance(content, bytes) else Part(at, content.part, content.name)
        )
        at += size
    write_parts(path, parts)
    with open(path, "r+b") as file:
        for record, content in records:
            record.CRC = zlib.crc32(content) if isinstance(content, bytes) else content.crc
            file.seek(record.header_offset)
            file.write(record.FileHeader())
        file.seek(at)
        with zipfile.ZipFile(file, "w") as archive:  # its directory, which is all that is missing
            archive.infolist().extend(record for record, _ in records)


# -- its pickle --------------------------------------------------------------------------------------------------------


def _pickled(tensors: Mapping[str, TensorData], keys: Mapping[int, str]) -> bytes:
    """A dictionary of names to tensors, each of which is a call of torch's rebuilding function over a storage."""
    parts = [pickle.PROTO + b"\2", pickle.EMPTY_DICT, pickle.MARK]
    for name, data in tensors.items():
        parts += (text(name), _tensor(data, keys[id(data)]))
    return b"".join((*parts, pickle.SETITEMS, pickle.STOP))


def _tensor(data: TensorData, key: str) -> bytes:
    """``(storage, offset, shape, stride, requires_grad, hooks)``, and of a storage without a dtype that."""
    kind, count = _CLASSES.get(data.dtype, "torch.storage.UntypedStorage"), prod(data.shape)
    typed = data.dtype in _CLASSES
    count = count if typed else nbytes(data)
    storage = (
        tuple_of(text("storage"), named(kind), text(key), text("cpu"), integer(count)) + pickle.BINPERSID
    )
    strides = [prod(data.shape[axis + 1 :]) for axis in range(len(data.shape))]
    hooks = named("collections.OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = [
        storage, integer(0), tuple_of(*map(integer, data.shape)), tuple_of(*map(integer, strides)), pickle.NEWFALSE,
        hooks,
    ]  # fmt: skip
    if not typed:
        arguments.append(named(f"torch.{data.dtype}"))
    function = named(f"torch._utils._rebuild_tensor_v{2 if typed else 3}")
    return function + tuple_of(*arguments) + pickle.REDUCE


def text(item: str) -> bytes:
    """A text."""
    raw = item.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def integer(number: int) -> bytes:
    """An integer."""
    if -(1 << 31) <= number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def named(full: str) -> bytes:
    """What a dotted name stands for."""
    module, _, name = full.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    """A tuple of what is written already."""
    return pickle.MARK + b"".join(items) + pickle.TUPLE


# -- by torch ----------------------------------------------------------------------------------------------------------


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
