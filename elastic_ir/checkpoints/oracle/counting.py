"""Which lists of layers each entry of a configuration counts: those that become longer when it does. No torch here.

Every number that may count layers is raised by one, and the network built. A list that is then longer by one is counted
by it, whatever the two numbers are. What the longer list holds shows which of the layers may be copied: in a U-Net's
blocks on the way up the first layer and the last one read other channels than those between them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from elastic_ir.checkpoints.libraries.library import Library
from elastic_ir.checkpoints.oracle import experiments, network
from elastic_ir.errors import SourceError
from elastic_ir.ir.counts import Count, CountedList, with_entry
from elastic_ir.ir.numbering import DIGITS

#: For each list, by what stands before its numbers, the shapes of each member's tensors by their names inside it.
Lists: TypeAlias = Mapping[str, Mapping[int, Mapping[str, tuple[int, ...]]]]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_MOST = 80  #: networks that are built
_NEAR = 1  #: by how much an entry may differ from the length of a list that it counts
_NUMBER = re.compile(rf"(?<![0-9]){DIGITS}(?=\.|$)")


def counts(library: Library, config: Mapping[str, Any], stated: Mapping[str, Any]) -> list[Count]:
    """The entries that count lists, each with all of these; ``stated`` has those too that are left to the class.

    A number that stands for a list of equal ones is there once as it is, and once for each member of such a list.
    """
    trials = _Trials(library, config)
    found: list[Count] = []
    for place, value in experiments.entries(stated):
        if type(value) is not int or not trials.may_count(value):
            continue
        whole = trials.count(place, value, stated[str(place[0])])
        if whole is None:
            continue
        found.append(whole)
        if len(place) == 1 and len(whole.lists) > 1:
            found += trials.members(str(place[0]), value, stated)
    return found


class _Trials:
    """Networks of changed configurations beside that of one that is not."""

    def __init__(self, library: Library, config: Mapping[str, Any]) -> None:
        self._library, self._config = library, config
        self._shapes = self._built(config) or {}
        self._lists = lists_of(self._shapes)
        self._left = _MOST
        self._end = time.process_time() + experiments.SECONDS

    def _built(self, config: Mapping[str, Any]) -> Shapes | None:
        """The names and shapes of a configuration's network; None where there is none."""
        try:
            module = self._library.network(config, self._library.file)
        except SourceError:
            return None
        return network.shapes(module)

    def may_count(self, value: int) -> bool:
        """Whether a number is as large as some list is long, or nearly."""
        return any(abs(value - len(one)) <= _NEAR for one in self._lists.values())

    def count(self, place: Sequence[str | int], value: int, outermost: Any) -> Count | None:
        """What an entry counts; None where that is nothing."""
        if not self._left or time.process_time() > self._end:
            return None
        self._left -= 1
        shapes = self._built(with_entry(self._config, place, value + 1, outermost))
        after = lists_of(shapes or {})
        steps = {head: len(after.get(head, ())) - len(members) for head, members in self._lists.items()}
        if not set(steps.values()) <= {0, 1}:
            return None  # it changes more than the number of layers
        lists = tuple(_counted(head, self._lists[head], after[head]) for head, step in steps.items() if step)
        return Count(tuple(place), value, lists, outermost) if lists else None

    def members(self, name: str, value: int, stated: Mapping[str, Any]) -> Iterator[Count]:
        """What the members of a list count that may stand in a number's place, where the network then is the same."""
        sizes = {len(one) for one in stated.values() if isinstance(one, list | tuple) and len(one) > 1}
        for size in sorted(sizes):
            listed = [value] * size
            if self._built(with_entry(self._config, (name,), listed, listed)) == self._shapes:
                found = [self.count((name, at), value, listed) for at in range(size)]
                yield from (one for one in found if one is not None)
                return


def lists_of(shapes: Shapes) -> Lists:
    """The numbered lists in some names; lists inside of lists too."""
    found: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        for match in _NUMBER.finditer(name):
            members = found.setdefault(name[: match.start()], {})
            members.setdefault(int(match[0]), {})[name[match.end() :]] = shape
    return {head: dict(sorted(members.items())) for head, members in found.items()}


def _counted(
    head: str, before: Mapping[int, Mapping[str, Any]], after: Mapping[int, Mapping[str, Any]]
) -> CountedList:
    """A list, and those of its members of which a copy fits behind them in the longer one."""
    old, new = list(before.values()), list(after.values())
    free = tuple(at for at in range(len(old)) if [*old[: at + 1], *old[at:]] == new)
    why = ""
    if not free:
        at = next((at for at, one in enumerate(new) if one not in old), None)
        if at is None:
            why = "its layers would stand in another order"
        else:
            near = old[min(at, len(old) - 1)]
            name, shape = next((n, s) for n, s in new[at].items() if near.get(n) != s)
            why = f"layer {at} would have {name.lstrip('.')} {list(shape)}, as none of them has"
    return CountedList(head, len(old), free, why)
