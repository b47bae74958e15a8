"""ONNX's operators in the terms of :mod:`elastic_ir.ir.operations`: names and layers' weights; no onnx is imported."""

from __future__ import annotations

from elastic_ir.ir.graph import Node, Value, WeightRef
from elastic_ir.tensors.weights import BatchNorm, Layer

#: What ONNX calls an operation that PyTorch calls otherwise; the rest has the same name in lower case.
_NAMES = {
    "Gemm": "linear", "Concat": "cat", "Sum": "add", "BatchNormalization": "batchnorm",
    "LayerNormalization": "layernorm", "GroupNormalization": "groupnorm", "InstanceNormalization": "instancenorm",
    "RMSNormalization": "rmsnorm", "AveragePool": "avgpool", "GlobalAveragePool": "adaptiveavgpool",
    "GlobalMaxPool": "adaptivemaxpool",
}  # fmt: skip
#: Domains whose operators have no hidden effects.
_DOMAINS = {"", "ai.onnx.ml", "com.microsoft"}


def _split(op: str) -> tuple[str, str]:
    domain, _, kind = op.removeprefix("onnx.").rpartition(".")
    return domain, kind


def canonical(op: str) -> str:
    """An operator's one name: ``batchnorm`` for ``onnx.BatchNormalization``."""
    _, kind = _split(op)
    return _NAMES.get(kind, kind.lower().replace("_", ""))


def is_known(op: str) -> bool:
    """Whether the operator is of ONNX itself or of onnxruntime's own domain."""
    return _split(op)[0] in _DOMAINS


def is_matrix_transpose(node: Node) -> bool:
    """Whether a node swaps the axes of a matrix that is a weight."""
    return (
        node.op == "onnx.Transpose"
        and isinstance(node.args[0], WeightRef)
        and node.attributes.get("perm", [1, 0]) == [1, 0]
    )


def layer_of(node: Node) -> Layer | None:
    """How a Conv, ConvTranspose, Gemm or MatMul applies its weight, also where a Transpose stands before a product.

    None for anything else, and where both operands are weights.
    """
    kind = node.op.removeprefix("onnx.")
    if kind not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.args) < 2:
        return None
    names: list[str | None] = []
    swapped = False
    for item in node.args[:2]:
        through = not kind.startswith("Conv") and isinstance(item, Value) and is_matrix_transpose(item.node)
        found = item.node.args[0] if through and isinstance(item, Value) else item
        swapped = swapped or through
        names.append(found.name if isinstance(found, WeightRef) else None)
    groups = node.attributes.get("group", 1)
    if None not in names or not isinstance(groups, int):
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    bias_name = bias.name if isinstance(bias, WeightRef) else None
    if kind.startswith("Conv"):
        turned = kind == "ConvTranspose"
        outputs, inputs = (1, 0) if turned else (0, 1)
        return Layer(names[1], bias_name, outputs, inputs, groups, matrix=False, transposed=turned)
    first = names[0] is not None
    turned = bool(node.attributes.get("transA" if first else "transB", 0)) or swapped
    outputs, inputs = (0, 1) if first != turned else (1, 0)
    return Layer(names[0] or names[1], bias_name, outputs, inputs, 1, matrix=True, weight_first=first)


def norm_of(node: Node) -> BatchNorm | None:
    """The tensors of a BatchNormalization that only applies the statistics that it holds as weights."""
    training = node.attributes.get("training_mode", 0) or not node.attributes.get("spatial", 1)
    names = [item.name for item in node.args[1:] if isinstance(item, WeightRef)]
    epsilon = node.attributes.get("epsilon", 1e-5)
    plain = len(node.args) == 5 and node.output.is_tensor and not training
    if len(names) != 4 or not plain or not isinstance(epsilon, (int, float)):
        return None
    scale, shift, mean, variance = names
    return BatchNorm(scale, shift, mean, variance, float(epsilon))
