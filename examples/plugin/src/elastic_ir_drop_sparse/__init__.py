"""A pass in another package: it deletes units whose masks have pruned almost all of their weights."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import ClassVar

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Unit
from elastic_ir.passes import Pass
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class DropSparse(Pass):
    """Delete free units whose masks have pruned more than a share of their weights."""

    name: ClassVar[str] = "drop-sparse"

    above: float = 0.95  #: a unit with a larger share of zeros is deleted

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for stage in graph.stages:
            doomed = [unit for unit in stage.units if sparsity_of(unit, graph) > self.above]
            if doomed and len(doomed) == len(stage.units) and stage.entry is None:
                raise PlanError(f"nothing would be left of stage {stage.name!r}; give a higher above")
            for unit in doomed:
                rewriter.delete_unit(unit)


def sparsity_of(unit: Unit, graph: Graph) -> float:
    """The share of masked zeros in a unit's prunable weights."""
    paths = tuple(f"{child.path}." for block in unit.blocks for child in block.children)
    weights = [w for name, w in graph.weights.items() if w.prunable and name.startswith(paths)]
    zeros = sum(w.mask.zeros for w in weights if w.mask is not None)
    sizes = sum(prod(w.shape) for w in weights)
    return zeros / sizes if sizes else 0.0
