"""The check of emitted source: run in a fresh namespace, it loads the state dict strictly and gives equal outputs."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn

from elastic_ir.emit.module import to_module
from elastic_ir.errors import EmitError
from elastic_ir.example_inputs import map_tensors
from elastic_ir.graph import Graph
from elastic_ir.tensors import ShapeOnly

_TOLERANCE = 1e-4  #: relative to the largest output; kernels may sum in another order


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
    shapes_only = any(isinstance(w.storage.data, ShapeOnly) for w in graph.weights.values())
    reference = to_module(graph).eval()
    if shapes_only:
        made = made.to("meta")
    else:
        made.load_state_dict(graph.state_dict(), strict=True)
    made.eval()
    device = "meta" if shapes_only else "cpu"
    args, kwargs = example_inputs(graph, device)
    names = [node.op if node.op != "input" else node.name for node in graph if node.kind == "input"]
    given = dict(zip(names, args, strict=False)) | {
        key: value for key, value in kwargs.items() if key in names
    }
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            theirs = tensors_of(reference(*args, **kwargs))
    except Exception as error:
        raise EmitError(f"the graph's module does not run: {type(error).__name__}: {_line(error)}") from error
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            ours = tensors_of(made(**{key: _copied(value) for key, value in given.items()}))
    except Exception as error:
        raise EmitError(f"the source made does not run: {type(error).__name__}: {_line(error)}") from error
    if len(ours) != len(theirs):
        raise EmitError(f"the source made gives {len(ours)} tensors, the graph {len(theirs)}")
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape or mine.dtype != other.dtype:
            raise EmitError(
                f"the source made gives {mine.dtype} {list(mine.shape)}, the graph {other.dtype} {list(other.shape)}"
            )
        if not shapes_only and not _close(mine, other):
            raise EmitError("the source made computes other outputs than the graph's module")


def _copied(item: Any) -> Any:
    return map_tensors(item, torch.Tensor.clone)


def _close(mine: torch.Tensor, other: torch.Tensor) -> bool:
    if not mine.is_floating_point():
        return torch.equal(mine, other)
    mine, other = mine.double(), other.double()
    scale = float(other[other.isfinite()].abs().max()) if bool(other.isfinite().any()) else 1.0
    tolerance = _TOLERANCE if mine.dtype == torch.float64 else 1e-2
    return torch.allclose(mine, other, rtol=tolerance, atol=tolerance * max(scale, 1e-30), equal_nan=True)


def example_inputs(graph: Graph, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the network was traced with, or, of a graph from a file without its class, tensors of the types recorded."""
    inputs = getattr(graph.origin, "inputs", None)
    if inputs is not None:
        moved = inputs.to(device)
        return tuple(_copied(item) for item in moved.args), dict(moved.kwargs)
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


def tensors_of(output: Any) -> list[torch.Tensor]:
    """The tensors of an output in order, out of tuples, lists, dictionaries and transformers' outputs."""
    if isinstance(output, torch.Tensor):
        return [output]
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in tensors_of(item)]
    return []


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
