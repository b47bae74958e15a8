"""Changes to a GGUF file that know where its counts, lengths, types and offsets are."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.fuzz.trees import ODD_NAMES

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class _Field:
    begin: int
    end: int
    what: str  #: "number", "type", "text", "entry" or "tensor"


class _Walk:
    """The fields of a file, as far as it can be taken apart."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.fields: list[_Field] = []
        self.number(4)
        tensors, entries = self.number(8), self.number(8)
        for _ in range(entries):
            begin = self.at
            self.text()
            self.value(self.number(4, "type"))
            self.fields.append(_Field(begin, self.at, "entry"))
        for _ in range(tensors):
            begin = self.at
            self.text()
            for _ in range(self.number(4)):
                self.number(8)
            self.number(4, "type")
            self.number(8)
            self.fields.append(_Field(begin, self.at, "tensor"))
        self.end = self.at

    def number(self, size: int, what: str = "number") -> int:
        if self.at + size > len(self.data):
            raise ValueError("the file ends")
        self.fields.append(_Field(self.at, self.at + size, what))
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def text(self) -> None:
        size = self.number(8)
        if self.at + size > len(self.data):
            raise ValueError("the file ends")
        self.fields.append(_Field(self.at, self.at + size, "text"))
        self.at += size

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            inner, count = self.number(4, "type"), self.number(8)
            if count > len(self.data):
                raise ValueError("the file ends")
            for _ in range(count):
                self.value(inner)
        else:
            self.number(_SIZES[kind])


def gguf_change(data: bytes, chance: random.Random) -> bytes:
    """A number, a type, a text, an entry or a tensor that is another, stands twice, or is gone."""
    walk = _Walk(data)
    # of a hundred tokens one field each is enough; what is before and behind is more telling
    what = chance.choice(("number", "number", "type", "text", "entry", "tensor", "nested", "data"))
    if what == "data":
        at = walk.end + chance.choice((-8, -1, 0, 1, 8, 32))
        return data[:at] + bytes(chance.choice((1, 8, 32, 64))) + data[at:]
    found = [field for field in walk.fields if field.what == ("entry" if what == "nested" else what)]
    field = chance.choice(found[:8] + found[-60:] if chance.random() < 0.7 else found)
    old = data[field.begin : field.end]
    if what == "number":
        value = int.from_bytes(old, "little")
        other = chance.choice(
            (0, 1, value + 1, value - 1, value * 2, 2**20, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
        )
        new = (other % (1 << 8 * len(old))).to_bytes(len(old), "little")
    elif what == "type":
        new = struct.pack("<I", chance.choice((0, 1, 2, 4, 6, 7, 8, 9, 12, 13, 30, 36, 255, 2**31)))
    elif what == "text":
        new = chance.choice((*ODD_NAMES, "", "blk.0.attn_q.weight", "general.alignment")).encode(
            "utf-8", "replace"
        )
        if chance.random() < 0.7:  # with the length that it has
            return data[: field.begin - 8] + struct.pack("<Q", len(new)) + new + data[field.end :]
    elif what == "nested":
        levels = chance.choice((2, 7, 8, 9, 2000))
        key = chance.choice((b"deep", b"llama.deep", b"llama.attention.head_count_kv"))
        inner = struct.pack("<IQ", 9, 1) * levels + struct.pack("<IQ", 4, 1) + bytes(4)
        new = struct.pack("<Q", len(key)) + key + struct.pack("<I", 9) + inner
    else:
        new = chance.choice((b"", old * 2, old[::-1]))
        if new == old * 2 or not new:  # one more or less is stated too, at times
            at = 16 if what == "entry" else 8
            count = int.from_bytes(data[at : at + 8], "little") + (1 if new else -1)
            if chance.random() < 0.7 and count >= 0:
                data = data[:at] + struct.pack("<Q", count) + data[at + 8 :]
    return data[: field.begin] + new + data[field.end :]
