"""A graph that came from an ONNX file as an ONNX model again.

What no pass touched is taken over as it was, message by message, so that reading and writing changes nothing. A clone
is a copy of its source's message with names of its own: those that the exporter would have given where the file names
things after modules, else the source's with the block's path behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_ir.errors import EmitError
from elastic_ir.graph import Argument, Graph, Literal, Node, Symbol, TensorType, Value, WeightRef
from elastic_ir.onnx_record import write_record
from elastic_ir.onnx_source import (
    BODY,
    DTYPES,
    MARK,
    SCOPES,
    Constant,
    OnnxSource,
    bodies,
    captured,
    mark_of,
    module_scopes,
    path_step,
    plain_attributes,
    tensors_of,
)
from elastic_ir.tensors import TensorData
from elastic_ir.weights import Weight

if TYPE_CHECKING:
    import onnx

_TYPES = {name: number for number, name in DTYPES.items()}


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

        self.sparse = sparse

        self.onnx = onnx
        self.graph = graph
        self.source = source
        self.old = source.model.graph
        self.model = onnx.ModelProto()
        self.model.CopyFrom(source.model)
        self.new = self.model.graph
        for table in ("node", "initializer", "sparse_initializer", "input", "value_info"):
            self.new.ClearField(table)
        self.tensors: dict[str, TensorData] = dict(source.tensors)
        self.names: dict[Value, str] = {}
        #: a value's name in the source -> its names here, and the values that they are
        self.copies: dict[str, dict[str, Value | None]] = {}
        self.taken = self._source_names()
        self.weight_names: dict[int, str] = {}  #: by the storage's identity
        self.copied: set[str] = set()  # origins of nodes that are there already
        self.emitted: set[str] = set()  # constant nodes that stand before the point we are at
        self.holders: dict[str, tuple[Constant, Weight]] = {}  # constants by the names they have here
        self.literals: dict[str, Literal] = {}

    def build(self) -> tuple[onnx.ModelProto, dict[str, TensorData]]:
        self._name_weights()
        self._name_results()
        needed = self._needed()
        body: list[onnx.NodeProto] = []
        waiting = sorted(
            (constant.node, name)
            for name, constant in self.source.constants.items()
            if constant.node is not None and name in needed
        )
        for node in self.graph:
            if node.kind != "onnx":
                continue  # inputs, outputs, and parts of a node's results, which are named with it
            first = node.origin and node.origin not in self.copied
            while first and waiting and waiting[0][0] < int(node.origin):
                self._emit_constant(waiting.pop(0)[1], body)
            proto = self._node(node)
            for name in (*proto.input, *self._captures(node)):
                self._emit_constant(name, body)
            body.append(proto)
        for _, name in waiting:
            self._emit_constant(name, body)
        self._outputs(body)
        self.new.node.extend(body)
        self._initializers(needed)
        self._inputs_and_types()
        write_record(self.model, self.graph, self._lineage())
        used = {mark_of(tensor) for tensor in tensors_of(self.model)}
        return self.model, {mark: data for mark, data in self.tensors.items() if mark in used}

    def _lineage(self) -> dict[str, str]:
        known = self.source.initializer_of
        return {name: known.get(weight.origin, weight.origin) for name, (_, weight) in self.holders.items()}

    # -- names -----------------------------------------------------------------------------------------------------

    def _source_names(self) -> set[str]:
        names = {name for node in self.old.node for name in node.output}
        names |= {entry.name for entry in self.old.input} | self.source.constants.keys()
        for node in self.old.node:
            for body in bodies(node):
                names |= {name for inner in body.node for name in inner.output}
        return names

    def _fresh(self, name: str, scope: str = "") -> str:
        """A name that nothing has yet, after another one."""
        place = self._block_of(scope)
        base = f"{name}__{place}" if place else name
        new, count = base, 1
        while new in self.taken:
            count += 1
            new = f"{base}_{count}"
        self.taken.add(new)
        return new

    def _block_of(self, scope: str) -> str:
        """The path of the block that a scope lies in."""
        structure = self.graph._structure
        for box in structure.containers if structure is not None else ():
            for child in box.children:
                if scope == child.path or scope.startswith(child.path + "."):
                    return child.path
        return ""

    def _name_weights(self) -> None:
        """One name for each tensor: the file's where it is the first of its kind, the path's where it has one."""
        source = self.source
        kept: set[str] = set()
        later: list[Weight] = []
        for name, weight in self.graph.weights.items():
            key = id(weight.storage)
            file_name = source.initializer_of.get(weight.origin, weight.origin)
            if key in self.weight_names:
                continue
            if file_name == weight.origin and name != file_name:  # a path of modules, and it has moved
                later.append(weight)
                continue
            if file_name in kept:
                later.append(weight)
                continue
            kept.add(file_name)
            self._hold(file_name, weight)
        for weight in later:
            if id(weight.storage) in self.weight_names:
                continue
            file_name = source.initializer_of.get(weight.origin, weight.origin)
            path = file_name == weight.origin
            if path and weight.name not in kept and self._is_free(weight.name):
                kept.add(weight.name)
                self.taken.add(weight.name)
                self._hold(weight.name, weight)
            else:
                self._hold(
                    self._fresh(weight.name if path else file_name, "" if path else weight.name), weight
                )

    def _is_free(self, name: str) -> bool:
        """Whether nothing in the source but a weight of a block has this name."""
        return name not in self.taken or name in self.source.initializer_of

    def _hold(self, name: str, weight: Weight) -> None:
        self.weight_names[id(weight.storage)] = name
        file_name = self.source.initializer_of.get(weight.origin, weight.origin)
        constant = self.source.constants.get(file_name) or Constant(file_name, None, weight.storage.data)
        self.holders[name] = (constant, weight)

    def _name_results(self) -> None:
        """The network's inputs and outputs keep their names, whatever computes them now."""
        for node in self.graph:
            if node.kind == "input":
                self.names[node.output] = node.origin or node.name
        taken = set()
        for value, entry in zip(self._results(), self.old.output, strict=True):
            if isinstance(value, Value) and value not in self.names and entry.name not in taken:
                self.names[value] = entry.name
                taken.add(entry.name)

    def _results(self) -> tuple[Argument, ...]:
        for node in self.graph:
            if node.kind == "output":
                results = node.args[0]
                assert isinstance(results, tuple)
                return results
        raise EmitError(f"{self.graph.name} has no output")

    def _needed(self) -> set[str]:
        """The constants of the source that are read here, and those that nothing read there either."""
        read = {name for node in self.old.node for name in node.input}
        read |= {name for node in self.old.node for name in captured(node)} | {
            e.name for e in self.old.output
        }
        needed = {name for name in self.source.constants if name not in read}
        for node in self.graph:
            if node.kind == "onnx":
                old = self._origin(node)
                for place, item in enumerate(node.args):
                    if isinstance(item, (Literal, Symbol)) and old is not None and place < len(old.input):
                        constant = self.source.constants.get(old.input[place])
                        if isinstance(item, Symbol) or constant is None or constant.literal == item:
                            needed.add(old.input[place])
                captures = node.kwargs.get(BODY)
                if isinstance(captures, dict):
                    needed |= {n for n, item in captures.items() if isinstance(item, (Literal, Symbol))}
        for entry in self.old.output:
            needed.add(entry.name)
        for name, (constant, _) in self.holders.items():
            needed.add(name)
            needed.add(constant.name if name == constant.name else name)
        for name in list(needed):  # the shape that a ConstantOfShape fills
            filled = self.source.constants.get(name)
            if filled is not None and filled.node is not None:
                needed.update(n for n in self.old.node[filled.node].input if n)
        return needed

    # -- nodes -----------------------------------------------------------------------------------------------------

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
        proto.input.extend(self._operand(item, old, place) for place, item in enumerate(node.args))
        self._set_attributes(proto, node, old)
        clone = bool(node.origin) and node.origin in self.copied
        moved = old is not None and node.scope != self.source.scopes.get(node.origin, node.scope)
        if old is None:
            proto.name = self._fresh(node.name, node.scope)
        elif moved and self.source.named:
            self._relocate(proto, self.source.scopes[node.origin], node.scope)
        if clone and proto.name == old.name and old is not None and proto.name:  # type: ignore[union-attr]
            proto.name = f"{proto.name}__{self._block_of(node.scope)}"
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
            proto.output.append(self._result_name(name, value, node, clone=clone) if name else "")
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

    def _result_name(self, name: str, value: Value | None, node: Node, *, clone: bool) -> str:
        if value is not None and value in self.names:
            new = self.names[value]
        elif clone or name in {entry.name for entry in self.old.output}:
            new = self._fresh(name, node.scope)
        else:
            new = name
        if value is not None:
            self.names[value] = new
        self.copies.setdefault(name, {})[new] = value
        return new

    def _operand(self, item: Argument, old: onnx.NodeProto | None, place: int) -> str:
        if item is None:
            return ""
        if isinstance(item, Value):
            return self.names[item]
        if isinstance(item, WeightRef):
            return self.weight_names[id(self.graph.weights[item.name].storage)]
        if isinstance(item, (Literal, Symbol)):
            name = old.input[place] if old is not None and place < len(old.input) else None
            constant = self.source.constants.get(name) if name else None
            if constant is not None and (isinstance(item, Symbol) or constant.literal == item):
                return constant.name
            if isinstance(item, Literal):
                return self._literal(item)
        raise EmitError(f"an operand {item!r} cannot be written to ONNX")

    def _literal(self, item: Literal) -> str:
        for name, known in self.literals.items():
            if known == item:
                return name
        name = self._fresh("literal")
        self.literals[name] = item
        return name

    def _set_attributes(self, proto: onnx.NodeProto, node: Node, old: onnx.NodeProto | None) -> None:
        before = plain_attributes(old) if old is not None else {}
        for name, value in node.attributes.items():
            if name in before and (before[name] == value or isinstance(value, Symbol)):
                continue
            kept = [item for item in proto.attribute if item.name != name]
            del proto.attribute[:]
            proto.attribute.extend(kept)
            proto.attribute.append(self.onnx.helper.make_attribute(name, value))
        if before.keys() - node.attributes.keys():
            kept = [item for item in proto.attribute if item.name in node.attributes]
            del proto.attribute[:]
            proto.attribute.extend(kept)

    def _captures(self, node: Node) -> list[str]:
        captures = node.kwargs.get(BODY)
        if not isinstance(captures, dict):
            return []
        return [self._captured_name(name, item) for name, item in captures.items()]

    def _captured_name(self, name: str, item: Argument) -> str:
        return name if isinstance(item, (Literal, Symbol)) else self._operand(item, None, 0)

    def _rename_captures(self, proto: onnx.NodeProto, node: Node) -> None:
        captures = node.kwargs.get(BODY)
        if not isinstance(captures, dict):
            return
        renames = {
            name: new for name, item in captures.items() if (new := self._captured_name(name, item)) != name
        }
        if renames:
            for body in bodies(proto):
                _rename_inside(body, renames)

    def _relocate(self, proto: onnx.NodeProto, before: str, after: str) -> None:
        """Names after modules follow the block to its new place."""
        old, new = before.split("."), after.split(".")
        place = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
        if place is None or len(old) != len(new):
            return
        head, tail = ".".join(old[: place + 1]), ".".join(new[: place + 1])
        for entry in proto.metadata_props:
            scopes = module_scopes(proto) if entry.key == SCOPES else None
            if scopes is not None:
                entry.value = repr([_moved(scope, head, tail) for scope in scopes])
        if proto.name.startswith("/"):
            proto.name = _moved_name(proto.name, old[: place + 1], new[place])

    # -- constants -------------------------------------------------------------------------------------------------

    def _emit_constant(self, name: str, body: list[onnx.NodeProto]) -> None:
        """The Constant node of that name, if it is one, unless it stands there already."""
        held = self.holders.get(name)
        constant = held[0] if held is not None else self.source.constants.get(name)
        if constant is None or constant.node is None or name in self.emitted:
            return
        self.emitted.add(name)
        if held is not None and not self._unchanged(*held):
            return  # an initializer takes its place
        proto = self.onnx.NodeProto()
        proto.CopyFrom(self.old.node[constant.node])
        for operand in proto.input:
            self._emit_constant(operand, body)
        if name != constant.name:
            proto.output[0] = name
            if proto.name:
                proto.name = self._fresh(proto.name, held[1].name if held is not None else "")
        body.append(proto)

    def _unchanged(self, constant: Constant, weight: Weight) -> bool:
        return weight.storage.data is constant.data and weight.storage.mask is constant.mask

    def _initializers(self, needed: set[str]) -> None:
        after: dict[str, list[str]] = {}
        for name, (constant, _) in self.holders.items():
            after.setdefault(constant.name, []).append(name)
        for old in (*self.old.initializer, *(sparse.values for sparse in self.old.sparse_initializer)):
            if (
                old.name not in self.holders
                and old.name in needed
                and self.source.constants[old.name].proto is old
            ):
                self.new.initializer.add().CopyFrom(old)
            for name in after.pop(old.name, ()):
                self._initializer(name)
        for names in after.values():
            for name in names:
                self._initializer(name)
        for name, item in self.literals.items():
            self.new.initializer.append(self._tensor_of(name, item))

    def _initializer(self, name: str) -> None:
        constant, weight = self.holders[name]
        if self._unchanged(constant, weight):
            if constant.node is not None:
                return  # a node of its own
            if constant.proto is None and self.sparse:
                for sparse in self.old.sparse_initializer:
                    if sparse.values.name == constant.name:
                        twin = self.new.sparse_initializer.add()
                        twin.CopyFrom(sparse)
                        twin.values.name = name
                return
            proto = constant.proto
            if proto is not None and (proto.data_location != 1 or mark_of(proto) is not None):
                same = self.new.initializer.add()
                same.CopyFrom(proto)
                same.name = name
                return
        data = weight.storage.emitted()
        proto = self.new.initializer.add()
        proto.name = name
        proto.dims.extend(data.shape)
        proto.data_type = _TYPES[data.dtype]
        mark = f"{len(self.tensors)}:9"
        self.tensors[mark] = data
        entry = proto.external_data.add()
        entry.key, entry.value = MARK, mark
        proto.data_location = self.onnx.TensorProto.EXTERNAL

    def _tensor_of(self, name: str, item: Literal) -> onnx.TensorProto:
        import numpy as np

        array = np.array(item.values, dtype=np.dtype(item.dtype)).reshape(item.shape)
        return self.onnx.numpy_helper.from_array(array, name)

    # -- the rest --------------------------------------------------------------------------------------------------

    def _outputs(self, body: list[onnx.NodeProto]) -> None:
        """An output whose value has another name (an input, a weight, another output) is copied to its own."""
        for item, entry in zip(self._results(), self.old.output, strict=True):
            if isinstance(item, (Literal, Symbol)):
                continue
            name = self._operand(item, None, 0)
            if name != entry.name:
                self._emit_constant(name, body)
                body.append(
                    self.onnx.helper.make_node("Identity", [name], [entry.name], name=self._fresh("Identity"))
                )

    def _inputs_and_types(self) -> None:
        outputs = {entry.name for entry in self.old.output}
        names = {entry.name for entry in (*self.new.initializer,)}
        names |= {sparse.values.name for sparse in self.new.sparse_initializer}
        for entry in self.old.input:
            if entry.name not in self.source.constants:
                self.new.input.add().CopyFrom(entry)
                continue
            for name, (constant, _) in self.holders.items():  # old models list initializers as inputs
                if constant.name == entry.name and name in names:
                    twin = self.new.input.add()
                    twin.CopyFrom(entry)
                    twin.name = name
                    self._update_weight(twin, name)
            if entry.name not in self.holders and entry.name in names:
                self.new.input.add().CopyFrom(entry)
        if self.model.ir_version < 4:  # these list every initializer as an input
            listed = {entry.name for entry in self.new.input}
            for tensor in self.new.initializer:
                if tensor.name not in listed:
                    self.new.input.append(
                        self.onnx.helper.make_tensor_value_info(
                            tensor.name, tensor.data_type, list(tensor.dims)
                        )
                    )
        for entry in self.old.value_info:
            for name, value in self.copies.get(entry.name, {}).items():
                if name != entry.name and name in outputs:
                    continue  # it is an output now, and listed there
                twin = self.new.value_info.add()
                twin.CopyFrom(entry)
                twin.name = name
                self._update_shape(twin, self.source.types.get(entry.name), value)
            if entry.name not in self.copies and entry.name in self.emitted | names:
                twin = self.new.value_info.add()
                twin.CopyFrom(entry)
                self._update_weight(twin, entry.name)

    def _update_shape(
        self, entry: onnx.ValueInfoProto, before: TensorType | None, value: Value | None
    ) -> None:
        """Bring what the file says of a value in step with the extents that a pass has changed."""
        after = value.type if value is not None else None
        dims = entry.type.tensor_type.shape.dim
        if before is None or after is None or before == after:
            return
        for dim, old, new in zip(dims, before.shape, after.shape, strict=False):
            if old != new:
                dim.Clear()
                dim.dim_value = new

    def _update_weight(self, entry: onnx.ValueInfoProto, name: str) -> None:
        constant, weight = self.holders.get(name, (None, None))
        if constant is None or weight is None or constant.data is None or constant.data.shape == weight.shape:
            return
        del entry.type.tensor_type.shape.dim[:]
        for extent in weight.shape:
            entry.type.tensor_type.shape.dim.add().dim_value = extent


