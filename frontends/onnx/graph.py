"""An ONNX model as a graph: nodes of its operators, weights that stay in the file, module scopes from its names.

Small integers and scalar factors are literals of the program; other constants are weights, wherever the file keeps them
(initializers, Constant nodes, filled by ConstantOfShape). Nodes with bodies (If, Loop, Scan) and calls of functions are
one node each, with what their bodies capture among the operands: kept whole, never cut.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError
from elastic_ir.frontends.onnx.constants import ConstantReader, count_uses
from elastic_ir.frontends.onnx.file import OnnxFile, read_onnx
from elastic_ir.frontends.onnx.scopes import SCOPINGS, Scoping, by_regions
from elastic_ir.frontends.onnx.types import infer_types
from elastic_ir.ir.graph import RESULTS, Argument, Graph, Node, Symbol, Value, WeightRef
from elastic_ir.ir.info import GraphInfo, History
from elastic_ir.ir.naming import name_nodes, rename_references
from elastic_ir.onnx_model import (
    BODY,
    Constant,
    OnnxSource,
    captured,
    operator,
    opsets_of,
    plain_attributes,
)
from elastic_ir.onnx_model.limits import check_limits
from elastic_ir.onnx_model.record import read_record
from elastic_ir.tensors.weights import Storage, Weight, Weights

if TYPE_CHECKING:
    import onnx

    from elastic_ir.formats.distant import Elsewhere

_LONGEST = 600  #: characters of a message; a damaged file's names have thousands
OLDEST_OPSET = 7  #: of the default domain; what onnxruntime still promises to run
#: Which operand is the weight of a layer, by operator; of several only constant ones count.
LAYERS: dict[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "ConvInteger": (1,), "QLinearConv": (3,),
    "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), "com.microsoft.FusedConv": (1,),
    "com.microsoft.FusedGemm": (0, 1), "com.microsoft.FusedMatMul": (0, 1), "com.microsoft.Attention": (1,),
    "com.microsoft.QAttention": (1,), "com.microsoft.DynamicQuantizeMatMul": (1,), "com.microsoft.MatMulNBits": (1,),
    "com.microsoft.QGemm": (3,), "com.microsoft.MatMulIntegerToFloat": (1,), "LSTM": (1, 2), "GRU": (1, 2),
    "RNN": (1, 2),
}  # fmt: skip
#: Operators that hand a weight on to the layer that uses it.
_CARRIERS = {
    "Transpose",
    "Reshape",
    "Identity",
    "Cast",
    "DequantizeLinear",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
}
#: Operators whose result is zero where these operands are: what a weight is scaled by, in weight and spectral norm.
_SCALED: dict[str, tuple[int, ...]] = {"Mul": (0, 1), "Div": (0,)}


def load_onnx(
    path: str | os.PathLike[str],
    input_shape: Sequence[Sequence[int]] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Graph:
    """Read an ONNX file into a graph; no weight is read. ``input_shape`` fills in open extents of the inputs.

    ``elsewhere`` gives files with external data that are not here.

    Raises SourceError: not an ONNX model, an opset that is not known, a graph that is cyclic or has dangling names.
    """
    try:
        opened = read_onnx(path, elsewhere)
        _check_versions(opened)
        check_limits(opened.model, opened.path.name)
        return _Reader(opened, input_shape).graph
    except SourceError as error:
        text = str(error)
        if len(text) <= _LONGEST:
            raise
        raise SourceError(f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}") from error


def _check_versions(opened: OnnxFile) -> None:
    import onnx

    name, model = opened.path.name, opened.model
    newest = onnx.defs.onnx_opset_version()
    version = opsets_of(model).get("")
    if not model.HasField("graph"):
        raise SourceError(f"{name} is not an ONNX model: it holds no graph")
    if version is None:
        raise SourceError(f"{name} does not state which opset it uses")
    if not OLDEST_OPSET <= version <= newest:
        raise SourceError(
            f"{name} uses opset {version}; opsets {OLDEST_OPSET} to {newest} are read (convert it with "
            "onnx.version_converter)"
        )
    if model.ir_version > onnx.IR_VERSION:
        raise SourceError(f"{name} has IR version {model.ir_version}; up to {onnx.IR_VERSION} are read")


class _Reader:
    def __init__(self, opened: OnnxFile, input_shape: Sequence[Sequence[int]] | None) -> None:
        self.opened = opened
        self.proto = opened.model.graph
        self.file = opened.path.name
        self.source = OnnxSource(opened.path, opened.model, dict(opened.tensors))
        pipeline, lineage = read_record(opened.model, self.file)
        self.graph = Graph(self.proto.name or opened.path.stem, GraphInfo("onnx", lineage=lineage))
        self.graph.origin = self.source
        self.graph.history = History(tuple(pipeline))
        self.values: dict[str, Value] = {}
        self._uses = count_uses(self.proto)
        self.source.constants = ConstantReader(opened, self._uses, LAYERS).read()
        self._check_names()
        types, self.source.input_shapes = infer_types(opened.model, input_shape, self.file)
        self.source.types = types
        nodes = self._nodes()
        for name, value in self.values.items():
            value.type = types.get(name)
        self._name_weights(nodes)
        name_nodes(self.graph)
        self.graph.info = replace(self.graph.info, source_names=tuple(self.graph.weights))

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _check_names(self) -> None:
        """Every name that is read is made by someone; SourceError for cycles and dangling names."""
        made = {entry.name for entry in self.proto.input} | self.source.constants.keys()
        later = {name for node in self.proto.node for name in node.output if name}
        seen: set[str] = set()
        for node in self.proto.node:
            for name in (*(n for n in node.input if n), *captured(node)):
                if name not in made:
                    what = f"node {node.name or node.op_type!r}"
                    if name in later:
                        raise SourceError(
                            f"{self.file}: {what} reads {name!r}, which is computed later: the nodes are cyclic or not "
                            "in the order they run"
                        )
                    raise SourceError(f"{self.file}: {what} reads {name!r}, which nothing computes")
            for name in node.output:
                if name and name in seen:
                    raise SourceError(f"{self.file}: {name!r} is computed twice")
                seen.add(name)
            made.update(name for name in node.output if name)
        for entry in self.proto.output:
            if entry.name not in made:
                raise SourceError(f"{self.file}: the output {entry.name!r} is computed by nothing")
        if not self.proto.output:
            raise SourceError(f"{self.file}: the graph has no output")

    def _nodes(self) -> list[tuple[int, Node]]:
        graph, constants = self.graph, self.source.constants
        for entry in self.proto.input:
            if entry.name not in constants:
                node = Node(entry.name, "input", kind="input", origin=entry.name)
                self.values[entry.name] = graph.append(node).output
        made = []
        for index, proto in enumerate(self.proto.node):
            if len(proto.output) == 1 and proto.output[0] in constants:
                continue
            inside = captured(proto)
            kwargs: dict[str, Argument] = (
                {BODY: {name: self._argument(name) for name in inside}} if inside else {}
            )
            node = Node(
                proto.name, f"onnx.{operator(proto)}", tuple(self._argument(name) for name in proto.input), kwargs,
                kind="onnx", attributes=plain_attributes(proto), origin=str(index),
            )  # fmt: skip
            graph.append(node)
            made.append((index, node))
            named = [(place, name) for place, name in enumerate(proto.output) if name]
            if named and (len(named) == 1 and named[0][0] == 0):
                self.values[named[0][1]] = node.output
                continue
            node.output.is_tensor = False
            for place, name in named:
                part = Node(
                    name, "operator.getitem", (node.output, place), kind="function", origin=f"{index}:{place}"
                )
                self.values[name] = graph.append(part).output
        results = tuple(self._argument(entry.name) for entry in self.proto.output)
        names = tuple(entry.name for entry in self.proto.output)
        graph.append(Node("output", "output", (results,), kind="output", attributes={RESULTS: names}))
        return made

    def _argument(self, name: str) -> Argument:
        if not name:
            return None
        constant = self.source.constants.get(name)
        if constant is None:
            return self.values[name]
        if constant.literal is not None:
            return constant.literal
        if constant.data is None:
            return Symbol(f"constant {name!r}")
        return WeightRef(name)

    # -- weights ---------------------------------------------------------------------------------------------------

    def _name_weights(self, nodes: list[tuple[int, Node]]) -> None:
        """Scopes for the nodes, and for each weight a name within the scope of the node that uses it."""
        weights = {n: c for n, c in self.source.constants.items() if c.literal is None and c.data is not None}
        layers = self._layer_weights(weights)
        storages: dict[str, Storage] = {}
        for name, constant in weights.items():
            assert constant.data is not None
            storage = storages.setdefault(constant.root, Storage(constant.data, constant.mask))
            float_like = constant.data.dtype.startswith(("float", "bfloat"))
            statistic = any(
                place > 2 and operator(self.proto.node[index]) == "BatchNormalization"
                for index, place in self._uses.get(name, ())
            )
            self.graph.weights[name] = Weight(
                name,
                storage,
                name,
                float_like and not statistic,
                True,
                layers.get(name, False),
                layer=name in layers,
            )
        self._choose_scopes(nodes, weights)

    def _choose_scopes(self, nodes: list[tuple[int, Node]], weights: dict[str, Constant]) -> None:
        """The first scopes in which something repeats: what the file states, else the flow of data."""
        table = self.graph.weights
        before = [(node, node.args, node.kwargs) for node in self.graph]

        def apply(way: Scoping) -> bool:
            for node, args, kwargs in before:
                node.args, node.kwargs, node.scope = args, kwargs, ""
            self.graph.weights = table
            self.graph._structure = None
            if not way(self.graph, self.opened.model, nodes):
                return False
            self.source.named = way is not by_regions
            self._rename(nodes, weights)
            return True

        if any(apply(way) and self.graph.structure_or_none for way in SCOPINGS):
            return
        if not any(apply(way) for way in SCOPINGS):  # nothing repeats: shown as the file has it
            self._rename(nodes, weights)

    def _rename(self, nodes: list[tuple[int, Node]], weights: dict[str, Constant]) -> None:
        names = self._names_by_scope(nodes, weights, keep=self.source.named)
        fresh: dict[str, Weight] = {}
        self.source.initializer_of = {}
        for name, weight in self.graph.weights.items():
            for new in names.get(name, {"": name}).values():
                fresh[new] = replace(weight, name=new, origin=new)
                self.source.initializer_of[new] = name
        self.graph.weights = Weights(fresh)
        within: dict[str, dict[str, str]] = {}  # a node is asked about the names of its own scope alone
        for name, by in names.items():
            for scope, new in by.items():
                within.setdefault(scope, {})[name] = new
        for node in self.graph:
            inside = within.get(node.scope, {})
            if node.kind == "output":  # it may hand on a weight, and belongs to no scope
                inside = {name: next(iter(by.values())) for name, by in names.items()} | inside
            if inside:
                rename_references(node, inside)
        self.source.scopes = {node.origin: node.scope for node in self.graph if node.origin}

    def _layer_weights(self, weights: dict[str, Constant]) -> dict[str, bool]:
        """The weights of convolutions and linear layers, through what hands them on or computes them.

        True for one whose zeros are zeros of what the layer multiplies with. Of several that it is computed from, the
        largest is the layer's: weight norm has a length for each row beside it.
        """
        makers = {name: node for node in self.proto.node for name in node.output if name}
        fixed: dict[str, bool] = {}

        def is_fixed(name: str, limit: int = 16) -> bool:
            """Whether something is computed from constants alone, in few steps."""
            if name not in fixed:
                inputs = [item for item in makers[name].input if item] if name in makers else []
                steps = bool(inputs) and limit > 0 and all(is_fixed(item, limit - 1) for item in inputs)
                fixed[name] = name in self.source.constants or steps
            return fixed[name]

        def root(name: str, limit: int = 8) -> tuple[str, bool] | None:
            if name in weights:
                data = weights[name].data
                return (name, True) if data is not None and 2 <= len(data.shape) <= 5 else None
            maker = makers.get(name)
            if maker is None or not maker.input or not limit:
                return None
            if maker.op_type in _CARRIERS:
                return root(maker.input[0], limit - 1)
            if not is_fixed(name):
                return None
            scaled = _SCALED.get(maker.op_type)
            read = [item for place, item in enumerate(maker.input) if scaled is None or place in scaled]
            found = [one for item in read if (one := root(item, limit - 1)) is not None]
            best = max(found, key=lambda one: size(one[0]), default=None)
            return None if best is None else (best[0], best[1] and scaled is not None)

        def size(name: str) -> int:
            data = weights[name].data
            return math.prod(data.shape) if data is not None else 0

        functions = {(item.domain, item.name): item for item in self.opened.model.functions}
        layers: dict[str, bool] = {}
        for node in self.proto.node:
            for place in _layer_operands(node, functions):
                found = root(node.input[place]) if place < len(node.input) else None
                if found is not None:
                    layers[found[0]] = layers.get(found[0], False) or found[1]
        return layers

    def _names_by_scope(
        self, nodes: list[tuple[int, Node]], weights: dict[str, Constant], *, keep: bool
    ) -> dict[str, dict[str, str]]:
        """For each weight of the file a name for each scope that uses it; they are tied where there are several.

        An exporter that keeps one of equal tensors (all norms of a fresh network) makes blocks share what belongs to
        no single one; each then has a name of its own for it, as in the network that was exported. A path that the
        file gives is kept where it lies in the scope.
        """
        taken = set(self.source.constants)
        counts: Counter[str] = Counter()
        names: dict[str, dict[str, str]] = {}
        for _, node in nodes:
            for name in node.weight_names():
                by = names.setdefault(name, {})
                if name not in weights or node.scope in by:
                    continue
                parent = name.rpartition(".")[0]
                if not node.scope or (keep and parent and _akin(parent, node.scope)):
                    by[node.scope] = name
                    continue
                base = f"{node.scope}.{role_of(node, name)}"
                new = base
                while new in taken:
                    counts[base] += 1
                    new = f"{base}_{counts[base]}"
                taken.add(new)
                by[node.scope] = new
        return {name: by for name, by in names.items() if by}


def _layer_operands(
    node: onnx.NodeProto, functions: dict[tuple[str, str], onnx.FunctionProto]
) -> tuple[int, ...]:
    """Which operands of a node may be a layer's weight; of a call those that the function hands to a layer."""
    called = functions.get((node.domain, node.op_type))
    if called is None:
        return LAYERS.get(operator(node), ())
    # through what hands a weight on, to the function's operand
    handed = {name: name for name in called.input}
    read = set()
    for item in called.node:  # no deeper: limits on calls within calls are checked before
        if item.op_type in _CARRIERS and item.input and item.input[0] in handed:
            handed.update((name, handed[item.input[0]]) for name in item.output)
        for place in _layer_operands(item, functions):
            if place < len(item.input) and item.input[place] in handed:
                read.add(handed[item.input[place]])
    return tuple(place for place, name in enumerate(called.input) if name in read)


