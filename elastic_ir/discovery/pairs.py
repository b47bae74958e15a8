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
            return self._elsewhere() or self._inside()
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
        """Where the last blocks of a list read what the first ones make, or take, what was made last first.

        They may leave some in the middle without a partner (HunyuanDiT).
        """
        groups, count = self.links.groups, len(self.links.groups)
        if count < 4:
            return None
        sources = [Counter(self._sources(index)) for index in range(count)]
        start = next((index for index in range(1, count) if sources[index].keys() - {index - 1}), count)
        if not 2 <= count - start <= count // 2:
            return None
        for last in (0, -1):  # the partner of the last one
            wanted = {index: Counter((index - 1, count - 1 - index + last)) for index in range(start, count)}
            if all(
                sources[index] >= one and sources[index].keys() == one.keys() for index, one in wanted.items()
            ):
                return groups[start].path, groups[count - 1 - start + last].path
        return None

    def _sources(self, index: int) -> list[int]:
        """The blocks that one reads, through the caller's operations; a value read twice counts twice.

        What the first block takes counts as made before it.
        """
        links, found = self.links, list[int]()
        waiting = [
            value
            for value in links.reads[index]
            if value.node in links.owner
            or value in links.groups[0].inputs
            or links.readers[value] == 1  # what several read beside them is a condition of all
        ]
        for _ in range(_NEAR):
            if not waiting:
                break
            value = waiting.pop()
            if value in links.groups[0].inputs:
                found.append(-1)
            elif value.node in links.owner:
                found.append(links.owner[value.node])
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
