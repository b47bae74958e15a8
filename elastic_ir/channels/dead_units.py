"""Blocks that compute nothing: what they return is what they were given, for every input.

A residual block whose branch is zero everywhere is one, if what follows the addition leaves the stream as it is: a
ReLU does where the stream is not negative to begin with.
"""

from __future__ import annotations

from elastic_ir.channels.flow import Flow
from elastic_ir.ir.graph import Graph, Literal, Node, Value
from elastic_ir.ir.operations import Trait, has, known_kind
from elastic_ir.ir.structure import Block, Stage


def dead_blocks(graph: Graph, flow: Flow) -> list[Block]:
    """The free blocks that can go, whole units only; a stage without an entry keeps one unit."""
    if graph._structure is None or not len(graph):
        return []
    same = _same_values(graph, flow)
    found: list[Block] = []
    for stage in graph.structure.stages:
        step = stage.period or len(stage.blocks) or 1
        units = [stage.blocks[at : at + step] for at in range(0, len(stage.blocks), step)]
        dead = [unit for unit in units if all(_is_dead(block, stage, same, flow) for block in unit)]
        if stage.entry is None and len(dead) == len(units):
            dead = dead[1:]
        found += [block for unit in dead for block in unit]
    return found


def _is_dead(block: Block, stage: Stage, same: dict[Value, Value], flow: Flow) -> bool:
    if block.input is None or block.output is None or not block.preserving:
        return False
    if same.get(block.output, block.output) is not same.get(block.input, block.input):
        return False
    inside = set(block.nodes)
    return all(
        reader in inside
        for node in block.nodes
        if node.output is not block.output
        for reader in flow.users.get(node.output, ())
    )


def _same_values(graph: Graph, flow: Flow) -> dict[Value, Value]:
    """For each value that always equals an earlier one, the earliest such."""
    same: dict[Value, Value] = {}
    nonnegative: set[Value] = set()

    def first(value: Value) -> Value:
        return same.get(value, value)

    for node in graph:
        kind = known_kind(node)
        values = [first(value) for value in node.operands()]
        kept = _stays(node, kind, flow)
        if kept is not None and (kind != "relu" or first(kept) in nonnegative):
            same[node.output] = first(kept)
        passes_on = kind == "cat" or has(node, Trait.POOL | Trait.SAME | Trait.SUM)
        known = not node.weight_names() and all(value in nonnegative for value in values)
        plain = not any(isinstance(item, (int, float, Literal)) for item in node.args) or not has(
            node, Trait.ARITHMETIC
        )
        if kind and (has(node, Trait.NONNEGATIVE) or (passes_on and values and known and plain)):
            nonnegative.add(node.output)
    return same


def _stays(node: Node, kind: str, flow: Flow) -> Value | None:
    """The operand that a node returns as it is; for a ReLU, if that is not negative."""
    if kind == "add" and len(node.args) == 2 and not node.kwargs:
        for value, other in (node.args, node.args[::-1]):
            if isinstance(value, Value) and isinstance(other, Value) and value.type == node.output.type:
                constants = flow.constants(other)
                if constants is not None and not constants.any():  # NaN counts as something
                    return value
        return None
    if kind == "relu" or (kind and has(node, Trait.SAME)):
        value = flow.rules.source(node)
        return value if node.operands() == [value] and not node.weight_names() else None
    return None
