"""Checks of what is written to ONNX: the checker of the onnx package, and a run in onnxruntime against PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError
from elastic_ir.onnx_limits import Guard
from elastic_ir.onnx_source import MARK, bodies

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

_WHOLE = 64 << 20  #: up to this many bytes the file itself is checked; above, the model without its tensors

#: How far outputs may differ, relative to the largest number in them (at least 1), by dtype: sums in another order.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def check_file(path: Path, model: onnx.ModelProto) -> None:
    """Run ``onnx.checker`` (with shape inference) on what was written; EmitError with what it says.

    A large file is checked by its model alone, whose tensors are declared as inputs, because the checker would hold
    the whole file in memory.
    """
    import onnx

    try:
        small = path.stat().st_size <= _WHOLE
        sparse = bool(model.graph.sparse_initializer)
        types = not Guard(model).shapes  # else it could fill any memory
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

    def bulky(tensor: onnx.TensorProto) -> bool:
        return any(entry.key == MARK for entry in tensor.external_data)

    def declare(tensor: onnx.TensorProto, name: str) -> None:
        if name not in {entry.name for entry in twin.graph.input}:
            twin.graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            )

    def strip(graph: onnx.GraphProto, *, outer: bool) -> None:
        for table in (graph.initializer, graph.sparse_initializer):
            kept = []
            for item in table:
                values = item.values if isinstance(item, onnx.SparseTensorProto) else item
                sparse = isinstance(item, onnx.SparseTensorProto)
                if not sparse and not bulky(values):
                    kept.append(item)
                elif isinstance(item, onnx.SparseTensorProto):
                    dense = onnx.TensorProto(name=values.name, data_type=values.data_type, dims=item.dims)
                    declare(dense, values.name)
                else:
                    declare(item, item.name)
            del table[:]
            table.extend(kept)  # type: ignore[arg-type]
        nodes = []
        for node in graph.node:
            tensor = next((a.t for a in node.attribute if a.type == 4 and bulky(a.t)), None)
            if tensor is not None and node.op_type == "Constant":
                declare(tensor, node.output[0])
                continue
            for body in bodies(node):
                strip(body, outer=False)
            nodes.append(node)
        kept_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept_nodes)

    strip(twin.graph, outer=True)
    if twin.ir_version < 4:
        names = {entry.name for entry in twin.graph.input}
        for tensor in twin.graph.initializer:
            if tensor.name not in names:
                declare(tensor, tensor.name)
    return twin


@dataclass(frozen=True)
class Difference:
    """How far two runs of a network are apart: the largest absolute difference, and the one that is allowed."""

    largest: float
    allowed: float
    outputs: int

    def __str__(self) -> str:
        return f"{self.largest:.2g} (allowed {self.allowed:.2g})"


def compare_runs(
    path: Path, feeds: Mapping[str, NDArray[np.generic]], expected: Sequence[Any], dtype: str = "float32"
) -> Difference:
    """Run a file in onnxruntime on the CPU and compare its outputs; EmitError where they differ too much."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = session.run(None, dict(feeds))
    except Exception as error:  # onnxruntime raises types of its own for every kind of refusal
        text = " ".join(str(error).split())[:300]
        raise EmitError(f"onnxruntime does not run {path.name}: {text}") from error
    if len(found) != len(expected):
        raise EmitError(f"{path.name} has {len(found)} outputs, the module {len(expected)}")
    largest = allowed = 0.0
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        if ours.shape != theirs.shape:
            raise EmitError(
                f"output {place} of {path.name} is {list(ours.shape)}, the module's {list(theirs.shape)}"
            )
        if ours.dtype.kind != "f":
            if not np.array_equal(ours, theirs):
                raise EmitError(f"output {place} of {path.name} differs from the module's")
            continue
        if not ours.size:
            continue
        scale = max(1.0, float(np.nanmax(np.abs(theirs))) if np.isfinite(theirs).any() else 1.0)
        limit = TOLERANCES.get(dtype, 1e-4) * scale
        difference = float(np.nanmax(np.abs(ours.astype(np.float64) - theirs.astype(np.float64))))
        if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)) or difference > limit:
            raise EmitError(
                f"output {place} of {path.name} differs from the module's by {difference:.3g}, and {limit:.3g} is "
                "allowed; nothing was written"
            )
        if difference >= largest:
            largest, allowed = difference, limit
    return Difference(largest, allowed, len(found))
