"""What an entry of a configuration counts: one list of layers or several, as the network shows it that is built of it.

A U-Net's ``layers_per_block`` counts the layers of every block on the way down, and one fewer than there are of every
block on the way up. So an entry is known by what changes with it, and not by what its number is equal to.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CountedList:
    """A list of layers that becomes longer by one when an entry does."""

    head: str  #: what stands before its numbers: ``down_blocks.0.resnets.``
    members: int
    #: Those of which a copy may stand right behind them, so that all have the shapes that the network builds there.
    free: tuple[int, ...]
    #: Where there is none: what a copy would have to be.
    why: str = ""

    @property
    def name(self) -> str:
        """The list for a reader."""
        return self.head.rstrip("._")


@dataclass(frozen=True)
class Count:
    """An entry with its value, and the lists that it counts."""

    place: tuple[str | int, ...]  #: the names, and places in lists, that lead to it
    value: int
    lists: tuple[CountedList, ...]
    #: What the outermost entry on the way to it is: it may be the class's own, or one number for a list of equal ones.
    outermost: Any = None

    @property
    def name(self) -> str:
        """The entry for a reader: ``layers_per_block.0``."""
        return ".".join(map(str, self.place))

    @staticmethod
    def of(data: Any) -> Count:
        """A count of its JSON."""
        lists = tuple(CountedList(**{**one, "free": tuple(one["free"])}) for one in data["lists"])
        return Count(tuple(data["place"]), data["value"], lists, data["outermost"])


def together(lists: Sequence[CountedList]) -> list[tuple[CountedList, ...]]:
    """Lists in groups: those of one module with as many members are stepped through together, since one entry counts
    them.
    """
    groups: dict[tuple[str, int], list[CountedList]] = {}
    for one in lists:
        groups.setdefault((one.name.rpartition(".")[0], one.members), []).append(one)
    return [tuple(group) for group in groups.values()]


def with_entry(
    config: Mapping[str, Any], place: Sequence[str | int], value: Any, outermost: Any
) -> dict[str, Any]:
    """A configuration with another entry at a place; ``outermost`` is what leads there where it has something else."""
    made = dict(copy.deepcopy(config))
    held: Any = made
    known: Any = {place[0]: outermost}
    for key in place[:-1]:
        known = known[key]
        if isinstance(held, dict) and type(held.get(key)) is not type(known):
            held[key] = {} if isinstance(known, Mapping) else copy.deepcopy(known)
        held = held[key]
    held[place[-1]] = value
    return made
