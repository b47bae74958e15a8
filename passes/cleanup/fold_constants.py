"""Constant folding: what is the same in every run is computed once, in advance.

Shapes, ranks and arithmetic with them become numbers, and so do ONNX's Shape, Gather and Concat of what is known. A
size counts as known only where it is the same for every input that the network takes
(``elastic_ir/analysis/extents.py``): the sizes of the example inputs are never written into a network unless ``open``
says that they are its only ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from elastic_ir.analysis.effects import Memory, effect_of
from elastic_ir.analysis.evaluate import Evaluated, can_run_torch, literal_result, plain_result
from elastic_ir.analysis.extents import Extents, Open
from elastic_ir.ir.cloner import copy_node
from elastic_ir.ir.graph import Argument, Graph, Literal, Node, Symbol, Value, WeightRef
from elastic_ir.ir.operations import kind_of
from elastic_ir.onnx_model import BODY, OnnxSource
from elastic_ir.onnx_model.arithmetic import whole_numbers
from elastic_ir.onnx_model.layers import weight_readers
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import with_values

#: Sizes, of which some may not be known.
Partial = list[int | None]


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute now what is the same in every run: sizes that are fixed, and arithmetic with constants."""

    name: ClassVar[str] = "fold-constants"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True
    gains: ClassVar[str] = (
        "fewer operations in PyTorch; onnxruntime does the same itself when it loads a file"
    )

    open: Open = "all"  #: which extents of a traced network's inputs may change: all, batch (the first), none
    weights: bool = False  #: also what is computed of weights alone, which then no longer trains as it did

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        folder = _Folder(graph, rewriter, self.open)
        for node in graph:
            folder.visit(node)
        computed = _fold_weights(graph, rewriter) if self.weights else []
        rewriter.report({"nodes": folder.count, "weights": computed})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        parts = []
        if report["nodes"]:
            parts.append(f"folded {report['nodes']} nodes")
        if report["weights"]:
            parts.append(
                f"{len(report['weights'])} weights are what was computed of them; this is for inference"
            )
        return "; ".join(parts) or "nothing is constant"


class _Folder:
    def __init__(self, graph: Graph, rewriter: Rewriter, open_axes: Open) -> None:
        self.rewriter = rewriter
        self.extents = Extents(graph, open_axes)
        self.graph = graph
        self.source = graph.origin if isinstance(graph.origin, OnnxSource) else None
        self.kept = {value for block in graph.blocks for value in block.ends}
        self.partial: dict[Value, Partial] = {}
        self.count = 0

    def visit(self, node: Node) -> None:
        """Fold a node if what it gives is known."""
        self.extents.visit(node)
        if node.kind in ("input", "output", "module", "weight"):
            return
        if node.kind == "onnx":
            result = self._onnx(node)
        elif node.output.type is None:
            result = self._plain(node)
        else:
            return
        if result is not None and self._may_go(node, result):
            self.rewriter.substitute(node.output, result)
            self.rewriter.erase(node)
            self.count += 1

    def _may_go(self, node: Node, result: Any) -> bool:
        """Whether every reader can do with a constant."""
        if node.output in self.kept:
            return False
        for reader in self.rewriter.users(node.output):
            if reader.kind == "output" or BODY in reader.kwargs:
                return False  # a network gives values, and a body knows constants by the file's names
            if reader.kind == "method" and reader.args and reader.args[0] is node.output:
                return False
            if isinstance(result, Literal) and reader.op == "operator.getitem":
                return False
        return True

    # -- torch -----------------------------------------------------------------------------------------------------

    def _plain(self, node: Node) -> Any:
        if node.kind == "constant":
            given = node.args[0]
            return given if type(given) in (bool, int, float) else None
        sizes = self._sizes(node)
        if sizes is None:
            passed = node.op == "torch._assert" and bool(node.args) and node.args[0] is True
            return True if passed and not self.rewriter.users(node.output) else plain_result(node)
        if isinstance(sizes, list):
            self.partial[node.output] = sizes
            return None if None in sizes else tuple(sizes)
        return sizes

    def _shape_of(self, item: Argument) -> Partial | None:
        """The sizes of an operand, with None for those that may change; None where it is not a tensor."""
        if isinstance(item, WeightRef):
            return list(self.graph.weights[item.name].shape)
        if isinstance(item, Literal):
            return list(item.shape)
        return self.extents.sizes(item) if isinstance(item, Value) else None

    def _sizes(self, node: Node) -> Partial | int | None:
        """A tensor's shape, or one of its sizes, or its rank."""
        kind = kind_of(node)
        given = node.args[0] if node.args else None
        if kind == "getitem" and isinstance(given, Value) and given in self.partial:
            return _item(self.partial[given], node.args[1])
        shape = self._shape_of(given)
        if shape is None or node.kwargs:
            return None
        asked = node.args[1] if len(node.args) > 1 else None
        if (kind == "getattr" and asked == "ndim") or (
            node.kind == "method" and kind in ("dim", "ndimension")
        ):
            return len(shape)
        if kind == "getattr" and asked == "shape":
            return shape
        if node.kind == "method" and kind == "size":
            return shape if asked is None else _item(shape, asked)
        return None

    # -- ONNX ------------------------------------------------------------------------------------------------------

    def _onnx(self, node: Node) -> Literal | None:
        assert self.source is not None
        if effect_of(node) or any(isinstance(item, Symbol) for item in node.args):
            return None
        given = node.args[0] if node.args else None
        if node.op in ("onnx.Shape", "onnx.Size"):
            shape = self._shape_of(given)
            return self._shape(node, shape) if shape is not None else None
        if node.op == "onnx.Gather" and isinstance(given, Value) and given in self.partial:
            return self._gather(node, self.partial[given])
        return literal_result(node, self.source)

    def _shape(self, node: Node, shape: Partial) -> Literal | None:
        if node.op == "onnx.Size":
            whole = _known(shape)
            return Literal("int64", (), (math.prod(whole),)) if whole is not None else None
        start, end = node.attributes.get("start", 0), node.attributes.get("end")
        if not isinstance(start, int) or not (end is None or isinstance(end, int)):
            return None
        part = shape[start:end]
        return self._partial(node, part, (len(part),))

    def _gather(self, node: Node, sizes: Partial) -> Literal | None:
        places = node.args[1]
        wanted = whole_numbers(places)
        if wanted is None or not isinstance(places, Literal):
            return None
        if not all(-len(sizes) <= place < len(sizes) for place in wanted):
            return None
        return self._partial(node, [sizes[place] for place in wanted], places.shape)

    def _partial(self, node: Node, sizes: Partial, shape: tuple[int, ...]) -> Literal | None:
        """Note the sizes that a node gives; a literal where all are known."""
        if len(shape) == 1:
            self.partial[node.output] = sizes
        whole = _known(sizes)
        return Literal("int64", shape, tuple(whole)) if whole is not None else None


