"""A graph that came from an ONNX file as an ONNX model again.

What no pass touched is taken over as it was, message by message, so that reading and writing changes nothing. A clone
is a copy of its source's message with names of its own: those that the exporter would have given where the file names
things after modules, else the source's with the block's path behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from elastic_ir.emit.onnx.names import Names, relocate, rename_inside
from elastic_ir.emit.onnx.quantised import follow_scales
from elastic_ir.emit.onnx.tables import Tables, unchanged
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Argument, Graph, Literal, Node, Symbol
from elastic_ir.onnx_model import (
    BODY,
    OnnxSource,
    bodies,
    captured,
    mark_of,
    plain_attributes,
    tensors_of,
)
from elastic_ir.onnx_model.record import write_record
from elastic_ir.tensors.lazy import TensorData

if TYPE_CHECKING:
    import onnx


def build_onnx(graph: Graph, *, sparse: bool = True) -> tuple[onnx.ModelProto, dict[str, TensorData]]:
    """The model without its large tensors, and these by the marks that stand for them.

    ``sparse=False`` makes the source's sparse initializers dense. Raises EmitError where the graph did not come from an
    ONNX file.
    """
    if not isinstance(graph.origin, OnnxSource):
        raise EmitError(f"{graph.name} did not come from an ONNX file; export it as a module")
    return _Builder(graph, graph.origin, sparse=sparse).build()


class _Builder:
    def __init__(self, graph: Graph, source: OnnxSource, *, sparse: bool) -> None:
        import onnx

        self.onnx = onnx
        self.graph = graph
        self.source = source
        self.old = source.model.graph
        self.model = onnx.ModelProto()
        self.model.CopyFrom(source.model)
        self.new = self.model.graph
        for table in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
            self.new.ClearField(table)
        self.names = Names(graph, source)
        self.tables = Tables(self.names, self.model, source, sparse=sparse)
        self.copied: set[str] = set()  # origins of nodes that are there already
        self.emitted: set[str] = set()  # constant nodes that stand before the point we are at

    def build(self) -> tuple[onnx.ModelProto, dict[str, TensorData]]:
        # with the index in the source of the first node of each
        made: list[tuple[int | None, onnx.NodeProto]] = []
        for node in self.graph:
            if node.kind == "onnx":  # else an input, an output, or a part of a node's results, named with it
                first = bool(node.origin) and node.origin not in self.copied
                made.append((int(node.origin) if first else None, self._node(node)))
        follow_scales([proto for _, proto in made], self.old.node, self._root)
        needed = self._needed([proto for _, proto in made])
        body: list[onnx.NodeProto] = []
        waiting = sorted(
            (constant.node, name)
            for name, constant in self.source.constants.items()
            if constant.node is not None and name in needed
        )
        for index, proto in made:
            while index is not None and waiting and waiting[0][0] < index:
                self._emit_constant(waiting.pop(0)[1], body)
            for name in (*proto.input, *captured(proto)):
                self._emit_constant(name, body)
            body.append(proto)
        for _, name in waiting:
            self._emit_constant(name, body)
        self._outputs(body)
        self.new.node.extend(body)
        self.tables.add_initializers(needed)
        self.tables.add_inputs_and_types(self.emitted)
        write_record(self.model, self.graph, self.names.lineage())
        used = {mark_of(tensor) for tensor in tensors_of(self.model)}
        return self.model, {mark: data for mark, data in self.tables.tensors.items() if mark in used}

    def _root(self, name: str) -> str:
        """The first name of a constant's tensor; a clone's own is that of its source."""
        held = self.names.holders.get(name)
        constant = held[0] if held is not None else self.source.constants.get(name)
        return constant.root if constant is not None else name

    def _needed(self, made: list[onnx.NodeProto]) -> set[str]:
        """The constants of the source that are read here, and those that nothing read there either."""

        def read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
            return {name for node in nodes for name in (*node.input, *captured(node))}

        outputs = {entry.name for entry in self.old.output}
        needed = read(made) | outputs | self.names.holders.keys()
        needed |= self.source.constants.keys() - read(self.old.node) - outputs
        waiting = list(needed)
        while waiting:  # the shape that a ConstantOfShape fills, what an Identity copies
            name = waiting.pop()
            filled = self.source.constants.get(name)
            if (
                filled is None
                or filled.node is None
                or (filled.alias is not None and name in self.names.holders)
            ):
                continue
            fresh = {n for n in self.old.node[filled.node].input if n} - needed
            needed |= fresh
            waiting += fresh
        return needed

    def _origin(self, node: Node) -> onnx.NodeProto | None:
        return self.old.node[int(node.origin)] if node.origin else None

    def _node(self, node: Node) -> onnx.NodeProto:
        old = self._origin(node)
        proto = self.onnx.NodeProto()
        domain, _, kind = node.op.removeprefix("onnx.").rpartition(".")
        if old is not None:
            proto.CopyFrom(old)
        if old is None or (proto.op_type, proto.domain.replace("ai.onnx", "")) != (kind, domain):
            proto.op_type, proto.domain = kind, domain
        del proto.input[:]
        proto.input.extend(self.names.operand(item, old, place) for place, item in enumerate(node.args))
        self._set_attributes(proto, node, old)
        clone = bool(node.origin) and node.origin in self.copied
        moved = old is not None and node.scope != self.source.scopes.get(node.origin, node.scope)
        if old is None:
            proto.name = self.names.fresh(node.name, node.scope)
        elif moved and self.source.named:
            relocate(proto, self.source.scopes[node.origin], node.scope)
        if clone and proto.name == old.name and old is not None and proto.name:  # type: ignore[union-attr]
            proto.name = f"{proto.name}__{self.names.block_of(node.scope)}"
        outputs = list(old.output) if old is not None else [node.name]
        parts = {
            reader.args[1]: reader.output
            for reader in self._readers(node)
            if reader.op == "operator.getitem" and isinstance(reader.args[1], int)
        }
        if not parts:
            parts = {0: node.output}
        del proto.output[:]
        for place, name in enumerate(outputs):
            value = parts.get(place)
            proto.output.append(self.names.result(name, value, node, clone=clone) if name else "")
        if node.origin:
            self.copied.add(node.origin)
        self._rename_captures(proto, node)
        return proto

    def _readers(self, node: Node) -> list[Node]:
        following = node._next
        found = []
        while (
            following is not None and following.op == "operator.getitem" and following.args[0] is node.output
        ):
            found.append(following)
            following = following._next
        return found

    def _set_attributes(self, proto: onnx.NodeProto, node: Node, old: onnx.NodeProto | None) -> None:
        before = plain_attributes(old) if old is not None else {}
        changed = {
            name: value
            for name, value in node.attributes.items()
            if name not in before or not (before[name] == value or isinstance(value, Symbol))
        }
        gone = changed.keys() | (before.keys() - node.attributes.keys())
        if gone:
            kept = [item for item in proto.attribute if item.name not in gone]
            del proto.attribute[:]
            proto.attribute.extend(kept)
        proto.attribute.extend(
            self.onnx.helper.make_attribute(name, value) for name, value in changed.items()
        )

    def _captured_name(self, name: str, item: Argument) -> str:
        return name if isinstance(item, (Literal, Symbol)) else self.names.operand(item, None, 0)

    def _rename_captures(self, proto: onnx.NodeProto, node: Node) -> None:
        captures = node.kwargs.get(BODY)
        if not isinstance(captures, dict):
            return
        renames = {
            name: new for name, item in captures.items() if (new := self._captured_name(name, item)) != name
        }
        if renames:
            for body in bodies(proto):
                rename_inside(body, renames)

    def _emit_constant(self, name: str, body: list[onnx.NodeProto]) -> None:
        """The Constant node of that name, if it is one, unless it stands there already."""
        held = self.names.holders.get(name)
        constant = held[0] if held is not None else self.source.constants.get(name)
        if constant is None or constant.node is None or name in self.emitted:
            return
        self.emitted.add(name)
        base = self.names.base_of(name) if held is not None else name
        if held is not None and (base == name if constant.alias is not None else not unchanged(*held)):
            return  # an initializer takes its place
        proto = self.onnx.NodeProto()
        proto.CopyFrom(self.old.node[constant.node])
        if base != name and not self.names.one_tensor(proto.input[0], base):
            proto.input[0] = base
        for operand in proto.input:
            self._emit_constant(operand, body)
        if name != constant.name:
            proto.output[0] = name
            if proto.name:
                proto.name = self.names.fresh(proto.name, held[1].name if held is not None else "")
        body.append(proto)

    def _outputs(self, body: list[onnx.NodeProto]) -> None:
        """An output whose value has another name (an input, a weight, another output) is copied to its own."""
        stated = {entry.name: entry for entry in self.old.output}
        for item, (own, label) in zip(self.names.results(), self.names.outputs, strict=True):
            entry = self.new.output.add()
            entry.CopyFrom(stated[label])
            entry.name = own
            if isinstance(item, (Literal, Symbol)):
                continue
            name = self.names.operand(item, None, 0)
            if name != own:
                self._emit_constant(name, body)
                body.append(
                    self.onnx.helper.make_node("Identity", [name], [own], name=self.names.fresh("Identity"))
                )
