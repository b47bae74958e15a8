"""Grafting: the nodes of a matched network become those of its reference, over the weights that it has.

Once names agree, a network and its reference differ in constants only (a window's shift, a variance factor), or in
operations of constants' making (no stochastic depth where the rate is 0). The reference knows them for every place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elastic_ir.ir.cloner import copy_node, copy_structure
from elastic_ir.ir.graph import Argument, Graph, Node, Value, WeightRef, map_argument
from elastic_ir.ir.structure import Structure

if TYPE_CHECKING:
    from elastic_ir.rewrite.rewriter import Rewriter


def graft(rewriter: Rewriter, reference: Graph, structure: Structure) -> int:
    """Take over a reference's constants, or all its nodes where the operations differ; the names agree already.

    ``structure`` is the reference's, as it was matched. Returns how many nodes changed. No node does where one of
    the two has none, where they come of different front ends, or where the reference's nodes use weights that the
    graph lacks.
    """
    graph = rewriter.graph
    graph.reference = reference
    if not len(graph) or not len(reference):
        return 0
    if graph.info.frontend != reference.info.frontend:
        return 0
    if _aligned(graph, reference):
        return sum(
            _take_constants(rewriter, mine, theirs) for mine, theirs in zip(graph, reference, strict=True)
        )
    if graph.info.frontend == "onnx":
        return 0  # its nodes are taken over from its own file, and the reference's are of another
    known = graph.weights.keys()
    if any(name not in known for node in reference for name in node.weight_names()):
        return 0
    _take_nodes(rewriter, reference, structure)
    return len(graph)


def _take_constants(rewriter: Rewriter, mine: Node, theirs: Node) -> bool:
    """Write the reference's constants into a node; whether anything changed."""
    constants: list[Argument] = []

    def collect(leaf: Argument) -> Argument:
        if not isinstance(leaf, (Value, WeightRef)):
            constants.append(leaf)
        return leaf

    map_argument((theirs.args, theirs.kwargs), collect)
    queue = iter(constants)
    changed = False

    def put(leaf: Argument) -> Argument:
        nonlocal changed
        if isinstance(leaf, (Value, WeightRef)):
            return leaf
        fresh = next(queue)
        changed = changed or fresh != leaf
        return fresh

    args, kwargs = map_argument((mine.args, mine.kwargs), put)
    if mine.attributes != theirs.attributes:
        changed = True
        mine.attributes = dict(theirs.attributes)
    if changed:
        rewriter._set_arguments(mine, args, kwargs)
    return changed


def _take_nodes(rewriter: Rewriter, reference: Graph, structure: Structure) -> None:
    graph = rewriter.graph
    containers = graph.structure.containers
    origins = {child.path: child.origin for box in containers for child in box.children}
    counts = {(box.path, box.prefix): (box.source_count, box.native) for box in containers}
    values: dict[Value, Value] = {}
    nodes: dict[Node, Node] = {}
    for node in reversed(graph.nodes):
        graph._unlink(node)
    for node in reference:
        nodes[node] = graph.append(copy_node(node, values))
    graph._structure = copy_structure(structure, values, nodes)
    for container in graph._structure.containers:
        if (container.path, container.prefix) in counts:
            container.source_count, container.native = counts[container.path, container.prefix]
        for child in container.children:
            child.origin = origins.get(child.path, child.path)
    if reference.modules:
        graph.modules = reference.modules
    rewriter._read()
    rewriter.edited |= dict.fromkeys(graph)


def _aligned(graph: Graph, reference: Graph) -> bool:
    """Whether the two run the same operations on the same operands and weights, in the same order."""
    if len(graph) != len(reference):
        return False
    twin: dict[Value, Value] = {}
    for mine, theirs in zip(graph, reference, strict=True):
        if (mine.op, mine.kind, mine.scope) != (theirs.op, theirs.kind, theirs.scope):
            return False
        operands = [twin.get(value) for value in mine.operands()]
        if operands != theirs.operands() or mine.weight_names() != theirs.weight_names():
            return False
        if _skeleton((mine.args, mine.kwargs)) != _skeleton((theirs.args, theirs.kwargs)):
            return False
        twin[mine.output] = theirs.output
    return True


def _skeleton(item: Any) -> Any:
    """An argument's nesting, without its constants."""

    def kind(leaf: Argument) -> Argument:
        return type(leaf).__name__ if isinstance(leaf, (Value, WeightRef)) else None

    return map_argument(item, kind)
