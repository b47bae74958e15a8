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

from elastic_ir.channels import Channels, Place, only, unchanged
from elastic_ir.ir.graph import Argument, Literal, Node, Value, WeightRef
from elastic_ir.ir.operations import Layer, Slot, Trait, has, norm_of, norm_slots, tensor_in
from elastic_ir.onnx_model import OnnxSource, opsets_of
from elastic_ir.onnx_model import arithmetic as numbers
from elastic_ir.onnx_model.arithmetic import pads as pads
from elastic_ir.onnx_model.layers import plain_gemm, zero_bias

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
    return _along_axes(node, operator, known.axis, flow)


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
    if node.op != "onnx.Shape":
        return False
    places = list(range(rank))
    if node.attributes:
        start, end = node.attributes.get("start", 0), node.attributes.get("end", rank)
        return isinstance(start, int) and isinstance(end, int) and axis not in places[start:end]
    for reader in readers:
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


# -- operators that move axes, resize, reduce or flatten ---------------------------------------------------------------


def _along_axes(node: Node, kind: str, axis: int, flow: Flow) -> Place | None:
    """The channels' place in the result of a node whose first operand has them along ``axis``; None: not known."""
    value = node.args[0]
    assert isinstance(value, Value) and value.type is not None and node.output.type is not None
    before, after = value.type.shape, node.output.type.shape
    rank = len(before)
    if min((*before, *after), default=0) < 0:
        return None  # an extent that is not known may hide the channels
    if kind == "Transpose":
        order = numbers.whole_numbers(node.attributes.get("perm", tuple(range(rank))[::-1]))
        return Place(order.index(axis)) if order is not None else None
    if kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"):
        return _reduced(node, axis, rank)
    if kind == "Squeeze":
        axes = numbers.axes_of(node, 1, rank)
        if axes is None and len(node.args) < 2:
            axes = [place for place, extent in enumerate(before) if extent == 1]
        return None if axes is None or axis in axes else Place(axis - sum(other < axis for other in axes))
    if kind == "Unsqueeze":
        axes = numbers.axes_of(node, 1, len(after))
        rest = [place for place in range(len(after)) if place not in (axes or ())]
        return Place(rest[axis]) if axes is not None and len(rest) == rank else None
    if kind == "Flatten":
        first = node.attributes.get("axis", 1)
        fits = isinstance(first, int) and first % rank == 1 and axis == 1
        return Place(1, math.prod(before[2:])) if fits and rank > 1 else None
    if kind == "Reshape":
        return _reshaped(node, axis, before, after, flow)
    if kind in ("Slice", "Gather"):
        return _picked(node, kind, axis, rank)
    if kind in ("Resize", "Upsample"):
        return _resized(node, axis, before, after, flow)
    return _padded(node, axis, rank) if kind == "Pad" else None


def _reduced(node: Node, axis: int, rank: int) -> Place | None:
    axes = numbers.axes_of(node, 1, rank)
    if not axes or axis in axes or len(node.operands()) > 1:
        return None
    gone = 0 if node.attributes.get("keepdims", 1) else sum(other < axis for other in axes)
    return Place(axis - gone, constants=only(0.0) if node.op == "onnx.ReduceSum" else unchanged)


def _picked(node: Node, kind: str, axis: int, rank: int) -> Place | None:
    """Parts along other axes than the channels'."""
    if len(node.operands()) > 1 or node.weight_names():
        return None
    if kind == "Slice":
        given = node.attributes.get("axes", numbers.operand(node, 3))
        starts = numbers.whole_numbers(node.attributes.get("starts", numbers.operand(node, 1)))
        axes = numbers.whole_numbers(given) if given is not None else list(range(len(starts or ())))
        return None if starts is None or axes is None or axis in [a % rank for a in axes] else Place(axis)
    along, index = node.attributes.get("axis", 0), numbers.operand(node, 1)
    if not isinstance(along, int) or not isinstance(index, Literal) or along % rank == axis:
        return None
    return Place(axis + (len(index.shape) - 1 if along % rank < axis else 0))


