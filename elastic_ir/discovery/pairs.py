"""Pairs: blocks that hand values to blocks elsewhere, or to others of their list, one by one (U-ViT's long skips).

A copy of such a block would have no partner, so that none of them can be cloned or deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from elastic_ir.discovery.links import Links
from elastic_ir.discovery.parts import Part
from elastic_ir.ir.graph import Node, Value

_NEAR = 8  #: operations of the caller between a block and its partner


class Pairs:
    """Answers for the blocks of one list whether they have partners, and names two that are."""

    def __init__(
        self, links: Links, users: Mapping[Value, Sequence[Node]], slots: Mapping[Node, Part]
    ) -> None:
        self.links, self.users, self.slots = links, users, slots

    def found(self) -> tuple[str, str] | None:
        """The paths of two partners; None where the blocks have none."""
        groups = self.links.groups
        if any(group.free for group in groups) and all(group.linked for group in groups[1:]):
            return self._elsewhere()
        return self._inside()

    def _elsewhere(self) -> tuple[str, str] | None:
        links, groups = self.links, self.links.groups
        partners: list[Node] = []
        for index, group in enumerate(groups):
            given = [v for v in links.reads[index] if links.readers[v] == 1 and v not in group.inputs]
            taken = links.leaving[index] if group is not groups[-1] else ()
            partners += [*self._given_by(given), *self._taken_by(taken)][:1]
        # what the last one makes goes on, and may go to a partner as well, which then is beside the others'
        homes = {self._home(node) for node in partners}
        after = self._taken_by(links.leaving[-1])
        partners += [node for node in after if self._home(node) in homes and node not in partners][:1]
        if len(partners) >= max(2, len(groups) - 1) and len(set(partners)) == len(partners):
            return groups[0].path, self.slots[partners[0]].path
        return None

    def _home(self, node: Node) -> str:
        return self.slots[node].path.rpartition(".")[0]

    def _given_by(self, values: Iterable[Value]) -> list[Node]:
        near = (self._near(value.node, forward=False) for value in values)
        return [node for node in near if node is not None]

    def _taken_by(self, values: Iterable[Value]) -> list[Node]:
        near = (self._near(user, forward=True) for value in values for user in self.users.get(value, ()))
        return [node for node in near if node is not None]

    def _inside(self) -> tuple[str, str] | None:
        """Where the second half of a list reads what the first half makes, or takes, what was made last first."""
        groups, count = self.links.groups, len(self.links.groups)
        half = count // 2
        if half < 2:
            return None
        second = {index: Counter(self._sources(index)) for index in range(count - half, count)}
        for last in (0, -1):  # the partner of the last one
            wanted = {index: Counter((index - 1, count - 1 - index + last)) for index in second}
            if all(
                found >= wanted[index] and found.keys() == wanted[index].keys()
                for index, found in second.items()
            ):
                return groups[count - half].path, groups[half - 1 + last].path
        return None

    def _sources(self, index: int) -> list[int]:
        """The blocks that one reads, through the caller's operations; a value read twice counts twice.

        What the first block takes counts as made before it.
        """
        found: list[int] = []
        waiting = list(self.links.reads[index])
        for _ in range(_NEAR):
            if not waiting:
                break
            value = waiting.pop()
            if value in self.links.groups[0].inputs:
                found.append(-1)
            elif value.node in self.links.owner:
                found.append(self.links.owner[value.node])
            else:
                waiting += value.node.operands()
        return found

    def _near(self, node: Node, *, forward: bool) -> Node | None:
        """The node itself where it runs in a slot, or the first one found a few of the caller's operations on."""
        own = self.links.owner
        found = [node]
        for at in range(_NEAR):
            node = found[at] if at < len(found) else node
            if node in self.slots and node not in own:
                around = f"{self.links.groups[0].path}.".startswith(f"{self.slots[node].path}.")
                return None if around else node
            if node not in own:
                found += self.users.get(node.output, ()) if forward else [v.node for v in node.operands()]
        return None
