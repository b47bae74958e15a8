"""Positions: the rules by which a constant follows from a block's place, inferred from its values in the source.

A rate that rises evenly from the first block to the last (stochastic depth, Huang et al. 2016, section 3) keeps its
ends and rises over the new blocks. A factor that undoes a variance growing by a fixed step in every block since the
last downsampling (NFNet, Brock et al. 2021, section 3) goes on with that step. Other constants show no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TOLERANCE = 1e-5  #: relative; rates may have been through a float32


@dataclass(frozen=True)
class Place:
    """A block's place: its stage, and whether it is the stage's entry."""

    stage: int
    entry: bool


def respread(
    values: Sequence[float], source: Sequence[Place], target: Sequence[Place]
) -> tuple[list[float], str] | None:
    """A constant's values at the target's places, and the rule in words; None where its values show no rule.

    ``values`` are those of the source's blocks in the order they run, ``source`` and ``target`` the places of the
    blocks on both sides. Values that are all equal are their own rule.
    """
    if len(set(values)) == 1:
        return [values[0]] * len(target), "the same everywhere"
    if _is_even(values):
        last = max(len(target) - 1, 1)
        step = (values[-1] - values[0]) / last
        return [values[0] + index * step for index in range(len(target))], "evenly from first to last"
    for words, there, back in _GROWING:
        found = _continued(values, source, target, there, back)
        if found is not None:
            return found, words
    return None


def _near(left: float, right: float, scale: float) -> bool:
    return abs(left - right) <= _TOLERANCE * max(scale, 1e-12)


def _is_even(values: Sequence[float]) -> bool:
    """Whether values rise or fall by one step; two values show nothing."""
    if len(values) < 3:
        return False
    step = (values[-1] - values[0]) / (len(values) - 1)
    scale = max(map(abs, values))
    return all(_near(value, values[0] + index * step, scale) for index, value in enumerate(values))


_GROWING: tuple[tuple[str, Callable[[float], float], Callable[[float], float]], ...] = (
    ("by the variance since the last entry", lambda value: value**-2, lambda value: value**-0.5),
    ("by the block's number", lambda value: 1 / value, lambda value: 1 / value),
)


def _continued(
    values: Sequence[float],
    source: Sequence[Place],
    target: Sequence[Place],
    there: Callable[[float], float],
    back: Callable[[float], float],
) -> list[float] | None:
    """Values that, transformed, grow by one step from each entry to the next; the first block's stands alone."""
    if any(value <= 0 for value in values):
        return None
    ages, known = _ages(source), [there(value) for value in values]
    starts = {age: item for age, item in zip(ages, known, strict=True) if age == 1}
    later = [(age, item) for age, item in zip(ages, known, strict=True) if age > 1]
    if not starts or len(later) < 2:
        return None
    start = starts[1]
    step = (later[0][1] - start) / (later[0][0] - 1)
    scale = max(known)
    if any(
        age and not _near(item, start + (age - 1) * step, scale)
        for age, item in zip(ages, known, strict=True)
    ):
        return None
    return [back(start + (age - 1) * step) if age else values[0] for age in _ages(target)]


def _ages(places: Sequence[Place]) -> list[int]:
    """For each block how many blocks ago the last entry ran; 0 for what no entry came before.

    Where there are no entries at all, blocks are counted from each stage's first.
    """
    if not any(place.entry for place in places):
        firsts: dict[int, int] = {}
        return [index - firsts.setdefault(place.stage, index) + 1 for index, place in enumerate(places)]
    ages, age, begun = [], 0, False
    for place in places:
        ages.append(age if begun else 0)
        if place.entry:
            age, begun = 1, True
        elif begun:
            age += 1
    return ages
