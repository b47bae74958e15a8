"""Writing a network as Python source: one readable file that needs nothing but torch, run before it is written."""

from __future__ import annotations

import dataclasses
import os
import re
import types
from pathlib import Path

from torch import nn

from elastic_ir.emit.comparison import Outputs, compare_outputs
from elastic_ir.emit.example_runs import Call, message, run_module, with_another
from elastic_ir.emit.module import build_module
from elastic_ir.emit.source.forward import input_name
from elastic_ir.emit.source.reading.calls import Unwritable
from elastic_ir.emit.source.writer import write_source
from elastic_ir.errors import EmitError
from elastic_ir.formats import PYTORCH
from elastic_ir.formats.files import atomic_output
from elastic_ir.ir.example_inputs import read_tensor
from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import OnnxSource


def save_source(graph: Graph, path: str | os.PathLike[str], *, check: bool = True, weights: str = "") -> Path:
    """Write a network as a ``.py`` file: classes of ``torch.nn`` whose ``state_dict`` has the graph's names.

    The stages' counts are arguments, so that the file defines the whole family. ``weights`` is the name that its
    docstring loads the state dict from; without it the file's own with ``.pt``. ``check`` runs the source in a fresh
    namespace, loads the state dict strictly and compares the outputs with those of ``graph.to_module()``. Raises
    EmitError, and writes nothing, for what source cannot express: operations that are not functions of torch, transient
    buffers whose numbers show no rule, names that are not identifiers, ONNX graphs, bare state dicts.
    """
    path = Path(path)
    file = weights or path.with_suffix(PYTORCH.suffixes[0]).name
    if not re.fullmatch(r"[\w.+() -]+", file):
        file = "model.pt"  # whatever the name holds, it may not end the docstring
    text = source_of(graph, file, check=check)
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def source_of(graph: Graph, weights: str = "model.pt", *, check: bool = True) -> str:
    """The text that :func:`save_source` writes."""
    if isinstance(graph.origin, OnnxSource) or graph.info.frontend == "onnx":
        raise EmitError(
            "Python source is written for networks from PyTorch; this graph is ONNX's, whose operators have no modules"
        )
    if not len(graph):
        raise EmitError(
            f"{graph.name} was read without its network, so there is no forward to write; pass --arch SOURCE (arch=...)"
        )
    notes = []
    if any(weight.mask is not None for weight in graph.weights.values()):
        notes.append(
            "The network is a ticket: the source is of the dense architecture, and the pruned weights are the zeros of "
            "the state dict, which training would fill unless the masks are enforced."
        )
    try:
        text = write_source(graph, weights, notes)
    except Unwritable as error:
        text = write_source(_exported(graph, error), weights, notes)
    if check:
        check_source(text, network_of(text), graph)
    return text


def network_of(text: str) -> str:
    """The name of the network's class, which a source file defines last."""
    *_, last = re.finditer(r"^class (\w+)\(", text, re.MULTILINE)
    return last[1]


def _exported(graph: Graph, error: Unwritable) -> Graph:
    """The network read anew by torch.export, for what calls functions that torch does not have."""
    live = graph.origin.module
    if live is None or graph.info.frontend == "export":
        raise error
    module = build_module(graph)
    again = graph.origin.retrace(module, "export")
    again.origin = dataclasses.replace(graph.origin, module=module)
    again.name = graph.name
    return again


# -- the check ---------------------------------------------------------------------------------------------------------


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
    """EmitError unless the source runs, loads the state dict strictly, and computes what the graph's module does."""
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
    first = _example_inputs(graph, "meta" if shapes_only else "cpu")
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


def _example_inputs(graph: Graph, device: str) -> Call:
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
