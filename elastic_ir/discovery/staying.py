"""What stays the same for every block of a stage, where it is also what flows into the first one.

A decoder's layers read the memory that the first of them also takes as its input (``x = memory = embed(x)``). A copy
has to read the memory where its source does, and elsewhere what the block before computes; in the first block one value
is both, so a later equal block shows which operand is which.
"""

from __future__ import annotations

from elastic_ir.ir.graph import Node
from elastic_ir.ir.structure import Block, Structure


def staying_operands(structure: Structure) -> dict[Node, frozenset[int]]:
    """For nodes of blocks that read their stage's input as what stays: which of their operands do, by position."""
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
