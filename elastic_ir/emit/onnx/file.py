"""Writing ONNX models whose large tensors are not in memory: sizes first, then the bytes, streamed into their places.

The protobuf library would need the whole file in one piece of memory. A message's length stands before it, so the
lengths of all that holds a large tensor are computed first; the tensors' own bytes are written as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from elastic_ir.errors import EmitError
from elastic_ir.formats.protobuf import BYTES, Field, field, fields, head
from elastic_ir.onnx_model.source import MARK, SAID, mark_of
from elastic_ir.tensors.lazy import TensorData, nbytes

if TYPE_CHECKING:
    import onnx

#: What a protobuf file may not pass; readers refuse it.
LIMIT = (1 << 31) - 1
ALIGNMENT = 4096  #: of a tensor in external data, so that readers can map it (onnxruntime maps by pages)
_MARK = field(1, MARK.encode())

#: Bytes as they are, and tensors still to be read, in the order of the file.
Pieces: TypeAlias = "list[bytes | TensorData]"


def write_onnx(path: Path, model: onnx.ModelProto, tensors: Mapping[str, TensorData]) -> None:
    """Write a model with the tensors that its marks stand for, in one file of up to 2 GiB."""
    pieces = _filled(model, tensors)
    size = _size(pieces)
    if size > LIMIT:
        raise EmitError(f"{path.name} would have {size} bytes, and one ONNX file holds at most {LIMIT}")
    with path.open("wb") as file:
        for piece in pieces:
            _write(file, piece)


def write_external(
    path: Path, data: Path, location: str, model: onnx.ModelProto, tensors: Mapping[str, TensorData]
) -> None:
    """Write a model and, into another file beside it (``location`` is its final name), the tensors marked.

    The parts of sparse tensors stay in the model: neither the checker of the onnx package nor onnxruntime reads them
    from elsewhere.
    """
    places: dict[str, tuple[int, int]] = {}
    parts = [part for sparse in model.graph.sparse_initializer for part in (sparse.values, sparse.indices)]
    inside = {mark_of(part) for part in parts}
    with data.open("wb") as file:
        for mark in _marks(model):
            if mark in places or mark in inside:
                continue
            start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.write(b"\0" * (start - file.tell()))
            _write(file, tensors[mark])
            places[mark] = (start, nbytes(tensors[mark]))

    def point(tensor: memoryview, at: Field, mark: str) -> Pieces:
        if mark in inside:
            return _inline(tensors, mark)
        offset, length = places[mark]
        entries = (("location", location), ("offset", str(offset)), ("length", str(length)))
        told = b"".join(
            field(13, field(1, key.encode()) + field(2, value.encode())) for key, value in entries
        )
        return [told + bytes((14 << 3, 1))]

    pieces = _Filler(model.SerializeToString(), point).pieces()
    if _size(pieces) > LIMIT:
        raise EmitError(
            f"{path.name} would have {_size(pieces)} bytes, and one ONNX file holds at most {LIMIT}"
        )
    with path.open("wb") as file:
        for piece in pieces:
            _write(file, piece)


def size_of(model: onnx.ModelProto, tensors: Mapping[str, TensorData]) -> int:
    """How many bytes the model has in one file."""
    return _size(_filled(model, tensors))


def _filled(model: onnx.ModelProto, tensors: Mapping[str, TensorData]) -> Pieces:
    def put(tensor: memoryview, at: Field, mark: str) -> Pieces:
        return _inline(tensors, mark)

    return _Filler(model.SerializeToString(), put).pieces()


def _inline(tensors: Mapping[str, TensorData], mark: str) -> Pieces:
    """A tensor's bytes in the field of its message that the mark says."""
    data = tensors[mark]
    said = bytes((14 << 3, 0)) if mark.endswith(SAID) else b""
    return [said + head(int(mark.split(":")[1]), nbytes(data)), data]


def _marks(model: onnx.ModelProto) -> list[str]:
    found: list[str] = []

    def note(tensor: memoryview, at: Field, mark: str) -> Pieces:
        found.append(mark)
        return []

    _Filler(model.SerializeToString(), note).pieces()
    return found


class _Filler:
    """Walks a model that lacks its large tensors and lets something be put in the place of each mark."""

    def __init__(self, small: bytes, put: Callable[[memoryview, Field, str], Pieces]) -> None:
        self.view = memoryview(small)
        self.put = put

    def pieces(self) -> Pieces:
        """The whole model."""
        return self._message(0, len(self.view), {7: self._graph})

    def _message(self, start: int, end: int, inner: dict[int, Callable[[Field], Pieces]]) -> Pieces:
        pieces: Pieces = []
        kept = start
        for item in fields(self.view, start, end):
            if item.wire == BYTES and item.number in inner:
                made = inner[item.number](item)
                if (
                    len(made) == 1
                    and isinstance(made[0], bytes)
                    and made[0] == self.view[item.start : item.end]
                ):
                    continue  # nothing in it was changed
                pieces.append(bytes(self.view[kept : item.begin]) + head(item.number, _size(made)))
                pieces += made
                kept = item.end
        pieces.append(bytes(self.view[kept:end]))
        return pieces

    def _graph(self, at: Field) -> Pieces:
        return self._message(at.start, at.end, {1: self._node, 5: self._tensor, 15: self._sparse})

    def _sparse(self, at: Field) -> Pieces:
        return self._message(at.start, at.end, {1: self._tensor, 2: self._tensor})

    def _node(self, at: Field) -> Pieces:
        return self._message(at.start, at.end, {5: self._attribute})

    def _attribute(self, at: Field) -> Pieces:
        return self._message(at.start, at.end, {5: self._tensor, 6: self._graph, 11: self._graph})

    def _tensor(self, at: Field) -> Pieces:
        pieces = b""
        mark = None
        for item in fields(self.view, at.start, at.end):
            if (
                item.number == 13
                and item.wire == BYTES
                and self.view[item.start : item.start + len(_MARK)] == _MARK
            ):
                entry = list(fields(self.view, item.start, item.end))
                mark = bytes(self.view[entry[1].start : entry[1].end]).decode()
            elif not (mark is not None and item.number == 14):
                pieces += self.view[item.begin : item.end]
        if mark is None:
            return [bytes(self.view[at.start : at.end])]
        return [pieces, *self.put(self.view, at, mark)]


def _size(pieces: Pieces) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else nbytes(piece) for piece in pieces)


def _write(file: BinaryIO, piece: bytes | TensorData) -> None:
    if isinstance(piece, bytes):
        file.write(piece)
        return
    copy = getattr(piece, "copy_into", None)
    if copy is not None:  # a range of another file, which need not pass through this process
        copy(file)
        return
    written = 0
    for chunk in piece.chunks():
        file.write(chunk)
        written += chunk.nbytes
    if written != nbytes(piece):
        raise EmitError(f"a tensor of shape {list(piece.shape)} gave {written} bytes and not {nbytes(piece)}")
