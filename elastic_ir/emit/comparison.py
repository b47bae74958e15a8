"""Whether two runs of a network agree: the one place where outputs are compared, whoever made them.

A comparison that cannot fail proves nothing: NaN fails it, so does an infinity where the other side is finite, and so
do outputs without a number in them. The tolerance is relative to the largest finite number of an output, without a
floor of one, because outputs of a small scale would otherwise never differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

#: How far outputs may differ, relative to the largest number in them, by the coarsest dtype: sums in another order.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
#: The step between the smallest numbers of a dtype, below which nothing can agree any better.
_STEPS = {"float64": 5e-324, "float32": 1.5e-45, "float16": 6e-8, "bfloat16": 9.2e-41}
#: From here on a number that both sides have alike may be what a mask is filled with, and says nothing of the scale.
_FILL = 1e4
_COARSEST_FIRST = ("bfloat16", "float16", "float32", "float64")
SKIP = "--no-check (check=False) skips the comparison"  #: what a caller adds, where that is so


@dataclass(frozen=True)
class Outputs:
    """What a network returned: for each of its inputs the output tensors, as arrays, in order."""

    runs: tuple[tuple[Array, ...], ...]
    dtype: str = "float32"  #: the coarsest one that was computed in; see :func:`coarsest`
    dtypes: tuple[str, ...] = ()  #: of the outputs of the first run, where torch made them


@dataclass(frozen=True)
class Difference:
    """How far two runs of a network are apart: the largest absolute difference, and the one that is allowed."""

    largest: float
    allowed: float
    outputs: int
    relative: float = 0.0  #: the largest difference relative to its output's scale

    def __str__(self) -> str:
        return f"{self.largest:.2g} (allowed {self.allowed:.2g})"


def coarsest(dtypes: Sequence[str], default: str = "float32") -> str:
    """The coarsest floating dtype of some, without ``torch.`` in front; the default where there is none."""
    return next((name for name in _COARSEST_FIRST if name in dtypes), default)


def compare_outputs(
    found: Outputs, expected: Outputs, who: str, whose: str, *, tolerance: float | None = None
) -> Difference:
    """How far ``found`` is from ``expected``; EmitError with the reason where they do not agree.

    ``who`` and ``whose`` name the two in messages (``"net.onnx"``, ``"the module's"``). Integers and truth values have
    to be equal. Infinities have to stand at the same places with the same sign; NaN agrees with nothing.
    """
    import numpy as np

    dtype = coarsest((found.dtype, expected.dtype))
    share = TOLERANCES[dtype] if tolerance is None else tolerance
    worst = Difference(0.0, 0.0, sum(len(run) for run in expected.runs[:1]))
    owner = whose.removesuffix("'s")
    numbers = any(np.isfinite(wide(array)).any() for run in expected.runs for array in run)
    missing = any(
        np.isnan(wide(array)).any() for each in (found, expected) for run in each.runs for array in run
    )
    if len(found.runs) != len(expected.runs) or not (numbers or missing):
        raise EmitError(f"{who} returns no numbers that could be compared with {whose}")
    for place, (ours, theirs) in enumerate(zip(found.runs, expected.runs, strict=True)):
        if len(ours) != len(theirs):
            raise EmitError(f"{who} has {len(ours)} outputs, {owner} {len(theirs)}")
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            where = (
                f"output {index}" + (f" of {who}" if who else "") + (" on the second input" if place else "")
            )
            if one.shape != other.shape:
                raise EmitError(f"{where} is {list(one.shape)}, {whose} {list(other.shape)}")
            if not one.size:
                continue
            if one.dtype.kind in "biu" or other.dtype.kind in "biu":
                if one.dtype.kind != other.dtype.kind or not bool((one == other).all()):
                    raise EmitError(f"{where} differs from {whose}")
                continue
            made = _compare_numbers(wide(one), wide(other), share, _STEPS[dtype], where, whose)
            if made.relative >= worst.relative:
                worst = Difference(made.largest, made.allowed, worst.outputs, made.relative)
    return worst


def refuse_not_finite(found: Outputs, before: Outputs | None, who: str = "", whose: str = "before") -> None:
    """EmitError where an output holds NaN, or infinities and those of ``before`` hold none, of whatever shapes.

    Without ``before`` infinities pass: a network may return masks that are filled with them.
    """
    import numpy as np

    tame = before is not None and not any(
        np.isinf(wide(array)).any() for run in before.runs for array in run if array.dtype.kind not in "biu"
    )
    for run in found.runs:
        for place, array in enumerate(run):
            if array.dtype.kind in "biu":
                continue
            numbers = wide(array)
            bad = np.isnan(numbers) if not tame else ~np.isfinite(numbers)
            if bad.any():
                kind = "NaN" if np.isnan(numbers).any() else f"infinite, and {whose} all were finite"
                of = f" of {who}" if who else ""
                raise EmitError(
                    f"output {place}{of} holds {int(bad.sum())} numbers that are not finite, of {array.size} ({kind})"
                )


def wide(array: Any) -> Any:
    """An array of numbers in double precision."""
    import numpy as np

    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _compare_numbers(ours: Any, theirs: Any, share: float, step: float, where: str, whose: str) -> Difference:
    import numpy as np

    owner = whose.removesuffix("'s")
    for numbers, name in ((ours, where), (theirs, f"{where.partition(' of ')[0]} of {owner}")):
        missing = int(np.isnan(numbers).sum())
        if missing:
            raise EmitError(
                f"{name} holds {missing} numbers that are not finite, of {numbers.size} (NaN), so nothing can be "
                "compared"
            )
    ends, wanted = np.isinf(ours), np.isinf(theirs)
    if (ends & ~wanted).any():
        raise EmitError(
            f"{where} holds {int((ends & ~wanted).sum())} numbers that are not finite, of {ours.size} (infinite), "
            f"where {whose} are finite"
        )
    if (wanted & ~ends).any() or not np.array_equal(ours[ends], theirs[ends]):
        raise EmitError(f"{where} is not infinite where {whose} is")
    ours, theirs = ours[~ends], theirs[~ends]
    if not ours.size:
        return Difference(0.0, 0.0, 1)
    with np.errstate(over="ignore"):
        apart = float(np.abs(ours - theirs).max())
        sizes = np.abs(theirs)
    telling = sizes[~((ours == theirs) & (sizes >= _FILL))]
    scale = float(telling.max()) if telling.size else 0.0
    allowed = share * scale + 4 * step
    relative = apart / scale if scale else float("inf") if apart else 0.0
    if not apart <= allowed:
        raise EmitError(
            f"{where} differs from {whose} by {apart:.3g}, {relative:.3g} of the largest number, and {share:.3g} is "
            "allowed"
        )
    return Difference(apart, allowed, 1, relative if scale else 0.0)
