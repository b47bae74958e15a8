"""Links: what flows from one group of a container to the next, and what of it others read.

A list of hidden states reads a value of every block in turn, collects it, and grows with the stack.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elastic_ir.discovery.parts import Group
from elastic_ir.ir.graph import Node, Value
from elastic_ir.ir.operations import reads_form_only
from elastic_ir.ir.structure import Block, Structure, fit

_MODELS = 4  #: blocks that are asked where they read what flows into them


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
        for before, group in itertools.pairwise(self.groups):
            group.outputs = _in_the_order_of(before.outputs, group.outputs)
        self._given()
        for index in range(len(self.groups)):
            self._inputs(index)
        for index, group in enumerate(self.groups):
            outside = (value for value in self.reads[index] if value.node not in self.owner)
            group.shared = frozenset(value for value in outside if self.readers[value] > 1)
            if not group.linked:
                self._first_inputs(index)
        self._taps()
        for group in self.groups:
            if not group.inputs or not group.outputs:
                group.sound = False
            group.preserving = fit(group.inputs, group.outputs)

    @property
    def branching(self) -> bool:
        """Whether anything besides what flows on leaves a group before the last, or is read by one group alone."""
        return (
            not all(group.linked and group.sound for group in self.groups[1:])
            or any(-1 in who for leaving in self.leaving[:-1] for who in leaving.values())
            or any(
                self.readers[value] == 1 and value not in group.inputs
                for group, seen in zip(self.groups, self.reads, strict=True)
                for value in seen
            )
        )

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
            columns = self._columns(model, [value for value, who in self.leaving[1].items() if -1 in who])
            taken = [rank for rank, value in enumerate(model.outputs) if self._enter(value, columns, found)]
            self._enter(None, columns, found)
            # of hidden states the last one may be normed: then what flows into each block is collected
            for rank in (rank for rank in range(len(model.inputs)) if rank not in taken):
                flows = [group.inputs[rank] if rank < len(group.inputs) else None for group in self.groups]
                self._enter(None, [flows], found, flowing=True)
        tapped = {value for taps in found for value in taps}
        for index, group in enumerate(self.groups):
            group.taps = tuple(found[index])
            # the last one's outputs need not all be read: a residual sum that runs beside the sum of skips (WaveNet)
            group.sound &= all(value in tapped or value in group.outputs for value in self.leaving[index])
            for value in group.outputs:
                who = self.leaving[index].get(value, set())
                if len(who - {-1} if value in tapped else who) > 1:
                    group.sound = False

    def _enter(
        self,
        only: Value | None,
        columns: list[list[Value | None]],
        found: list[list[Value]],
        *,
        flowing: bool = False,
    ) -> bool:
        """Enter the columns that are collected, all of them or that of one value; whether there was one."""
        entered = False
        for column in [column for column in columns if only is None or column[1] is only]:
            values = [one for one in column if one is not None]
            # the last one may give its result where the others give a skip (pytorch-tcn): then it stays the last
            ends = column[-1] is None and len(values) + 1 == len(column) > 2
            if ends and self._collected(values, flowing=flowing, whole=False):
                self.groups[-1].torn = True
            elif len(values) < len(column) or not self._collected(values, flowing=flowing):
                continue
            columns.remove(column)
            entered = True
            for taps, one in zip(found, values, strict=False):
                taps.append(one)
        return entered

    def _given(self) -> None:
        """Enter the network's inputs of which each group has its own; nothing else may read more than their form.

        A group with more or fewer than the others is none that could be cloned.
        """
        found: list[list[Value]] = []
        for index, seen in enumerate(self.reads):
            found.append([])
            for value in seen:
                outside = [user for user in self.users.get(value, ()) if self.owner.get(user) != index]
                if value.node.kind == "input" and value.node.origin and all(map(reads_form_only, outside)):
                    found[-1].append(value)
        if len(found) < 2 or not found[1]:
            return
        flow = self.groups[0].outputs[:1]
        while len(found[0]) > len(found[1]):  # the first group may read what flows into it there
            fits = (v for v in found[0] if v.type is not None and flow and v.type.fits(flow[0].type))
            one = next(fits, None)
            if one is None:
                break
            found[0].remove(one)
        for group, values in zip(self.groups, found, strict=True):
            if len(values) == len(found[1]):
                group.given = tuple(values)
            else:
                group.sound = False

    def _columns(self, model: Group, values: Sequence[Value]) -> list[list[Value | None]]:
        """For each of some values that leave a group their like in every group.

        That is its output of the same rank, or the next that is made by such an operation and leaves the groups.
        """
        columns: list[list[Value | None]] = [[] for _ in values]
        for group, leaving in zip(self.groups, self.leaving, strict=True):
            left = [value for value, who in leaving.items() if -1 in who]
            for column, value in zip(columns, values, strict=True):
                if value in model.outputs:
                    rank = model.outputs.index(value)
                    column.append(group.outputs[rank] if rank < len(group.outputs) else None)
                    continue
                like = (one for one in left if one.node.op == value.node.op and one not in group.outputs)
                column.append(next(like, None))
                left = [one for one in left if one is not column[-1]]
        return columns

    def _collected(self, values: Sequence[Value], *, flowing: bool, whole: bool = True) -> bool:
        """Whether all that reads one of these values outside the groups reads them all in turn, in a list.

        Others may read what the last one makes, where it is among them (``whole``), or, of what flows, what flows into
        the first.
        """
        outside = [{user for user in self.users.get(value, ()) if user not in self.owner} for value in values]
        open_end = outside.pop(0 if flowing else -1)
        if not whole and open_end != outside[0]:
            return False
        return (
            bool(outside[0])
            and all(readers == outside[0] for readers in outside)
            and outside[0] <= open_end
            and all(collects_all(reader, values) for reader in outside[0])
        )

    def _like_before(self, index: int) -> list[Value]:
        """The outputs of the last group, made where those of the nearest equal group before it are made."""
        group = self.groups[index]
        operations = [node.op for node in group.nodes]
        equal = (one for one in self.groups[index - 1 :: -1] if [node.op for node in one.nodes] == operations)
        before = next(equal, None) if index else None
        if before is None:
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
            # what the first one makes for all others is none of a skip, unlike what flows out of it and is read again
            skips = any(
                value in self.groups[0].outputs and self.readers[value] + 1 < len(self.groups)
                for value in (self.reads[index] if index > 1 else ())
            )
            if skips or siblings - {index - 1, 0}:
                group.sound = False

    def _first_inputs(self, index: int) -> None:
        group = self.groups[index]
        # blocks that read their streams crosswise may do so in every second block alone (LoFTR)
        for model in self.groups[index + 1 : index + 1 + _MODELS]:
            if not model.linked or len(model.inputs) < 2:
                break
            found = _at_the_places_of(model, group)
            if found and all(value in self.reads[index] for value in found):
                group.inputs = found
                return
        reads = [value for value in self.reads[index] if value not in group.given]
        alone = [value for value in reads if self.readers[value] == 1] or reads
        chosen: list[Value] = []
        for output in group.outputs:
            same = [v for v in alone if v not in chosen and v.type and v.type.fits(output.type)]
            chosen += same[:1]
        group.inputs = tuple(chosen) if chosen and len(chosen) == len(group.outputs) else tuple(alone[:1])


def _in_the_order_of(model: tuple[Value, ...], values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Values in the order in which those of the block before have their types; blocks that alternate read in turn."""
    if len(values) < 2 or len(model) != len(values) or fit(model, values):
        return values
    rest, found = list(values), []
    for one in model:
        same = next((v for v in rest if one.type is not None and one.type.fits(v.type)), None)
        if same is None:
            return values
        rest.remove(same)
        found.append(same)
    return tuple(found)