def _rename_inside(body: onnx.GraphProto, renames: dict[str, str]) -> None:
    """Let a body read names of the outer graph under their new ones, where it does not hide them."""
    own = {entry.name for entry in body.input} | {tensor.name for tensor in body.initializer}
    own |= {name for node in body.node for name in node.output}
    outer = {old: new for old, new in renames.items() if old not in own}
    for node in body.node:
        for place, name in enumerate(node.input):
            if name in outer:
                node.input[place] = outer[name]
        for inner in bodies(node):
            _rename_inside(inner, outer)
    for entry in body.output:
        if entry.name in outer:
            entry.name = outer[entry.name]


def _moved(scope: str, head: str, tail: str) -> str:
    return tail + scope[len(head) :] if scope == head or scope.startswith(head + ".") else scope


def _moved_name(name: str, head: list[str], number: str) -> str:
    """``/layer1/layer1.2/conv1/Conv`` with the block's number replaced."""
    path: list[str] = []
    parts = name.split("/")
    for place, part in enumerate(parts[1:-1], 1):
        names = part.split(".")
        before = len(path)
        path += path_step(path, part)
        if path[: len(head)] == head and before < len(head) <= len(path):
            names[len(names) - (len(path) - len(head)) - 1] = number
            parts[place] = ".".join(names)
            for inside in range(place + 1, len(parts) - 1):  # a container's children carry its name
                if not parts[inside].startswith(part + "."):
                    break
                parts[inside] = parts[place] + parts[inside][len(part) :]
            break
    return "/".join(parts)
