"""ONNX files: the model without the bytes of its weights, and for each weight the place where its bytes lie.

The protobuf library (and onnx_ir on top of it) holds a whole file in memory. Here the file is mapped, and large tensors
are cut out before anything is parsed; what is parsed is small. External data stays where it is.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from dataclasses import field as default
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError, reason
from elastic_ir.formats.files import stamp_of
from elastic_ir.formats.protobuf import BYTES, Field, Pieces, TensorWalk, WireError, field
from elastic_ir.formats.ranges import FileTensor, lying_in
from elastic_ir.onnx_model import DTYPES, MARK, STATED, mark_of, tensors_of
from elastic_ir.safety.limits import open_plain
from elastic_ir.tensors.lazy import ITEM_SIZES, InlineData, TensorData

if TYPE_CHECKING:
    import onnx

    from elastic_ir.formats.distant import Elsewhere

#: Tensors from this size on stay in the file; smaller ones may be shapes that shape inference has to see.
LARGE = 2048
_MAPPED = 1 << 24  #: bytes of the file that are passed before its pages are given back
_MODEL = 1 << 28  #: bytes outside of large tensors, which the protobuf library holds in memory


@dataclass(eq=False)
class OnnxFile:
    """An ONNX file that was opened: its model without large tensors, and where those are."""

    path: Path
    model: onnx.ModelProto
    tensors: dict[str, FileTensor] = default(default_factory=dict)  #: by the mark that stands for each
    size: int = 0
    elsewhere: Elsewhere | None = None  #: what lies beside it, where that is not here

    def data(self, tensor: onnx.TensorProto, owner: str) -> TensorData | None:
        """A tensor of the model as a lazy one; None where torch has no such type (strings, four bits)."""
        dtype = DTYPES.get(tensor.data_type)
        if dtype is None:
            return None
        shape = tuple(tensor.dims)
        if any(extent < 0 for extent in shape):
            raise self._error(f"{owner} has the shape {list(shape)}")
        mark = mark_of(tensor)
        if mark is not None:
            found = self.tensors[mark]
            self._check_size(shape, dtype, found.shape[0], owner)
            return FileTensor(found.path, found.offset, shape, dtype, found.stamp)
        if tensor.data_location == 1:
            return self._external(tensor, shape, dtype, owner)
        raw = tensor.raw_data
        if not tensor.HasField("raw_data"):
            from onnx import numpy_helper

            try:
                raw = numpy_helper.to_array(tensor).tobytes()
            except (OverflowError, TypeError, ValueError) as error:
                raise self._error(f"{owner} is damaged ({error})") from error
        self._check_size(shape, dtype, len(raw), owner)
        return InlineData(shape, dtype, raw)

    def _check_size(self, shape: tuple[int, ...], dtype: str, have: int, owner: str) -> None:
        need = prod(shape) * ITEM_SIZES[dtype]
        if need != have:
            raise self._error(f"{owner} has {have} bytes where its shape {list(shape)} needs {need}")

    def _error(self, what: str) -> SourceError:
        return SourceError(f"{self.path.name}: {what}")

    def _external(
        self, tensor: onnx.TensorProto, shape: tuple[int, ...], dtype: str, owner: str
    ) -> TensorData:
        """A tensor of another file, which has to lie in the model's folder."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = _inside(self.path.parent.resolve(), location)
        if path is None:
            raise self._error(
                f"{owner} wants its data from {location!r}, which is outside the model's folder"
            )
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", prod(shape) * ITEM_SIZES[dtype]))
            distant = self.elsewhere(path) if self.elsewhere is not None else None
            status = path.stat() if distant is None else None
        except ValueError as error:
            raise self._error(f"{owner} has a damaged place in {location} ({error})") from error
        except OSError as error:
            raise self._error(
                f"the file {location} with the data of {owner} cannot be read: {reason(error)}"
            ) from error
        if distant is None and not path.is_file():
            raise self._error(f"{location}, with the data of {owner}, is not a regular file")
        if offset < 0 or length < 0:
            raise self._error(f"{owner} has a damaged place in {location} (offset {offset}, length {length})")
        size = status.st_size if status is not None else distant.size if distant is not None else 0
        if offset + length > size:
            raise self._error(f"{location} has {size} bytes, and {owner} should end at {offset + length}")
        self._check_size(shape, dtype, length, owner)
        stamp = stamp_of(status) if status is not None else None
        return lying_in(distant, FileTensor(path, offset, shape, dtype, stamp))


