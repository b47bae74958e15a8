"""A file's tensors put into a traced architecture: every name and shape fits, or the first that do not are listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from elastic_ir.errors import SourceError
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.weights import first_few, misfits


def _prefix(tensors: Mapping[str, TensorData], wanted: Mapping[str, tuple[int, ...]], source: str) -> str:
    """What stands before every name of an architecture in a file ("model."); SourceError where two prefixes fit."""
    if not wanted or wanted.keys() <= tensors.keys():
        return ""
    some = max(wanted, key=len)
    heads = [name.removesuffix(some) for name in tensors if name.endswith(f".{some}")]
    fit = [
        head
        for head in heads
        if all(head + n in tensors and tensors[head + n].shape == shape for n, shape in wanted.items())
    ]
    if len(fit) > 1:
        raise SourceError(
            f"{source} has the architecture's names under several prefixes ({', '.join(fit[:3])}); save the tensors of "
            "the one that is meant to a file of its own"
        )
    return fit[0] if fit else ""


def over_architecture(graph: Graph, tensors: Mapping[str, TensorData], source: str) -> Graph:
    """A traced architecture over a file's tensors; SourceError lists the first names that do not fit.

    One prefix before all of its names in the file is taken off, and noted in ``graph.info``.
    """
    wanted = {name: weight for name, weight in graph.weights.items() if weight.persistent}
    prefix = _prefix(tensors, {name: weight.shape for name, weight in wanted.items()}, source)
    if prefix:
        outside = [name for name in tensors if not name.startswith(prefix)]
        counters = {name for name in outside if not tensors[name].shape}  # SWA's n_averaged
        tensors = {name.removeprefix(prefix): data for name, data in tensors.items() if name not in counters}
        graph.info = replace(graph.info, prefix=prefix, left_behind=tuple(sorted(counters)))
    problems = misfits(wanted, tensors, "the architecture", " in the file", cast=True)
    if problems:
        raise SourceError(f"{source} does not fit the architecture {graph.name}: {first_few(problems)}")
    for name, weight in wanted.items():
        weight.storage.data = tensors[name]
    return graph