def _known(sizes: Partial) -> list[int] | None:
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _item(sizes: Partial, place: object) -> Partial | int | None:
    try:
        if isinstance(place, slice):
            return sizes[place]
        return sizes[place] if type(place) is int else None
    except (IndexError, TypeError):  # the network would fail there too, or counts with values
        return None


# -- what is computed of weights ---------------------------------------------------------------------------------------


def _fold_weights(graph: Graph, rewriter: Rewriter) -> list[str]:
    """Let weights hold what was computed of them alone; their names."""
    memory = Memory(graph)
    inside: dict[Node, tuple[Node, ...]] = {}  # for each node of weights alone what it takes to compute it
    for node in graph:
        if _of_weights(node, inside, memory):
            before = dict.fromkeys(part for value in node.operands() for part in inside[value.node])
            inside[node] = (*before, node)
    folded = []
    for node, steps in inside.items():
        readers = rewriter.users(node.output)
        if not readers or all(reader in inside for reader in readers):
            continue
        if any(reader.kind == "output" or BODY in reader.kwargs for reader in readers):
            continue
        name = _fold(node, steps, graph, rewriter)
        if name is not None:
            folded.append(name)
    for node in reversed(list(inside)):
        if not rewriter.users(node.output):
            rewriter.erase(node)
    used = {name for node in graph for name in node.weight_names()}
    gone = {name for steps in inside.values() for node in steps for name in node.weight_names()}
    rewriter.drop_weights(gone - used)
    return folded


def _of_weights(node: Node, inside: dict[Node, tuple[Node, ...]], memory: Memory) -> bool:
    if node.kind not in ("function", "method", "onnx") or node.output.type is None or effect_of(node):
        return False
    if BODY in node.kwargs or any(isinstance(item, Symbol) for item in node.args):
        return False
    operands = node.operands()
    if not all(value.node in inside for value in operands) or not (operands or node.weight_names()):
        return False
    if node.kind == "onnx":
        return True
    return can_run_torch(node) and not memory.changes([*operands, node.output])


def _fold(node: Node, steps: Sequence[Node], graph: Graph, rewriter: Rewriter) -> str | None:
    """Give the largest weight that a result is made of that result, where nothing else needs the weight as it was."""
    names = list(dict.fromkeys(name for step in steps for name in step.weight_names()))
    weights = {name: graph.weights[name] for name in names}
    main = max(weights.values(), key=lambda weight: math.prod(weight.shape))
    storage = id(main.storage)
    readers = [reader for reader, _ in weight_readers(graph)[storage]]
    outside = {user for step in steps[:-1] for user in rewriter.users(step.output)} - set(steps)
    tied = {name for name, weight in graph.weights.items() if id(weight.storage) == storage}
    masked = any(weight.mask is not None for weight in weights.values())
    kind = node.output.type
    if (
        kind is None
        or masked
        or outside
        or tied - set(names)
        or any(reader not in steps for reader in readers)
    ):
        return None
    values: dict[Value, Value] = {}
    copies = tuple(copy_node(step, values) for step in steps)
    parts = {name: weight.storage.data for name, weight in weights.items()}
    source = graph.origin if isinstance(graph.origin, OnnxSource) else None
    recipe = Evaluated(copies, parts, kind.shape, kind.dtype, source)
    rewriter.replace_tensor(main.name, with_values(recipe, *parts.values()))
    rewriter.substitute(node.output, WeightRef(main.name))
    return main.name
