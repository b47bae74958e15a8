"""Which extents of activations are fixed by the network itself, and which follow from its inputs.

A traced graph has the extents of its example inputs in every type, and a network takes others: a size may be folded
into a constant only where it is the same for all of them. An axis is fixed where a layer makes it (a convolution's
channels) or where it comes from fixed ones. For ONNX the file says which extents of its inputs are open.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from elastic_ir.choices import check_choice
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.numbering import number_of
from elastic_ir.ir.operations import Trait, operation_of
from elastic_ir.onnx_model import OnnxSource, type_of

#: For each axis of a value whether its extent is fixed.
Fixed = tuple[bool, ...]
#: What may be assumed of the inputs' extents, each with whether the first axis and the others are open.
Open: TypeAlias = Literal["all", "batch", "none"]
OPEN: dict[Open, tuple[bool, bool]] = {"all": (True, True), "batch": (True, False), "none": (False, False)}


class Extents:
    """Which extents are fixed, node by node: :meth:`visit` each in the order they run, once its operands are final.

    ``open_axes`` says which extents of a traced network's inputs may change: "all", "batch" (their first), or "none".
    For ONNX the file says it. Raises PlanError for another word.
    """

    def __init__(self, graph: Graph, open_axes: Open = "all") -> None:
        check_choice("open", open_axes, Open)
        self._first, self._others = OPEN[open_axes]
        source = graph.origin if isinstance(graph.origin, OnnxSource) else None
        self._in_file = source is not None
        self.fixed: dict[Value, Fixed] = _fixed_in_file(graph, source) if source is not None else {}

    def visit(self, node: Node) -> None:
        """Note which axes of a node's result are fixed."""
        kind = node.output.type
        if kind is None or self._in_file:
            return
        rank = len(kind.shape)
        if node.kind == "input":
            flags = (not (self._first if axis == 0 else self._others) for axis in range(rank))
            self.fixed[node.output] = tuple(flags)
        else:
            self.fixed[node.output] = _fixed(node, rank, self.fixed)

    def sizes(self, value: Value) -> list[int | None] | None:
        """A tensor's extents, None for those that are not fixed; None for one whose rank is not known."""
        if value.type is None:
            return None
        axes = self.fixed.get(value, (False,) * len(value.type.shape))
        pairs = zip(value.type.shape, axes, strict=True)
        return [extent if known and extent >= 0 else None for extent, known in pairs]


def _fixed(node: Node, rank: int, found: dict[Value, Fixed]) -> Fixed:
    """The axes of a node's result that are fixed, given those of what it reads."""
    operands = [value for value in node.operands() if value.is_tensor]
    sized = [value for value in node.operands() if not value.is_tensor]
    known = [found.get(value) for value in operands]
    if not sized and all(axes is not None and all(axes) for axes in known):
        return (True,) * rank
    operation = operation_of(node)
    kind, traits = operation.name, operation.traits
    first = known[0] if known else None
    if kind == "reshape" or kind == "view":
        return _reshaped(node, rank)
    if first is None or any(axes is None for axes in known):
        return (False,) * rank
    if kind == "linear" and len(first) == rank:
        return (*first[:-1], True)
    if operation.family in ("conv", "convtranspose") and len(first) == rank:
        return (first[0], True, *first[2:])
    if kind.startswith("adaptive") and len(first) == rank:
        return (*first[:2], *[True] * (rank - 2))
    if kind.startswith(("maxpool", "avgpool")) and len(first) == rank and node.output.is_tensor:
        return first
    if kind in ("permute", "transpose"):
        return _permuted(node, first, kind)
    if kind in ("flatten", "mean", "unsqueeze", "unbind", "squeeze"):
        return (False,) * rank
    if Trait.LIKE_FIRST in traits and len(first) == rank:
        return first
    if kind in ("matmul", "bmm") and len(operands) == 2 and all(len(axes or ()) == rank for axes in known):
        second = known[1] or ()
        pairs = zip(first[:-2], second[:-2], strict=True)
        return (*[a and b for a, b in pairs], first[-2], second[-1])
    if Trait.FRESH in traits and kind not in ("cat", "stack", "sum", "embedding"):
        return _broadcast(operands, known, rank)
    return (False,) * rank


def _reshaped(node: Node, rank: int) -> Fixed:
    """Axes that a reshape names by a number are that number, or the reshape fails."""
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
        sizes = tuple(sizes[0])
    if len(sizes) != rank:
        return (False,) * rank
    return tuple(isinstance(size, int) and size >= 0 for size in sizes)


def _permuted(node: Node, first: Fixed, kind: str) -> Fixed:
    rank = len(first)
    order = node.args[1:]
    if len(order) == 1 and isinstance(order[0], (list, tuple)):
        order = tuple(order[0])
    axes = [axis % rank for axis in order if isinstance(axis, int)]
    if kind == "transpose" and len(axes) == 2:
        places = list(range(rank))
        places[axes[0]], places[axes[1]] = axes[1], axes[0]
        axes = places
    if sorted(axes) != list(range(rank)):
        return (False,) * rank
    return tuple(first[axis] for axis in axes)


def _broadcast(operands: list[Value], known: list[Fixed | None], rank: int) -> Fixed:
    """An axis of a sum is fixed where all operands' are, or one is and has more than one place."""
    result = []
    for back in range(1, rank + 1):
        flags = []
        wide = False
        for value, axes in zip(operands, known, strict=True):
            if axes is None or value.type is None or back > len(axes):
                continue
            flags.append(axes[-back])
            wide |= axes[-back] and value.type.shape[-back] > 1
        result.append(wide or (bool(flags) and all(flags)))
    return tuple(reversed(result))


def _fixed_in_file(graph: Graph, source: OnnxSource) -> dict[Value, Fixed]:
    """What shape inference says with the inputs as open as the file has them."""
    import onnx

    from elastic_ir.onnx_model.limits import unbounded_shapes

    if unbounded_shapes(source.model):  # inference could fill any memory
        return {}
    twin = onnx.ModelProto()
    twin.CopyFrom(source.model)
    del twin.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(twin).graph
    except Exception:  # the C++ library raises errors of several kinds; nothing is known then
        return {}
    by_name: dict[str, Fixed] = {}
    for entry in (*inferred.value_info, *inferred.input):
        kind = type_of(entry.type)
        if kind is not None:
            by_name[entry.name] = tuple(extent > 0 for extent in kind.shape)
    found: dict[Value, Fixed] = {}
    for node in graph:
        name = _name_in_file(node, source)
        axes = by_name.get(name) if name is not None else None
        if axes is not None and node.output.type is not None and len(node.output.type.shape) == len(axes):
            found[node.output] = axes
    return found


def _name_in_file(node: Node, source: OnnxSource) -> str | None:
    """What the source calls a node's result."""
    if node.kind == "input":
        return node.origin
    index, _, place = node.origin.partition(":")
    at, result = number_of(index), number_of(place or "0")
    if at is None or result is None or at >= len(source.model.graph.node):
        return None
    outputs = source.model.graph.node[at].output
    return outputs[result] if result < len(outputs) else None
