"""Changes to a file's bytes that know what protobuf is, for mutated ONNX files."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from elastic_ir.formats.protobuf import BYTES, Field, WireError, fields, varint
from elastic_ir.formats.protobuf import field as wire_field
from tests.frontends.onnx.models import SEEDS, tensor, weights


@functools.cache
def seed_bytes(name: str) -> bytes:
    return SEEDS[name]().SerializeToString()


def _at(data: bytearray, chance: random.Random) -> int:
    return chance.randrange(len(data)) if data else 0


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 64))):
        if data:
            data[_at(data, chance)] ^= 1 << chance.randrange(8)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[_at(data, chance) :]


def insert(data: bytearray, chance: random.Random) -> None:
    at = _at(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 3, 100)))


def delete(data: bytearray, chance: random.Random) -> None:
    at = _at(data, chance)
    del data[at : at + chance.choice((1, 3, 100))]


def splice(data: bytearray, chance: random.Random) -> None:
    """The beginning of one file and the end of another."""
    other = seed_bytes(chance.choice(list(SEEDS)))
    del data[_at(data, chance) :]
    data += other[chance.randrange(len(other)) :]


def append_another(data: bytearray, chance: random.Random) -> None:
    """Protobuf merges messages that follow one another."""
    data += seed_bytes(chance.choice(list(SEEDS)))


def _tagged(data: bytearray, chance: random.Random) -> Field | None:
    """Some field of the model, the graph, or a message in the graph."""
    with memoryview(bytes(data)) as view:
        start, end = 0, len(view)
        found = None
        for wanted in (7, None, None, None):
            try:
                listed = list(fields(view, start, end))
            except WireError:
                break
            inner = [f for f in listed if wanted is None or f.number == wanted]
            if not inner:
                break
            found = chance.choice(inner)
            if found.wire != BYTES or (wanted is None and chance.random() < 0.4):
                break
            start, end = found.start, found.end
        return found


def length(data: bytearray, chance: random.Random) -> None:
    """A length, or another number, that says something else."""
    found = _tagged(data, chance)
    if found is not None and found.wire == BYTES:
        told = found.end - found.start
        new = chance.choice((0, told - 1, told + 1, told * 2, 2**31, 2**35, 2**63, 2**64 - 1))
        data[found.begin + 1 : found.start] = varint(max(new, 0))


def number(data: bytearray, chance: random.Random) -> None:
    """A field of another number or wire type."""
    found = _tagged(data, chance)
    if found is not None:
        data[found.begin] = chance.randrange(256)


def endless(data: bytearray, chance: random.Random) -> None:
    """A number that is longer than any may be."""
    at = _at(data, chance)
    data[at:at] = b"\xff" * chance.choice((9, 10, 11, 200))


def deep(data: bytearray, chance: random.Random) -> None:
    """Bodies in bodies, further down than any parser goes, with or without a large tensor at the end."""
    inner = tensor("ballast", weights(40, 40)).SerializeToString() if chance.random() < 0.5 else b""
    body = wire_field(5, inner)
    for _ in range(chance.choice((31, 33, 63, 70, 400, 2000))):
        body = wire_field(1, wire_field(5, wire_field(6, body)))
    data += wire_field(7, body)


BYTE_CHANGES: list[Callable[[bytearray, random.Random], None]] = [
    flip, truncate, insert, delete, splice, append_another, length, length, number, number, endless, deep,
]  # fmt: skip
