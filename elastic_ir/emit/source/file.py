"""Writing a network as Python source: one readable file that needs nothing but torch."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from elastic_ir.emit.source.reading.calls import Unwritable
from elastic_ir.errors import EmitError
from elastic_ir.formats import PYTORCH
from elastic_ir.formats.files import atomic_output
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
    from elastic_ir.emit.source.check import check_source
    from elastic_ir.emit.source.writer import write_source

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
    from elastic_ir.emit.module import build_module

    module = build_module(graph)
    again = graph.origin.retrace(module, "export")
    again.origin = dataclasses.replace(graph.origin, module=module)
    again.name = graph.name
    return again