def _reshaped(
    node: Node, axis: int, before: tuple[int, ...], after: tuple[int, ...], flow: Flow
) -> Place | None:
    """A Reshape that leaves the channels an axis of their own, or flattens them with all that follows."""
    wanted = _extents(node)
    if wanted is None or len(wanted) != len(after):
        return None
    count, lead = before[axis], math.prod(before[:axis])
    behind = math.prod(before[axis + 1 :])
    for place, extent in enumerate(after):
        if math.prod(after[:place]) != lead or count < 2:
            continue
        if extent == count:
            times = 1
        elif extent == count * behind and place == len(after) - 1:
            times = behind
        else:
            continue
        copies = [at for at, item in enumerate(wanted) if item == 0]
        if node.attributes.get("allowzero", 0) and copies:
            return None
        if axis in copies and (axis != place or times > 1):
            return None
        given = wanted[place]
        if given in (-1, 0):
            return Place(place, times)
        asked = numbers.operand(node, 1)
        own = isinstance(asked, Literal) or (isinstance(asked, Value) and len(flow.users.get(asked, ())) == 1)
        return Place(place, times, ((1, place),)) if own and given == extent else None
    return None


def _extents(node: Node) -> list[int | None] | None:
    """The extents that a Reshape asks for; None for each that is computed."""
    given = numbers.operand(node, 1)
    if isinstance(given, Literal):
        return [int(value) for value in given.values]
    if not isinstance(given, Value) or given.node.op != "onnx.Concat":
        return None
    found: list[int | None] = []
    for item in given.node.args:
        if isinstance(item, Literal):
            found += [int(value) for value in item.values]
        elif isinstance(item, Value) and item.type is not None and item.type.shape == (1,):
            found.append(None)
        else:
            return None
    return found


def _resized(
    node: Node, axis: int, before: tuple[int, ...], after: tuple[int, ...], flow: Flow
) -> Place | None:
    """A Resize along other axes; sizes that name the number of channels are counted anew."""
    if len(node.operands()) > 1 or before[axis] != after[axis]:
        return None
    mode = node.attributes.get("mode", "nearest")
    cut = node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    constants = unchanged if mode in ("nearest", "linear", "bilinear") and not cut else only(math.nan)
    chosen = numbers.whole_numbers(node.attributes.get("axes", []))
    if chosen:
        return Place(axis, constants=constants) if axis not in [a % len(before) for a in chosen] else None
    sizes = numbers.whole_numbers(numbers.operand(node, 3))
    if sizes:
        return Place(axis, counts=((3, axis),), constants=constants)
    for place in range(1, len(node.args)):
        item = node.args[place]
        if isinstance(item, WeightRef) and flow.graph.weights[item.name].shape == (len(before),):
            scales = flow.read(item.name)
            if scales is not None and scales[axis] == 1:
                return Place(axis, constants=constants)
    scaled = node.attributes.get("scales")
    if isinstance(scaled, (list, tuple)) and len(scaled) == len(before) and scaled[axis] == 1:
        return Place(axis, constants=constants)
    return None


def _padded(node: Node, axis: int, rank: int) -> Place | None:
    given = numbers.operand(node, 1)
    widths = numbers.whole_numbers(given if given is not None else node.attributes.get("pads"))
    if widths is None or len(widths) != 2 * rank or widths[axis] or widths[axis + rank]:
        return None
    if len(node.operands()) > 1 or numbers.operand(node, 3) is not None:
        return None
    if node.attributes.get("mode", "constant") != "constant":
        return Place(axis)
    filler = numbers.operand(node, 2)
    number = filler.values[0] if isinstance(filler, Literal) else node.attributes.get("value", 0.0)
    if filler is not None and not isinstance(filler, Literal):
        number = None
    return Place(axis, constants=only(float(number) if isinstance(number, (int, float)) else math.nan))
