"""Masks as images: a row for each output of a layer, a column for each number that it multiplies with.

All bits are kept as long as all masks together fit into a budget. Beyond it the largest become shares of tiles, a byte
each, and the page says so. A mask that several weights have is kept once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, TypedDict

from elastic_ir.tensors.lazy import Mask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUDGET = 1_500_000  #: bytes of all images together, before they are deflated


class MaskImage(TypedDict):
    """Where an image lies among the bytes of all, and its form."""

    rows: int  #: of the mask
    columns: int
    tile: tuple[int, int]  #: rows and columns of a tile; (1, 1) where every bit is there
    offset: int
    size: int  #: bytes: bits, the first of a byte being its most significant, or a byte for each tile: 255 is all kept


class MaskImages:
    """The images of all masks of a report, in the order in which they are asked for."""

    def __init__(self, masks: Iterable[Mask], budget: int = BUDGET) -> None:
        self._limit = _fair_share(
            [-(-mask.size // 8) for mask in {id(mask): mask for mask in masks}.values()], budget
        )
        self._places: dict[bytes, int] = {}
        self.images: list[MaskImage] = []
        self._parts: list[bytes] = []
        self._end = 0

    def place(self, mask: Mask) -> int:
        """The number of a mask's image, which is made if it is new."""
        rows, columns = plane(mask.shape)
        bits = mask.bits
        key = rows.to_bytes(8, "little") + bits
        if key not in self._places:
            part, tile = (
                (bits, (1, 1))
                if len(bits) <= self._limit
                else _tiled(mask.array(), rows, columns, self._limit)
            )
            self._places[key] = len(self.images)
            self.images.append(
                MaskImage(rows=rows, columns=columns, tile=tile, offset=self._end, size=len(part))
            )
            self._parts.append(part)
            self._end += len(part)
        return self._places[key]

    @property
    def data(self) -> bytes:
        """The bytes of all images, one after the other."""
        return b"".join(self._parts)


def plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a mask as an image; a mask of one axis is one row."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _fair_share(sizes: list[int], budget: int) -> int:
    """The most bytes that one image may have, so that all fit: the small ones leave what they do not need.

    >>> _fair_share([10, 100, 1000], 400)
    290
    """
    left, count = budget, len(sizes)
    for size in sorted(sizes):
        if size * count > left:
            return max(left // count, 1)
        left, count = left - size, count - 1
    return budget


def _tiled(mask: NDArray[np.bool_], rows: int, columns: int, limit: int) -> tuple[bytes, tuple[int, int]]:
    """The share of ones in each tile of a mask, tiles being as square as the limit on their number allows."""
    import numpy as np

    side = math.ceil(math.sqrt(rows * columns / limit))
    while True:
        high, wide = min(side, rows), min(side, columns)
        if -(-rows // high) * -(-columns // wide) <= limit or (high, wide) == (rows, columns):
            break
        side += 1
    flat = mask.reshape(rows, columns)
    sums = np.add.reduceat(flat, range(0, columns, wide), axis=1, dtype=np.int64)
    sums = np.add.reduceat(sums, range(0, rows, high), axis=0)
    heights = np.diff([*range(0, rows, high), rows])
    widths = np.diff([*range(0, columns, wide), columns])
    shares = sums / (heights[:, None] * widths[None, :])
    return np.round(shares * 255).astype(np.uint8).tobytes(), (high, wide)
