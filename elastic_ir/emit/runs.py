"""Whether a network still runs after a pass: emitted and run on its example inputs, and compared with before.

The verifier reads a graph; this runs it. A module runs in evaluation, and hooks see that every block executes; a graph
that came from ONNX is written, checked by ``onnx.checker`` and run in onnxruntime.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.emit.comparison import TOLERANCES, Outputs, coarsest, compare_outputs, refuse_not_finite, wide
from elastic_ir.emit.onnx.check import feeds_of, run_file
from elastic_ir.errors import EmitError, PlanError, VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import OnnxSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True)
class Run:
    """What a network returned on two inputs, and how many blocks ran."""

    outputs: Outputs | None  #: None on the meta device, where there are no values
    blocks: int


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
    return _run_onnx(graph, graph.origin) if isinstance(graph.origin, OnnxSource) else _run_module(graph)


def compare(before: Run, now: Run, *, preserving: bool) -> dict[str, object]:
    """What a run shows, as plain data: ``blocks`` that ran; ``drift`` and ``allowed`` where the function is to stay.

    The drift is the largest absolute difference of an output, relative to the largest number in it, and so is what is
    allowed. Raises EmitError where outputs are NaN, or infinite and were finite before; VerifyError where they differ
    by more.
    """
    found: dict[str, object] = {"blocks": now.blocks}
    if now.outputs is None or before.outputs is None:
        return found
    new, old = _common(now.outputs, before.outputs)
    refuse_not_finite(new, old)
    if not preserving:
        return found
    try:
        made = compare_outputs(new, old, "", "before")
    except EmitError as error:
        raise VerifyError(f"{error}, and the pass says that it preserves the function") from error
    allowed = TOLERANCES[coarsest((new.dtype, old.dtype))]
    return {**found, "drift": made.relative, "allowed": allowed}


def _common(now: Outputs, before: Outputs) -> tuple[Outputs, Outputs]:
    """The runs to compare: the second input is made up, so that NaN there before, or no run at all, says nothing."""
    import numpy as np

    kept = [
        place
        for place in range(min(len(now.runs), len(before.runs)))
        if place == 0 or not any(np.isnan(wide(array)).any() for array in before.runs[place])
    ]
    one, two = (replace(each, runs=tuple(each.runs[place] for place in kept)) for each in (now, before))
    return one, two


def _run_module(graph: Graph) -> Run:
    from elastic_ir.emit.example_runs import calls_of, run_module
    from elastic_ir.emit.module import build_module
    from elastic_ir.emit.module.check import check_runs
    from elastic_ir.tensors.torch_bridge import device_of

    inputs = graph.origin.inputs
    if inputs is None:
        raise PlanError(
            f"{graph.name} has no example inputs to be run on after each pass; trace it with some"
        )
    module = build_module(graph, check=True)
    device = device_of(module)
    if device.type == "meta":
        return Run(None, check_runs(module, graph))
    first, *more = calls_of(inputs, device)
    outputs = run_module(module.eval(), [first])
    with contextlib.suppress(EmitError):
        outputs = replace(outputs, runs=(*outputs.runs, *run_module(module, more).runs))
    return Run(outputs, len(graph.blocks))


def _run_onnx(graph: Graph, source: OnnxSource) -> Run:
    from elastic_ir.emit.onnx.save import save_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        save_onnx(graph, path)
        outputs = run_file(path, [feeds_of(source, seed) for seed in (0, 1)], "the network made")
        return Run(outputs, len(graph.blocks))
