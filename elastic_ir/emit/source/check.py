"""The check of emitted source: run in a fresh namespace, it loads the state dict strictly and gives equal outputs."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from elastic_ir.emit.comparison import Outputs, compare_outputs, refuse_not_finite
from elastic_ir.emit.example_runs import Call, another, run_module
from elastic_ir.emit.module.module import build_module
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph


def run_source(text: str, name: str) -> nn.Module:
    """The network that a source file defines, with its default arguments. Raises EmitError."""
    namespace = types.ModuleType("emitted")
    try:
        exec(compile(text, "<emitted source>", "exec"), namespace.__dict__)
        made = namespace.__dict__[name]()
    except Exception as error:
        raise EmitError(f"the source made does not run: {type(error).__name__}: {_line(error)}") from error
    assert isinstance(made, nn.Module)
    return made


def check_source(text: str, name: str, graph: Graph) -> None:
    """EmitError unless the source's network has the graph's names and computes what the graph's module does."""
    made = run_source(text, name)
    wanted = {n: w.shape for n, w in graph.weights.items() if w.persistent}
    found = {n: tuple(t.shape) for n, t in made.state_dict().items()}
    if found != wanted:
        odd = [n for n in (*wanted, *found) if found.get(n) != wanted.get(n)]
        raise EmitError(f"the source made has not the state dict's names and shapes: {', '.join(odd[:3])}")
    reference = build_module(graph).eval()
    shapes_only = any(tensor.is_meta for tensor in reference.state_dict().values())
    if shapes_only:
        made = made.to("meta")
    else:
        made.load_state_dict(graph.state_dict(), strict=True)
    made.eval()
    names = [node.op if node.op != "input" else node.name for node in graph if node.kind == "input"]
    first = example_inputs(graph, "meta" if shapes_only else "cpu")
    second = another(first)
    calls = [first] if second is None or shapes_only else [first, second]
    theirs = run_module(reference, calls[:1], "the graph's module")
    for made_up in calls[1:]:
        try:
            more = run_module(reference, [made_up])
            refuse_not_finite(more, None)
            theirs = replace(theirs, runs=(*theirs.runs, *more.runs))
        except EmitError:  # these numbers are made up, and the network need not take them
            calls = calls[:1]
    given = [((), _named(names, *call)) for call in calls]
    ours = run_module(made, given, "the source made")
    if _kinds(ours) != _kinds(theirs):
        raise EmitError(f"the source made gives {_kinds(ours)}, the graph {_kinds(theirs)}")
    if not shapes_only:
        try:
            compare_outputs(ours, theirs, "the source made", "the graph's module's")
        except EmitError as error:
            raise EmitError(
                f"the source made computes other outputs than the graph's module: {error}"
            ) from error


def _named(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | {
        key: value for key, value in kwargs.items() if key in names
    }


def _kinds(outputs: Outputs) -> str:
    told = [f"{dtype} {list(a.shape)}" for dtype, a in zip(outputs.dtypes, outputs.runs[0], strict=True)]
    return ", ".join(told) or "no tensors"


def example_inputs(graph: Graph, device: str) -> Call:
    """What the network was traced with, or, of a graph from a file without its class, tensors of the types recorded."""
    inputs = graph.origin.inputs
    if inputs is not None:
        moved = inputs.to(device)
        return tuple(moved.args), dict(moved.kwargs)
    generator = torch.Generator().manual_seed(0)
    made = []
    for node in graph:
        if node.kind == "input":
            if node.output.type is None:
                raise EmitError(f"the type of the input {node.op!r} is not known, so the source cannot be checked; "
                                "--no-check writes it unchecked")  # fmt: skip
            dtype = getattr(torch, node.output.type.dtype)
            shape = node.output.type.shape
            if dtype.is_floating_point:
                one = torch.randn(shape, generator=generator).to(dtype)
            else:
                one = torch.ones(shape, dtype=dtype)
            made.append(one.to(device))
    return tuple(made), {}


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
