"""The verifier: checks a graph's invariants and says what is wrong, where, and how to mend it.

It runs after every pass: on what the pass has edited, as its rewriter noted it, and on the whole graph at the end. It
reads no tensor: names, shapes, order and structure only.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NoReturn

from elastic_ir.errors import VerifyError
from elastic_ir.ir.graph import Graph, Node, Value, WeightRef


def verify(graph: Graph, after: str = "", edited: Container[Node] | None = None) -> None:
    """Raise VerifyError at the first broken invariant; ``after`` names the pass that ran last.

    With ``edited`` (:attr:`elastic_ir.rewrite.rewriter.Rewriter.edited`) what all other nodes read is not looked at
    again. Names, weights and blocks, of which each takes a lookup, always are.
    """
    try:
        _verify_nodes(graph, edited)
        _verify_weights(graph)
        if graph._structure is not None:
            _verify_structure(graph)
    except VerifyError as error:
        if after:
            raise VerifyError(f"after pass {after!r}: {error}") from error
        raise


def _verify_nodes(graph: Graph, edited: Container[Node] | None) -> None:
    seen: set[Value] = set()
    names: set[str] = set()
    outputs = 0
    weights = graph.weights
    for node in graph:
        if node.name in names:
            raise VerifyError(f"two nodes are named %{node.name}; let the rewriter name them (commit)")
        names.add(node.name)
        for read in node.reads() if edited is None or node in edited else ():
            if isinstance(read, WeightRef):
                if read.name not in weights:
                    _refuse_weight(node, read.name)
            elif read not in seen:
                where = "which is not in the graph" if not _linked(graph, read.node) else "which runs later"
                raise VerifyError(
                    f"node %{node.name} ({node.op}) reads %{read.name}, {where}; "
                    "insert the producer first, or replace the use"
                )
        for name in node.weights.values():
            if name not in weights:
                _refuse_weight(node, name)
        seen.add(node.output)
        outputs += node.kind == "output"
    if len(graph) and outputs != 1:
        raise VerifyError(f"a graph has one output node, this one has {outputs}")


def _refuse_weight(node: Node, name: str) -> NoReturn:
    raise VerifyError(f"node %{node.name} ({node.op}) uses weight {name!r}, which the graph lacks")


def _linked(graph: Graph, node: Node) -> bool:
    return any(other is node for other in graph)


def _verify_weights(graph: Graph) -> None:
    for name, weight in graph.weights.items():
        if weight.name != name:
            raise VerifyError(f"weight {weight.name!r} is listed as {name!r}; rename it through the rewriter")
        if weight.mask is not None and weight.mask.shape != weight.shape:
            raise VerifyError(
                f"the mask of {name!r} has shape {weight.mask.shape}, its weight has {weight.shape}"
            )
        if not weight.origin:
            raise VerifyError(
                f"weight {name!r} has no origin; every target tensor comes from a source tensor"
            )


def _verify_structure(graph: Graph) -> None:
    alive = set(graph)
    for stage in graph.structure.stages:
        place = {
            child: (box, index)
            for box in stage.containers
            for index, child in enumerate(reversed(box.children) if box.falling else box.children)
        }
        last = dict.fromkeys(stage.containers, -1)
        if not stage.all_blocks:
            raise VerifyError(f"nothing is left of stage {stage.name!r}; one of its blocks has to stay")
        for block in stage.all_blocks:
            for child in block.children:
                if child not in place:
                    raise VerifyError(
                        f"stage {stage.name!r}: {child.path} is not a child of "
                        f"{' or '.join(repr(box.path) for box in stage.containers)}"
                    )
                box, index = place[child]
                if index <= last[box]:
                    raise VerifyError(
                        f"stage {stage.name!r}: {child.path} stands before the block it follows"
                    )
                last[box] = index
            for node in block.nodes:
                if node not in alive:
                    raise VerifyError(
                        f"stage {stage.name!r}: block {block.path} holds %{node.name}, which was erased"
                    )
        if stage.period and len(stage.blocks) % stage.period:
            raise VerifyError(
                f"stage {stage.name!r} has {len(stage.blocks)} free blocks, not a multiple of its unit of "
                f"{stage.period}"
            )
        for before, block in zip(stage.all_blocks, stage.all_blocks[1:], strict=False):
            if block.nodes and block.inputs != before.outputs:
                raise VerifyError(
                    f"stage {stage.name!r}: block {block.path} does not read what {before.path} computes"
                )
    for container in graph.structure.containers:
        for index, child in enumerate(container.children):
            if child.path != container.child_path(index):
                raise VerifyError(
                    f"container {container.path!r}: child {index} is named {child.path}, "
                    f"the native network names it {container.child_path(index)}"
                )
