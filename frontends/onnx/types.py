"""Shapes and dtypes of an ONNX model's values, with a number for every open extent of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError
from elastic_ir.frontends.onnx.shape_arithmetic import reckon_types
from elastic_ir.ir.graph import TensorType
from elastic_ir.onnx_model.limits import Guard
from elastic_ir.onnx_model.source import DTYPES

if TYPE_CHECKING:
    import onnx

#: Heights and widths to try for an image with open sides: of classifiers, of text lines, of detectors.
_SIDES = ((224, 224), (32, 320), (48, 320), (640, 640), (28, 28))

#: Where a node goes of which shape inference is to know nothing: its result could have more extents than memory holds.
_OPAQUE = "elastic-ir.opaque"
_TURNS = 8


def infer_types(
    model: onnx.ModelProto, input_shape: Sequence[Sequence[int]] | None, file: str
) -> tuple[dict[str, TensorType], list[tuple[int, ...]]]:
    """Types by value name, and the inputs' shapes; extents that cannot be told are -1.

    Open extents of the inputs are filled in, a batch with 1: shapes tell where stages begin, and any that the network
    accepts will do. ``input_shape`` gives them instead, one for each input. What is written keeps the open ones.
    """
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    results = sum(1 for node in model.graph.node for name in node.output if name)
    best: onnx.GraphProto | None = None
    for sides in _SIDES:
        bound = onnx.ModelProto()
        bound.CopyFrom(model)
        inputs = [entry for entry in bound.graph.input if entry.name not in constants]
        guessed = _bind(inputs, input_shape, file, sides)
        inferred = _infer(bound)
        if best is None or len(inferred.value_info) > len(best.value_info):
            best = inferred
        if not guessed or len(inferred.value_info) + len(inferred.output) >= results:
            break
    assert best is not None
    types: dict[str, TensorType] = {}
    for entry in (*best.value_info, *best.output, *best.input):
        kind = entry.type.tensor_type
        if entry.type.HasField("tensor_type") and kind.HasField("shape") and kind.elem_type in DTYPES:
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
            types[entry.name] = TensorType(shape, DTYPES[kind.elem_type])
    types |= reckon_types(model, types)
    inputs = [entry for entry in best.input if entry.name not in constants]
    return types, [types[entry.name].shape if entry.name in types else () for entry in inputs]


def _infer(bound: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with what the operators' own rules say of its values."""
    import onnx

    stored = {tensor.name for tensor in bound.graph.initializer}
    results = [entry for entry in bound.graph.output if entry.name not in stored]
    for entry in results:  # open extents there contradict what follows from the inputs
        if entry.type.HasField("tensor_type"):
            entry.type.tensor_type.ClearField("shape")
    kept = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in results]
    del bound.graph.output[:]
    bound.graph.output.extend(kept)
    # It knows sparse initializers as operands of no operator; here they are dense inputs.
    for sparse in bound.graph.sparse_initializer:
        values = sparse.values
        bound.graph.input.append(
            onnx.helper.make_tensor_value_info(values.name, values.data_type, list(sparse.dims))
        )
    del bound.graph.sparse_initializer[:]
    del bound.graph.value_info[:]
    guard = Guard(bound)
    nodes = bound.graph.node
    bound.opset_import.add(domain=_OPAQUE, version=1)
    domains = {index: nodes[index].domain for index in guard.shapes}
    for index in domains:
        nodes[index].domain = _OPAQUE
    inferred = bound.graph
    for turn in range(_TURNS):
        contents = turn > 0 and guard.contents
        try:
            inferred = onnx.shape_inference.infer_shapes(bound, data_prop=contents).graph
        except Exception:  # the C++ library raises errors of several kinds; shapes stay open then
            return inferred
        released = guard.release(bound, inferred)
        if turn == 0 and guard.contents:
            domains |= {index: nodes[index].domain for index in guard.copies if index not in domains}
            for index in guard.copies:
                nodes[index].domain = _OPAQUE
        elif not released:
            break
        for index in released:
            if index in domains:
                nodes[index].domain = domains.pop(index)
    return inferred


def _bind(
    inputs: Sequence[onnx.ValueInfoProto],
    input_shape: Sequence[Sequence[int]] | None,
    file: str,
    sides: tuple[int, int],
) -> bool:
    """Fill in open extents; whether the sides of an image were among them."""
    if input_shape is not None and len(input_shape) != len(inputs):
        raise SourceError(
            f"{file} has {len(inputs)} inputs, and --input-shape gives {len(input_shape)} shapes"
        )
    known: dict[str, int] = {}
    guessed = False
    for place, entry in enumerate(inputs):
        if not entry.type.HasField("tensor_type"):
            continue
        dims = entry.type.tensor_type.shape.dim
        given = input_shape[place] if input_shape is not None else None
        if given is not None and len(given) != len(dims):
            raise SourceError(f"{file}: the input {entry.name!r} has {len(dims)} extents, not {len(given)}")
        whole = entry.type.tensor_type.elem_type in (6, 7)
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                if given is not None and given[axis] != dim.dim_value:
                    raise SourceError(
                        f"{file}: the input {entry.name!r} has {dim.dim_value} at axis {axis}, not {given[axis]}"
                    )
                continue
            guessed |= given is None and len(dims) == 4 and axis > 1
            extent = given[axis] if given is not None else _guess(axis, len(dims), whole, sides)
            name = dim.dim_param
            if name and name != "?" and given is None:
                extent = known.setdefault(name, extent)
            dim.Clear()
            dim.dim_value = extent
    return guessed


def _guess(axis: int, rank: int, whole: bool, sides: tuple[int, int]) -> int:
    if axis == 0:
        return 1
    if rank == 4:
        return 3 if axis == 1 else sides[axis - 2]
    return 8 if whole else 512  # tokens; samples of a sound