def _at_the_places_of(model: Group, group: Group) -> tuple[Value, ...]:
    """What a group reads where an equal one reads its inputs; () where they are not equal, or read otherwise."""
    if [node.op for node in model.nodes] != [node.op for node in group.nodes]:
        return ()
    found: dict[Value, Value] = {}
    for node, twin in zip(model.nodes, group.nodes, strict=True):
        for value, mine in zip(node.operands(), twin.operands(), strict=False):
            if value in model.inputs and found.setdefault(value, mine) is not mine:
                return ()
    return tuple(found[value] for value in model.inputs) if len(found) == len(model.inputs) else ()


def collects(node: Node, value: Value) -> bool:
    """Whether a node reads a value as an item of a list."""
    return any(value in items for items in _lists(node))


def collects_all(node: Node, values: Sequence[Value]) -> bool:
    """Whether a node reads values in a list, each once, in order and evenly spaced.

    They stand one behind the other, or with those that the same blocks give besides between them (keys and values).
    """
    for items in _lists(node):
        if any(items.count(value) != 1 for value in values):
            continue
        at = [items.index(value) for value in values]
        step = at[1] - at[0] if len(at) > 1 else 1
        if step > 0 and at == list(range(at[0], at[0] + step * len(at), step)):
            between = items[at[0] : at[-1] + 1]
            if step == 1 or all(isinstance(item, Value) and between.count(item) == 1 for item in between):
                return True
    return False


def with_row(
    items: Sequence[Any], row: Sequence[Value], after: Sequence[Value] | None
) -> list[tuple[int, Any]]:
    """A list's items with those of one more row put in, or with a row taken out where ``after`` is None.

    ``row`` are the values put in behind the values ``after``, in their order; or those taken out. Neighbours stay
    neighbours: a key and a value are put in behind a key and a value. Each item comes with the place, before, of itself
    or of what it is the like of.
    """
    if after is None:
        return [(place, item) for place, item in enumerate(items) if item not in row]
    found: list[tuple[int, Any]] = []
    waiting: list[tuple[int, Any]] = []
    like = dict(zip(after, row, strict=True))
    for place, item in enumerate(items):
        found.append((place, item))
        if isinstance(item, Value) and item in like:
            waiting.append((place, like[item]))
            following = items[place + 1] if place + 1 < len(items) else None
            if not (isinstance(following, Value) and following in like):
                found += waiting
                waiting = []
    return found


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


def staying_operands(structure: Structure) -> dict[Node, frozenset[int]]:
    """For nodes of blocks that read their stage's input as what stays: which of their operands do, by position.

    A decoder's layers read the memory that the first of them also takes as its input (``x = memory = embed(x)``). A
    copy has to read the memory where its source does, and elsewhere what the block before computes; in the first block
    one value is both, so a later equal block shows which operand is which.
    """
    found: dict[Node, frozenset[int]] = {}
    for stage in structure.stages:
        first, *later = stage.all_blocks
        shared = set(first.inputs)
        for block in later:
            kept = shared.difference(block.inputs)
            for node in block.nodes if kept else ():
                places = frozenset(place for place, value in enumerate(node.operands()) if value in kept)
                if places:
                    found[node] = places
        for other in later:
            if _alike(first, other):
                for node, twin in zip(first.nodes, other.nodes, strict=True):
                    mine = node.operands()
                    places = frozenset(p for p in found.get(twin, ()) if p < len(mine) and mine[p] in shared)
                    if places:
                        found[node] = places
                break
    return found


def _alike(block: Block, other: Block) -> bool:
    return [node.op for node in block.nodes] == [node.op for node in other.nodes]
