"""Stages inside of stages: a configuration that has the depths of a stage's blocks counts the lists inside of them.

Of repeats within repeats the outer level is found as a rule. Swin2SR's groups of blocks are equal by their names, but
its ``depths`` has the number of blocks of each group: then the lists inside of the groups are the stages. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elastic_ir.checkpoints.config.tables import Reader
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.discovery.numbered_lists import numbered_lists
from elastic_ir.errors import StructureError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import pattern_of
from elastic_ir.rewrite.rewriter import Rewriter


def take_counted_lists(graph: Graph, config: dict[str, Any]) -> None:
    """Have the lists inside of a stage's blocks be stages where the configuration has a depth for each block."""
    stacks = Stack.all_of(graph)
    reader = Reader(config, stacks, graph.weights)
    depths = {stack: found for stack in stacks if (found := reader.depths(stack))}
    if not depths:
        return
    lengths = {one.head: len(one.slots) for one in numbered_lists(graph.weights, least=1)}
    inner = {stack: _counted_inside(stack, lengths, found) for stack, found in depths.items()}
    if any(inner.values()):
        from elastic_ir.discovery.named_lists import structure_at

        leads = {stage.container.series for stage in graph.stages}
        names = [
            inner.get(stack) or stack.series.head.rstrip(".") for stack in stacks if stack.series in leads
        ]
        try:
            structure = structure_at(graph, names)
        except StructureError:
            return
        Rewriter(graph, structure)


def _counted_inside(stack: Stack, lengths: Mapping[str, int], depths: Sequence[list[Any]]) -> str:
    """What the lists inside of a stack's blocks are called that are as long as some depths; empty where none are."""
    blocks = [f"{stack.series.name(stack.base + at)}." for at in range(stack.before)]
    rests = [head.removeprefix(blocks[0]) for head in lengths if head.startswith(blocks[0])]
    found = [
        rest
        for rest in rests
        if rest == pattern_of(rest) and [lengths.get(f"{block}{rest}") for block in blocks] in depths
    ]
    return f"{stack.series.head}*{stack.suffix}.{found[0].rstrip('.')}" if len(found) == 1 else ""
