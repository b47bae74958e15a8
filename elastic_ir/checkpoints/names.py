"""A bare state dict as a graph without nodes: names, shapes, and what follows from them. No torch is needed."""

from __future__ import annotations

from collections.abc import Mapping

from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import GraphInfo
from elastic_ir.safety.limits import check_names
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.weights import Storage, Weight, looks_prunable

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def graph_of_tensors(name: str, tensors: Mapping[str, TensorData]) -> Graph:
    """A graph over named tensors, in their order; tied names cannot be seen and count as separate."""
    check_names(tensors, name)
    graph = Graph(name, GraphInfo("names", source_names=tuple(tensors)))
    for key, data in tensors.items():
        role = key.rpartition(".")[2]
        statistic = role in _STATISTICS
        graph.weights[key] = Weight(
            key, Storage(data), key, not statistic, True, looks_prunable(key, data.shape)
        )
    return graph
