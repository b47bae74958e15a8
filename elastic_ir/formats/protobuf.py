"""The protobuf wire format, as much of it as is needed to find large fields in a file without reading them: tensors.

Protocol Buffers encoding: https://protobuf.dev/programming-guides/encoding. A parser of whole messages is the protobuf
library's business; it holds every byte in memory, and a network's weights need not be there. An ONNX model's messages
are walked by their lengths, and its tensors found and replaced without parsing what is around them; fields by number:
onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. No torch and no protobuf here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from elastic_ir.tensors.lazy import TensorData, nbytes

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}

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


class WireError(ValueError):
    """The bytes are not a protobuf message; the text names the byte."""


class Field(NamedTuple):
    """One field of a message: its number and wire type, where it begins, and where its payload lies."""

    number: int
    wire: int
    begin: int  #: of the tag
    start: int  #: of the payload (after the length, for BYTES)
    end: int


def read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at a place, and the place behind it; WireError where it does not end in time."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError(f"a number at byte {at} does not end")


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies between two places; nothing but tags and lengths is read."""
    at = start
    while at < end:
        begin = at
        tag, at = read_varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"a field at byte {begin} has the number {number}")
        if wire == VARINT:
            payload = at
            _, at = read_varint(data, at, end)
        elif wire == BYTES:
            length, payload = read_varint(data, at, end)
            at = payload + length
        elif wire in _FIXED:
            payload, at = at, at + _FIXED[wire]
        else:
            raise WireError(f"a field at byte {begin} has the wire type {wire}")
        if at > end:
            raise WireError(f"a field at byte {begin} reaches {at - end} bytes beyond its message")
        yield Field(number, wire, begin, payload, at)


def varint(value: int) -> bytes:
    """A number of up to 64 bits as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(number: int, length: int) -> bytes:
    """The tag and length that open a field of bytes."""
    return varint(number << 3 | BYTES) + varint(length)


def field(number: int, payload: bytes) -> bytes:
    """A whole field of bytes: a string, or a message within a message."""
    return head(number, len(payload)) + payload


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
