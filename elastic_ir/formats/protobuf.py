"""The protobuf wire format, as much of it as is needed to find large fields in a file without reading them.

Protocol Buffers encoding: https://protobuf.dev/programming-guides/encoding. A parser of whole messages is the protobuf
library's business; it holds every byte in memory, and a network's weights need not be there. No torch and no protobuf
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}


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
