"""The refusal of weights without values: a file, or a module, of shapes alone helps nobody."""

from __future__ import annotations

from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import ShapeOnly


def refuse_without_values(graph: Graph) -> None:
    """EmitError where a weight was read on the meta device."""
    for name, weight in graph.weights.items():
        if weight.persistent and isinstance(weight.storage.data, ShapeOnly):
            raise EmitError(
                f"{name!r} was read on the meta device and has no values; load the model with its weights"
            )