def read_onnx(path: str | os.PathLike[str], elsewhere: Elsewhere | None = None) -> OnnxFile:
    """Open an ONNX file without reading its weights; ``elsewhere`` gives files beside it that are not here.

    Raises SourceError: missing, empty, truncated, or not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    try:
        with open_plain(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise SourceError(f"{path} is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                opened = OnnxFile(path, onnx.ModelProto(), size=status.st_size, elsewhere=elsewhere)
                small = _without_bytes(mapped, view, opened, stamp_of(status))
    except WireError as error:
        raise SourceError(f"{path.name} is not an ONNX model, or was cut short: {error}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} could not be read: {reason(error)}") from error
    if len(small) > _MODEL:
        raise SourceError(
            f"{path.name} has {len(small)} bytes outside its tensors; up to {_MODEL} are read, which no network needs"
        )
    try:
        opened.model.ParseFromString(small)
    except (DecodeError, RecursionError) as error:
        raise SourceError(f"{path.name} is not an ONNX model: {error}") from error
    _check_marks(opened)
    return opened


def _inside(folder: Path, location: str) -> Path | None:
    """The file of that name in a folder or below, links followed; None where it is elsewhere or no name of a file."""
    if not location.isprintable() or Path(location).is_absolute():
        return None
    try:
        path = (folder / location).resolve()
    except (OSError, RuntimeError):  # links that go round in circles
        return None
    return path if path.is_relative_to(folder) and path != folder else None


def _check_marks(opened: OnnxFile) -> None:
    """Every mark in the model is one that was set here; a file's own could name any bytes as any weight's."""
    found: list[str] = []
    for tensor in tensors_of(opened.model):
        marks = [entry.value for entry in tensor.external_data if entry.key == MARK]
        # one that was cut out and has bytes all the same stood twice where it may stand once
        if marks and (len(marks) > 1 or tensor.raw_data or tensor.float_data or tensor.double_data):
            raise SourceError(f"{opened.path.name}: the tensor {tensor.name!r} is damaged")
        found += marks
    if sorted(found) != sorted(opened.tensors):
        raise SourceError(f"{opened.path.name} is damaged: its tensors do not lie where they seem to")


def _without_bytes(
    mapped: mmap.mmap, view: memoryview, opened: OnnxFile, stamp: tuple[int, int, int]
) -> bytes:
    """A mapped model without the bytes of its large tensors; where they are is noted in ``opened``."""
    held = 0  # where the pages begin that may be in memory: looking at a byte maps up to 2 MB around it

    def cut(at: Field) -> Pieces | None:
        """A tensor without its bytes (raw, or floats and doubles packed as raw ones are); None where it has few."""
        nonlocal held
        if at.start - held > _MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
            held = at.start
        noted = list(islice((f for f in walk.fields(at.start, at.end) if f.number in (4, 9, 10, 14)), 3))
        bulky = [item for item in noted if item.number != 14]
        if len(bulky) != 1 or bulky[0].wire != BYTES or bulky[0].end - bulky[0].start < LARGE:
            return None
        place = bulky[0]
        mark = f"{len(opened.tensors)}:{place.number}"
        if len(noted) > len(bulky):  # it states that its bytes are in it, which is optional
            mark += STATED
        opened.tensors[mark] = FileTensor(
            opened.path, place.start, (place.end - place.start,), "uint8", stamp
        )
        entry = field(1, MARK.encode()) + field(2, mark.encode())
        rest = bytes(view[at.start : place.begin]) + bytes(view[place.end : at.end])
        return [rest + field(13, entry) + bytes((14 << 3, 1))]

    walk = TensorWalk(view, cut, LARGE)
    return b"".join(piece for piece in walk.pieces() if isinstance(piece, bytes))
