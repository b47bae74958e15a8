"""The rewriter's parts beside the blocks: what exists once for each of them outside, and what counts as a unit.

Inputs of the network and items of a list that collects are kept in step: a copy of a block with a past key and value
has its own, and what collects hidden states takes those of one block more. How many blocks are cloned at once, and
whether the first one is kept, changes no node and no weight, but what later plans may do with the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from elastic_ir.discovery.links import collects, with_row
from elastic_ir.errors import StructureError
from elastic_ir.ir.cloner import copy_node
from elastic_ir.ir.graph import RESULTS, Graph, Node, Value
from elastic_ir.ir.naming import head_in
from elastic_ir.ir.structure import Block, Child, Container, Stage

_NEAR = 8  #: operations between a concatenation and the layer that reads it


class GivenAndCollected:
    """What the rewriter does to inputs and lists of which every block has a part."""

    graph: Graph
    _users: dict[Value, dict[Node, None]]
    edited: dict[Node, None]
    _stage_of: dict[Block, Stage]

    def users(self, value: Value) -> tuple[Node, ...]:
        raise NotImplementedError

    def _link(self, node: Node, after: Node) -> Node:
        raise NotImplementedError

    def _unlink(self, node: Node) -> None:
        raise NotImplementedError

    def _rewire(self, reader: Node, old: Value, new: Value) -> None:
        raise NotImplementedError

    def _clone_given(self, block: Block, after: Block) -> dict[Value, Value]:
        """Inputs of the network for a copy of a block that has some of its own, behind those of another block."""
        if not block.given:
            return {}
        values: dict[Value, Value] = {}
        for value in block.given:
            copy_node(value.node, values)
        inputs = [node.output for node in self.graph if node.kind == "input"]
        row = [values[value] for value in block.given]
        before: Node | None = None
        for _, item in with_row(inputs, row, after.given):
            if before is not None and item in row:
                self._link(item.node, after=before)
            before = item.node
        return values

    def _collect(self, reader: Node, row: Sequence[Value], after: Sequence[Value] | None) -> None:
        """Let a node that collects values take a row of them behind another, or a row no more (``after`` is None).

        StructureError where it concatenates them for a layer that has columns for each.
        """
        wide = self._as_wide_as(reader)
        if wide is not None:
            raise StructureError(
                f"the results of the blocks are concatenated (%{reader.name}), and {wide!r} has columns for each of "
                "them, so none can be cloned or deleted; sum them, or take the last one's alone"
            )
        if reader.kind == "output" and RESULTS in reader.attributes and isinstance(reader.args[0], tuple):
            names = reader.attributes[RESULTS]
            assert isinstance(names, tuple)
            places = [place for place, _ in with_row(reader.args[0], row, after)]
            reader.attributes = {**reader.attributes, RESULTS: tuple(names[place] for place in places)}
        reader.args = tuple(_collecting(part, row, after) for part in reader.args)
        reader.kwargs = {key: _collecting(part, row, after) for key, part in reader.kwargs.items()}
        self.edited[reader] = None
        for value in row:
            if after is not None:
                self._users.setdefault(value, {})[reader] = None
            elif value not in reader.operands():
                self._users.get(value, {}).pop(reader, None)

    def _gathers(self, reader: Node, value: Value, block: Block) -> bool:
        """Whether a node collects this tap of a block as it does those of the other blocks.

        A network that returns the last state among its results reads that one alone.
        """
        if value not in block.taps or not collects(reader, value):
            return False
        rank = block.taps.index(value)
        others = [one for one in self._stage_of[block].all_blocks if one is not block]
        rows = [one.taps[rank] for one in others if len(one.taps) > rank]
        return not rows or any(collects(reader, row) for row in rows)

    def _pass_on_taps(self, block: Block, taps: Sequence[Value]) -> None:
        """Let who reads a tap of the last block alone, and not with all others, read that of another block.

        What flows on besides is passed on with the flow.
        """
        made = {node.output for node in block.nodes}
        for old, new in zip(block.taps, taps, strict=False):
            for reader in self.users(old) if old in made and old not in block.outputs else ():
                if reader.output not in made and not self._gathers(reader, old, block):
                    self._rewire(reader, old, new)

    def _as_wide_as(self, reader: Node) -> str | None:
        """The weight whose columns are as many as a concatenation is wide, if one is read next."""
        extent = _concatenated(reader)
        waiting = [reader.output] if extent is not None else []
        for _ in range(_NEAR):
            if not waiting:
                break
            for user in self.users(waiting.pop(0)):
                names = user.weight_names()
                for name in names:
                    shape = self.graph.weights[name].shape
                    if len(shape) > 1 and shape[1] == extent:
                        return name
                if not names and user.output.type is not None and extent in user.output.type.shape:
                    waiting.append(user.output)
        return None

    def _delete_given(self, block: Block, stage: Stage) -> None:
        """Delete the inputs that are a block's own; who asks for their extents asks another block's."""
        other = next((one for one in stage.all_blocks if one is not block), None)
        for rank, value in enumerate(block.given):
            for reader in self.users(value):
                if other is None:
                    raise StructureError(
                        f"{block.path} cannot be deleted: its input {value.node.origin!r} has no like, and is read "
                        f"outside of it as well (%{reader.name})"
                    )
                self._rewire(reader, value, other.given[rank])
            self._unlink(value.node)


def _concatenated(node: Node) -> int | None:
    """How wide a concatenation is along the axis of which it is one; None for anything else that collects."""
    made = node.output.type
    types = [value.type for value in node.operands()]
    if (
        made is None
        or len(types) < 2
        or any(kind is None or len(kind.shape) != len(made.shape) for kind in types)
    ):
        return None
    for axis, extent in enumerate(made.shape):
        if extent == sum(kind.shape[axis] for kind in types if kind is not None) and extent > 0:
            return extent
    return None


def _collecting(item: Any, row: Sequence[Value], after: Sequence[Value] | None) -> Any:
    """An argument with a row of values put behind another in the lists that hold it, or taken out of them."""
    if isinstance(item, dict):
        return {key: _collecting(part, row, after) for key, part in item.items()}
    if not isinstance(item, (list, tuple)):
        return item
    return type(item)(_collecting(part, row, after) for _, part in with_row(item, row, after))


class StageEdits:
    """What the rewriter can do to a stage as a whole."""

    graph: Graph
    _paths: dict[str, Child]
    _homes: dict[Child, Container]
    _names_of: dict[int, set[str]]

    def set_unit(self, blocks: int) -> None:
        """Set the unit size, in blocks, of every stage that has free blocks.

        It overrides what was found; where it cuts units apart, the structure's note says so. StructureError where
        nothing repeats, or where a stage's free blocks are not a multiple of it.
        """
        structure = self.graph.structure
        stages = [stage for stage in structure.stages if stage.blocks]
        for stage in stages:
            if stage.period != blocks and len(stage.blocks) % blocks:
                raise StructureError(
                    f"stage {stage.name!r} has {len(stage.blocks)} free blocks, not a multiple of unit={blocks}"
                )
        cut = [stage for stage in stages if stage.period is not None and blocks % stage.period]
        if cut:
            note = (
                f"{', '.join(stage.name for stage in cut)}: {cut[0].period} blocks were found to make a unit, and "
                f"{blocks} are cloned and deleted at a time as asked (unit={blocks}); a natively built network may "
                "alternate its blocks in another way"
            )
            structure.note = "; ".join(filter(None, (structure.note, note)))
        for stage in structure.stages:
            stage.period = blocks

    def state_units(self, periods: Mapping[str, int]) -> None:
        """Set the unit sizes, in blocks, of stages by their names, where none was found."""
        for stage in self.graph.structure.stages:
            if stage.period is None:
                stage.period = periods.get(stage.name)

    def loosen(self, stage: Stage, *, entry: bool) -> None:
        """Let a stage be put together block by block; with ``entry`` its first block is as free as the others."""
        stage.period = 1
        if entry and stage.entry is not None:
            stage.blocks.insert(0, stage.entry)
            stage.entry = None

    def leave_list(self, container: Container) -> None:
        """Let a list that holds a stage's blocks a second time stay as it is: its members are no slots any more."""
        inside = set(container.children)
        for stage in self.graph.structure.stages:
            if container in stage.containers:
                stage.containers = tuple(box for box in stage.containers if box is not container)
                for block in stage.all_blocks:
                    block.children = [child for child in block.children if child not in inside]
        for child in inside:
            self._paths.pop(child.path, None)
            self._homes.pop(child, None)
        heads = {child.path for child in inside}
        for name, weight in self.graph.weights.items():  # clones have tensors of their own
            if head_in(name, heads) is not None:
                self._names_of[id(weight.storage)].discard(name)

    def add_sources(self, names: Iterable[str]) -> list[int]:
        """Enter other networks whose tensors the graph is to take; their numbers, for :meth:`take_over`."""
        known = self.graph.edits.sources or (self.graph.name,)
        fresh = list(names)
        self.graph.edits = replace(self.graph.edits, sources=(*known, *fresh))
        return list(range(len(known), len(known) + len(fresh)))
