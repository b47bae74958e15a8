"""What a weight's numbers are like: a histogram of those that a mask keeps and those that it prunes, in one reading.

The range is not known before the last number is read, so it grows: it is plus and minus a power of two, and when a
larger number comes, pairs of bins become one. Counts stay exact. No torch here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

from elastic_ir.errors import EmitError
from elastic_ir.tensors.lazy import Mask, TensorData, ones_between

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

SHOWN = 64  #: bins of a finished histogram
_BINS = 4096  #: while it is counted
_SMALLEST = -40  #: the exponent of the smallest range


class Values(TypedDict):
    """The numbers of one weight: ``kept`` and ``pruned`` count them in equal bins from ``low`` to ``high``."""

    low: float
    high: float
    kept: list[int]
    pruned: list[int] | None  #: None where there is no mask
    mean: float  #: of all finite numbers, and so are the next three
    std: float
    least: float
    most: float
    zeros: int  #: exact zeros, of either sign
    strange: int  #: numbers that are not finite


class _Counts:
    """Counts in bins over plus and minus a growing power of two; row 0 of those kept, row 1 of those pruned."""

    def __init__(self) -> None:
        import numpy as np

        self.exponent = _SMALLEST
        self.bins = np.zeros((2, _BINS), np.int64)

    def add(self, row: int, numbers: Numbers) -> None:
        import numpy as np

        top = float(np.abs(numbers).max(initial=0.0))
        while top > math.ldexp(1.0, self.exponent):
            self._widen(max(math.frexp(top)[1] - self.exponent, 1))
        half = _BINS // 2
        places = np.floor(numbers * (half / math.ldexp(1.0, self.exponent))).astype(np.int64) + half
        self.bins[row] += np.bincount(np.minimum(places, _BINS - 1), minlength=_BINS)

    def _widen(self, steps: int) -> None:
        """Double the range so many times: pairs of bins, counted from the middle, become one."""
        import numpy as np

        for _ in range(min(steps, int(math.log2(_BINS)))):
            pairs = self.bins.reshape(2, -1, 2).sum(axis=2)
            self.bins = np.pad(pairs, ((0, 0), (_BINS // 4, _BINS // 4)))
        self.exponent += steps

    def shown(self) -> tuple[float, NDArray[np.int64]]:
        """The smallest range that holds all counts, of at least the bins that are shown, and the counts in it."""
        bins, exponent = self.bins, self.exponent
        while bins.shape[1] > SHOWN:
            quarter = bins.shape[1] // 4
            if bins[:, :quarter].any() or bins[:, -quarter:].any():
                break
            bins, exponent = bins[:, quarter:-quarter], exponent - 1
        return math.ldexp(1.0, exponent), bins.reshape(2, SHOWN, -1).sum(axis=2)


def values_of(data: TensorData, mask: Mask | None) -> Values | None:
    """The numbers of a tensor, read once, chunk by chunk; None where it has no bytes, or none that count as numbers."""
    import numpy as np

    from elastic_ir.tensors.arrays import array_dtype

    counts = _Counts()
    bits = mask.bits if mask is not None else b""
    done = finite = zeros = strange = 0
    total = squares = 0.0
    least, most = math.inf, -math.inf
    try:
        dtype = array_dtype(data.dtype)
        if "complex" in data.dtype:
            return None
        for chunk in data.chunks():
            numbers = np.frombuffer(chunk, dtype).astype(np.float64)
            kept = ones_between(bits, done, len(numbers)) if mask is not None else None
            done += len(numbers)
            good = np.isfinite(numbers)
            strange += len(numbers) - int(good.sum())
            for row, chosen in (
                (0, good if kept is None else good & kept),
                (1, None if kept is None else good & ~kept),
            ):
                if chosen is not None:
                    counts.add(row, numbers[chosen])
            numbers = numbers[good]
            finite += len(numbers)
            zeros += int((numbers == 0).sum())
            total += float(numbers.sum())
            squares += float(np.square(numbers).sum())
            least, most = (
                min(least, float(numbers.min(initial=math.inf))),
                max(most, float(numbers.max(initial=-math.inf))),
            )
    except EmitError:  # on the meta device, or numbers that are packed
        return None
    if not finite:
        return None
    high, bins = counts.shown()
    mean = total / finite
    return Values(
        low=-high, high=high, kept=bins[0].tolist(), pruned=bins[1].tolist() if mask is not None else None,
        mean=mean, std=math.sqrt(max(squares / finite - mean * mean, 0.0)), least=least, most=most,
        zeros=zeros, strange=strange,
    )  # fmt: skip
