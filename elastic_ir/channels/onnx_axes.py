"""Where channels lie after ONNX operators that move axes, resize, reduce or flatten, and what counts them there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from elastic_ir.channels.atoms import Place, only, unchanged
from elastic_ir.ir.graph import Literal, Node, Value, WeightRef
from elastic_ir.onnx_model import arithmetic as numbers

if TYPE_CHECKING:
    from elastic_ir.channels.flow import Flow


def moved(node: Node, kind: str, axis: int, flow: Flow) -> Place | None:
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
        return _reshaped(node, axis, before, after)
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


def _reshaped(node: Node, axis: int, before: tuple[int, ...], after: tuple[int, ...]) -> Place | None:
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
        literal = isinstance(numbers.operand(node, 1), Literal)
        return Place(place, times, ((1, place),)) if literal and given == extent else None
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
