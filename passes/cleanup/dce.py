"""Dead-code elimination: nodes whose results nobody reads and that do nothing else are taken out.

What counts as doing something else is a trait of the operation (``elastic_ir/ir/operations.py``). A node that writes
into a tensor lives as long as anybody reads memory that it may have written; a norm with running statistics as long
as another node uses them. What blocks take and give stays, so that the structure does.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.analysis.effects import Memory, effect_of
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.onnx_model.layers import weight_readers
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class DeadCode(Pass):
    """Take out nodes whose results nobody reads and that do nothing else (dead-code elimination)."""

    name: ClassVar[str] = "dce"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True
    gains: ClassVar[str] = (
        "fewer operations in PyTorch; onnxruntime does the same itself when it loads a file"
    )

    weights: bool = False  #: also drop weights that nothing uses, of modules none of whose weights is used

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        live = _live_nodes(graph)
        dead = [node for node in graph if node not in live]
        for node in reversed(dead):
            rewriter.erase(node)
        idle = _idle_weights(graph)
        if self.weights:
            rewriter.drop_weights(idle)
        #: Plain data for reports.
        rewriter.report({"nodes": len(dead), "weights": idle})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        count, idle = report["nodes"], report["weights"]
        parts = [f"took out {count} nodes" if count else "nothing is dead"]
        if idle:
            what = "dropped" if self.weights else "nothing uses"
            parts.append(f"{what} {len(idle)} weights ({idle[0]}{', ...' if len(idle) > 1 else ''})")
            if not self.weights:
                parts.append("dce{weights} drops them")
        return "; ".join(parts)


def _live_nodes(graph: Graph) -> set[Node]:
    """The nodes that something needs: from the output, from effects, and from what blocks take and give."""
    memory = Memory(graph)
    waiting = [value.node for block in graph.blocks for value in block.ends]
    readers = {key: {node for node, _ in found} for key, found in weight_readers(graph).items()}
    for node in graph:
        effect = effect_of(node)
        if effect == "state":  # its statistics matter to others only
            keys = (id(graph.weights[name].storage) for name in node.weight_names())
            if any(len(readers[key]) > 1 for key in keys):
                waiting.append(node)
        elif effect == "in place":
            targets = memory.to_weights
            if node in targets or memory.root(node.output) in memory.outer:
                waiting.append(node)
        elif effect:
            waiting.append(node)
    live: set[Node] = set()
    reached: set[Value] = set()  # memory that somebody alive reads
    while waiting:
        node = waiting.pop()
        if node in live:
            continue
        live.add(node)
        for value in node.operands():
            waiting.append(value.node)
            root = memory.root(value)
            if root not in reached:
                reached.add(root)
                waiting += memory.writers(value)
    return live


def _idle_weights(graph: Graph) -> list[str]:
    """Weights that no node uses, where none of their module is: a counter beside used statistics is not idle."""
    used = {name for node in graph for name in node.weight_names()}
    storages = {id(graph.weights[name].storage) for name in used}
    modules = {name.rpartition(".")[0] for name in used}
    return [
        name
        for name, weight in graph.weights.items()
        if name not in used
        and id(weight.storage) not in storages
        and (name.rpartition(".")[0] not in modules or not name.rpartition(".")[0])
    ]
