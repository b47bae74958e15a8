"""Nodes that hand on what they are given are taken out: identities, dropout in evaluation, shapes that stay.

For inference: without its dropouts and stochastic depth (Srivastava et al. 2014; Huang et al. 2016) a network does not
train as it did. ``dropout=false`` keeps them, and what is left does nothing in training either.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.analysis.effects import Memory, effect_of
from elastic_ir.analysis.extents import Extents
from elastic_ir.ir.graph import Graph, Node, Value, WeightRef
from elastic_ir.ir.operations import Trait, has, kind_of, written
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.rewriter import Rewriter

#: Results of these are contiguous, whatever they read.
_PACKED = {"linear", "layernorm"}
#: These need a tensor that is contiguous enough.
_STRIDED = {"view", "asstrided", "unsafeview", "viewas"}


@dataclasses.dataclass(frozen=True)
class RemoveIdentities(Pass):
    """Take out what does nothing in evaluation: identities, dropout, shapes that stay; for inference."""

    name: ClassVar[str] = "remove-identities"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True
    gains: ClassVar[str] = (
        "fewer operations in PyTorch; onnxruntime does the same itself when it loads a file"
    )

    dropout: bool = True  #: also dropout and stochastic depth; False keeps what training needs

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        finder = _Finder(graph, rewriter, dropout=self.dropout)
        gone: dict[str, int] = {}
        for node in graph.nodes:
            two = node.op == "onnx.Dropout" and not node.output.is_tensor  # a mask is its second result
            source = finder.with_mask(node) if two else finder.source(node)
            if source is None:
                continue
            kind = kind_of(node)
            gone[kind] = gone.get(kind, 0) + 1
            if isinstance(source, Value):
                for part in rewriter.users(node.output) if two else ():
                    rewriter.dissolve(part, source)
                rewriter.dissolve(node, source)
            else:
                rewriter.substitute(node.output, source)
                rewriter.erase(node)
        rewriter.report(gone)

    def summary(self, graph: Graph) -> str | None:
        gone = self.report(graph)
        if not gone:
            return "everything does something"
        counts = ", ".join(f"{count} {kind}" for kind, count in gone.items())
        kept = "" if self.dropout else "; dropout stays"
        return f"took out {counts}{kept or '; this is for inference'}"


class _Finder:
    def __init__(self, graph: Graph, rewriter: Rewriter, *, dropout: bool) -> None:
        self.graph = graph
        self.rewriter = rewriter
        self.dropout = dropout
        self.extents = Extents(graph)
        self.memory = Memory(graph)
        self.blocks = graph.blocks

    def source(self, node: Node) -> Value | WeightRef | None:
        """What a node hands on as it is; None where it does something, or has to stay."""
        self.extents.visit(node)
        given = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(given, (Value, WeightRef)) or written(node):
            return None
        if node.kind not in ("module", "function", "method", "onnx") or not self._does_nothing(node, given):
            return None
        if isinstance(given, WeightRef):
            return given if all(node.output not in block.ends for block in self.blocks) else None
        # a block that would hand on what it was given, and compute nothing, stays
        empty = any(block.output is node.output and block.input is given for block in self.blocks)
        return None if empty else given

    def _does_nothing(self, node: Node, given: Value | WeightRef) -> bool:
        kind = kind_of(node)
        if kind == "identity":
            return node.op in ("nn.Identity", "onnx.Identity") or node.kind == "module"
        if has(node, Trait.DROPOUT):
            return self._drops_nothing(node)
        if isinstance(given, WeightRef) or given.type is None or node.output.type != given.type:
            return False
        if kind == "contiguous":
            return not node.kwargs and not self.memory.changes([node.output]) and self._layout_is_free(node)
        if kind in ("reshape", "view", "flatten"):
            return self._keeps_shape(node, given, kind)
        if kind == "pad":
            return self._pads_nothing(node) and not self.memory.changes([node.output])
        if node.op == "onnx.Cast":
            return True  # of one type to the same
        if node.op == "onnx.Transpose":
            return node.attributes.get("perm") == list(range(len(given.type.shape)))
        return False

    def with_mask(self, node: Node) -> Value | None:
        """What an ONNX Dropout of two results hands on, if nobody reads the second, its mask."""
        given = node.args[0]
        parts = self.rewriter.users(node.output)
        masks = [part for part in parts if part.args[1:] != (0,)]
        ends = {value for block in self.blocks for value in block.outputs} & {part.output for part in parts}
        read = any(self.rewriter.users(mask.output) for mask in masks)
        if not isinstance(given, Value) or read or ends or not self._drops_nothing(node):
            return None
        return given

    def _drops_nothing(self, node: Node) -> bool:
        if node.kind == "onnx":
            return self.dropout and not effect_of(node)
        rate = node.attributes.get("p", node.kwargs.get("p", node.args[1] if len(node.args) > 1 else None))
        return self.dropout or (node.kind == "module" and rate == 0.0)

    def _layout_is_free(self, node: Node) -> bool:
        """Whether no view, which needs numbers to lie in order, follows before they are laid out anew."""
        waiting, seen = [node], {node}
        while waiting:
            for reader in self.rewriter.users(waiting.pop().output):
                if kind_of(reader) in _STRIDED or reader.kind == "output":
                    return False
                if reader not in seen and kind_of(reader) not in _PACKED:
                    seen.add(reader)
                    waiting.append(reader)
        return True

    def _keeps_shape(self, node: Node, given: Value, kind: str) -> bool:
        """Whether a tensor of any size would keep its shape; one axis may follow from the others."""
        assert given.type is not None
        rank = len(given.type.shape)
        options = {**node.attributes, **node.kwargs}
        if kind == "flatten" and node.kind != "onnx":
            start = node.args[1] if len(node.args) > 1 else options.get("start_dim", 0)
            end = node.args[2] if len(node.args) > 2 else options.get("end_dim", -1)
            return isinstance(start, int) and isinstance(end, int) and start % rank == end % rank
        if kind == "flatten":
            return rank == 2 and node.attributes.get("axis", 1) == 1
        if node.kind == "onnx":
            from elastic_ir.onnx_model.arithmetic import whole_numbers

            sizes: list[object] = list(whole_numbers(node.args[1] if len(node.args) > 1 else None) or ())
            copies = not node.attributes.get("allowzero", 0)
        else:
            listed = node.args[1:]
            whole = listed[0] if len(listed) == 1 else listed
            sizes, copies = list(whole) if isinstance(whole, (list, tuple)) else [whole], False
        if len(sizes) != rank:
            return False
        known = self.extents.sizes(given) or []
        sure = [
            (size == 0 and copies and type(size) is int)
            or (type(size) is int and size == extent)
            or (isinstance(size, Value) and _is_size(size.node, given, axis))
            for axis, (size, extent) in enumerate(zip(sizes, known, strict=True))
        ]
        return sure.count(False) <= 1  # the last one follows, since the number of elements stays

    def _pads_nothing(self, node: Node) -> bool:
        if node.kind == "onnx":
            from elastic_ir.onnx_model.arithmetic import whole_numbers

            amounts = whole_numbers(node.args[1] if len(node.args) > 1 else node.attributes.get("pads"))
            return amounts is not None and not any(amounts)
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        return isinstance(given, (list, tuple)) and all(type(n) is int and n == 0 for n in given)


def _is_size(node: Node, value: Value, axis: int) -> bool:
    """Whether a node gives the size of a tensor along an axis: ``x.shape[axis]`` or ``x.size(axis)``."""
    if node.op == "method.size":
        return node.args[:2] == (value, axis)
    if node.op != "operator.getitem" or node.args[1] != axis or not isinstance(node.args[0], Value):
        return False
    shape = node.args[0].node
    return (shape.op == "getattr" and shape.args == (value, "shape")) or (
        shape.op == "method.size" and shape.args == (value,)
    )
