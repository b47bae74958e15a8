"""Layers of an ONNX graph: which operand is the weight, and along which of its axes products are summed.

A Conv and a Gemm with ``transB`` store a weight as PyTorch does, outputs first; a MatMul stores it inputs first. An
exporter may also keep PyTorch's weight and put a Transpose before the MatMul.
"""

from __future__ import annotations

from collections import Counter

from elastic_ir.ir.graph import Argument, Graph, Literal, Node, Value, WeightRef

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


def weight_name(item: Argument) -> str | None:
    """The weight that an operand is, by name; None where it is none."""
    return item.name if isinstance(item, WeightRef) else None


def label(node: Node) -> str:
    """A layer's name for a reader: the path of its weight, else the node's name."""
    names = [name.rpartition(".")[0] for name in node.weight_names()]
    return (names and names[0]) or f"%{node.name}"


def zero_bias(node: Node, users: dict[Value, list[Node]]) -> bool:
    """Whether a layer's bias is a zero that is spread for it alone: as good as none, and so PyTorch exports some."""
    given = node.args[2] if len(node.args) == 3 else None
    if not isinstance(given, Value) or given.node.op != "onnx.Expand" or len(users.get(given, ())) != 1:
        return False
    filler = given.node.args[0]
    return not given.node.operands() and isinstance(filler, Literal) and not any(filler.values)


def plain_gemm(node: Node) -> bool:
    """Whether a Gemm is no more than a product and a sum."""
    factors = [node.attributes.get(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and not node.attributes.get("transA", 0)


def frozen_norm(node: Node) -> bool:
    """Whether a BatchNormalization only applies the statistics that it holds as weights."""
    mode = node.attributes.get("training_mode", 0) or not node.attributes.get("spatial", 1)
    held = len(node.args) == 5 and all(isinstance(item, WeightRef) for item in node.args[1:])
    return node.op == "onnx.BatchNormalization" and held and not mode and node.output.is_tensor


def is_matrix_transpose(node: Node) -> bool:
    """Whether a node swaps the axes of a matrix that is a weight."""
    return (
        node.op == "onnx.Transpose"
        and isinstance(node.args[0], WeightRef)
        and node.attributes.get("perm", [1, 0]) == [1, 0]
    )


def summed_axis(rank: int, readers: Readers, users: dict[Value, list[Node]]) -> int | str:
    """The axis of a weight along which its layers take their products, or why it cannot be told."""
    axes: set[int] = set()
    for node, place in readers:
        if rank == 2 and is_matrix_transpose(node):
            found = [
                _axis(reader, reader.args.index(node.output) if node.output in reader.args else -1, rank)
                for reader in users.get(node.output, ())
            ]
            found = [1 - item if isinstance(item, int) else item for item in found]
        else:
            found = [_axis(node, place, rank)]
        for item in found:
            if isinstance(item, str):
                return item
            axes.add(item)
    if len(axes) > 1:
        return "its layers take their products along different axes"
    return axes.pop() if axes else "no layer uses it"


def _axis(node: Node, place: int, rank: int) -> int | str:
    """The axis along which one node sums products of its operand, or why it cannot be told."""
    kind = node.op.removeprefix("onnx.")
    if kind == "Conv" and place == 1:
        return 1
    if kind == "Gemm" and rank == 2 and place in (0, 1):
        turned = bool(node.attributes.get("transA" if place == 0 else "transB", 0))
        return int(turned) if place == 1 else int(not turned)
    if kind == "MatMul" and rank == 2 and place in (0, 1):
        return 1 - place
    return f"{kind} may store its weight another way round"
