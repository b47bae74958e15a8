"""Copying nodes with an explicit map from old values to new ones; the one place that knows how."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from elastic_ir.ir.graph import Argument, Graph, Node, Value, WeightRef, map_argument
from elastic_ir.ir.structure import Block, Child, Container, Stage, Structure
from elastic_ir.tensors.weights import Storage


def copy_node(
    node: Node,
    values: dict[Value, Value],
    names: dict[str, str] | None = None,
    stays: Collection[int] = (),
    flows: Mapping[int, Value] | None = None,
) -> Node:
    """A copy of a node that reads ``values[v]`` where the original reads v (v itself where the map lacks it).

    ``stays`` are the places of operands, as :meth:`Node.operands` counts them, that are read as they are, and ``flows``
    has what is read at others.
    """
    renames = names or {}
    given = flows or {}
    place = itertools.count()

    def change(leaf: Argument) -> Argument:
        if isinstance(leaf, Value):
            at = next(place)
            return leaf if at in stays else given.get(at, values.get(leaf, leaf))
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


class Places:
    """The places of the nodes of a clone that follows a block.

    It runs behind that block. Where blocks take turns, each once for every step of time (cells of a recurrent network),
    the next block's first step stands before the last step of that one; then each node of the clone runs right behind
    what it reads.
    """

    def __init__(self, nodes: Sequence[Node], readers: Iterable[Node]) -> None:
        """``nodes`` are those of the block before, in the order they run, ``readers`` those that read its outputs."""
        self.last = nodes[-1] if nodes else None
        self.rank: dict[Node, int] = {}  # of the nodes among which the clone's are put, and of those
        self.behind: list[Node] = []  # for each rank the last node that stands there
        self.reached = 0
        between = _between(nodes)
        if not set(readers).difference(nodes).isdisjoint(between):
            self.rank = {node: place for place, node in enumerate(between)}
            self.behind = between

    def before(self, node: Node, root: Node) -> Node:
        """The node that a node of the clone is linked behind; they are asked for in the order they run.

        ``root`` is what the first node of a graph stands behind.
        """
        if not self.rank:
            place = self.last or root
            self.last = node
            return place
        ranks = (self.rank.get(value.node, 0) for value in node.operands())
        self.reached = max(self.reached, *ranks, 0)
        place = self.behind[self.reached]
        self.rank[node], self.behind[self.reached] = self.reached, node
        return place


def _between(nodes: Sequence[Node]) -> list[Node]:
    """All nodes that run from the first to the last of some."""
    found: list[Node] = []
    node: Node | None = nodes[0] if nodes else None
    while node is not None:
        found.append(node)
        if node is nodes[-1]:
            break
        node = node._next
    return found


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
    twin.earlier = graph.earlier
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
        new = old.emptied(old.path)
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
