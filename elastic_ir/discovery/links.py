"""Links: what flows from one group of a container to the next, and what of it others read.

A list of hidden states reads a value of every block in turn, collects it, and grows with the stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elastic_ir.discovery.parts import Group
from elastic_ir.ir.graph import Node, Value
from elastic_ir.ir.structure import fit


class Links:
    """What flows into each group and out of it, and whether neighbours chain."""

    def __init__(
        self,
        groups: list[Group],
        owner: dict[Node, int],
        users: Mapping[Value, Sequence[Node]],
        order: Mapping[Node, int],
    ) -> None:
        self.groups, self.owner, self.users, self.order = groups, owner, users, order
        self.leaving: list[
            dict[Value, set[int]]
        ] = []  #: values that others read, and which groups (-1 for none) do
        self.reads: list[dict[Value, None]] = []
        self.readers: dict[Value, int] = {}  #: how many groups read a value of others
        for index, group in enumerate(groups):
            out: dict[Value, set[int]] = {}
            seen: dict[Value, None] = {}
            for node in group.nodes:
                who = {owner.get(user, -1) for user in users.get(node.output, ())} - {index}
                if who and node.output.is_tensor:
                    out[node.output] = who
                for value in node.operands():
                    if value.is_tensor and owner.get(value.node) != index:
                        seen[value] = None
            self.leaving.append(out)
            self.reads.append(seen)
            for value in seen:
                self.readers[value] = self.readers.get(value, 0) + 1

    def fill(self) -> None:
        """Enter inputs and outputs, whether a group is linked to the one before it, sound and preserving."""
        for index in range(len(self.groups)):
            self._outputs(index)
        self._taps()
        for index in range(len(self.groups)):
            self._inputs(index)
        for index, group in enumerate(self.groups):
            outside = (value for value in self.reads[index] if value.node not in self.owner)
            group.shared = frozenset(value for value in outside if self.readers[value] > 1)
            if not group.linked:
                self._first_inputs(index)
            if not group.inputs or not group.outputs:
                group.sound = False
            group.preserving = fit(group.inputs, group.outputs)

    def _outputs(self, index: int) -> None:
        group, leaving = self.groups[index], self.leaving[index]
        last = index + 1 == len(self.groups)
        flows = [value for value in self.reads[index + 1] if value in leaving] if not last else []
        if index == 0:  # what the first block makes for all others to read (T5's position bias) is no flow
            flows = [value for value in flows if max(leaving[value]) <= 1] or flows[:1]
        if not flows and last and index:
            flows = self._like_before(index)
        if flows:
            group.outputs = tuple(flows)
        elif leaving:
            lone = len(leaving) == 1 or last
            group.outputs = (next(iter(leaving)) if lone else max(leaving, key=lambda v: self.order[v.node]),)

    def _taps(self) -> None:
        """Enter what leaves each group for a collector, and whether anything else leaves it but its outputs."""
        found: list[list[Value]] = [[] for _ in self.groups]
        if len(self.groups) > 1:
            model = self.groups[1]
            place = {node: at for at, node in enumerate(model.nodes)}
            for value, who in self.leaving[1].items():
                if -1 in who:
                    column = [
                        self._counterpart(group, value, model, place[value.node]) for group in self.groups
                    ]
                    values = [one for one in column if one is not None]
                    if len(values) == len(column) and self._collected(values):
                        for taps, one in zip(found, values, strict=True):
                            taps.append(one)
        for index, group in enumerate(self.groups):
            group.taps = tuple(found[index])
            # the last one's outputs need not all be read: a residual sum that runs beside the sum of skips (WaveNet)
            group.sound = all(value in (*group.outputs, *group.taps) for value in self.leaving[index])
            for value in group.outputs:
                who = self.leaving[index].get(value, set())
                if len(who - {-1} if value in group.taps else who) > 1:
                    group.sound = False

    def _counterpart(self, group: Group, value: Value, model: Group, place: int) -> Value | None:
        """A group's value in the place of one of the model's: an output of the same rank, or of the same node."""
        if value in model.outputs:
            rank = model.outputs.index(value)
            return group.outputs[rank] if rank < len(group.outputs) else None
        if len(group.nodes) != len(model.nodes) or group.nodes[place].op != model.nodes[place].op:
            return None
        return group.nodes[place].output

    def _collected(self, values: Sequence[Value]) -> bool:
        """Whether all that reads one of these values outside the groups reads them all in turn, in a list."""
        outside = [{user for user in self.users.get(value, ()) if user not in self.owner} for value in values]
        return (
            bool(outside[0])
            and all(readers == outside[0] for readers in outside[:-1])
            and outside[0] <= outside[-1]
            and all(collects_all(reader, values) for reader in outside[0])
        )

    def _like_before(self, index: int) -> list[Value]:
        """The outputs of the last group, made where those of an equal group before it are made."""
        before, group = self.groups[index - 1], self.groups[index]
        if [node.op for node in before.nodes] != [node.op for node in group.nodes]:
            return []
        place = {node: at for at, node in enumerate(before.nodes)}
        return [group.nodes[place[value.node]].output for value in before.outputs if value.node in place]

    def _inputs(self, index: int) -> None:
        if index == 0:
            return
        group, before = self.groups[index], self.groups[index - 1]
        flows = [value for value in before.outputs if value in self.reads[index]]
        if flows and len(flows) == len(before.outputs):
            group.inputs, group.linked = before.outputs, True
            siblings = {self.owner[value.node] for value in self.reads[index] if value.node in self.owner}
            if siblings - {index - 1, 0}:
                group.sound = False

    def _first_inputs(self, index: int) -> None:
        group = self.groups[index]
        following = self.groups[index + 1] if index + 1 < len(self.groups) else None
        if following is not None and following.linked and len(following.inputs) > 1:
            found = _at_the_places_of(following, group)
            if found and all(value in self.reads[index] for value in found):
                group.inputs = found
                return
        alone = [value for value in self.reads[index] if self.readers[value] == 1] or list(self.reads[index])
        chosen: list[Value] = []
        for output in group.outputs:
            same = [v for v in alone if v not in chosen and v.type and v.type.fits(output.type)]
            chosen += same[:1]
        group.inputs = tuple(chosen) if chosen and len(chosen) == len(group.outputs) else tuple(alone[:1])


def _at_the_places_of(model: Group, group: Group) -> tuple[Value, ...]:
    """What a group reads where an equal one reads its inputs; () where they are not equal."""
    if [node.op for node in model.nodes] != [node.op for node in group.nodes]:
        return ()
    found: dict[Value, Value] = {}
    for node, twin in zip(model.nodes, group.nodes, strict=True):
        for value, mine in zip(node.operands(), twin.operands(), strict=False):
            if value in model.inputs:
                found.setdefault(value, mine)
    return tuple(found[value] for value in model.inputs) if len(found) == len(model.inputs) else ()


def collects(node: Node, value: Value) -> bool:
    """Whether a node reads a value as an item of a list."""
    return any(value in items for items in _lists(node))


def collects_all(node: Node, values: Sequence[Value]) -> bool:
    """Whether a node reads values one behind the other in a list, each once."""
    wanted = list(values)
    for items in _lists(node):
        if wanted[0] in items:
            at = items.index(wanted[0])
            if items[at : at + len(wanted)] == wanted and all(items.count(value) == 1 for value in wanted):
                return True
    return False


def _lists(node: Node) -> Iterator[list[Any]]:
    """The lists and tuples among a node's arguments; its operands themselves are none."""
    waiting: list[Any] = [*node.args, *node.kwargs.values()]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple)):
            yield list(item)
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
