"""Changes to a file's bytes that know nothing of its format."""

from __future__ import annotations

import random
from collections.abc import Callable

ByteChange = Callable[[bytearray, random.Random], None]


def place(data: bytearray, chance: random.Random) -> int:
    """A place in the bytes; the first and last ones, where formats say what they are, more often than others."""
    if not data:
        return 0
    near = min(len(data), 512)
    return chance.choice(
        (chance.randrange(len(data)), chance.randrange(near), len(data) - 1 - chance.randrange(near))
    )


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 64))):
        if data:
            data[place(data, chance)] ^= 1 << chance.randrange(8)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[place(data, chance) :]


def insert(data: bytearray, chance: random.Random) -> None:
    at = place(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 3, 100)))


def delete(data: bytearray, chance: random.Random) -> None:
    at = place(data, chance)
    del data[at : at + chance.choice((1, 3, 100))]


def swap(data: bytearray, chance: random.Random) -> None:
    """Two runs of bytes change places."""
    size = min(len(data) // 2, chance.choice((1, 8, 100, 1000)))
    first, second = sorted(chance.randrange(len(data) - size + 1) for _ in range(2)) if data else (0, 0)
    if second - first >= size:
        one, other = bytes(data[first : first + size]), bytes(data[second : second + size])
        data[first : first + size], data[second : second + size] = other, one


def repeat(data: bytearray, chance: random.Random) -> None:
    at = place(data, chance)
    data[at:at] = data[at : at + chance.choice((1, 8, 1000))]


def blank(data: bytearray, chance: random.Random) -> None:
    at = place(data, chance)
    for index in range(at, min(len(data), at + chance.choice((4, 64, 1000)))):
        data[index] = 0


def number(data: bytearray, chance: random.Random) -> None:
    """Four or eight bytes that say something vast, or nothing."""
    at, width = place(data, chance), chance.choice((4, 8))
    value = chance.choice((0, 1, -1, 2**31 - 1, 2**31, 2**40, 2**63 - 1)) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, "little")


BYTE_CHANGES: tuple[ByteChange, ...] = (flip, flip, truncate, insert, delete, swap, repeat, blank, number)
