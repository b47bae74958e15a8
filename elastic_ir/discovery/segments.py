"""Segments: what lies between two values that all flow of a network passes through.

Such a value dominates the output (Cooper, Harvey and Kennedy 2001 compute dominators as networkx does). Flow is what
depends on a layer's weights: attention masks, rotary tables and shapes, read along the way, are not, and so do not
hide the cuts. In front of the first layer it is what the first segment alone reads: an embedding, an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import networkx as nx

from elastic_ir.discovery.depth import only_gates, path_lengths
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import reads_form_only, recurrent_layers

_STARTS = 6  #: ways to begin a trunk that are tried
_LARGEST = 12  #: layers on a path through a block; in more, other blocks hide

#: A layer's kind: its operator, the extents of its kernel, whether each channel has a filter of its own. Of such a
#: filter the extents are left out, here and among the shapes: blocks of one stage may differ in them.
Kind: TypeAlias = tuple[str, tuple[int, ...], bool]


@dataclass(eq=False)
class Segment:
    """What lies between two cuts; the later one's node belongs to it. What only makes a gate is not a layer."""

    nodes: list[Node] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    layers: list[Kind] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    resizes: bool = False  #: without weights, and as many elements do not come out as went in


@dataclass(eq=False)
class Trunk:
    """Segments in a row, in order, and the nodes that they are made of."""

    segments: list[Segment]
    nodes: set[Node]


def find_trunks(graph: Graph, done: set[Node]) -> Iterator[Trunk]:
    """The trunk that explains most layers, in the forms that differ by what it starts from, the plainest first.

    What stands before the first layer is flow only where no block far behind reads it as well (a mask): how far is to
    be judged by what then repeats. ``done`` are the nodes of trunks that are known: their results are not flow, nor is
    what is made of them alone.
    """
    flow = _flow(graph, done)
    if not flow:
        return
    gates = only_gates(graph, next(node for node in graph if node.kind == "output"))
    above = _dominators(flow)
    last = _end_of_trunk(graph, flow, above, gates)
    cuts, place = _cut(flow, above, last)
    yield _trunk(graph, flow, gates, cuts, place)
    made, reaches = _sources(graph, flow, place, done)
    for furthest in sorted(set(reaches.values()))[:_STARTS]:
        sources = {node for node, reach in reaches.items() if reach <= furthest}
        wider = {
            node: tuple(
                dict.fromkeys(
                    (*flow.get(node, ()), *(item for item in made.get(node, ()) if item in sources))
                )
            )
            for node in graph
            if node in sources or node in flow
        }
        cuts, place = _cut(wider, _dominators(wider), last)
        yield _trunk(graph, wider, gates, cuts, place)


def _trunk(
    graph: Graph,
    flow: dict[Node, tuple[Node, ...]],
    gates: set[Node],
    cuts: list[Node],
    place: dict[Node, int],
) -> Trunk:
    nodes = set(place)
    _take_helpers(graph, flow, place)
    segments = [Segment() for _ in cuts]
    for node in graph:
        if node in place:
            segments[place[node]].nodes.append(node)
    before: Value | None = None
    for segment, cut in zip(segments, cuts, strict=True):
        _describe(segment, graph, flow, gates, before, cut.output)
        before = cut.output
    return Trunk(segments, nodes)


def _flow(graph: Graph, done: set[Node]) -> dict[Node, tuple[Node, ...]]:
    """The nodes whose results depend on a layer's weights, each with those of its operands that do, in order."""
    layer_names = {name for name, weight in graph.weights.items() if weight.layer}
    carries: set[Value] = set()  # layers' weights, transposed or dequantised
    fed: set[Value] = set()  # what comes from an input of the network
    settled = {node.output for node in done}  # and what is made of that alone
    flow: dict[Node, tuple[Node, ...]] = {}
    for node in graph:
        if node.kind == "output":
            continue
        operands = node.operands()
        inputs = tuple(dict.fromkeys(value.node for value in operands if value.node in flow))
        live = node.kind == "input" or any(value in fed for value in operands)
        if live:
            fed.add(node.output)
        if node in done:
            continue
        from_known = [value for value in operands if value in settled]
        if from_known and all(value in settled for value in operands if value in fed):
            settled.add(node.output)
            continue
        weighted = bool(layer_names.intersection(node.weight_names())) or any(v in carries for v in operands)
        if not live:
            if weighted:
                carries.add(node.output)
            continue
        looked_up = node.op == "onnx.Gather"
        if not reads_form_only(node) and (inputs or (weighted and not looked_up)):
            flow[node] = inputs
    return flow


def _sources(
    graph: Graph, flow: dict[Node, tuple[Node, ...]], place: dict[Node, int], done: set[Node]
) -> tuple[dict[Node, tuple[Node, ...]], dict[Node, int]]:
    """Inputs of numbers, tables looked up, and what is made of them before any layer.

    The first result has what each of them, and each node of the flow, reads of them; the second the number of the last
    segment that they reach without a layer between.
    """
    made: dict[Node, tuple[Node, ...]] = {}
    fed: set[Value] = set()  # what comes from an input of the network
    for node in graph:
        kind = node.output.type
        if node.kind == "input" or any(value in fed for value in node.operands()):
            fed.add(node.output)
        if node in done or reads_form_only(node) or node.kind == "output":
            continue
        operands = tuple(dict.fromkeys(value.node for value in node.operands() if value.node in made))
        operands = tuple(item for item in operands if item not in flow)
        if node in flow:
            made[node] = operands
        elif kind is None or "float" in kind.dtype or (operands and _quantises(node)):
            given = [value for value in node.operands() if value in fed]
            whole = all(value.type is None or "float" not in value.type.dtype for value in given)
            held = any(graph.weights[name].is_parameter for name in node.weight_names())
            held |= len(given) < len(node.operands()) or _quantises(node)
            table = bool(given) and whole and held
            if operands or table or (node.kind == "input" and kind is not None):
                made[node] = operands
    reaches: dict[Node, int] = {}
    for node in reversed(made):
        reach = place.get(node) if node in flow else reaches.get(node)
        if reach is not None:
            for item in made[node]:
                reaches[item] = max(reach, reaches.get(item, 0))
    return made, reaches


