"""Copying nodes with an explicit map from old values to new ones; the one place that knows how."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace

from elastic_ir.ir.graph import Argument, Graph, Node, Value, WeightRef, map_argument
from elastic_ir.ir.structure import Block, Child, Container, Stage, Structure
from elastic_ir.tensors.weights import Storage


def copy_node(
    node: Node, values: dict[Value, Value], names: dict[str, str] | None = None, stays: Collection[int] = ()
) -> Node:
    """A copy of a node that reads ``values[v]`` where the original reads v (v itself where the map lacks it).

    ``stays`` are the places of operands, as :meth:`Node.operands` counts them, that are read as they are.
    """
    renames = names or {}
    place = itertools.count()

    def change(leaf: Argument) -> Argument:
        if isinstance(leaf, Value):
            return leaf if next(place) in stays else values.get(leaf, leaf)
        if isinstance(leaf, WeightRef):
            return WeightRef(renames.get(leaf.name, leaf.name))
        return leaf

    twin = Node(
        node.name,
        node.op,
        map_argument(node.args, change),
        map_argument(node.kwargs, change),
        kind=node.kind,
        attributes=node.attributes,
        weights={role: renames.get(name, name) for role, name in node.weights.items()},
        scope=node.scope,
        origin=node.origin,
    )
    twin.output.type = node.output.type
    twin.output.is_tensor = node.output.is_tensor
    values[node.output] = twin.output
    return twin


def copy_graph(graph: Graph) -> Graph:
    """Copy a graph with its structure. Linear in nodes and weights; no tensor is read."""
    twin = Graph(graph.name, graph.info)
    twin.edits = graph.edits
    twin.modules = graph.modules
    twin.history = graph.history
    twin.emitted = graph.emitted
    twin.origin = graph.origin
    twin.reference = graph.reference
    twin.resequenced = graph.resequenced
    values: dict[Value, Value] = {}
    nodes: dict[Node, Node] = {}
    for node in graph:
        nodes[node] = twin.append(copy_node(node, values))
    storages: dict[int, Storage] = {}
    for name, weight in graph.weights.items():
        storage = storages.setdefault(id(weight.storage), weight.storage.clone())
        twin.weights[name] = replace(weight, storage=storage)
    if graph._structure is not None:
        twin._structure = copy_structure(graph._structure, values, nodes)
    return twin


def copy_structure(structure: Structure, values: dict[Value, Value], nodes: dict[Node, Node]) -> Structure:
    """A structure over copied nodes; blocks, children and containers are copies too."""
    children: dict[Child, Child] = {}
    containers: dict[Container, Container] = {}
    for old in structure.containers:
        new = Container(
            old.path,
            old.prefix,
            old.base,
            source_count=old.source_count,
            tail=old.tail,
            native=old.native,
            width=old.width,
        )
        for child in old.children:
            children[child] = Child(child.path, child.origin, child.taken)
            new.children.append(children[child])
        containers[old] = new

    def copy_block(block: Block) -> Block:
        return Block(
            [children[child] for child in block.children],
            [nodes[node] for node in block.nodes],
            tuple(values[value] for value in block.inputs),
            tuple(values[value] for value in block.outputs),
            tuple(values[value] for value in block.taps),
            tuple(values[value] for value in block.given),
            block.layers,
            block.signature,
        )

    stages = [
        Stage(
            stage.name,
            tuple(containers[box] for box in stage.containers),
            copy_block(stage.entry) if stage.entry is not None else None,
            [copy_block(block) for block in stage.blocks],
            stage.period,
            stage.transition,
            stage.shape,
            copy_block(stage.exit) if stage.exit is not None else None,
        )
        for stage in structure.stages
    ]
    return Structure(stages, structure.depth, structure.form, structure.stem, structure.head, structure.note)
