"""Periods: how many blocks make a unit, read from the hashes of what blocks compute."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from elastic_ir.discovery.parts import Group


def shown_period(groups: Sequence[Group]) -> int:
    """The period of a list of blocks: of what they compute and of which of the values beside it they read, or 1.

    Masks of full and of sliding attention are made outside the blocks, so that nothing inside tells which is which.
    """
    period = shortest_period([(group.signature, group.shared) for group in groups])
    return period if period > 1 else shortest_period([group.signature for group in groups])


def shortest_period(signatures: Sequence[Hashable]) -> int:
    """The shortest period of a list of hashes that is seen twice, or 1."""
    if len(set(signatures)) <= 1:
        return 1
    for period in range(2, len(signatures) // 2 + 1):
        if len(signatures) % period == 0 and all(
            signatures[i] == signatures[i + period] for i in range(len(signatures) - period)
        ):
            return period
    return 1


def period_together(lists: list[list[Group]]) -> int:
    """The period that lists of blocks show only one behind the other, or 1: a plain and a shifted window, every time.

    Their blocks have equal weights, and which of them compute the same is what repeats.
    """
    mixed: list[int] = []
    turns = 0
    for groups in lists:
        hashes = [group.signature for group in groups]
        if len(set(hashes)) > 1 and all(group.weights == groups[0].weights for group in groups):
            mixed += [hashes.index(one) for one in hashes]
            turns += 1
    period = shortest_period(mixed) if turns > 1 else 1
    return period if all(len(groups) % period == 0 for groups in lists) else 1
