"""Shapes and dtypes of an ONNX model's values, with a number for every open extent of its inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError
from elastic_ir.ir.graph import TensorType
from elastic_ir.onnx_model import TYPES, bodies, type_of
from elastic_ir.onnx_model.limits import unbounded_shapes

if TYPE_CHECKING:
    import onnx

#: Heights and widths to try for an image with open sides: of classifiers, of text lines, of detectors.
_SIDES = ((224, 224), (32, 320), (48, 320), (640, 640), (28, 28))

#: The domain of nodes that shape inference must not follow: their results could have more extents than memory holds.
_OPAQUE = "elastic-ir.opaque"
_TURNS = 8


def infer_types(
    model: onnx.ModelProto, input_shape: Sequence[Sequence[int]] | None, file: str
) -> tuple[dict[str, TensorType], list[tuple[int, ...]]]:
    """Types by value name, and the inputs' shapes; extents that are not known are -1.

    Open extents of the inputs are filled in, a batch with 1: shapes show where stages begin, and any that the network
    accepts will do. ``input_shape`` gives them instead, one for each input. What is written keeps the open ones.
    """
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    unbounded = unbounded_shapes(model)
    best: dict[str, TensorType] = {}
    for sides in _SIDES:
        bound = onnx.ModelProto()
        bound.CopyFrom(model)
        inputs = [entry for entry in bound.graph.input if entry.name not in constants]
        guessed = _bind(inputs, input_shape, file, sides)
        types, fits = _infer(bound, model, unbounded)
        if len(types) > len(best):
            best = types
        if fits or not guessed:
            break
    return best, [best[entry.name].shape if entry.name in best else () for entry in inputs]


def _infer(
    bound: onnx.ModelProto, model: onnx.ModelProto, unbounded: Sequence[int]
) -> tuple[dict[str, TensorType], bool]:
    """What follows from the inputs, which are bound, and whether every operator takes what it reads."""
    import onnx

    graph = bound.graph
    stored = {tensor.name for tensor in graph.initializer}
    results = [entry for entry in graph.output if entry.name not in stored]
    for entry in results:  # open extents there contradict what follows from the inputs
        if entry.type.HasField("tensor_type"):
            entry.type.tensor_type.ClearField("shape")
    kept = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in results]
    del graph.output[:]
    graph.output.extend(kept)
    # It knows sparse initializers as operands of no operator; here they are dense inputs.
    for sparse in graph.sparse_initializer:
        values = sparse.values
        graph.input.append(
            onnx.helper.make_tensor_value_info(values.name, values.data_type, list(sparse.dims))
        )
    del graph.sparse_initializer[:]
    del graph.value_info[:]
    bound.opset_import.add(domain=_OPAQUE, version=1)
    for index in unbounded:
        graph.node[index].domain = _OPAQUE
    calls = {(function.domain, function.name) for function in bound.functions}
    whole = [node for node in graph.node if bodies(node) or (node.domain, node.op_type) in calls]
    types: dict[str, TensorType] = {}
    for _ in range(_TURNS):
        with contextlib.suppress(Exception):  # the C++ library raises errors of several kinds
            graph = onnx.shape_inference.infer_shapes(bound).graph
        for entry in (*graph.value_info, *graph.output, *graph.input):
            kind = type_of(entry.type)
            if kind is not None:
                types.setdefault(entry.name, kind)
        found, fits = complete_types(model, types)
        types |= found
        if not found or all(name in types for node in whole for name in node.output if name):
            break
        # What bodies and functions give is inferred with them, now that more is known of what they read.
        bound.graph.value_info.extend(
            onnx.helper.make_tensor_value_info(name, TYPES[kind.dtype], kind.shape)
            for name, kind in found.items()
        )
    return types, fits


def complete_types(
    model: onnx.ModelProto, types: Mapping[str, TensorType]
) -> tuple[dict[str, TensorType], bool]:
    """Types of the values that ``types`` lacks or knows in part only, and whether no operator refused its operands.

    ``types`` has those of the inputs, with no open extent. Nothing large is read or made.
    """
    results = [name for node in model.graph.node for name in node.output if name]
    if all((kind := types.get(name)) is not None and kind.is_closed for name in results):
        return {}, True
    from elastic_ir.frontends.onnx.shape_arithmetic import ShapeInference

    inference = ShapeInference(model, types)
    for node in model.graph.node:
        inference.follow(node)
    return {name: kind for name, kind in inference.types.items() if types.get(name) != kind}, inference.fits


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
