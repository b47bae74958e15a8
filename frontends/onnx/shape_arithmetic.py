"""Shapes that a file computes from shapes: followed node by node where onnx's own inference loses them.

PyTorch's older exporter writes how much a window pads, or where a mask is filled, as arithmetic on Shape: over floats,
Cast, ConstantOfShape and ScatterND, through which onnx's data propagation does not look. Here every node is inferred by
its own operator's rule, with the numbers of its small operands at hand, and small results are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.frontends.onnx.contrib_shapes import DOMAIN, KEPT, LIKE, own_types, result_dtype
from elastic_ir.ir.graph import TensorType
from elastic_ir.onnx_model.limits import shape_operand
from elastic_ir.onnx_model.source import DTYPES, bodies, mark_of

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Numbers = NDArray[np.generic]

_LIMIT = 1024  #: elements of a result that is computed
_RANK = 64  #: extents of a shape
_SIMPLE = "SimplifiedLayerNormalization"  #: onnxruntime has it in the default domain
_TURNED = ("transBatchA", "transBatchB")  #: what changes the shape beyond what onnx's operator does


def reckon_types(model: onnx.ModelProto, types: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """Types of the values that ``types`` lacks or knows in part only, as far as they follow from numbers.

    ``types`` has those of the inputs, with no open extent. Nothing large is read or made.
    """
    if all(name in types and min(types[name].shape, default=0) >= 0 for name in _results(model)):
        return {}
    reckoner = _Reckoner(model, types)
    for node in model.graph.node:
        reckoner.follow(node)
    return {name: kind for name, kind in reckoner.types.items() if types.get(name) != kind}


def _results(model: onnx.ModelProto) -> list[str]:
    return [name for node in model.graph.node for name in node.output if name]


def _known(kind: TensorType | None) -> bool:
    return kind is not None and min(kind.shape, default=0) >= 0


class _Reckoner:
    def __init__(self, model: onnx.ModelProto, types: Mapping[str, TensorType]) -> None:
        import onnx

        self.onnx = onnx
        self.given = types
        self.types: dict[str, TensorType] = {}
        self.numbers: dict[str, Numbers] = {}
        self.codes = {name: code for code, name in DTYPES.items()}
        self.versions = {"" if e.domain == "ai.onnx" else e.domain: e.version for e in model.opset_import}
        self.imports = [onnx.helper.make_opsetid(domain, number) for domain, number in self.versions.items()]
        self.ir_version = model.ir_version
        for entry in model.graph.input:
            if _known(types.get(entry.name)):
                self.types[entry.name] = types[entry.name]
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
        if prod(tensor.dims) <= _LIMIT and tensor.data_location != 1 and mark_of(tensor) is None:
            try:
                self.numbers[name] = self.onnx.numpy_helper.to_array(tensor)
            except (
                TypeError,
                ValueError,
            ):  # of a type that numpy lacks, or damaged: known by its shape alone
                return

    def follow(self, node: onnx.NodeProto) -> None:
        """Note the types of a node's results, and their numbers where they are few."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == "" and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    self._constant(node.output[0], attribute.t)
                elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                    import numpy as np

                    value = self.onnx.helper.get_attribute_value(attribute)
                    dtype = "int64" if "int" in attribute.name else "float32"
                    self._note(node.output[0], np.array(value, dtype))
            return
        found = (
            self._own(node) if domain == DOMAIN or node.op_type == _SIMPLE else self._inferred(node, domain)
        )
        for name, kind in found.items():
            if name and _known(kind):
                self.types[name] = kind
        for name in node.output:
            if name not in self.types and _known(self.given.get(name)):
                self.types[name] = self.given[name]
        if domain == "" and len(node.output) == 1 and node.output[0]:
            self._compute(node)

    def _note(self, name: str, numbers: Numbers) -> None:
        self.numbers[name] = numbers
        self.types[name] = TensorType(numbers.shape, str(numbers.dtype))

    def _own(self, node: onnx.NodeProto) -> dict[str, TensorType]:
        """The types of an operator that onnx has no rule for."""
        operands = [self.types.get(name) for name in node.input]
        attributes = self._attributes(node)
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
        before = {name: self.types.get(name) for name in twin.input}
        for name, known in before.items():  # onnx's operator wants one dtype throughout
            if known is not None:
                self.types[name] = TensorType(known.shape, "float32")
        found = self._inferred(twin, "")
        self.types.update({name: known for name, known in before.items() if known is not None})
        return {
            name: TensorType(made.shape, result_dtype(node.op_type, operands, dtype))
            for name, made in found.items()
        }

    def _inferred(self, node: onnx.NodeProto, domain: str) -> dict[str, TensorType]:
        """The types that the operator's own rule gives; none where an operand's is not known."""
        onnx = self.onnx
        if bodies(node) or any(name and name not in self.types for name in node.input):
            return {}
        makes = shape_operand(node)
        if makes and prod(self.types[makes].shape) > _RANK:
            return {}
        version = self.versions.get(domain)
        if version is None or not onnx.defs.has(node.op_type, domain):
            return {}
        names = dict.fromkeys(name for name in node.input if name)
        try:
            found = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, version, domain),
                node,
                {
                    n: onnx.helper.make_tensor_type_proto(
                        self.codes[self.types[n].dtype], self.types[n].shape
                    )
                    for n in names
                },
                {n: onnx.numpy_helper.from_array(self.numbers[n], n) for n in names if n in self.numbers},
                opset_imports=self.imports,
                ir_version=self.ir_version,
            )
        except Exception:  # the C++ library raises errors of several kinds; the shape stays open then
            return {}
        types = {}
        for name, kind in found.items():
            tensor = kind.tensor_type
            if kind.HasField("tensor_type") and tensor.HasField("shape") and tensor.elem_type in DTYPES:
                shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
                if len(shape) <= _RANK:
                    types[name] = TensorType(shape, DTYPES[tensor.elem_type])
        return types

    def _compute(self, node: onnx.NodeProto) -> None:
        import numpy as np

        name = node.output[0]
        kind = self.types.get(name)
        if kind is not None and prod(kind.shape) > _LIMIT:
            return
        if node.op_type in ("Shape", "Size"):
            whole = self.types.get(node.input[0]) if node.input else None
            if whole is not None:
                given = self._attributes(node)
                extents = whole.shape[given.get("start", 0) : given.get("end", len(whole.shape))]
                size = prod(whole.shape)
                self._note(name, np.array(extents if node.op_type == "Shape" else size, np.int64))
            return
        rule = _RULES.get(node.op_type)
        if rule is None or any(item and item not in self.numbers for item in node.input):
            return
        if kind is None and node.op_type not in _SMALL:
            return  # its size is not known before it is computed
        operands = [self.numbers[item] if item else None for item in node.input]
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(rule(operands, self._attributes(node)))
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError):
            return
        if found.size > _LIMIT or (kind is not None and found.shape != kind.shape):
            return
        self._note(name, found if kind is None else found.astype(kind.dtype, copy=False))

    def _attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        return {item.name: self.onnx.helper.get_attribute_value(item) for item in node.attribute}


