"""Residual branches of a block: where they join the stream, and the last layer of each, whose output is what is added.

A block computes ``x + f(x)``, one addition for each of its branches, and passes the sum on as it is, or through what
leaves a sum unchanged or non-negative (identities, dropout, a ReLU). Scaling or zeroing the last layer of every branch
then scales or removes the block's step, which is what growth passes do.
"""

from __future__ import annotations

from dataclasses import dataclass

from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import Trait, has, is_product, is_sum, kind_of
from elastic_ir.ir.structure import Block


@dataclass(frozen=True)
class Branch:
    """One branch: the addition where it joins, and the weights of the layer that computes what is added."""

    join: Node
    last: Node
    weights: tuple[str, ...]


def branches_of(block: Block, graph: Graph) -> tuple[list[Branch], str]:
    """The branches of a block, the last first, or no branch and the reason why it is not a residual block."""
    if block.input is None or block.output is None:
        return [], "names alone do not show what it computes"
    if not block.preserving:
        return [], "it changes the activation's shape"
    inside = set(block.nodes)
    light = _light_values(block, inside)
    flowing = {block.input}
    for node in block.nodes:
        if flowing.intersection(node.operands()):
            flowing.add(node.output)
    found: list[Branch] = []
    value = block.output
    while value is not block.input:
        node = value.node
        operands = [item for item in dict.fromkeys(node.operands()) if item in light]
        if node not in inside or len(operands) != 1:
            return [], f"its output comes from {node.op}, not from a sum with its input"
        if is_sum(node):
            others = [item for item in node.operands() if item is not operands[0]]
            if len(others) != 1:
                return [], f"%{node.name} adds no branch"
            branches = _last_layers(others[0], node, inside, flowing, graph)
            if isinstance(branches, str):
                return [], branches
            found += branches
        value = operands[0]
    return (found, "") if found else ([], "nothing is added to its input")


def _light_values(block: Block, inside: set[Node]) -> set[Value]:
    """The stream: the input, sums with it, and what leaves a sum as it is."""
    assert block.input is not None
    light = {block.input}
    for node in block.nodes:
        streams = [value for value in node.operands() if value in light]
        cast = has(node, Trait.CAST) and bool(streams) and streams[0].type == node.output.type
        relu = kind_of(node) == "relu" and any(value is not block.input for value in streams)
        # what keeps the elements and their order: as a block ends in the shape it begins with, such undo one another
        same = has(node, Trait.SAME | Trait.RESHAPE) or cast or relu
        if len(streams) == 1 and not node.weight_names() and (is_sum(node) or same):
            light.add(node.output)
    return light


def _last_layers(
    value: Value, join: Node, inside: set[Node], flowing: set[Value], graph: Graph
) -> list[Branch] | str:
    """The layers whose outputs are added: of branches side by side (attention beside an MLP) each one's."""
    node = value.node
    while node in inside and has(node, Trait.SAME) and len(node.operands()) == 1:
        node = node.operands()[0].node
    if node not in inside or not is_sum(node) or node.weight_names():
        branch = _last_layer(value, join, inside, flowing, graph)
        return branch if isinstance(branch, str) else [branch]
    found: list[Branch] = []
    for operand in node.operands():
        branches = _last_layers(operand, join, inside, flowing, graph)
        if isinstance(branches, str):
            return branches
        found += branches
    return found


def _last_layer(
    value: Value, join: Node, inside: set[Node], flowing: set[Value], graph: Graph
) -> Branch | str:
    """The layer whose output is added, through what keeps zeros and multiples."""
    for _ in range(64):
        node = value.node
        if node not in inside:
            return f"what %{join.name} adds is computed outside of the block"
        if is_product(node):
            scale = _learned_scale(node, graph)
            if scale is not None:
                return Branch(join, *scale)
        weights = _scaled_by(node, graph)
        computed = [item for item in node.operands() if item not in flowing]
        if computed and not any(graph.weights[name].layer for name in weights):
            return f"the weight of %{node.name} is itself computed (by {computed[-1].node.op})"
        if weights:
            return Branch(join, node, weights)
        if any(has(item.node, Trait.NORMALISER) for item in node.operands()):
            return f"what %{join.name} adds goes through a norm (by {node.op}), whose own scale is not a plain weight"
        # a part of several results (an attention's) comes from what is not a tensor
        operands = [item for item in node.operands() if item.is_tensor or kind_of(node) == "getitem"]
        if not has(node, Trait.HOMOGENEOUS) or not operands:
            return f"what %{join.name} adds comes from {node.op}, which is neither a linear layer nor a norm"
        value = operands[0]
    return f"what %{join.name} adds is computed too far away"


def _learned_scale(node: Node, graph: Graph) -> tuple[Node, tuple[str, ...]] | None:
    """The parameter that a product multiplies by, reshaped perhaps (a layer's scale), with the node that reads it."""
    for value in node.operands():
        maker = value.node
        while not maker.weight_names() and has(maker, Trait.HOMOGENEOUS) and len(maker.operands()) == 1:
            maker = maker.operands()[0].node
        # a multiple of the parameter has to give that multiple of the scale, which one more than it does not
        plain = maker.kind == "weight" or (has(maker, Trait.HOMOGENEOUS) and not is_sum(maker))
        if not maker.operands() and maker.weight_names() and plain:
            return maker, _scaled_by(maker, graph)
    return None


def _scaled_by(node: Node, graph: Graph) -> tuple[str, ...]:
    """The parameters whose multiple makes a node's output that multiple; of a fused attention its last layer's."""
    names = list(dict.fromkeys(name for name in node.weight_names() if graph.weights[name].is_parameter))
    layers = [name for name in names if graph.weights[name].layer]
    if len(layers) > 1:
        order = {name: place for place, name in enumerate(graph.weights)}
        last = max(layers, key=order.__getitem__).rpartition(".")[0]
        names = [name for name in names if name.rpartition(".")[0] == last]
    return tuple(names)
