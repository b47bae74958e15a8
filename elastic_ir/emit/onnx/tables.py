"""The tables of an ONNX model that is built from its source: initializers, inputs, and types of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elastic_ir.emit.onnx.names import Names
from elastic_ir.ir.graph import TensorType, Value
from elastic_ir.onnx_model import TYPES, Constant, OnnxSource, is_external, set_aside
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.weights import Weight

if TYPE_CHECKING:
    import onnx


def unchanged(constant: Constant, weight: Weight) -> bool:
    """Whether a weight is as the file has it."""
    return weight.storage.data is constant.data and weight.storage.mask is constant.mask


def _copy(table: Any, message: Any, name: str) -> Any:
    """A copy of a message in a table, under a name."""
    twin = table.add()
    twin.CopyFrom(message)
    twin.name = name
    return twin


class Tables:
    """Fills the tables of one model; large tensors are set aside under the marks that stand for them."""

    def __init__(self, names: Names, model: onnx.ModelProto, source: OnnxSource, *, sparse: bool) -> None:
        import onnx

        self.onnx = onnx
        self.names = names
        self.model = model
        self.new = model.graph
        self.source = source
        self.old = source.model.graph
        self.sparse = sparse
        self.tensors: dict[str, TensorData] = dict(source.tensors)

    def add_initializers(self, needed: set[str]) -> None:
        """The weights and literals, in the order of the source; of its other constants those that are needed."""
        after: dict[str, list[str]] = {}
        for name, (constant, _) in self.names.holders.items():
            after.setdefault(constant.root, []).append(name)
        for old in (*self.old.initializer, *(sparse.values for sparse in self.old.sparse_initializer)):
            if (
                old.name not in self.names.holders
                and old.name in needed
                and self.source.constants[old.name].proto is old
            ):
                self.new.initializer.add().CopyFrom(old)
            for name in after.pop(old.name, ()):
                self._initializer(name)
        for names in after.values():
            for name in names:
                self._initializer(name)
        for name, item in self.names.literals.items():
            self.new.initializer.append(self.onnx.numpy_helper.from_array(item.array(), name))

    def _initializer(self, name: str) -> None:
        constant, weight = self.names.holders[name]
        if self.names.base_of(name) != name:
            return  # an Identity makes it
        if constant.alias is not None:  # what held the tensor is gone
            constant = self.source.constants[constant.alias]
        elif unchanged(constant, weight) and constant.node is not None:
            return  # a node of its own
        if unchanged(constant, weight):
            if constant.proto is None and constant.node is None and self.sparse:
                for sparse in self.old.sparse_initializer:
                    if sparse.values.name == constant.name:
                        twin = self.new.sparse_initializer.add()
                        twin.CopyFrom(sparse)
                        twin.values.name = name
                return
            proto = constant.proto
            if proto is not None and constant.node is None and not is_external(proto):
                _copy(self.new.initializer, proto, name)
                return
        set_aside(self.new.initializer.add(name=name), weight.storage.emitted(), self.tensors)

    def add_inputs_and_types(self, emitted: set[str]) -> None:
        """Inputs, and the types that the source states for values and for the Constant nodes that were ``emitted``."""
        outputs = {name for name, _ in self.names.outputs}
        names = {entry.name for entry in self.new.initializer}
        names |= {sparse.values.name for sparse in self.new.sparse_initializer}
        stated = {entry.name: entry for entry in self.old.input}
        waiting = list(self.names.inputs)
        changed = any(name != label for name, label in waiting) or len(waiting) != len(
            self.source.input_shapes
        )
        for entry in self.old.input:
            if entry.name not in self.source.constants:
                # one after the other, in case weights stand among them; all where there are more or fewer now
                same = [label for _, label in waiting[:1]] == [entry.name] and not changed
                for name, label in waiting[: 1 if same else len(waiting)]:
                    twin = self.new.input.add()
                    twin.CopyFrom(stated[label])
                    twin.name = name
                del waiting[: 1 if same else len(waiting)]
                continue
            for name, (constant, _) in self.names.holders.items():  # old models list initializers as inputs
                if constant.name == entry.name and name in names:
                    self._update_weight(_copy(self.new.input, entry, name), name)
            if entry.name not in self.names.holders and entry.name in names:
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
            for name, value in self.names.copies.get(entry.name, {}).items():
                if name != entry.name and name in outputs:
                    continue  # it is an output now, and listed there
                twin = _copy(self.new.value_info, entry, name)
                self._update_shape(twin, self.source.types.get(entry.name), value)
            of_nothing = entry.name not in self.names.known  # left behind by who made the file
            if of_nothing or (entry.name not in self.names.copies and entry.name in emitted | names):
                self._update_weight(_copy(self.new.value_info, entry, entry.name), entry.name)

    def _update_shape(
        self, entry: onnx.ValueInfoProto, before: TensorType | None, value: Value | None
    ) -> None:
        """Update the type that the file states for a value where a pass has changed its extents."""
        after = value.type if value is not None else None
        dims = entry.type.tensor_type.shape.dim
        if before is None or after is None or before == after:
            return
        for dim, old, new in zip(dims, before.shape, after.shape, strict=False):
            if old != new:
                dim.Clear()
                dim.dim_value = new

    def _update_weight(self, entry: onnx.ValueInfoProto, name: str) -> None:
        """Update a weight's type: it may be cut, or another of that name now (a flat list is numbered anew)."""
        if name not in self.names.holders:
            return
        weight = self.names.holders[name][1]
        kind = entry.type.tensor_type
        if [dim.dim_value for dim in kind.shape.dim] != list(weight.shape):
            del kind.shape.dim[:]
            for extent in weight.shape:
                kind.shape.dim.add().dim_value = extent
        if weight.dtype in TYPES:
            kind.elem_type = TYPES[weight.dtype]
