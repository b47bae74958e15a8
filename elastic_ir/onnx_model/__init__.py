"""What an ONNX model leaves to its graph in the IR: the messages that emission takes over, and how they are read.

No onnx is imported here; the messages are those of its protobuf classes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.ir.graph import Argument, Literal, Symbol, TensorType
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.lazy import Mask, TensorData

if TYPE_CHECKING:
    import onnx

#: Entry of ``external_data`` by which a tensor that was cut out is known, as "NUMBER:FIELD" with the field that held
#: its bytes; no file of others has it.
MARK = "elastic-ir"
STATED = ":in"  #: ends the mark of a tensor whose message states that its bytes are in it (``data_location``)
SCOPES = "pkg.torch.onnx.name_scopes"  #: the key of a node's metadata in what torch exports
_LONGEST = 1 << 14  #: characters of that entry
#: The keyword of a node's operands that only its bodies read.
BODY = "captured"

#: TensorProto.DataType by number to torch's names; what is missing has no bytes of its own kind in torch.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
TYPES = {name: number for number, name in DTYPES.items()}
#: AttributeProto.AttributeType by number to the field that holds such a value: one up to 3, a list from 6 on.
_PLAIN = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}


@dataclass(eq=False)
class Constant:
    """A constant of the file: its tensor message and how the file keeps it."""

    name: str
    proto: onnx.TensorProto | None
    data: TensorData | None
    node: int | None = None  #: the index of the node that makes it; None for an initializer
    mask: Mask | None = None  #: of a sparse initializer
    literal: Literal | None = None
    alias: str | None = None  #: the constant that an Identity hands on under this name; they are one tensor

    @property
    def root(self) -> str:
        """The name that its tensor has first; its own unless it is an alias."""
        return self.alias or self.name


@dataclass(eq=False)
class OnnxSource(Origin):
    """What emission needs again: the model without its large tensors, where those are, and its constants by name."""

    path: Path
    model: onnx.ModelProto
    tensors: dict[str, TensorData]  #: the large tensors, by the mark that stands for each in the model
    constants: dict[str, Constant] = field(default_factory=dict)
    #: a weight's name in the IR to its name in the file
    initializer_of: dict[str, str] = field(default_factory=dict)
    scopes: dict[str, str] = field(default_factory=dict)  #: a node's scope in the source, by its number
    named: bool = False  #: whether scopes and names of weights are the file's own
    input_shapes: list[tuple[int, ...]] = field(default_factory=list)  #: with the open extents filled in
    types: dict[str, TensorType] = field(default_factory=dict)  #: of the file's values, by their names there


def opsets_of(model: onnx.ModelProto) -> dict[str, int]:
    """The version of each operator set that a model uses, by its domain; the default one's is empty."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}


def type_of(proto: onnx.TypeProto) -> TensorType | None:
    """A tensor's type, with -1 for an open extent; None for one of no known rank, and for what is not a tensor."""
    kind = proto.tensor_type
    if not (proto.HasField("tensor_type") and kind.HasField("shape") and kind.elem_type in DTYPES):
        return None
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return TensorType(shape, DTYPES[kind.elem_type])


def operator(proto: onnx.NodeProto) -> str:
    """An operator's name, with its domain where that is not the default one."""
    domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
    return f"{domain}{proto.op_type}"


def mark_of(tensor: onnx.TensorProto) -> str | None:
    """The mark of a tensor that was cut out; None for all others."""
    return next((entry.value for entry in tensor.external_data if entry.key == MARK), None)


def set_aside(proto: onnx.TensorProto, data: TensorData, tensors: dict[str, TensorData]) -> None:
    """Let a message stand for a lazy tensor, which joins ``tensors`` under a mark that is free."""
    mark = next(mark for number in count(len(tensors)) if (mark := f"{number}:9") not in tensors)
    tensors[mark] = data
    proto.dims.extend(data.shape)
    proto.data_type = TYPES[data.dtype]
    proto.data_location = 1  # type: ignore[assignment]  # the stubs want the enum's member
    proto.external_data.add(key=MARK, value=mark)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the file has this tensor's bytes in another file."""
    return tensor.data_location == 1 and mark_of(tensor) is None


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node; None for all other nodes, and for constants that are listed numbers."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((item.t for item in node.attribute if item.name == "value" and item.type == 4), None)


def listed_numbers(node: onnx.NodeProto) -> Literal | None:
    """The numbers that a Constant node lists as an attribute, ``value_int`` or ``value_floats``; None for any other."""
    for name, value in plain_attributes(node).items():
        if name in ("value_int", "value_ints", "value_float", "value_floats"):
            listed: Any = value if isinstance(value, list) else [value]
            shape = (len(listed),) if isinstance(value, list) else ()
            return Literal("int64" if "int" in name else "float32", shape, tuple(listed))
    return None


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model's graph and of its bodies, whatever type an attribute states."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        for node in graph.node:
            for item in node.attribute:
                if item.HasField("t"):
                    yield item.t
                if item.HasField("g"):
                    waiting.append(item.g)
                waiting.extend(item.graphs)


def captured(node: onnx.NodeProto) -> list[str]:
    """The names that a node's bodies read from outside, each once, in order."""
    found: dict[str, None] = {}

    def walk(graph: onnx.GraphProto, known: set[str]) -> None:
        known = known | {entry.name for entry in graph.input} | {tensor.name for tensor in graph.initializer}
        known |= {sparse.values.name for sparse in graph.sparse_initializer}
        for inner in graph.node:
            for name in inner.input:
                if name and name not in known:
                    found[name] = None
            for body in bodies(inner):
                walk(body, known)
            known.update(inner.output)
        for entry in graph.output:
            if entry.name not in known:
                found[entry.name] = None

    for body in bodies(node):
        walk(body, set())
    return list(found)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs among a node's attributes."""
    found = []
    for attribute in node.attribute:
        if attribute.type == 5:
            found.append(attribute.g)
        elif attribute.type == 10:
            found.extend(attribute.graphs)
    return found


def module_scopes(proto: onnx.NodeProto) -> list[str] | None:
    """The paths of the modules around a node as PyTorch's exporter noted them; None where it did not, or in no form."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == SCOPES), None)
    if text is None or len(text) > _LONGEST:
        return None
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def path_step(path: list[str], part: str) -> list[str]:
    """What a part of a node's name (``/layer1/layer1.0/conv1/Conv``) adds to the path of modules before it.

    Children of a container carry its name, nested ones the whole path (``/features/features.1/features.1.0``); those
    of a container that did not run itself bring it along (``/layer.0``).
    """
    names = part.split(".")
    above = names[:-1]
    return names[-1:] if above and path[-len(above) :] == above else names


def plain_attributes(proto: onnx.NodeProto) -> dict[str, Argument]:
    """A node's attributes as plain data; tensors and bodies are named, and stay in the source."""
    found: dict[str, Argument] = {}
    for item in proto.attribute:
        if item.type not in _PLAIN:
            found[item.name] = Symbol(
                "body" if item.type in (5, 10) else "tensor" if item.type in (4, 9) else "other"
            )
            continue
        value = getattr(item, _PLAIN[item.type])
        values = [value] if item.type < 4 else list(value)
        plain = [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in values]
        found[item.name] = plain[0] if item.type < 4 else plain
    return found