def _akin(parent: str, scope: str) -> bool:
    """Whether a weight's path and its user's agree: one lies within the other."""
    return parent == scope or parent.startswith(scope + ".") or scope.startswith(parent + ".")


_ROLES = {
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "InstanceNormalization": ("", "weight", "bias"), "LayerNormalization": ("", "weight", "bias"),
    "Gather": ("weight",), "Add": ("bias", "bias"), "Mul": ("scale", "scale"), "Div": ("divisor", "divisor"),
    "Sub": ("shift", "shift"), "QLinearConv": ("", "", "", "weight", "", "", "", "", "bias"),
}  # fmt: skip


def role_of(node: Node, name: str) -> str:
    """What a weight is to the node that reads it, by PyTorch's name for it where there is one."""
    kind = node.op.removeprefix("onnx.")
    place = next(
        (i for i, item in enumerate(node.args) if isinstance(item, WeightRef) and item.name == name), -1
    )
    known = _ROLES.get(kind)
    if known is not None and 0 <= place < len(known) and known[place]:
        return known[place]
    if kind in LAYERS:
        return "weight" if place in LAYERS[kind] else "bias" if place == 2 else f"in{place}"
    return f"{kind.rpartition('.')[2].lower()}.in{place}" if place >= 0 else "captured"
