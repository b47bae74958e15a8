"""Parameters that a forward multiplies with by itself: ``x @ self.w``, ``F.linear(x, self.w)``, an ``einsum``.

They are layers as the weight of an ``nn.Linear`` is one, whatever they are called. Which they are shows in the graph
alone: one operand of a product is computed from an input, the other from parameters. Tables that are looked up, and
what is called a position or an embedding (a query times a table of relative positions), are no layers.
"""

from __future__ import annotations

from dataclasses import replace

from elastic_ir.ir.graph import Graph, Value
from elastic_ir.ir.operations import Trait, has, operation_of
from elastic_ir.tensors.weights import may_be_multiplied

#: Operations that sum products, without the number of axes; attention takes queries, keys and values, no weights.
_PRODUCTS = {
    "addmm", "baddbmm", "bilinear", "bmm", "chainmatmul", "conv", "convolution", "convtranspose", "einsum", "groupedmm",
    "linear", "matmul", "mm", "multidot", "tensordot",
}  # fmt: skip


def mark_multiplied(graph: Graph) -> None:
    """Mark the parameters that products read, by themselves or in another form, as layers."""
    tables = {name for node in graph if has(node, Trait.LOOKUP) for name in node.weight_names()}
    live: set[Value] = set()  #: what depends on an input
    made_of: dict[
        Value, frozenset[str]
    ] = {}  #: parameters that something is computed from, and from nothing else
    found: set[str] = set()
    for node in graph:
        operands = node.operands()
        if node.kind == "input" or any(value in live for value in operands):
            live.add(node.output)
        sources = frozenset(node.weight_names()).union(
            *(made_of.get(value, frozenset()) for value in operands)
        )
        product = node.kind in ("function", "method") and operation_of(node).family in _PRODUCTS
        if node.output in live:
            if product:
                found |= sources
        elif not (product and any(graph.weights[name].layer for name in sources)):
            made_of[node.output] = sources
    for name in found - tables:
        weight = graph.weights[name]
        if may_be_multiplied(weight):
            graph.weights[name] = replace(weight, layer=True)
