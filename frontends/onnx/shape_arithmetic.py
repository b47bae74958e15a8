"""Shapes that a file computes from shapes: followed node by node where onnx's own inference loses them.

PyTorch's older exporter writes how much a window pads, or where a mask is filled, as arithmetic on Shape: over floats,
Cast, ConstantOfShape and ScatterND, through which onnx's data propagation does not look. Here every node is inferred by
its own operator's rule, with the numbers of its small operands at hand, and small results are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.ir.graph import TensorType
from elastic_ir.onnx_model import (
    DTYPES,
    TYPES,
    bodies,
    constant_tensor,
    listed_numbers,
    opsets_of,
    plain_attributes,
    type_of,
)
from elastic_ir.onnx_model.arithmetic import LARGEST, is_small, run_nodes
from elastic_ir.onnx_model.limits import shape_operand

if TYPE_CHECKING:
    import onnx

    from elastic_ir.onnx_model.arithmetic import Array

#: The operators by which sizes are computed from sizes.
_COMPUTED = {
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather",
    "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
    "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterND", "Slice", "Sqrt",
    "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_RANK = 64  #: extents of a shape
_CONTRIB = "com.microsoft"  #: the domain of onnxruntime's own operators
_SIMPLE = "SimplifiedLayerNormalization"  #: onnxruntime has it in the default domain
_TURNED = ("transBatchA", "transBatchB")  #: what changes the shape beyond what onnx's operator does


class ShapeInference:
    """Types of a model's values, and the contents of its small ones, node by node."""

    def __init__(self, model: onnx.ModelProto, types: Mapping[str, TensorType]) -> None:
        import onnx

        self.onnx = onnx
        self.given = types
        self.types: dict[str, TensorType] = {}
        self.numbers: dict[str, Array] = {}
        self.fits = True  #: whether every operator took its operands
        self.opsets = opsets_of(model)
        self.imports = [onnx.helper.make_opsetid(domain, number) for domain, number in self.opsets.items()]
        self.ir_version = model.ir_version
        for entry in model.graph.input:
            if (kind := types.get(entry.name)) is not None and kind.is_closed:
                self.types[entry.name] = kind
        for tensor in model.graph.initializer:
            self._constant(tensor.name, tensor)
        for sparse in model.graph.sparse_initializer:
            if sparse.values.data_type in DTYPES:
                shape = tuple(sparse.dims)
                self.types[sparse.values.name] = TensorType(shape, DTYPES[sparse.values.data_type])

    def _constant(self, name: str, tensor: onnx.TensorProto) -> None:
        if tensor.data_type not in DTYPES or any(extent < 0 for extent in tensor.dims):
            return
        self.types[name] = TensorType(tuple(tensor.dims), DTYPES[tensor.data_type])
        if prod(tensor.dims) <= LARGEST and tensor.data_location != 1:
            try:
                self.numbers[name] = self.onnx.numpy_helper.to_array(tensor)
            except (TypeError, ValueError):  # numpy lacks the type, or it is damaged; its shape is known
                return

    def follow(self, node: onnx.NodeProto) -> None:
        """Note the types of a node's results, and their numbers where they are few."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == "" and node.op_type == "Constant":
            tensor, listed = constant_tensor(node), listed_numbers(node)
            if tensor is not None:
                self._constant(node.output[0], tensor)
            elif listed is not None:
                self._note(node.output[0], listed.array())
            return
        given = {
            name: kind
            for name in node.output
            if (kind := self.given.get(name)) is not None and kind.is_closed
        }
        if len(given) < sum(map(bool, node.output)):
            own = domain == _CONTRIB or node.op_type == _SIMPLE
            given |= self._own(node) if own else self._inferred(node, domain)
        self.types.update((name, kind) for name, kind in given.items() if name and kind.is_closed)
        if domain == "" and len(node.output) == 1 and node.output[0]:
            self._compute(node)

    def _note(self, name: str, numbers: Array) -> None:
        self.numbers[name] = numbers
        self.types[name] = TensorType(numbers.shape, str(numbers.dtype))

    def _own(self, node: onnx.NodeProto) -> dict[str, TensorType]:
        """The types of an operator that onnx has no rule for."""
        from elastic_ir.frontends.onnx.contrib_shapes import KEPT, LIKE, own_types, result_dtype

        operands = [self.types.get(name) for name in node.input]
        attributes: dict[str, Any] = plain_attributes(node)
        like = LIKE.get(node.op_type)
        if like is None:
            return dict(zip(node.output, own_types(node.op_type, operands, attributes), strict=False))
        kind, places = like
        if any(attributes.get(name) for name in _TURNED) or max(places) >= len(node.input):
            return {}
        twin = self.onnx.NodeProto(op_type=kind, input=[node.input[place] for place in places])
        twin.output.append(node.output[0])
        twin.attribute.extend(item for item in node.attribute if item.name in KEPT.get(kind, ()))
        dtype = self.types[node.input[0]].dtype if node.input[0] in self.types else ""
        found = self._inferred(twin, "", "float32")  # onnx's operator wants one dtype throughout
        return {
            name: TensorType(made.shape, result_dtype(node.op_type, operands, dtype))
            for name, made in found.items()
        }

    def _inferred(self, node: onnx.NodeProto, domain: str, dtype: str = "") -> dict[str, TensorType]:
        """The types that the operator's own rule gives; none where an operand's is not known.

        With ``dtype`` all operands count as of that one.
        """
        onnx = self.onnx
        if bodies(node) or any(name and name not in self.types for name in node.input):
            return {}
        makes = shape_operand(node)
        if makes and prod(self.types[makes].shape) > _RANK:
            return {}
        version = self.opsets.get(domain)
        if version is None or not onnx.defs.has(node.op_type, domain):
            return {}
        names = dict.fromkeys(name for name in node.input if name)
        kinds = {n: (TYPES[dtype or self.types[n].dtype], self.types[n].shape) for n in names}
        try:
            found = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, version, domain),
                node,
                {n: onnx.helper.make_tensor_type_proto(*kind) for n, kind in kinds.items()},
                {n: onnx.numpy_helper.from_array(self.numbers[n], n) for n in names if n in self.numbers},
                opset_imports=self.imports,
                ir_version=self.ir_version,
            )
        except Exception:  # the C++ library raises errors of several kinds; the shape stays open then
            self.fits = False
            return {}
        types = {name: kind for name, proto in found.items() if (kind := type_of(proto)) is not None}
        return {name: kind for name, kind in types.items() if len(kind.shape) <= _RANK}

    def _compute(self, node: onnx.NodeProto) -> None:
        import numpy as np

        name = node.output[0]
        kind = self.types.get(name)
        if node.op_type in ("Shape", "Size"):
            whole = self.types.get(node.input[0]) if node.input else None
            if whole is not None:
                given: dict[str, Any] = plain_attributes(node)
                extents = whole.shape[given.get("start", 0) : given.get("end", len(whole.shape))]
                size = prod(whole.shape)
                self._note(name, np.array(extents if node.op_type == "Shape" else size, np.int64))
            return
        numbers = {item: self.numbers[item] for item in node.input if item in self.numbers}
        complete = all(item in numbers for item in node.input if item)
        if node.op_type not in _COMPUTED or not numbers or not complete:
            return
        if node.op_type == "Identity":  # of weights, mostly: PyTorch's older exporter writes many
            self._note(name, next(iter(numbers.values())))
            return
        if not is_small(node.op_type, None if kind is None else kind.shape):
            return
        try:
            with np.errstate(divide="raise", invalid="raise"):
                found = run_nodes([node], numbers, self.opsets)
        except Exception:  # the reference implementation raises errors of many kinds
            return
        fits = found.dtype.name in TYPES if kind is None else found.shape == kind.shape
        if found.size > LARGEST or not fits:
            return
        self._note(name, found if kind is None else found.astype(kind.dtype, copy=False))
