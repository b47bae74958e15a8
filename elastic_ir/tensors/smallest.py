"""The smallest weights of many lazy tensors together, found exactly while the tensors are streamed.

Sizes of floats sort as their bits without the sign do, read as whole numbers. So the threshold is found 16 bits at a
time, the highest first (a radix selection): each round reads the tensors once and counts, and holds a piece of one
tensor and 65,536 counters. Numbers of 32 bits and fewer take two rounds; where there is a float64, it is four.
No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import MaskError
from elastic_ir.tensors.lazy import Mask, TensorData, item_size, ones_between

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DIGIT = 16  #: bits that a round settles
_STEP = 1 << 20  #: elements that are turned into keys at once


@dataclass(frozen=True)
class Ranked:
    """A weight that is ranked by size; what ``within`` has pruned comes before everything else."""

    name: str  #: for messages
    data: TensorData  #: numbers of any kind
    within: Mask | None = None

    def keys(self, bits: int) -> Iterator[NDArray[Any]]:
        """Whole numbers that sort as the sizes do, 0 for what is pruned, in pieces; MaskError at a NaN."""
        import numpy as np

        from elastic_ir.tensors.arrays import array_dtype

        dtype, item = array_dtype(self.data.dtype), item_size(self.data.dtype)
        wide, key = ("f8", "u8") if bits == 64 else ("f4", "u4")
        infinite = np.array(np.inf, wide).view(key)
        done = 0
        for chunk in self.data.chunks():
            whole = chunk.cast("B")
            for begin in range(0, len(whole), _STEP * item):
                values = np.frombuffer(whole[begin : begin + _STEP * item], dtype)
                with np.errstate(invalid="ignore"):  # a NaN of eight bits
                    real = np.abs(values) if values.dtype.kind == "c" else values.astype(wide)
                    found = np.abs(real).astype(wide, copy=False).view(key)
                if (found > infinite).any():
                    raise MaskError(f"{self.name!r} holds NaN, which has no magnitude")
                found += 1
                if self.within is not None:
                    found *= ones_between(self.within.bits, done, len(found))
                done += len(found)
                yield found

    def pruned(self, threshold: int, ties: int, bits: int) -> tuple[Mask, int]:
        """The mask that prunes what lies below a threshold and the first so many at it; how many those were."""
        import numpy as np

        parts, gone = [np.empty(0, np.bool_)], 0
        for keys in self.keys(bits):
            keep = keys > threshold
            at = np.flatnonzero(keys == threshold)
            keep[at[ties - gone :]] = True
            gone += min(len(at), ties - gone)
            parts.append(keep)
        kept = np.packbits(np.concatenate(parts)).tobytes()
        return Mask(self.data.shape, kept, self.within.dtype if self.within else "bool"), gone


def smallest_pruned(weights: Sequence[Ranked], count: int) -> dict[str, Mask]:
    """Masks by name that prune the ``count`` smallest of all weights together; of equal ones the earlier go first.

    What is pruned already stays so, and counts. Each weight is read three times, in pieces; five times where there is a
    float64. Raises MaskError at a NaN, or where so many are not there, or more are pruned already.
    """
    total = sum(prod(weight.data.shape) for weight in weights)
    already = sum(weight.within.zeros for weight in weights if weight.within is not None)
    if not already <= count <= total:
        held = f", of which {already:,} are pruned already," if already else ""
        raise MaskError(f"{count:,} of {total:,} weights{held} cannot be pruned")
    bits = 64 if any(weight.data.dtype in ("float64", "complex128") for weight in weights) else 32
    threshold, ties = _threshold(weights, count, bits) if count else (0, 0)
    masks = {}
    for weight in weights:
        masks[weight.name], gone = weight.pruned(threshold, ties, bits)
        ties -= gone
    return masks


def pruned_count(total: int, sparsity: float) -> int:
    """How many of ``total`` weights a sparsity prunes: the nearest whole number; MaskError outside 0 to 1."""
    if not 0 <= sparsity <= 1:
        raise MaskError(f"the sparsity {sparsity} is not between 0 and 1")
    return round(sparsity * total)


def _threshold(weights: Sequence[Ranked], count: int, bits: int) -> tuple[int, int]:
    """The key of the last of the ``count`` smallest, and how many at that key are among them."""
    import numpy as np

    prefix, base = 0, 1 << _DIGIT
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(base, np.int64)
        for keys in (keys for weight in weights for keys in weight.keys(bits)):
            if shift + _DIGIT < bits:
                keys = keys[keys >> (shift + _DIGIT) == prefix]
            counts += np.bincount((keys >> shift & (base - 1)).astype(np.int64), minlength=base)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, count))
        count -= int(ends[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    return prefix, count
