"""What a small ONNX file may not ask of shape inference: functions, shapes and contents that grow without end.

onnx expands functions where they are called, makes as many extents as a shape's operand has numbers, and copies shapes
from node to node. Here the same is followed by lengths alone, before it begins. Its data propagation is never used:
forty Concat nodes that read their predecessor twice would fill any memory.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from math import prod
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError
from elastic_ir.onnx_model import bodies

if TYPE_CHECKING:
    import onnx

_EXPANDED = 1 << 18  #: nodes, with each function's as often as it is called
_DEEPEST = 100  #: calls within calls; onnx's checker has the same limit
_RANK = 64  #: extents of a shape; numpy has the same limit
_SHAPE = 512  #: numbers from which a shape may be made
#: The operators by which shapes are computed from shapes, with how many of their operands make the result's length.
_FOLLOWS = {
    **dict.fromkeys(("Cast", "Identity", "Slice", "Squeeze", "Unsqueeze", "Neg", "Abs", "Not", "Reshape",
                     "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Floor", "Ceil"), 1),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Gather", "Equal", "Less", "Greater", "And", "Or"), 2),
    "Where": 3, **dict.fromkeys(("Concat", "Min", "Max"), 1 << 30),
}  # fmt: skip
#: The operators whose result has as many extents as an operand has numbers, and that operand's place.
_SHAPES = {"ConstantOfShape": 0, "Reshape": 1, "Expand": 1, "Tile": 1, "Unsqueeze": 1, "CenterCropPad": 1,
           "AffineGrid": 1, "Col2Im": 1, "MaxUnpool": 2, "Squeeze": 1, "Upsample": 1, "Resize": 3}  # fmt: skip


def check_limits(model: onnx.ModelProto, file: str) -> None:
    """SourceError where functions call themselves or grow without end, or a shape has more extents than any may."""
    functions = _functions(model)
    sizes: dict[int, int] = {}

    def size(nodes: Iterable[onnx.NodeProto], depth: int) -> int:
        if depth > _DEEPEST:
            raise SourceError(f"{file}: functions call themselves, or one another more than {_DEEPEST} deep")
        total = 0
        for node in nodes:
            total += 1
            for body in bodies(node):
                total += size(body.node, depth)
            called = functions.get((node.domain, node.op_type))
            if called is not None:
                key = id(called)
                if key not in sizes:
                    sizes[key] = size(called.node, depth + 1)
                total += sizes[key]
        return total

    expanded = size(model.graph.node, 0)
    if functions and expanded > _EXPANDED:
        raise SourceError(
            f"{file}: with the functions that its nodes call it has {expanded} nodes; up to {_EXPANDED} are read"
        )
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        for entry in (*graph.input, *graph.output, *graph.value_info):
            _check_rank(len(entry.type.tensor_type.shape.dim), f"the value {entry.name!r}", file)
        for tensor in graph.initializer:
            _check_rank(len(tensor.dims), f"the initializer {tensor.name!r}", file)
        for sparse in graph.sparse_initializer:
            _check_rank(len(sparse.dims), f"the sparse initializer {sparse.values.name!r}", file)
        for node in graph.node:
            waiting += bodies(node)


def _check_rank(rank: int, owner: str, file: str) -> None:
    if rank > _RANK:
        raise SourceError(f"{file}: {owner} has {rank} extents; up to {_RANK} are read")


def _functions(model: onnx.ModelProto) -> dict[tuple[str, str], onnx.FunctionProto]:
    return {(function.domain, function.name): function for function in model.functions}


def unbounded_shapes(model: onnx.ModelProto) -> list[int]:
    """The nodes, by index, that make a shape of a value whose length is not known to be small.

    Shape inference has to leave them alone: the shape could have more extents than memory holds.
    """
    functions = _functions(model)

    def is_unbounded(node: onnx.NodeProto, known: MutableMapping[str, int], depth: int) -> bool:
        """Note how many numbers a node's results have at most, and whether it makes a shape of too many."""
        made = shape_operand(node)
        found = bool(made) and known.get(made, _SHAPE + 1) > _SHAPE
        called = functions.get((node.domain, node.op_type)) if depth <= _DEEPEST else None
        lengths: list[int | None] = [_result(node, [known.get(name) for name in node.input])] * len(
            node.output
        )
        if called is not None:
            pairs = zip(called.input, node.input, strict=False)
            inner = {name: known[given] for name, given in pairs if given in known}
            for item in called.node:  # all of them: each makes known what the next one reads
                found |= is_unbounded(item, inner, depth + 1)
            lengths = [inner.get(name) for name in called.output]
        for body in bodies(node):
            inside = ChainMap(_constants(body), known)
            for item in body.node:
                found |= is_unbounded(item, inside, depth)
        known.update((n, size) for n, size in zip(node.output, lengths, strict=False) if size is not None)
        return found

    known = _constants(model.graph)
    return [index for index, node in enumerate(model.graph.node) if is_unbounded(node, known, 0)]


def _constants(graph: onnx.GraphProto) -> dict[str, int]:
    """How many numbers each initializer has that may be a shape."""
    return {tensor.name: n for tensor in graph.initializer if (n := _numbers(tensor)) is not None}


def shape_operand(node: onnx.NodeProto) -> str:
    """The operand that a node makes a shape of; empty where it makes none."""
    place = _SHAPES.get(node.op_type)
    return node.input[place] if place is not None and place < len(node.input) else ""


def _numbers(tensor: onnx.TensorProto) -> int | None:
    """How many numbers a tensor has, where they may be a shape."""
    return prod(tensor.dims) if tensor.data_type in (6, 7, 9) and len(tensor.dims) < 2 else None


def _result(node: onnx.NodeProto, sizes: list[int | None]) -> int | None:
    """The most numbers that a node's result has, of at most one axis; None where it may have any."""
    if node.op_type == "Constant":
        return next((_numbers(a.t) if a.HasField("t") else max(len(a.ints), 1) for a in node.attribute), None)
    if node.op_type in ("Shape", "Size"):
        return _RANK if node.op_type == "Shape" else 1
    given = [size for name, size in zip(node.input, sizes, strict=True) if name]
    if node.op_type not in _FOLLOWS or not given or None in given[: _FOLLOWS[node.op_type]]:
        return None
    whole = [size or 0 for size in given[: _FOLLOWS[node.op_type]]]
    if node.op_type == "Gather":
        return whole[-1]
    return min(sum(whole) if node.op_type == "Concat" else max(whole), _SHAPE + 1)
