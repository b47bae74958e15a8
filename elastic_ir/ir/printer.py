"""The stable text form of a graph: what ``print(graph)`` shows and golden tests compare."""

from __future__ import annotations

from typing import Any

from elastic_ir.errors import StructureError, printable
from elastic_ir.ir.graph import Graph, Literal, Node, Symbol, TensorType, Value, WeightRef
from elastic_ir.ir.structure import Stage
from elastic_ir.tensors.weights import Weight

_SHORT = {
    "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64", "int64": "i64", "int32": "i32",
    "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip


def format_type(kind: TensorType) -> str:
    """``f32[1, 16, 32, 32]``."""
    extents = ", ".join("?" if extent < 0 else str(extent) for extent in kind.shape)
    return f"{_SHORT.get(kind.dtype, kind.dtype)}[{extents}]"


def format_argument(argument: Any) -> str:
    """An argument as text: values as ``%name``, weights as ``@name``, constants by their names."""
    if isinstance(argument, Value):
        return f"%{argument.name}"
    if isinstance(argument, WeightRef):
        return f"@{argument.name}"
    if isinstance(argument, Symbol):
        return argument.name
    if isinstance(argument, Literal):
        kind = _SHORT.get(argument.dtype, argument.dtype)
        if len(argument.shape) == 1:
            return f"{kind}[{', '.join(map(repr, argument.values))}]"
        extents = "x".join(map(str, argument.shape))
        return f"{kind}({extents + ': ' if extents else ''}{', '.join(map(repr, argument.values))})"
    if isinstance(argument, tuple):
        inner = ", ".join(format_argument(item) for item in argument)
        return f"({inner},)" if len(argument) == 1 else f"({inner})"
    if isinstance(argument, list):
        return "[" + ", ".join(format_argument(item) for item in argument) + "]"
    if isinstance(argument, dict):
        return "{" + ", ".join(f"{key}: {format_argument(item)}" for key, item in argument.items()) + "}"
    if isinstance(argument, slice):
        parts = (argument.start, argument.stop, argument.step)
        return ":".join("" if part is None else format_argument(part) for part in parts)
    return repr(argument)


def format_node(node: Node) -> str:
    """One node on one line."""
    arguments = [format_argument(item) for item in node.args]
    arguments += [f"{key}={format_argument(item)}" for key, item in node.kwargs.items()]
    text = f"%{node.name} = {node.op}({', '.join(arguments)})"
    if node.attributes:
        text += (
            " {" + ", ".join(f"{key}={format_argument(item)}" for key, item in node.attributes.items()) + "}"
        )
    if node.scope:
        text += f" in {node.scope}"
    if node.output.type is not None:
        text += f" : {format_type(node.output.type)}"
    return text


def format_weight(weight: Weight) -> str:
    """One weight on one line: name, type, what it is, mask and origin where they are not the usual ones."""
    text = f"@{weight.name} : {format_type(TensorType(weight.shape, weight.dtype))}"
    if not weight.is_parameter:
        text += " buffer"
    if weight.mask is not None:
        text += f" mask({weight.mask.zeros} of {weight.mask.size} pruned)"
    if weight.origin != weight.name or weight.source:
        text += f" from @{weight.origin}" + (f" of source {weight.source}" if weight.source else "")
    return text


def format_stage(stage: Stage) -> str:
    """One stage on one line."""
    text = f"stage {stage.name}: {len(stage)} blocks"
    if stage.transition:
        text += f", after {stage.transition}"
    if stage.entry is not None:
        text += f", entry {stage.entry.path}"
    if stage.exit is not None:
        text += f", last {stage.exit.path}"
    text += f", free [{', '.join(block.path for block in stage.blocks)}]"
    if stage.period != 1:
        text += f", unit of {stage.period or 'unknown'} blocks"
    if stage.shape is not None:
        text += f", shape {list(stage.shape)}"
    return text


def format_graph(graph: Graph) -> str:
    """The whole graph: structure, weights, nodes. The same graph always gives the same text."""
    lines = [f"graph {graph.name}"]
    try:
        structure = graph.structure
    except StructureError as error:
        lines.append(f"  no structure: {error}")
    else:
        lines.append(f"  depth {structure.depth if structure.depth is not None else 'unknown'}")
        lines += [f"  {format_stage(stage)}" for stage in structure.stages]
    lines.append("weights")
    lines += [f"  {format_weight(weight)}" for weight in graph.weights.values()]
    if len(graph):
        lines.append("nodes")
        lines += [f"  {format_node(node)}" for node in graph]
    return "\n".join(map(printable, lines)) + "\n"
