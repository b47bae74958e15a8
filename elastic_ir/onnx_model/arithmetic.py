"""What ONNX operators compute, of a channel that is one number everywhere too, and the axes that they name.

Operators are evaluated in the reference implementation of the onnx package, which is what they mean. It is imported
when the first one is run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Argument, Literal, Node, Symbol, Value, WeightRef

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Floats = NDArray[np.float64]


LARGEST = 1024  #: elements of a result that is computed in advance
#: The operators whose result has no more elements than their operands: it may be computed before its size is known.
_SMALL = {"Identity", "Cast", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "ScatterND", "Neg", "Abs",
          "Floor", "Ceil", "Sqrt", "Not", "NonZero", "Compress"}  # fmt: skip


def is_small(kind: str, shape: Sequence[int] | None) -> bool:
    """Whether an operator's result, of a shape that may not be known, has few elements; decided before it is run."""
    if shape is None or min(shape, default=0) < 0:
        return kind in _SMALL
    return prod(shape) <= LARGEST


def run_nodes(
    nodes: Sequence[onnx.NodeProto], given: Mapping[str, Array], opsets: Mapping[str, int]
) -> Array:
    """The first result of the last of some nodes, from the arrays that they read, by their names.

    Raises whatever the reference implementation raises for operators that it lacks and operands that do not fit.
    """
    import numpy as np
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    result = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    graph = helper.make_graph(nodes, "nodes", inputs, [result])
    (array,) = ReferenceEvaluator(graph, opsets=dict(opsets)).run(None, dict(given))
    return np.asarray(array)


def run_operators(
    nodes: Sequence[Node], weights: Mapping[str, Array], values: Mapping[Value, Array], opsets: Mapping[str, int],
    source: onnx.ModelProto | None = None,
) -> Array:  # fmt: skip
    """The result of the last of some nodes of a graph, given the weights and values that they read.

    ``source`` is the model that nodes with attributes which are no plain data come from. Raises what
    :func:`run_nodes` does, and EmitError for an operand of another kind.
    """
    import onnx

    names: dict[Value, str] = {}
    given: dict[str, Array] = {}
    made: list[onnx.NodeProto] = []

    def operand(item: Argument) -> str:
        if item is None:
            return ""
        if isinstance(item, Value) and item in names:
            return names[item]
        name = f"given{len(given)}"
        if isinstance(item, Value):
            given[name] = values[item]
        elif isinstance(item, WeightRef):
            given[name] = weights[item.name]
        elif isinstance(item, Literal):
            given[name] = item.array()
        else:
            raise EmitError(f"an operand {item!r} cannot be evaluated")
        return name

    for place, node in enumerate(nodes):
        proto = onnx.NodeProto()
        if any(isinstance(item, Symbol) for item in node.attributes.values()):
            assert source is not None
            proto.CopyFrom(source.graph.node[int(node.origin)])
            del proto.input[:], proto.output[:]
        else:
            for key, value in node.attributes.items():
                proto.attribute.append(onnx.helper.make_attribute(key, value))
        proto.domain, _, proto.op_type = node.op.removeprefix("onnx.").rpartition(".")
        proto.input.extend(operand(item) for item in node.args)
        names[node.output] = f"made{place}"
        proto.output.append(names[node.output])
        made.append(proto)
    return run_nodes(made, given, opsets)


def elementwise(node: Node, constants: Floats, opsets: Mapping[str, int]) -> Floats:
    """A pointwise operator's results on constant channels, [channels]; NaN where a channel is not constant.

    Operands behind the first are literals. Without ``opsets`` the newest ones are meant.
    """
    import numpy as np
    import onnx

    result = np.full(constants.shape, math.nan)
    known = np.isfinite(constants)
    if not known.any():
        return result
    # the node's own result stands for what it reads first
    twin = Node(node.name, node.op, (node.output, *node.args[1:]), kind="onnx", attributes=node.attributes)
    given = {node.output: constants[known]}
    # Errors of many kinds: an operator that the reference implementation lacks, or a form of another version.
    with np.errstate(all="ignore"), contextlib.suppress(Exception):
        result[known] = run_operators([twin], {}, given, opsets or {"": onnx.defs.onnx_opset_version()})
    return np.where(np.isfinite(result), result, math.nan)


def whole_numbers(item: Argument) -> list[int] | None:
    """The integers of a literal operand, or of an attribute; None for anything else."""
    if isinstance(item, Literal) and not item.dtype.startswith("float"):
        return [int(value) for value in item.values]
    if isinstance(item, (list, tuple)) and all(isinstance(value, int) for value in item):
        return [int(value) for value in item if isinstance(value, int)]
    return None


def axes_of(node: Node, place: int, rank: int) -> list[int] | None:
    """The axes that a node names, counted from the front: as an attribute, or as an operand in later opsets."""
    given = node.args[place] if len(node.args) > place else None
    found = whole_numbers(given if given is not None else node.attributes.get("axes"))
    return None if found is None else [axis % rank for axis in found]


def operand(node: Node, place: int) -> Argument:
    """An operand, or None where the node leaves it out."""
    return node.args[place] if place < len(node.args) else None


def pads(node: Node) -> bool:
    """Whether a convolution or pool may read beyond the border."""
    given = whole_numbers(node.attributes.get("pads", [])) or []
    return any(given) or str(node.attributes.get("auto_pad", "NOTSET")).startswith("SAME")


def pooled(node: Node, constants: Floats) -> Floats:
    """A pool's results on constant channels: zeros that are averaged in make borders differ."""
    import numpy as np

    if node.op == "onnx.AveragePool" and node.attributes.get("count_include_pad", 0) and pads(node):
        return np.where(constants == 0, 0.0, math.nan)
    return constants
