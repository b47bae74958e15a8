"""Folding batch norms of an ONNX graph into the layers before them; the norm's node goes, with its weights."""

from __future__ import annotations

from collections import Counter

from elastic_ir.ir.graph import Graph, Node, Value, WeightRef
from elastic_ir.onnx_model.layers import (
    Readers,
    count_reads,
    frozen_norm,
    is_matrix_transpose,
    label,
    plain_gemm,
    weight_name,
    weight_readers,
    zero_bias,
)
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Norm, NormBias, ScaledRows, Turned, with_values

_LAYERS = {"onnx.Conv", "onnx.Gemm", "onnx.MatMul"}


def fold_norms(graph: Graph, rewriter: Rewriter) -> tuple[list[str], dict[str, str]]:
    """Fold what can be folded: the names of the norms that went, and why the others did not."""
    users = graph.users()
    readers = weight_readers(graph)
    reads = count_reads(graph)
    folded: list[str] = []
    skipped: dict[str, str] = {}
    idle: list[str] = []
    for node in graph:
        if node.op != "onnx.BatchNormalization":
            continue
        name = label(node)
        reason = _why_not(node, graph, users, readers)
        if reason:
            skipped[name] = reason
            continue
        folded.append(name)
        value = node.args[0]
        assert isinstance(value, Value)
        idle += node.weight_names()
        _scale(value.node, node, graph, rewriter)
        norm = _norm(node, graph)
        if value.node.op == "onnx.MatMul":  # it has no bias: an addition takes the norm's place
            name = str(weight_name(node.args[2]))
            data = with_values(NormBias(None, norm, graph.weights[name].dtype), norm.mean)
            rewriter.become(node, "onnx.Add", args=(value,))
            rewriter.add_operand(node, 1, data, beside=name, origin=graph.weights[name].origin)
            continue
        _shift(value.node, node, norm, graph, rewriter, reads)
        rewriter.dissolve(node, value)
    used = {name for node in graph for name in node.weight_names()}
    rewriter.drop_weights(name for name in dict.fromkeys(idle) if name not in used)
    return folded, skipped


def _why_not(norm: Node, graph: Graph, users: dict[Value, list[Node]], readers: dict[int, Readers]) -> str:
    """Why a batch norm cannot be folded; "" where it can."""
    if not frozen_norm(norm):
        return "it has no statistics of its own"
    before = norm.args[0].node if isinstance(norm.args[0], Value) else None
    if before is None or before.op not in _LAYERS:
        return "it does not directly follow a convolution or linear layer"
    layer = label(before)
    others = [user.name for user in users[before.output] if user is not norm]
    if others:
        return f"%{others[0]} reads the output of {layer} as well"
    if before.op == "onnx.Gemm" and not plain_gemm(before):
        return f"{layer} has factors of its own"
    kind = before.output.type
    if before.op == "onnx.MatMul" and (kind is None or len(kind.shape) != 2):
        return f"it normalises another axis than the outputs of {layer}"
    weight = _weight_of(before, users)
    if weight is None:
        return f"the weight of {layer} is computed from others"
    if len(readers[id(graph.weights[weight].storage)]) > 1:
        return f"{layer} is used more than once"
    count = graph.weights[str(weight_name(norm.args[3]))].shape
    bias = before.args[2] if len(before.args) > 2 else None
    if bias is not None and not zero_bias(before, users):
        name = weight_name(bias)
        if name is None or graph.weights[name].shape not in (count, (1, *count)):
            return f"the bias of {layer} is no weight of its own"
    return ""


def _weight_of(layer: Node, users: dict[Value, list[Node]] | None = None) -> str | None:
    """The layer's weight by name, also behind a Transpose that is its alone."""
    given = layer.args[1]
    if isinstance(given, Value) and layer.op == "onnx.MatMul" and is_matrix_transpose(given.node):
        alone = users is None or len(users[given]) == 1
        return weight_name(given.node.args[0]) if alone else None
    return weight_name(given)


def _norm(node: Node, graph: Graph) -> Norm:
    parts = [graph.weights[str(weight_name(item))].storage.emitted() for item in node.args[1:]]
    epsilon = node.attributes.get("epsilon", 1e-5)
    assert isinstance(epsilon, (int, float))
    return Norm(parts[2], parts[3], parts[0], parts[1], float(epsilon))


def _scale(layer: Node, norm: Node, graph: Graph, rewriter: Rewriter) -> None:
    """Scale what makes each output; the norm is still as it was."""
    name = _weight_of(layer)
    assert name is not None
    weight = graph.weights[name]
    data: TensorData = weight.storage.data
    direct = isinstance(layer.args[1], WeightRef)
    inputs_first = direct and (
        layer.op == "onnx.MatMul" or (layer.op == "onnx.Gemm" and not layer.attributes.get("transB", 0))
    )
    factors = _norm(norm, graph)
    scaled: TensorData = (
        Turned(ScaledRows(Turned(data), factors)) if inputs_first else ScaledRows(data, factors)
    )
    rewriter.replace_tensor(name, with_values(scaled, data, factors.mean), weight.mask)


def _shift(
    layer: Node, norm: Node, parts: Norm, graph: Graph, rewriter: Rewriter, reads: Counter[str]
) -> None:
    """Give the layer the bias that the norm leaves."""
    if len(layer.args) > 2 and isinstance(layer.args[2], Value):
        rewriter.drop_operand(layer, 2)
    if len(layer.args) > 2 and layer.args[2] is not None:
        bias = graph.weights[rewriter.own_operand(layer, 2, reads)]
        old = bias.storage.emitted()
        rewriter.replace_tensor(bias.name, with_values(NormBias(old, parts, bias.dtype), old, parts.mean))
        return
    name = str(_weight_of(layer))
    fresh = with_values(NormBias(None, parts, graph.weights[name].dtype), parts.mean)
    origin = graph.weights[str(weight_name(norm.args[2]))].origin
    made = rewriter.add_operand(layer, 2, fresh, beside=name, origin=origin)
    reads[made] += 1
