"""The check of emitted source: run in a fresh namespace, it loads the state dict strictly and gives equal outputs."""

from __future__ import annotations

import types

from torch import nn

from elastic_ir.emit.comparison import Outputs, compare_outputs
from elastic_ir.emit.example_runs import Call, message, run_module, with_another
from elastic_ir.emit.module import build_module
from elastic_ir.emit.source.forward import input_name
from elastic_ir.errors import EmitError
from elastic_ir.ir.example_inputs import read_tensor
from elastic_ir.ir.graph import Graph


def run_source(text: str, name: str) -> nn.Module:
    """The network that a source file defines, with its default arguments. Raises EmitError."""
    namespace = types.ModuleType("emitted")
    try:
        exec(compile(text, "<emitted source>", "exec"), namespace.__dict__)
        made = namespace.__dict__[name]()
    except Exception as error:
        raise EmitError(
            f"the written source does not run: {type(error).__name__}: {message(error)}"
        ) from error
    assert isinstance(made, nn.Module)
    return made


def check_source(text: str, name: str, graph: Graph) -> None:
    """EmitError unless the source's network has the graph's names and computes what the graph's module does."""
    made = run_source(text, name)
    wanted = {n: w.shape for n, w in graph.weights.items() if w.persistent}
    found = {n: tuple(t.shape) for n, t in made.state_dict().items()}
    if found != wanted:
        odd = [n for n in (*wanted, *found) if found.get(n) != wanted.get(n)]
        raise EmitError(
            f"the written source does not have the state dict's names and shapes: {', '.join(odd[:3])}"
        )
    reference = build_module(graph).eval()
    shapes_only = any(tensor.is_meta for tensor in reference.state_dict().values())
    if shapes_only:
        made = made.to("meta")
    else:
        made.load_state_dict(graph.state_dict(), strict=True)
    first = example_inputs(graph, "meta" if shapes_only else "cpu")
    calls = [first] if shapes_only else with_another(reference, first)
    names = [input_name(node) for node in graph if node.kind == "input"]
    given = [dict(zip(names, args, strict=False)) | {key: kwargs[key] for key in names if key in kwargs}
             for args, kwargs in calls]  # fmt: skip
    theirs = run_module(reference, calls, "the graph's module")
    ours = run_module(made.eval(), [((), options) for options in given], "the written source")
    if _kinds(ours) != _kinds(theirs):
        raise EmitError(f"the written source gives {_kinds(ours)}, the graph {_kinds(theirs)}")
    if shapes_only:
        return
    try:
        compare_outputs(ours, theirs, "the written source", "the graph's module's")
    except EmitError as error:
        raise EmitError(
            f"the written source computes other outputs than the graph's module: {error}"
        ) from error


def _kinds(outputs: Outputs) -> str:
    found = [f"{dtype} {list(a.shape)}" for dtype, a in zip(outputs.dtypes, outputs.runs[0], strict=True)]
    return ", ".join(found) or "no tensors"


def example_inputs(graph: Graph, device: str) -> Call:
    """What the network was traced with; without that noise, or ones, of the types recorded."""
    inputs = graph.origin.inputs
    if inputs is not None:
        moved = inputs.to(device)
        return tuple(moved.args), dict(moved.kwargs)
    made = []
    for node in graph:
        if node.kind == "input":
            kind = node.output.type
            if kind is None:
                raise EmitError(f"the type of the input {node.op!r} is not known, so the source cannot be checked; "
                                "--no-check writes it unchecked")  # fmt: skip
            made.append(read_tensor((kind.shape, kind.dtype))[0].to(device))
    return tuple(made), {}
