"""The tensors of an ONNX model's bytes, found and replaced without parsing what is around them.

Messages are walked by their lengths. Fields by number: onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from elastic_ir.formats.protobuf import BYTES, Field, WireError, fields, head
from elastic_ir.tensors.lazy import TensorData, nbytes

#: Bytes as they are, and tensors still to be read, in the order of the file.
Pieces: TypeAlias = "list[bytes | TensorData]"

#: The messages on the way to a tensor: for each its fields that hold such messages.
_INSIDE = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 11: "graph"},
}
_DEEPEST = 64  #: bodies within bodies
_FIELDS = 1 << 22  #: fields that are walked at most; no network has as many, and each costs time and memory


class TensorWalk:
    """Walks a model; ``replace`` gives what stands in the place of each tensor's message, None to leave it.

    Messages of fewer than ``smallest`` bytes are left as they are. Raises WireError where the bytes are not messages,
    or have more fields, or bodies deeper in one another, than any network.
    """

    def __init__(
        self, view: memoryview, replace: Callable[[Field], Pieces | None], smallest: int = 0
    ) -> None:
        self.view = view
        self.replace = replace
        self.smallest = smallest
        self.walked = 0

    def pieces(self) -> Pieces:
        """The whole model."""
        return self._message("model", 0, len(self.view), 0) or [bytes(self.view)]

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of a message; they are counted."""
        for item in fields(self.view, start, end):
            self.walked += 1
            if self.walked > _FIELDS:
                raise WireError(
                    f"it has more than {_FIELDS} fields outside its tensors, which no network needs"
                )
            yield item

    def _message(self, kind: str, start: int, end: int, depth: int) -> Pieces | None:
        """A message with tensors in it replaced; None where nothing in it changes."""
        if depth > _DEEPEST + 1:
            raise WireError(f"bodies lie more than {_DEEPEST} deep in one another at byte {start}")
        pieces: Pieces = []
        kept = start  # what lies from here on is copied as it is
        for item in self.fields(start, end):
            inner = _INSIDE[kind].get(item.number) if item.wire == BYTES else None
            if inner is None or item.end - item.start < self.smallest:
                continue
            if inner == "tensor":
                made = self.replace(item)
            else:
                made = self._message(inner, item.start, item.end, depth + (inner == "graph"))
            if made is not None:
                pieces += [
                    bytes(self.view[kept : item.begin]) + head(item.number, size_of_pieces(made)),
                    *made,
                ]
                kept = item.end
        return [*pieces, bytes(self.view[kept:end])] if pieces else None


def size_of_pieces(pieces: Pieces) -> int:
    """How many bytes they have in all."""
    return sum(len(piece) if isinstance(piece, bytes) else nbytes(piece) for piece in pieces)
