"""What exists once for each block outside of the blocks: inputs of the network, and items of a list that collects.

The rewriter's part that keeps them in step: a copy of a block with a past key and value has its own, and what collects
hidden states takes those of one block more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elastic_ir.discovery.links import with_row
from elastic_ir.errors import StructureError
from elastic_ir.ir.cloner import copy_node
from elastic_ir.ir.graph import RESULTS, Graph, Node, Value
from elastic_ir.ir.structure import Block, Stage

_NEAR = 8  #: operations between a concatenation and the layer that reads it


class GivenAndCollected:
    """What the rewriter does to inputs and lists of which every block has a part."""

    graph: Graph
    _users: dict[Value, dict[Node, None]]

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
        for value in row:
            if after is not None:
                self._users.setdefault(value, {})[reader] = None
            elif value not in reader.operands():
                self._users.get(value, {}).pop(reader, None)

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
