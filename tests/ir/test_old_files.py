"""Files of the first version are read as they were: what their ``metadata`` states arrives in the graph's records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import elastic_ir as eir
from elastic_ir.ir.info import Edits, GraphInfo, History
from elastic_ir.ir.serialise import graph_from_data, graph_to_data
from elastic_ir.tensors.lazy import InlineData

#: A linear layer, as ElasticIR wrote it when a graph's facts were keys of one table.
OLD: dict[str, Any] = {
    "version": 1,
    "name": "Small",
    "metadata": {
        "frontend": "fx",
        "modules": {"": ["fc"], "fc": []},
        "plan": [[0, 1, 1], [0, "b/3"]],
        "pipeline": ["stretch{to-depth=20}", "ghost-skips"],
        "input_shapes": [[1, 4]],
        "ghosts": {"skip": {"start": 1.0, "end": 0.0, "shape": "cosine", "share": 0.5}},
        "rewired": True,
        "lineage": {"fc.weight": "head.weight"},
    },
    "weights": [["fc.weight", "head.weight", True, True, True, 0]],
    "buffers": {},
    "nodes": [
        {
            "name": "x", "op": "input", "kind": "input", "args": {"tuple": []}, "kwargs": {"dict": []},
            "attributes": {"dict": []}, "weights": {}, "scope": "", "type": [[1, 4], "float32"], "tensor": True,
        },
        {
            "name": "fc", "op": "nn.Linear", "kind": "module", "args": {"tuple": [{"value": 0}]},
            "kwargs": {"dict": []}, "attributes": {"dict": [["in_features", 4], ["out_features", 2], ["bias", False]]},
            "weights": {"weight": "fc.weight"}, "scope": "fc", "type": [[1, 2], "float32"], "tensor": True,
        },
        {
            "name": "output", "op": "output", "kind": "output", "args": {"tuple": [{"value": 1}]},
            "kwargs": {"dict": []}, "attributes": {"dict": []}, "weights": {}, "scope": "", "type": None,
            "tensor": False,
        },
    ],
}  # fmt: skip
TENSORS = {"fc.weight": InlineData((2, 4), "float32", np.ones((2, 4), np.float32).tobytes())}


def read(**changes: object) -> eir.Graph:
    return graph_from_data({**OLD, "metadata": {**OLD["metadata"], **changes}}, TENSORS)


def test_what_an_old_file_states_is_read_and_written_again() -> None:
    graph = read()
    told = OLD["metadata"]
    assert graph.info == GraphInfo(
        "fx", source_names=("fc.weight",), lineage=told["lineage"], plan=told["plan"]
    )
    assert graph.edits == Edits(rewired=True, ghosts=told["ghosts"])
    assert graph.history == History(("stretch{to-depth=20}", "ghost-skips"))
    assert graph.modules == told["modules"]
    written = graph_to_data(graph)["metadata"]
    same = told.keys() - {"input_shapes", "lineage"}  # the network read is the source now
    assert {key: written[key] for key in same} == {key: told[key] for key in same}
    assert written["lineage"] == {"fc.weight": "fc.weight"}


@pytest.mark.parametrize("key", ["frontend", "modules", "plan", "pipeline", "lineage", "rewired"])
def test_null_is_as_good_as_nothing(key: str) -> None:
    data = {**OLD, "metadata": {name: value for name, value in OLD["metadata"].items() if name != key}}
    missing, null = graph_from_data(data, TENSORS), read(**{key: None})
    assert (missing.info, missing.edits, missing.history) == (null.info, null.edits, null.history)
    assert missing.modules == null.modules


def test_edits_without_ghosts_are_of_the_file_s_own_past() -> None:
    """The class that is described beside the graph has them already, so they are not written."""
    graph = read(ghosts={})
    assert "rewired" not in graph_to_data(graph)["metadata"]
