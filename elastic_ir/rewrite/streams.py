"""Streams: which operands of a block read which of the values that flow into it, where one value is several of them.

Both streams of a reversible network start as one tensor, and so do those of a block whose predecessors were deleted.
Its copies read what the block before them computes, each stream its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from elastic_ir.errors import StructureError
from elastic_ir.ir.graph import Node
from elastic_ir.ir.structure import Block, Structure

#: For a node, the streams that its operands read, by the places that :meth:`Node.operands` counts.
Flows = Mapping[int, int]


def flowing_operands(structure: Structure) -> dict[Node, Flows]:
    """For nodes of blocks of several streams, which of their operands reads which of them.

    A block whose streams are one value is understood by another one of its stage that does the same.
    """
    found: dict[Node, Flows] = {}
    for stage in structure.stages:
        if max((len(block.inputs) for block in stage.blocks), default=0) < 2:
            continue
        blocks = stage.all_blocks
        for block in blocks:
            if is_parted(block):
                _enter(block, block, found)
        for block in blocks:
            if not is_parted(block):
                operations = [node.op for node in block.nodes]
                alike = [one for one in blocks if is_parted(one) and [n.op for n in one.nodes] == operations]
                # where some read crosswise, one value for all does not show what this one does
                if len({_reading(one) for one in alike}) == 1:
                    _enter(block, alike[0], found)
    return found


def is_parted(block: Block) -> bool:
    """Whether each stream that flows into a block is a value of its own."""
    return len(set(block.inputs)) == len(block.inputs)


def check_parted(block: Block, flows: Mapping[Node, Flows]) -> None:
    """StructureError where it is not known which stream an operand of a block reads."""
    if not any(node in flows for node in block.nodes):
        raise StructureError(
            f"{block.path} takes one value for several streams, and no other block of its stage shows which of its "
            "operations reads which stream, so it cannot be cloned"
        )


def _reading(block: Block) -> tuple[tuple[int, ...], ...]:
    """Which stream each operand of a block's nodes reads; -1 for none."""
    streams = {value: index for index, value in enumerate(block.inputs)}
    return tuple(tuple(streams.get(value, -1) for value in node.operands()) for node in block.nodes)


def _enter(block: Block, model: Block, found: dict[Node, Flows]) -> None:
    streams = {value: index for index, value in enumerate(model.inputs)}
    for node, twin in zip(block.nodes, model.nodes, strict=True):
        read = {place: streams[value] for place, value in enumerate(twin.operands()) if value in streams}
        mine = node.operands()
        if read and len(mine) == len(twin.operands()):
            found[node] = {place: at for place, at in read.items() if mine[place] is block.inputs[at]}
