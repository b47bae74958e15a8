"""Who reads which weight, and what ONNX's layers have beside theirs: factors, and biases that are spread zeros."""

from __future__ import annotations

from collections import Counter

from elastic_ir.ir.graph import Graph, Literal, Node, Value, WeightRef

#: A weight's readers: node and place of the operand.
Readers = list[tuple[Node, int]]


def is_onnx(graph: Graph) -> bool:
    """Whether a graph's nodes are ONNX operators."""
    return any(node.kind == "onnx" for node in graph)


def weight_readers(graph: Graph) -> dict[int, Readers]:
    """Who reads each tensor, by the identity of its storage; a place of -1 is inside something (a body)."""
    table: dict[int, Readers] = {}
    for node in graph:
        direct = [item.name if isinstance(item, WeightRef) else None for item in node.args]
        for name in node.weight_names():
            place = direct.index(name) if name in direct else -1
            if place >= 0:
                direct[place] = None
            table.setdefault(id(graph.weights[name].storage), []).append((node, place))
    return table


def count_reads(graph: Graph) -> Counter[str]:
    """How often each weight is read, by name."""
    return Counter(name for node in graph for name in node.weight_names())


def label(node: Node) -> str:
    """A layer's name for a reader: a module's path, else that of its weight, else the node's name."""
    if node.kind == "module":
        return node.scope
    names = [name.rpartition(".")[0] for name in node.weight_names()]
    return (names and names[0]) or f"%{node.name}"


def zero_bias(node: Node, users: dict[Value, list[Node]]) -> bool:
    """Whether a layer's bias is a zero that is expanded for it alone: PyTorch exports some layers without bias so."""
    given = node.args[2] if len(node.args) == 3 else None
    if not isinstance(given, Value) or given.node.op != "onnx.Expand" or len(users.get(given, ())) != 1:
        return False
    filler = given.node.args[0]
    return not given.node.operands() and isinstance(filler, Literal) and not any(filler.values)


def plain_gemm(node: Node) -> bool:
    """Whether a Gemm is no more than a product and a sum."""
    factors = [node.attributes.get(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and not node.attributes.get("transA", 0)
