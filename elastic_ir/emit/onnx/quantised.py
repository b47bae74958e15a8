"""Quantised values: a reader names the scale and zero point that its operand was made with.

Where a pass puts a block between two others, a node reads what another node makes now, at that one's scale; its own
operands for scale and zero point have to follow, or it would read other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from elastic_ir.onnx_model import operator

if TYPE_CHECKING:
    import onnx

_MS = "com.microsoft."
#: For each operator the places of quantised operands with their scales and zero points, and those of the result's.
_READS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "DequantizeLinear": ((0, 1, 2),), "QLinearConv": ((0, 1, 2),), "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    **dict.fromkeys((f"{_MS}QLinearAdd", f"{_MS}QLinearMul"), ((0, 1, 2), (3, 4, 5))),
    **dict.fromkeys(
        (f"{_MS}{kind}" for kind in ("DequantizeLinear", "QGemm", "QLinearSigmoid", "QLinearLeakyRelu",
         "QLinearSoftmax", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean")),
        ((0, 1, 2),),
    ),
    f"{_MS}QLinearWhere": ((1, 2, 3), (4, 5, 6)),
    f"{_MS}QLinearConcat": tuple((place, place + 1, place + 2) for place in range(2, 50, 3)),
}  # fmt: skip
_MAKES: dict[str, tuple[int, int]] = {
    "QuantizeLinear": (1, 2), "QLinearConv": (6, 7), "QLinearMatMul": (6, 7), f"{_MS}QuantizeLinear": (1, 2),
    f"{_MS}QLinearAdd": (6, 7), f"{_MS}QLinearMul": (6, 7), f"{_MS}QGemm": (7, 8), f"{_MS}QLinearConcat": (0, 1),
    f"{_MS}QLinearWhere": (7, 8),
    **dict.fromkeys(
        (f"{_MS}{kind}" for kind in ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearAveragePool",
         "QLinearGlobalAveragePool", "QLinearReduceMean")),
        (3, 4),
    ),
}  # fmt: skip
#: Operators that hand quantised numbers on as they are.
_MOVES = frozenset(
    ("Reshape", "Transpose", "MaxPool", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Identity",
     "Split", "DepthToSpace", "SpaceToDepth")
)  # fmt: skip


def follow_scales(
    nodes: Iterable[onnx.NodeProto], old: Iterable[onnx.NodeProto], root: Callable[[str], str]
) -> None:
    """Let the nodes of a model read quantised values at the scales that these are made with.

    ``old`` are the source's nodes: a node that reads at another scale there (its name says which) goes on so. ``root``
    gives the first name of a constant that has several.
    """
    odd = {name for name, _, _ in _mismatches(old, root)}
    for name, node, places in _mismatches(nodes, root):
        if name not in odd and name.rpartition("__")[0] not in odd:
            for place, operand in places.items():
                node.input[place] = operand


def _mismatches(
    nodes: Iterable[onnx.NodeProto], root: Callable[[str], str]
) -> Iterable[tuple[str, onnx.NodeProto, dict[int, str]]]:
    """Nodes that read a quantised value at a scale that it was not made with, by name, and what they should read."""
    made: dict[str, tuple[str, str]] = {}
    for node in nodes:
        kind = operator(node)
        if kind in _MOVES and node.input and node.input[0] in made:
            made.update((name, made[node.input[0]]) for name in node.output)
        places: dict[int, str] = {}
        for value, *operands in _READS.get(kind, ()):
            if value < len(node.input) and node.input[value] in made:
                for place, operand in zip(operands, made[node.input[value]], strict=True):
                    if place < len(node.input) and operand and root(node.input[place]) != root(operand):
                        places[place] = operand
        if places:
            yield node.name or node.output[0], node, places
        if kind in _MAKES:
            scale, zero = _MAKES[kind]
            made[node.output[0]] = (node.input[scale], node.input[zero] if zero < len(node.input) else "")