# -- what operators compute --------------------------------------------------------------------------------------------


def _divide(left: Any, right: Any) -> Any:
    """Whole numbers are cut towards zero."""
    import numpy as np

    if not np.issubdtype(left.dtype, np.integer):
        return left / right
    if not right.all():
        raise ZeroDivisionError
    return np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right))


def _modulo(left: Any, right: Any, exact: bool) -> Any:
    import numpy as np

    return np.fmod(left, right) if exact else np.mod(left, right)


def _slice(operands: list[Any], given: dict[str, Any]) -> Any:
    data = operands[0]
    starts, ends = (operands[1], operands[2]) if len(operands) > 2 else (given["starts"], given["ends"])
    axes = operands[3] if len(operands) > 3 and operands[3] is not None else given.get("axes")
    steps = operands[4] if len(operands) > 4 and operands[4] is not None else [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(
        range(len(starts)) if axes is None else axes, starts, ends, steps, strict=True
    ):
        stop = None if step < 0 and end < -data.shape[int(axis)] else int(end)
        cut[int(axis)] = slice(int(start), stop, int(step))
    return data[tuple(cut)]


def _axes(operands: list[Any], given: dict[str, Any]) -> tuple[int, ...] | None:
    found = operands[1] if len(operands) > 1 and operands[1] is not None else given.get("axes")
    return None if found is None else tuple(int(axis) for axis in found)


def _unsqueeze(operands: list[Any], given: dict[str, Any]) -> Any:
    import numpy as np

    return np.expand_dims(operands[0], _axes(operands, given) or ())


def _reshape(operands: list[Any], given: dict[str, Any]) -> Any:
    data, shape = operands
    zero = given.get("allowzero", 0)
    return data.reshape([data.shape[i] if not n and not zero else int(n) for i, n in enumerate(shape)])


def _filled(operands: list[Any], given: dict[str, Any]) -> Any:
    import numpy as np
    import onnx

    value = onnx.numpy_helper.to_array(given["value"]) if "value" in given else np.zeros(1, np.float32)
    return np.broadcast_to(value.reshape(-1)[0], tuple(int(extent) for extent in operands[0])).copy()


def _range(operands: list[Any], given: dict[str, Any]) -> Any:
    import numpy as np

    start, stop, step = (operand.reshape(-1)[0] for operand in operands)
    if not step or abs((stop - start) / step) > _LIMIT:
        raise ValueError
    return np.arange(start, stop, step, dtype=operands[0].dtype)


def _cast(operands: list[Any], given: dict[str, Any]) -> Any:
    return operands[0].astype(DTYPES[given["to"]])


def _scatter(operands: list[Any], given: dict[str, Any]) -> Any:
    import numpy as np

    if given.get("reduction", b"none") != b"none":
        raise ValueError
    data, indices, updates = operands
    found = data.copy()
    found[tuple(np.moveaxis(indices, -1, 0))] = updates
    return found


def _reduced(name: str) -> Callable[[list[Any], dict[str, Any]], Any]:
    def rule(operands: list[Any], given: dict[str, Any]) -> Any:
        import numpy as np

        axes = _axes(operands, given)
        if axes is None and given.get("noop_with_empty_axes", 0):
            return operands[0]
        return getattr(np, name)(operands[0], axis=axes, keepdims=bool(given.get("keepdims", 1)))

    return rule


def _numpy(name: str) -> Callable[[list[Any], dict[str, Any]], Any]:
    def rule(operands: list[Any], given: dict[str, Any]) -> Any:
        import numpy as np

        return getattr(np, name)(*operands)

    return rule


_RULES: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "Identity": lambda o, _: o[0], "Cast": _cast, "Div": lambda o, _: _divide(o[0], o[1]),
    "Mod": lambda o, g: _modulo(o[0], o[1], bool(g.get("fmod", 0))),
    "Gather": lambda o, g: o[0].take(o[1], axis=g.get("axis", 0)), "Slice": _slice, "Unsqueeze": _unsqueeze,
    "Squeeze": lambda o, g: o[0].squeeze(_axes(o, g)), "Reshape": _reshape, "ConstantOfShape": _filled,
    "Expand": lambda o, _: o[0] * _ones(o[1], o[0]), "Range": _range, "ScatterND": _scatter,
    "Transpose": lambda o, g: o[0].transpose(g.get("perm")),
    "Concat": lambda o, g: _concatenated(o, g["axis"]),
    "ReduceProd": _reduced("prod"), "ReduceSum": _reduced("sum"), "ReduceMax": _reduced("max"),
    "ReduceMin": _reduced("min"),
    **{op: _numpy(name) for op, name in (
        ("Add", "add"), ("Sub", "subtract"), ("Mul", "multiply"), ("Neg", "negative"), ("Abs", "abs"),
        ("Floor", "floor"), ("Ceil", "ceil"), ("Sqrt", "sqrt"), ("Pow", "power"), ("Min", "minimum"),
        ("Max", "maximum"), ("Equal", "equal"), ("Less", "less"), ("Greater", "greater"), ("Not", "logical_not"),
        ("LessOrEqual", "less_equal"), ("GreaterOrEqual", "greater_equal"), ("And", "logical_and"),
        ("Or", "logical_or"), ("Where", "where"),
    )},
}  # fmt: skip
#: Those whose result is no larger than what goes in: it may be computed before its size is known.
_SMALL = {"Identity", "Cast", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Range", "ScatterND", "Neg",
          "Abs", "Floor", "Ceil", "Sqrt", "Not"}  # fmt: skip


def _ones(shape: Any, like: Any) -> Any:
    import numpy as np

    return np.ones(tuple(int(extent) for extent in shape), like.dtype)


def _concatenated(operands: list[Any], axis: int) -> Any:
    import numpy as np

    return np.concatenate(operands, axis)
