"""What a small ONNX file may not ask of shape inference: functions, shapes and contents that grow without end.

onnx follows the contents of small integer tensors (data propagation), so that forty Concat nodes that read their
predecessor twice would fill any memory; it expands functions where they are called, and copies shapes from node to
node. Here the same is followed by sizes alone, before it begins.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from math import prod
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError
from elastic_ir.onnx_model.source import bodies

if TYPE_CHECKING:
    import onnx

_EXPANDED = 1 << 18  #: nodes, with each function's as often as it is called
_DEEPEST = 100  #: calls within calls; onnx's checker has the same limit
_RANK = 64  #: extents of a shape; numpy has the same limit
_FOLLOWED = 1 << 20  #: numbers whose values shape inference may follow, over all nodes
_SHAPE = 512  #: numbers from which a shape may be made
#: The operators by which shapes are computed from shapes, with how many of their operands make the result's length.
_FOLLOWS = {
    **dict.fromkeys(("Cast", "Identity", "Slice", "Squeeze", "Unsqueeze", "Neg", "Abs", "Not", "Reshape",
                     "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Floor", "Ceil"), 1),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Gather", "Equal", "Less", "Greater", "And", "Or"), 2),
    "Where": 3, **dict.fromkeys(("Concat", "Min", "Max"), 1 << 30),
}  # fmt: skip
#: The operators through which shape inference follows contents, of whatever type.
_COPIES = {"Add", "Cast", "Concat", "Gather", "MeanVarianceNormalization", "Mul", "Size", "Slice", "Sub"}
#: The operators whose first result is no list where an operand is none; Conv and its like never make one.
_KEEPS = {
    "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvInteger", "ConvTranspose",
    "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Flatten", "Gelu", "Gemm", "GlobalAveragePool",
    "Greater", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Less", "Log", "LogSoftmax", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or",
    "PRelu", "Pad", "Pow", "QLinearConv", "QuantizeLinear", "Reciprocal", "Relu", "Resize", "Selu", "Sigmoid", "Slice",
    "Softmax", "Softplus", "Split", "Sqrt", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_LONG = 1 << 16  #: numbers of a list that it may follow
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


class _Follower:
    """Bounds of how many numbers each value has that shapes are made of; what is missing is not known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.functions = _functions(model)
        self.total = 0
        self.suspects: list[int] = []
        self.inner = False  # whether a body or function computes with what is not known
        self.known = {t.name: n for t in model.graph.initializer if (n := _numbers(t)) is not None}
        for index, node in enumerate(model.graph.node):
            if self._node(node, self.known, 0):
                self.suspects.append(index)

    def _node(self, node: onnx.NodeProto, known: MutableMapping[str, int], depth: int) -> bool:
        """Note what is known of a node's results; whether it makes a shape of what is not known."""
        place = _SHAPES.get(node.op_type, len(node.input))
        suspect = place < len(node.input) and known.get(node.input[place], _SHAPE + 1) > _SHAPE
        called = self.functions.get((node.domain, node.op_type)) if depth <= _DEEPEST else None
        results: list[int | None] = [_result(node, [known.get(name) for name in node.input])] * len(
            node.output
        )
        if called is not None:
            pairs = zip(called.input, node.input, strict=False)
            inner = {name: known[given] for name, given in pairs if given in known}
            self.inner |= any(is_unknown(item, inner) for item in called.node)
            for item in called.node:  # all of them: each makes known what the next one reads
                suspect |= self._node(item, inner, depth + 1)
            results = [inner.get(name) for name in called.output]
        for body in bodies(node):
            inside = ChainMap({t.name: n for t in body.initializer if (n := _numbers(t)) is not None}, known)
            for item in body.node:
                suspect |= self._node(item, inside, depth)
            self.inner |= any(is_unknown(item, inside) for item in body.node)
        for name, size in zip(node.output, results, strict=False):
            if size is not None and self.total <= _FOLLOWED:
                self.total += size
                known[name] = min(size, _FOLLOWED)
        return suspect


def is_unknown(node: onnx.NodeProto, known: Mapping[str, int]) -> bool:
    """Whether shape inference follows a node's contents, and they may be of any length."""
    return node.op_type in _COPIES and any(name not in known for name in node.input if name)


class Guard:
    """The nodes that shape inference has to leave alone until it has shown that their operands are short."""

    def __init__(self, model: onnx.ModelProto) -> None:
        found = _Follower(model)
        #: Whether contents may be followed at all.
        self.contents = found.total <= _FOLLOWED and not found.inner
        self.shapes = found.suspects  #: nodes by index that make a shape of a value of unknown length
        self.copies = [i for i, node in enumerate(model.graph.node) if is_unknown(node, found.known)]
        self._known = found.known
        self._left = _FOLLOWED

    def release(self, model: onnx.ModelProto, inferred: onnx.GraphProto) -> list[int]:
        """The nodes among them whose operands the inferred types show to be short; they are taken off the lists."""
        tables = (inferred.value_info, inferred.input, inferred.output)
        dims = {e.name: _extents(e) for table in tables for e in table if _has_shape(e)}
        dims |= {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
        broad = {name for name, extents in dims.items() if len(extents) > 1}
        for node in model.graph.node:
            flat = [name not in broad for name in node.input]
            if (node.op_type in _KEEPS and not all(flat)) or (node.op_type == "MatMul" and not any(flat)):
                broad.update(node.output if node.op_type == "Split" else node.output[:1])

        def length(name: str) -> int:
            """How many numbers a list has; 0 for what is no list, and beyond all limits for what is not known."""
            if name in broad:
                return 0
            if not name or self._known.get(name, _LONG + 1) <= _LONG:
                return self._known.get(name, 0)
            extents = dims.get(name, [_LONG + 1])
            return extents[0] if len(extents) == 1 else 0

        nodes = model.graph.node
        shapes = {i for i in self.shapes if 0 < length(shape_operand(nodes[i])) <= _SHAPE}
        copies = set()
        for index in self.copies:
            lengths = [length(name) for name in nodes[index].input]
            if max(lengths, default=0) <= _LONG and sum(lengths) <= self._left:
                self._left -= sum(lengths)
                copies.add(index)
        done = {*shapes, *copies}
        self.shapes = [i for i in self.shapes if i not in shapes]
        self.copies = [i for i in self.copies if i not in copies]
        return sorted(done.difference(self.shapes, self.copies))


def _has_shape(entry: onnx.ValueInfoProto) -> bool:
    return entry.type.HasField("tensor_type") and entry.type.tensor_type.HasField("shape")


def _extents(entry: onnx.ValueInfoProto) -> list[int]:
    """A value's extents; an open one counts as beyond all limits."""
    dims = entry.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else _LONG + 1 for dim in dims]


def shape_operand(node: onnx.NodeProto) -> str:
    """The operand that a node makes a shape of; empty where it makes none, or in a body of its own."""
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
    return sum(whole) if node.op_type == "Concat" else max(whole)
