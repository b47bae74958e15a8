"""A bare state dict as a graph without nodes: names, shapes, and what they tell. No torch is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import GraphInfo
from elastic_ir.safety.limits import check_names
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.weights import Storage, Weight

_LOOKUP = re.compile(r"emb|wte|wpe|bias_table|position")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def looks_prunable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a name and shape speak of a convolution or linear layer: a ``weight`` of rank 2 to 5, no lookup.

    What is looked up is a table of two axes; the convolution of a patch embedding has more.
    """
    role = name.rpartition(".")[2]
    looked_up = len(shape) == 2 and _LOOKUP.search(name.lower())
    return role.endswith("weight") and 2 <= len(shape) <= 5 and not looked_up


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
