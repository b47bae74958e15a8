"""What is known of ONNX's operators and their channels: where these are afterwards, and what becomes of constants.

What PyTorch keeps in modules lies in operands here: a weight beside a tensor is cut along the axis that meets the
channels, and a literal that counts them is counted anew. An operator without a rule keeps whatever it reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from elastic_ir.channels import onnx_axes
from elastic_ir.channels.atoms import Channels, Place
from elastic_ir.ir.graph import Argument, Literal, Node, Value, WeightRef
from elastic_ir.ir.operations import Layer, Slot, Trait, has, norm_of, norm_slots, tensor_in
from elastic_ir.onnx_model import arithmetic as numbers
from elastic_ir.onnx_model.arithmetic import pads as pads
from elastic_ir.onnx_model.layers import plain_gemm, zero_bias
from elastic_ir.onnx_model.source import OnnxSource, opsets_of

if TYPE_CHECKING:
    from elastic_ir.channels.flow import Flow

_TERMS = {"Add", "Sum", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"}
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
#: Float to float, and nothing at inference.
_SAME = {"Identity", "Dropout", "Cast"}
_FLOATS = {1, 10, 11, 16}  #: of TensorProto.DataType


def _operator(node: Node) -> str:
    return node.op.removeprefix("onnx.")


def admits(node: Node, flow: Flow) -> bool:
    """Whether anything may be known of a node's result: it is an operator of ONNX itself."""
    return node.kind == "onnx" and not node.kwargs and "." not in _operator(node)


def terms(node: Node) -> Sequence[Argument] | None:
    """The operands of arithmetic: values, literals and weights."""
    return node.args if _operator(node) in _TERMS else None


def joined(node: Node) -> tuple[Sequence[Argument], int] | None:
    """The operands of a Concat and its axis."""
    axis = node.attributes.get("axis", 1)
    return (node.args, axis) if node.op == "onnx.Concat" and isinstance(axis, int) else None


def source(node: Node) -> Value | None:
    """The first operand, where that is computed."""
    value = node.args[0] if node.args else None
    return value if isinstance(value, Value) else None


def is_plain(node: Node, layer: Layer, flow: Flow) -> bool:
    """Whether a layer multiplies by its weight, through a Transpose of its own perhaps, and adds a bias at most."""
    given, product = numbers.operand(node, 1), node.op == "onnx.MatMul"
    carried = isinstance(given, Value)
    if isinstance(given, Value) and (not product or len(flow.users.get(given, ())) != 1):
        return False
    zero = zero_bias(node, flow.users)
    if len(node.operands()) != 1 + carried + zero or (node.op == "onnx.Gemm" and not plain_gemm(node)):
        return False
    bias = numbers.operand(node, 2)
    return bias is None or zero or isinstance(bias, WeightRef)


def taker(node: Node, rows: int, flow: Flow) -> tuple[Node, Slot] | None:
    """A layer's bias takes over what constants add; a MatMul has that of a following Add or norm."""
    if node.op != "onnx.MatMul":
        return node, 2
    readers, made = flow.users.get(node.output, []), node.output.type
    if len(readers) != 1:
        return None
    if norm_of(readers[0]) and made is not None and len(made.shape) == 2:
        return readers[0], norm_slots(readers[0])[2]
    if readers[0].op != "onnx.Add" or readers[0].kwargs:
        return None
    for place, item in enumerate(readers[0].args):
        if isinstance(item, WeightRef):
            shape = flow.graph.weights[item.name].shape
            if math.prod(shape) == rows == shape[-1]:
                return readers[0], place
    return None


def moved(node: Node, known: Channels, flow: Flow) -> Place | None:
    """Where the channels of a node's first operand are in its result."""
    operator, alone = _operator(node), len(node.operands()) == 1 and not node.weight_names()
    if has(node, Trait.POINTWISE):
        origin = flow.graph.origin
        opsets = opsets_of(origin.model) if isinstance(origin, OnnxSource) else {}
        return (
            Place(known.axis, constants=lambda given: numbers.elementwise(node, given, opsets))
            if alone
            else None
        )
    if operator in _SAME and _stays(node, operator):
        return Place(known.axis)
    if operator in _POOLS:
        return (
            Place(1, constants=functools.partial(numbers.pooled, node)) if alone and known.axis == 1 else None
        )
    if operator == "InstanceNormalization":
        return _instance_norm(node, known, flow)
    return onnx_axes.moved(node, operator, known.axis, flow)


def _stays(node: Node, operator: str) -> bool:
    if operator == "Cast":
        return node.attributes.get("to") in _FLOATS
    training = numbers.operand(node, 2)
    plain = training is None or (isinstance(training, Literal) and not training.values[0])
    return plain and len(node.operands()) == 1


def _instance_norm(node: Node, known: Channels, flow: Flow) -> Place | None:
    """What is zero everywhere has no variance, and becomes the shift."""
    names = [name for place in (1, 2) if (name := tensor_in(node, place)) is not None]
    parts = [flow.read(name) for name in names]
    count = len(known.atoms)
    if (
        known.axis != 1
        or len(names) != 2
        or any(part is not None and part.shape != (count,) for part in parts)
    ):
        return None
    shift = parts[1] if parts[1] is not None else np.full(count, math.nan)
    flow.meetings += [(node, place, 0, known) for place in (1, 2)]
    return Place(1, constants=lambda constants: np.where(constants == 0, shift, math.nan))


def only_looks(node: Node, axis: int, rank: int, readers: Sequence[Node]) -> bool:
    """Whether a Shape is asked for extents other than that of the channels."""
    if node.op != "onnx.Shape" or node.attributes:
        return False
    for reader in readers:
        places = list(range(rank))
        given = [numbers.whole_numbers(item) for item in reader.args[1:]]
        if reader.op == "onnx.Gather" and given and given[0] is not None:
            seen = [place % rank for place in given[0]]
        elif reader.op == "onnx.Slice" and len(given) >= 2 and given[0] and given[1]:
            step = given[3][0] if len(given) > 3 and given[3] else 1
            seen = places[given[0][0] : given[1][0] : step]
        else:
            return False
        if axis in seen:
            return False
    return True
