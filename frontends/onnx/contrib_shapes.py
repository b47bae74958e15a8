"""Shapes of the operators that onnxruntime's optimisers and quantisers put into a file, which onnx has no rules for.

Their meaning: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elastic_ir.ir.graph import TensorType

#: The operators whose first result has the type of their first operand.
_SAME = {
    "BiasGelu", "BiasSplitGelu", "FastGelu", "Gelu", "QuickGelu", "SkipLayerNormalization", "SkipGroupNorm",
    "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "RotaryEmbedding", "QLinearLeakyRelu",
    "QLinearSigmoid", "QLinearSoftmax", "GroupNorm", "MultiHeadAttention", "GroupQueryAttention", "BiasDropout",
}  # fmt: skip
#: Operators of onnx that do the same to shapes, with the places of the operands that count.
LIKE: dict[str, tuple[str, tuple[int, ...]]] = {
    "FusedConv": ("Conv", (0, 1)), "QLinearAdd": ("Add", (0, 3)), "QLinearMul": ("Mul", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)), "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)), "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)), "QGemm": ("Gemm", (0, 3)), "FusedMatMul": ("MatMul", (0, 1)),
}  # fmt: skip
#: Those of their attributes that onnx's operator has as well.
KEPT = {"Conv": {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"}, "Gemm": {"transA", "transB"},
        "AveragePool": {"auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"}}  # fmt: skip
_FLOAT = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}


def own_types(
    kind: str, operands: Sequence[TensorType | None], attributes: Mapping[str, Any]
) -> list[TensorType]:
    """The types of an operator's results, as far as they are known: the first ones, or none."""
    if not operands or operands[0] is None:
        return []
    first = operands[0]
    if kind in _SAME:
        return [first]
    if kind in ("Attention", "QAttention") and len(operands) > 1 and operands[1] is not None:
        sizes = attributes.get("qkv_hidden_sizes")
        width = int(sizes[2]) if sizes else operands[1].shape[-1] // 3
        dtype = first.dtype if kind == "Attention" else "float32"
        return [TensorType((*first.shape[:-1], width), dtype)]
    if kind == "EmbedLayerNormalization" and len(operands) > 2 and operands[2] is not None:
        return [TensorType((*first.shape, operands[2].shape[-1]), operands[2].dtype)]
    if kind in ("MatMulNBits", "MatMulBnb4") and "N" in attributes:
        return [TensorType((*first.shape[:-1], int(attributes["N"])), first.dtype)]
    return []


def result_dtype(kind: str, operands: Sequence[TensorType | None], inferred: str) -> str:
    """The dtype of a result whose shape was found by an operator of onnx."""
    if kind in _FLOAT:
        return "float32"
    return operands[0].dtype if kind.startswith("Q") and operands and operands[0] is not None else inferred
