"""Depth: weight layers on the longest path, from the graph or, where it is clear, from names alone.

Projection shortcuts do not lengthen the longest path. What multiplies (the gate of squeeze-excitation, ECA or SK)
is left out: at a product the path runs through the operand that is scaled. A fused attention counts two layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod

from elastic_ir.discovery.parts import Group
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import Trait, has, is_product, reads_form_only, recurrent_layers
from elastic_ir.tensors.weights import is_packed

#: Names of tables that are looked up: without a graph only their name distinguishes them from a linear layer.
_LOOKUPS = re.compile(r"emb|wte|wpe|token|pos")

_NONE: frozenset[str] = frozenset()


def looks_up(name: str) -> bool:
    """Whether a weight known by name alone is a table of embeddings or positions, which is not a layer."""
    return _LOOKUPS.search(name) is not None


def path_lengths(graph: Graph) -> dict[Value, int]:
    """For each value the number of weight layers on the longest path from an input to it."""
    order = {node: index for index, node in enumerate(graph)}
    # by tensor, not by name: an exported program knows a tied tensor by one name only
    tensors = {id(weight.storage) for weight in graph.weights.values() if weight.layer}
    layer_names = frozenset(n for n, weight in graph.weights.items() if id(weight.storage) in tensors)
    lengths: dict[Value, int] = {}
    #: what values are computed from that come of weights alone (standardised ones, for example)
    made_of: dict[Value, frozenset[str]] = {}
    for node in graph:
        if reads_form_only(node):  # what is known without reading a tensor's values is not flow
            lengths[node.output], made_of[node.output] = 0, _NONE
            continue
        operands, names = node.operands(), node.weight_names()
        flowing = [value for value in operands if value not in made_of]
        looked_up = has(node, Trait.LOOKUP)  # an embedding may be tied to the head, and is not a layer
        direct = _NONE if looked_up else layer_names.intersection(names)
        layers = direct.union(*(made_of[value] for value in operands if value in made_of))
        if not flowing and (operands or names):
            # a layer on what is stored (learned queries); what multiplies layers, or one by a vector, computes a weight
            applied = len(direct) == 1 and has(node, Trait.CONTRACTS) and not _by_vector(node, graph)
            # a module that reads no value computes a weight for others (torch.nn.utils.parametrize)
            computes = node.kind in ("function", "method", "onnx") or (node.kind == "module" and not operands)
            if computes and not applied:
                lengths[node.output], made_of[node.output] = 0, layers
                continue
        if is_product(node) and len(flowing) == 2:
            before = lengths[_scaled(flowing[0], flowing[1], order)]
        else:
            before = max((lengths[value] for value in flowing), default=0)
        # 1 for a convolution or linear layer, 2 for an attention that holds its projections
        lengths[node.output] = before + (recurrent_layers(node) or min(len(layers), 2))
    return lengths


def _by_vector(node: Node, graph: Graph) -> bool:
    """Whether a node multiplies a matrix by a vector, both stored; so spectral norm computes what it divides by."""
    names = node.weight_names()
    return len(node.args) == 2 == len(names) and any(len(graph.weights[name].shape) == 1 for name in names)


def layers_between(
    inputs: Sequence[Value], outputs: Sequence[Value], lengths: Mapping[Value, int]
) -> int | None:
    """Weight layers on the longest path from what flows into a block to what flows out; None where that is unknown."""
    if not inputs or not outputs or not all(value in lengths for value in (*inputs, *outputs)):
        return None
    return max(lengths[value] for value in outputs) - max(lengths[value] for value in inputs)


def only_gates(graph: Graph, end: Node) -> set[Node]:
    """The nodes on the way to ``end`` that reach it through the gates of products alone; no path counts them."""
    order = {node: index for index, node in enumerate(graph)}

    def behind(scaled_only: bool) -> set[Node]:
        seen, stack = {end}, [end]
        while stack:
            node = stack.pop()
            operands = node.operands()
            if scaled_only and is_product(node) and len(operands) == 2:
                operands = [_scaled(operands[0], operands[1], order)]
            fresh = {value.node for value in operands} - seen
            seen |= fresh
            stack.extend(fresh)
        return seen

    return behind(False) - behind(True)


def longest_path(graph: Graph, lengths: dict[Value, int] | None = None) -> int:
    """The depth of a graph that has nodes: weight layers on the longest path to its output."""
    found = path_lengths(graph) if lengths is None else lengths
    return next((found[node.output] for node in graph if node.kind == "output"), max(found.values()))


def _scaled(left: Value, right: Value, order: dict[Node, int]) -> Value:
    """Which operand of a product is scaled: the larger one; of equals, the one that the other comes from."""
    sizes = [_size(left), _size(right)]
    if sizes[0] != sizes[1]:
        return left if sizes[0] > sizes[1] else right
    for whole, gate in ((left, right), (right, left)):
        if _comes_from(gate, whole, order):
            return whole
    return left if order[left.node] > order[right.node] else right


def _size(value: Value) -> int:
    """How many elements a value has; open extents, which are -1, count as 1."""
    return prod(abs(extent) for extent in value.type.shape) if value.type is not None else 1


def _comes_from(value: Value, ancestor: Value, order: dict[Node, int]) -> bool:
    """Whether ``ancestor`` is computed on the way to ``value``; looks no further back than it runs."""
    limit = order[ancestor.node]
    stack, seen = [value], {value}
    while stack:
        for operand in stack.pop().node.operands():
            if operand is ancestor:
                return True
            if operand not in seen and order[operand.node] > limit:
                seen.add(operand)
                stack.append(operand)
    return False


def chain_layers(group: Group, graph: Graph) -> int | None:
    """A block's weight layers from names: its longest chain of matching channels; None where that is unclear.

    Unclear is a block in which two linear weights of equal shape stand side by side (query, key and value), or packed
    ones, whose shapes are not those of their layers.
    """
    from elastic_ir.discovery.from_names import in_channels  # here and below, as only names need it
    from elastic_ir.discovery.levels import layer_shapes

    layers = [n for part in group.parts for n in part.weights if graph.weights[n].layer]
    names = [n for n in layers if 0 not in graph.weights[n].shape]  # without channels it computes nothing
    held = [graph.weights[name] for name in names]
    if any(not weight.prunable and is_packed(weight.name, weight.shape, weight.dtype) for weight in held):
        return None
    shapes = layer_shapes(names, graph)
    if not shapes:
        return 0
    if len(shapes) < len(names):  # the matrices of recurrent layers lie beside one another
        names = []
    if any(len(shape) == 2 for shape in shapes):
        parents = [(name.rsplit(".", 2)[0], graph.weights[name].shape) for name in names]
        if len(set(parents)) < len(parents):
            return None
    if any(len(shape) > 2 for shape in shapes):
        shapes = _without_gates(names, shapes, graph)
    longest = [1] * len(shapes)
    for later, shape in enumerate(shapes):
        for earlier in range(later):
            if _follows(shapes[earlier], shape, in_channels(shapes[0])):
                longest[later] = max(longest[later], longest[earlier] + 1)
    if all(len(shape) == 2 for shape in shapes) and max(longest) < len(shapes):
        return None  # branches, or weights stored the other way round (GPT-2's)
    return max(longest)


def _without_gates(names: list[str], shapes: list[tuple[int, ...]], graph: Graph) -> list[tuple[int, ...]]:
    """Drop biased layers where others of the block go without bias: those feed a norm, these make a gate."""
    biased = [name.removesuffix("weight") + "bias" in graph.weights for name in names]
    if all(biased) or not any(biased):
        return shapes
    if all(len(shape) > 2 for shape in shapes):
        return [shape for shape, has in zip(shapes, biased, strict=True) if not has]
    return shapes


def _follows(before: tuple[int, ...], after: tuple[int, ...], entering: int) -> bool:
    """Whether one weight's output channels can be the other's input (grouped and fused ones included).

    ``entering`` are the channels that enter the block: a convolution that takes just those is a projection of the
    shortcut, not a grouped one.
    """
    from elastic_ir.discovery.from_names import in_channels

    out, into = before[0], in_channels(after)
    if len(after) > 2 and after[1] == 1 and len(before) > 2:
        return out == after[0]
    if out == into:
        return True
    grouped = out % into == 0 and after[0] % (out // into) == 0
    return grouped and (len(after) == 2 or into != entering)
