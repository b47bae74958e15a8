"""Checks of what is written to ONNX: the checker of the onnx package, and a run in onnxruntime against PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.errors import EmitError
from elastic_ir.onnx_model import OnnxSource, bodies, constant_tensor, mark_of
from elastic_ir.onnx_model.limits import unbounded_shapes

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from elastic_ir.emit.comparison import Difference, Outputs

_WHOLE = 64 << 20  #: up to this many bytes the file itself is checked; above, the model without its tensors


def check_file(path: Path, model: onnx.ModelProto) -> None:
    """Run ``onnx.checker`` (with shape inference) on what was written; EmitError with its message.

    A large file is checked by its model alone, whose tensors are declared as inputs, because the checker would hold
    the whole file in memory.
    """
    import onnx

    try:
        small = path.stat().st_size <= _WHOLE
        sparse = bool(model.graph.sparse_initializer)
        types = not unbounded_shapes(model)  # else it could fill any memory
        if small:
            onnx.checker.check_model(str(path), full_check=types and not sparse)
        if sparse or not small:  # shape inference does not know sparse weights; to it they are dense inputs
            onnx.checker.check_model(_without_tensors(model), full_check=types)
    except Exception as error:  # the C++ library raises errors of several kinds
        text = " ".join(str(error).split())[:300]
        raise EmitError(f"{path.name} is not what ONNX's checker accepts: {text}") from error


def _without_tensors(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which tensors that have no bytes here are inputs."""
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)

    listed = {entry.name for entry in twin.graph.input}

    def declare(name: str, tensor: onnx.TensorProto, dims: Sequence[int]) -> None:
        if name not in listed:
            listed.add(name)
            twin.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, dims))

    def strip(graph: onnx.GraphProto) -> None:
        for sparse in graph.sparse_initializer:
            declare(sparse.values.name, sparse.values, sparse.dims)
        del graph.sparse_initializer[:]
        for place, tensor in reversed([*enumerate(graph.initializer)]):
            if mark_of(tensor) is not None:
                declare(tensor.name, tensor, tensor.dims)
                del graph.initializer[place]
        for place, node in reversed([*enumerate(graph.node)]):
            value = constant_tensor(node)
            if value is not None and mark_of(value) is not None:
                declare(node.output[0], value, value.dims)
                del graph.node[place]
            else:
                for body in bodies(node):
                    strip(body)

    strip(twin.graph)
    if twin.ir_version < 4:
        for tensor in twin.graph.initializer:
            declare(tensor.name, tensor, tensor.dims)
    return twin


@dataclass(frozen=True)
class Expected:
    """What a file has to return: inputs by name, what came out for each, and of whom that was."""

    feeds: Sequence[Mapping[str, NDArray[np.generic]]]
    outputs: Outputs
    whose: str = "the module's"


def compare_runs(path: Path, expected: Expected) -> Difference:
    """Run a file in onnxruntime and compare what it returns; EmitError where it differs."""
    from elastic_ir.emit.comparison import compare_outputs

    return compare_outputs(run_file(path, expected.feeds), expected.outputs, path.name, expected.whose)


def run_file(path: Path, feeds: Sequence[Mapping[str, NDArray[np.generic]]], what: str = "") -> Outputs:
    """What a file returns on each input in onnxruntime on the CPU; EmitError where that does not run it."""
    import numpy as np
    import onnxruntime

    from elastic_ir.emit.comparison import Outputs, coarsest

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = [session.run(None, dict(feed)) for feed in feeds]
    except Exception as error:  # onnxruntime raises types of its own for every kind of refusal
        text = " ".join(str(error).split())[:300]
        raise EmitError(f"onnxruntime does not run {what or path.name}: {text}") from error
    runs = tuple(tuple(np.asarray(one) for one in run if hasattr(one, "dtype")) for run in found)
    return Outputs(runs, coarsest([str(array.dtype) for run in runs for array in run]))


def feeds_of(source: OnnxSource, seed: int) -> dict[str, NDArray[np.generic]]:
    """Numbers for a model's inputs: noise, and ones for whole numbers, which every vocabulary has."""
    import numpy as np
    import onnx

    generator = np.random.default_rng(seed)
    entries = [entry for entry in source.model.graph.input if entry.name not in source.constants]
    found: dict[str, NDArray[np.generic]] = {}
    for entry, shape in zip(entries, source.input_shapes, strict=True):
        number = entry.type.tensor_type.elem_type
        if number not in onnx.helper.get_all_tensor_dtypes():
            raise EmitError(f"the input {entry.name!r} is not a tensor of a known type")
        kind = onnx.helper.tensor_dtype_to_np_dtype(number)
        ones = kind.kind != "f"
        found[entry.name] = np.ones(shape, kind) if ones else generator.standard_normal(shape).astype(kind)
    return found