def _quantises(node: Node) -> bool:
    made = node.operands()[0].node if node.op == "operator.getitem" else node
    return "quantize" in made.op.lower()


def _dominators(flow: dict[Node, tuple[Node, ...]]) -> dict[Node, Node | None]:
    """For each node the one that all flow to it passes through last before it; None where there is none."""
    root = Node("", "root")
    edges: nx.DiGraph[Node] = nx.DiGraph()
    for node, inputs in flow.items():
        edges.add_edges_from((operand, node) for operand in inputs or (root,))
    found = nx.immediate_dominators(edges, root)
    return {node: None if found[node] is root else found[node] for node in flow}


def _cut(
    flow: dict[Node, tuple[Node, ...]], above: dict[Node, Node | None], last: Node
) -> tuple[list[Node], dict[Node, int]]:
    """The nodes that all flow to the last one passes through, and for each node of that flow its segment's number."""
    reach, stack = {last}, [last]
    while stack:
        for node in flow[stack.pop()]:
            if node not in reach:
                reach.add(node)
                stack.append(node)
    cuts = [last]
    while (over := above[cuts[-1]]) is not None:
        cuts.append(over)
    cuts = [
        node for node in reversed(cuts) if node.output.is_tensor
    ]  # several results are not a value to cut at
    number = {node: index for index, node in enumerate(cuts)}
    place = dict(number)
    for node in flow:  # in order, so that what dominates a node has its place before it
        if node in reach and node not in number:
            over = above[node]
            place[node] = 0 if over is None else number[over] + 1 if over in number else place[over]
    return cuts, place


def _end_of_trunk(
    graph: Graph, flow: dict[Node, tuple[Node, ...]], above: dict[Node, Node | None], gates: set[Node]
) -> Node:
    """The node up to which the cuts explain most layers; of equals one with most cuts.

    It is the output in a classifier. Where stages are tapped (a pyramid of features), the output has hardly a cut above
    it, while the backbone's end has them all.
    """
    lengths = path_lengths(graph)
    explained: dict[
        Node, tuple[int, int]
    ] = {}  #: layers between the cuts above; less the segments that hide more
    cuts: dict[Node, int] = {}
    best: Node | None = None
    for node in flow:
        over = above[node]
        layers, hiding = explained[over] if over is not None else (0, 0)
        gain = max(lengths[node.output] - lengths[over.output], 0) if over is not None else 0
        explained[node] = layers + min(gain, _LARGEST), hiding - (gain >= _LARGEST)
        cuts[node] = cuts[over] + 1 if over is not None else 0
        found = (explained[node], cuts[node])
        if node not in gates and (best is None or found >= (explained[best], cuts[best])):
            best = node
    assert best is not None
    reached = {best}  # from a place within the last block's branch on to that block's end
    for node, inputs in flow.items():
        if not reached.isdisjoint(inputs):
            reached.add(node)
            if explained[node] == explained[best] and node not in gates:
                best = node
    return best


def _take_helpers(graph: Graph, flow: dict[Node, tuple[Node, ...]], place: dict[Node, int]) -> None:
    """What is not flow (shapes, weights being transposed) goes to the one segment that reads it, if it is one."""
    users = graph.users()
    for node in reversed(graph.nodes):
        if node not in flow and node.kind not in ("input", "output"):
            readers = {place.get(reader, -1) for reader in users.get(node.output, ())}
            if len(readers) == 1 and -1 not in readers:
                place[node] = readers.pop()


def _describe(
    segment: Segment,
    graph: Graph,
    flow: dict[Node, tuple[Node, ...]],
    gates: set[Node],
    before: Value | None,
    cut: Value,
) -> None:
    carried: dict[Value, list[str]] = {}
    for node in segment.nodes:
        found = [name for name in node.weight_names() if graph.weights[name].layer]
        found += [name for value in node.operands() for name in carried.get(value, ())]
        if node not in flow:
            carried[node.output] = found
            continue
        segment.operations.append(node.op)
        if node in gates:
            continue
        for name in dict.fromkeys(found):
            shape = graph.weights[name].shape
            alone = len(shape) > 2 and shape[1] == 1
            if recurrent_layers(node):  # the first layer of a stack may read other features
                segment.layers.append((node.op, (), False))
                segment.shapes.append(shape)
                continue
            segment.layers.append((node.op, () if alone else shape[2:], alone))
            segment.shapes.append(shape[:2] if alone else shape)
    kinds = [value.type for value in (before, cut) if value is not None]
    if not segment.layers and len(kinds) == 2 and kinds[0] is not None and kinds[1] is not None:
        segment.resizes = prod(kinds[0].shape) != prod(kinds[1].shape)
