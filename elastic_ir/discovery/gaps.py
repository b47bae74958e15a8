"""Gaps: what a caller does between two blocks, and which of it belongs to the block before and which to the next.

The gaps of a bundle are cut at one offset, where the fewest values are alive: behind a residual sum one is, before it
two are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elastic_ir.ir.graph import Node


@dataclass(frozen=True)
class Gap:
    """The nodes between two blocks that belong to them, in order."""

    nodes: list[Node]
    alive: list[tuple[int, int]]  #: values and elements alive before the first node, and behind each


def split(
    gaps: Sequence[Gap],
    lead: Callable[[Sequence[str]], Sequence[Node]],
    trail: Callable[[Sequence[str]], Sequence[Node]],
) -> list[tuple[list[Node], list[Node]]]:
    """For each gap what belongs to the block before it, and what to the block behind it.

    Of the offsets that leave the first and the last block whole the one is taken at which the fewest values are alive,
    then the fewest elements, then the last. ``lead`` and ``trail`` find the operations of the second part before the
    first block, and of the first part behind the last. Where gaps differ, what all begin and end with is dealt out,
    and the rest belongs to no block.
    """
    words = [[node.op for node in gap.nodes] for gap in gaps]
    if any(word != words[0] for word in words):
        head = _common(words)
        tail = min(_common([word[::-1] for word in words]), min(map(len, words)) - head)
        return [(gap.nodes[:head], gap.nodes[len(gap.nodes) - tail :]) for gap in gaps]

    def cost(offset: int) -> tuple[bool, tuple[int, int], int]:
        behind, before = words[0][:offset], words[0][offset:]
        torn = len(trail(behind)) < len(behind) or len(lead(before)) < len(before)
        return torn, max(gap.alive[offset] for gap in gaps), -offset

    at = min(range(len(words[0]) + 1), key=cost)
    return [(gap.nodes[:at], gap.nodes[at:]) for gap in gaps]


def _common(words: Sequence[Sequence[str]]) -> int:
    """How many items all sequences begin with."""
    return sum(
        1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    )
