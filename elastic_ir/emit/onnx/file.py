"""Writing ONNX models whose large tensors are not in memory: sizes first, then the bytes, streamed into their places.

The protobuf library would need the whole file in one piece of memory. A message's length stands before it, so the
lengths of all that holds a large tensor are computed first; the tensors' own bytes are written as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.errors import EmitError
from elastic_ir.formats.parts import Part, write_parts
from elastic_ir.formats.protobuf import Field, Pieces, TensorWalk, field, head, size_of_pieces
from elastic_ir.onnx_model import STATED, mark_of, tensors_of
from elastic_ir.tensors.lazy import TensorData, nbytes

if TYPE_CHECKING:
    import onnx

#: What a protobuf file may not pass; readers refuse it.
LIMIT = (1 << 31) - 1
ALIGNMENT = 4096  #: of a tensor in external data, so that readers can map it (onnxruntime maps by pages)


def write_onnx(path: Path, model: onnx.ModelProto, tensors: Mapping[str, TensorData]) -> None:
    """Write a model with the tensors that its marks stand for, in one file of up to 2 GiB."""
    _write_pieces(path, _filled(model, lambda mark: _inline(tensors, mark)))


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
    moved: list[Part] = []
    end = 0
    for mark in filter(None, map(mark_of, tensors_of(model))):
        if mark not in places and mark not in inside:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            moved.append(Part(start, tensors[mark]))
            places[mark] = (start, nbytes(tensors[mark]))
            end = sum(places[mark])
    write_parts(data, moved)

    def point(mark: str) -> Pieces:
        if mark in inside:
            return _inline(tensors, mark)
        offset, length = places[mark]
        entries = (("location", location), ("offset", str(offset)), ("length", str(length)))
        stated = [field(13, field(1, key.encode()) + field(2, value.encode())) for key, value in entries]
        return [b"".join(stated) + bytes((14 << 3, 1))]

    _write_pieces(path, _filled(model, point))


def size_of(model: onnx.ModelProto, tensors: Mapping[str, TensorData]) -> int:
    """How many bytes the model has in one file."""
    return size_of_pieces(_filled(model, lambda mark: _inline(tensors, mark)))


def _filled(model: onnx.ModelProto, put: Callable[[str], Pieces]) -> Pieces:
    """The model with the fields that ``put`` gives in place of each mark."""
    import onnx

    view = memoryview(model.SerializeToString())

    def fill(at: Field) -> Pieces | None:
        tensor = onnx.TensorProto.FromString(bytes(view[at.start : at.end]))
        mark = mark_of(tensor)
        if mark is None:
            return None
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        return [tensor.SerializeToString(), *put(mark)]

    return TensorWalk(view, fill).pieces()


def _inline(tensors: Mapping[str, TensorData], mark: str) -> Pieces:
    """A tensor's bytes in the field of its message that the mark names."""
    data = tensors[mark]
    stated = bytes((14 << 3, 0)) if mark.endswith(STATED) else b""
    return [stated + head(int(mark.split(":")[1]), nbytes(data)), data]


def _write_pieces(path: Path, pieces: Pieces) -> None:
    size = size_of_pieces(pieces)
    if size > LIMIT:
        raise EmitError(f"{path.name} would have {size} bytes, and one ONNX file holds at most {LIMIT}")
    parts: list[Part] = []
    at = 0
    for piece in pieces:
        parts.append(Part(at, piece))
        at += size_of_pieces([piece])
    write_parts(path, parts)
