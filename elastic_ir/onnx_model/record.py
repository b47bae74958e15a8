"""What ran over a network, as an ONNX file keeps it: two entries of the model's metadata, in JSON.

``elastic_ir.pipeline`` is a list of passes as they would be written; ``elastic_ir.lineage`` has, for each weight by its
name in the file, the name in the source whose tensor it holds. A network that nothing has changed gets neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import SourceError

if TYPE_CHECKING:
    import onnx

    from elastic_ir.ir.graph import Graph

PIPELINE, LINEAGE = "elastic_ir.pipeline", "elastic_ir.lineage"


def read_record(model: onnx.ModelProto, file: str) -> tuple[list[str], dict[str, str]]:
    """The pipeline and the lineage, empty where there are none; SourceError where one is damaged."""
    pipeline: list[str] = []
    lineage: dict[str, str] = {}
    for entry in model.metadata_props:
        if entry.key not in (PIPELINE, LINEAGE):
            continue
        try:
            value = json.loads(entry.value)
        except (ValueError, RecursionError):
            value = None
        if entry.key == PIPELINE and isinstance(value, list) and _texts(value):
            pipeline = value
        elif entry.key == LINEAGE and isinstance(value, dict) and _texts(value.values()):
            lineage = value
        else:
            raise SourceError(
                f"{file}: {entry.key} in its metadata is damaged; remove the entry to read the network without it"
            )
    return pipeline, lineage


def _texts(items: Iterable[object]) -> bool:
    return all(isinstance(item, str) for item in items)


def write_record(model: onnx.ModelProto, graph: Graph, lineage: Mapping[str, str]) -> None:
    """Note in a model what made its graph; ``lineage`` is by the names that its weights have in the file.

    What the model notes already stays where it is still true.
    """
    if graph.history.pipeline:
        _set(model, PIPELINE, list(graph.history.pipeline))
    if any(weight.origin != name for name, weight in graph.weights.items() if weight.persistent):
        _set(model, LINEAGE, dict(lineage))
    elif set(graph.weights) != set(graph.info.source_names):
        _remove(model, LINEAGE)  # it was that of a network with other weights


def _set(model: onnx.ModelProto, key: str, value: Any) -> None:
    for entry in model.metadata_props:
        if entry.key == key:
            if json.loads(entry.value) != value:
                entry.value = json.dumps(value)
            return
    entry = model.metadata_props.add()
    entry.key, entry.value = key, json.dumps(value)


def _remove(model: onnx.ModelProto, key: str) -> None:
    kept = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
