"""Common-subexpression elimination: of nodes that compute the same from the same, the first stays.

Equal are operation, operands, plain arguments, attributes and weights, these by their storage. Nodes that draw random
numbers, keep statistics or write into tensors are never merged, nor is what somebody writes into, before or after. Both
nodes lie in the same block, or in the same gap between blocks, so that blocks can still be cloned and deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import ClassVar

from elastic_ir.analysis.effects import Memory, effect_of
from elastic_ir.ir.graph import Argument, Graph, Node, Value, WeightRef, map_argument
from elastic_ir.ir.operations import reads_form_only
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Compute once what is computed several times from the same (common-subexpression elimination)."""

    name: ClassVar[str] = "cse"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True
    gains: ClassVar[str] = (
        "fewer operations in PyTorch; onnxruntime does the same itself when it loads a file"
    )

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        memory = Memory(graph)
        places = _places(graph)
        first: dict[Hashable, Node] = {}
        merged = 0
        for node in graph:
            if effect_of(node) or not _still(node, memory):
                continue
            key = (places[node], _key(node, graph))
            kept = first.setdefault(key, node)
            if kept is not node and _replaceable(node, kept, rewriter):
                rewriter.replace_uses(node.output, kept.output)
                rewriter.erase(node)
                merged += 1
        rewriter.report({"merged": merged})

    def summary(self, graph: Graph) -> str | None:
        merged = self.report(graph)["merged"]
        return f"merged {merged} nodes with earlier ones" if merged else "nothing is computed twice"


def _still(node: Node, memory: Memory) -> bool:
    """Whether nobody writes into what a node reads and gives; where it reads a form, whether that stays."""
    if reads_form_only(node):
        return not any(memory.root(value) in memory.reshaped for value in node.operands())
    return not memory.changes([*node.operands(), node.output])


def _replaceable(node: Node, kept: Node, rewriter: Rewriter) -> bool:
    """Whether every part of an ONNX node's results that is read is one of the other's as well."""
    if node.kind != "onnx":
        return True
    parts = [
        {reader.args[1] for reader in rewriter.users(each.output) if reader.op == "operator.getitem"}
        for each in (node, kept)
    ]
    return parts[0] <= parts[1]


def _places(graph: Graph) -> dict[Node, Hashable]:
    """Where a node may be merged: its blocks, or the gap between blocks in which it runs."""
    blocks: dict[Node, tuple[int, ...]] = {}
    for number, block in enumerate(graph.blocks):
        for node in block.nodes:
            blocks[node] = (*blocks.get(node, ()), number)
    found: dict[Node, Hashable] = {}
    gap, outside = 0, True
    for node in graph:
        own = blocks.get(node)
        gap += own is None and not outside
        outside = own is None
        found[node] = own if own is not None else gap
    return found


def _key(node: Node, graph: Graph) -> Hashable:
    """What a node computes: values by identity, weights by storage, numbers with their type (1 is not True)."""

    def plain(leaf: Argument) -> Argument:
        if isinstance(leaf, Value):
            return "value", id(leaf)
        if isinstance(leaf, WeightRef):
            return "weight", id(graph.weights[leaf.name].storage)
        return type(leaf).__name__, repr(leaf)

    weights = tuple((role, id(graph.weights[name].storage)) for role, name in sorted(node.weights.items()))
    options = [dict(sorted(table.items())) for table in (node.kwargs, node.attributes)]
    return node.op, node.kind, weights, repr(map_argument((node.args, *options), plain)), node.output.type
