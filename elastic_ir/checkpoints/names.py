"""What follows from names and shapes alone: a graph without nodes, and on which side of the layers a tensor stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import GraphInfo
from elastic_ir.safety.limits import check_names
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.weights import Storage, Weight, looks_like_layer, looks_prunable

_BEHIND = re.compile(
    r"(.*_)?(lm_head|head|score|classifier|cls|pooler|embed_out|logits?|outputs?|predictions?|final_.*|ln_f|norm_f|norm"
    r"|layer_?norm|post_layernorm|final_logits_bias)(_.*)?",
    re.IGNORECASE,
)
_BEFORE = re.compile(r".*emb.*|wte|wpe|shared|.*position.*|patch.*|pre_layrnorm|pre_layernorm", re.IGNORECASE)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def graph_of_tensors(name: str, tensors: Mapping[str, TensorData]) -> Graph:
    """A graph over named tensors, in their order; tied names cannot be seen and count as separate."""
    check_names(tensors, name)
    graph = Graph(name, GraphInfo("names", source_names=tuple(tensors)))
    for key, data in tensors.items():
        role = key.rpartition(".")[2]
        statistic = role in _STATISTICS
        graph.weights[key] = Weight(
            key, Storage(data), key, not statistic, True, looks_prunable(key, data.shape),
            layer=looks_like_layer(key, data.shape, data.dtype),
        )  # fmt: skip
    return graph


def stands_behind(name: str) -> bool | None:
    """Whether a tensor outside of the layers stands behind them (the final norm, heads) and not before (embeddings).

    Files come sorted by name, so only words in the names can show it; None where they do not.
    """
    for part in name.split(".")[:-1] or [name]:
        if part == "embed_out":
            return True
        if _BEFORE.fullmatch(part):
            return False
        if _BEHIND.fullmatch(part):
            return True
    return None


def parted(path: tuple[Any, ...], at: tuple[Any, ...]) -> tuple[Any, ...]:
    """What of a nested checkpoint a path leads into: the outermost part that lies beside the network at ``at``."""
    deep = 1
    while deep < min(len(path), len(at)) and path[:deep] == at[:deep]:
        deep += 1
    return path[:deep]
