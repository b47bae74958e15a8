"""Whether a network still runs after a pass: emitted and run on its example inputs, and compared with before.

The verifier reads a graph; this runs it. A module runs in evaluation, and hooks see that every block executes; a graph
that came from ONNX is written, checked by ``onnx.checker`` and run in onnxruntime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.emit.onnx_check import TOLERANCES
from elastic_ir.errors import EmitError, PlanError, VerifyError
from elastic_ir.graph import Graph
from elastic_ir.onnx_source import OnnxSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True)
class Run:
    """The outputs of one run, as arrays in the order a network returns them, and the blocks that were seen to run."""

    outputs: tuple[Array, ...] | None  #: None on the meta device, where there are no values
    blocks: int
    dtype: str = "float32"  #: the coarsest one among the outputs, which says how far they may differ


def run_network(graph: Graph) -> Run:
    """Emit a graph and run it once, in evaluation.

    Raises PlanError where it was read without its network or its inputs, EmitError where it cannot be emitted, does not
    run, or leaves blocks out.
    """
    if not len(graph):
        raise PlanError(
            f"{graph.name} was read without its network, so it cannot be run after each pass; pass --arch SOURCE "
            "(arch=...)"
        )
    return _run_onnx(graph) if isinstance(graph.origin, OnnxSource) else _run_module(graph)


def compare(before: Run, now: Run, *, preserving: bool) -> dict[str, object]:
    """What a run shows, as plain data: ``blocks`` that ran; ``drift`` and ``allowed`` where the function is to stay.

    The drift is the largest absolute difference of an output, relative to the largest number in it (at least 1), and
    so is what is allowed. Raises VerifyError where outputs are not finite and were before, or differ by more.
    """
    import numpy as np

    found: dict[str, object] = {"blocks": now.blocks}
    if now.outputs is None or before.outputs is None:
        return found
    wild = [place for place, output in enumerate(now.outputs) if not np.isfinite(_double(output)).all()]
    tame = all(np.isfinite(_double(output)).all() for output in before.outputs)
    if wild and tame:
        bad = int((~np.isfinite(_double(now.outputs[wild[0]]))).sum())
        raise VerifyError(
            f"output {wild[0]} holds {bad} numbers that are not finite, of {now.outputs[wild[0]].size}; before, all "
            "were finite"
        )
    if not preserving:
        return found
    if [output.shape for output in before.outputs] != [output.shape for output in now.outputs]:
        raise VerifyError(
            f"the outputs are of shapes {[list(o.shape) for o in now.outputs]}, before the pass of "
            f"{[list(o.shape) for o in before.outputs]}, and the pass says that it preserves the function"
        )
    drift, allowed = 0.0, TOLERANCES.get(now.dtype, 1e-4)
    for place, (old, new) in enumerate(zip(before.outputs, now.outputs, strict=True)):
        drift = max(drift, _difference(_double(old), _double(new)))
        if not drift <= allowed:
            raise VerifyError(
                f"output {place} differs from before by {drift:.3g} of its largest number, {allowed:.3g} is allowed, "
                "and the pass says that it preserves the function"
            )
    return {**found, "drift": drift, "allowed": allowed}


def _difference(old: Any, new: Any) -> float:
    """The largest difference, relative to the largest number; infinite where other places are not finite."""
    import numpy as np

    finite = np.isfinite(old)
    if not np.array_equal(finite, np.isfinite(new)):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = max(1.0, float(np.abs(old[finite]).max()))
    return float(np.abs(old[finite] - new[finite]).max()) / scale


def _double(output: Array) -> Any:
    import numpy as np

    return output.astype(np.complex128 if output.dtype.kind == "c" else np.float64)


def _run_module(graph: Graph) -> Run:
    import torch
    from torch.utils import _pytree

    from elastic_ir.emit.check import check_runs
    from elastic_ir.emit.module import to_module

    inputs = getattr(graph.origin, "inputs", None)
    if inputs is None:
        raise PlanError(
            f"{graph.name} has no example inputs to be run on after each pass; trace it with some"
        )
    module = to_module(graph)
    blocks = check_runs(module, graph)
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return Run(None, blocks)
    moved = inputs.to(device)
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = module(*moved.args, **moved.kwargs)
    except Exception as error:  # a forward may raise anything
        raise EmitError(f"the network made does not run: {type(error).__name__}: {error}") from error
    leaves = _pytree.tree_leaves(dict(made) if isinstance(made, Mapping) else made)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    coarse = [str(t.dtype).removeprefix("torch.") for t in tensors]
    dtype = next((name for name in ("bfloat16", "float16", "float32") if name in coarse), "float64")
    arrays = [t.detach().cpu() for t in tensors]
    return Run(tuple((t.float() if t.dtype == torch.bfloat16 else t).numpy() for t in arrays), blocks, dtype)


def _run_onnx(graph: Graph) -> Run:
    import onnxruntime

    from elastic_ir.emit.onnx_save import save_onnx

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        save_onnx(graph, path)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            outputs = session.run(None, _feeds(graph.origin))
        except Exception as error:  # onnxruntime raises types of its own for every kind of refusal
            text = " ".join(str(error).split())[:300]
            raise EmitError(f"onnxruntime does not run the network made: {text}") from error
    stages = graph._structure.stages if graph._structure is not None else ()
    arrays = [output for output in outputs if hasattr(output, "dtype")]
    dtype = "float16" if any(str(output.dtype) == "float16" for output in arrays) else "float32"
    return Run(tuple(arrays), sum(len(stage) for stage in stages), dtype)


def _feeds(source: OnnxSource) -> dict[str, Array]:
    """Numbers for a model's inputs: noise, and ones for whole numbers, which every vocabulary has."""
    import numpy as np
    import onnx

    generator = np.random.default_rng(0)
    entries = [entry for entry in source.model.graph.input if entry.name not in source.constants]
    found: dict[str, Array] = {}
    for entry, shape in zip(entries, source.input_shapes, strict=True):
        kind = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        ones = kind.kind != "f"
        found[entry.name] = np.ones(shape, kind) if ones else generator.standard_normal(shape).astype(kind)
    return found
