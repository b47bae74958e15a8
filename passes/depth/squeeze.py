"""Squeezing: the network gets shallower by deleting repeatable units (Chen et al. 2021, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Resequenced
from elastic_ir.passes.depth import ResizePass
from elastic_ir.plans.plan import Drop
from elastic_ir.plans.resequence import resequence
from elastic_ir.plans.target import squeeze_plan
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class Squeeze(ResizePass):
    """Delete repeatable units with their weights and masks, to reach a depth, counts or a plan."""

    name: ClassVar[str] = "squeeze"
    gains: ClassVar[str] = "a smaller file and lower latency, by the blocks that go"

    drop: Drop | Sequence[int] = "tail"  #: "tail", "even", or the block indices to drop in every stage

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        return resequence(rewriter, graph, squeeze_plan(graph, self.target, self.drop), self.keep_beside)

    def after_reference(self, graph: Graph, reference: Graph) -> Graph:
        """A shallower copy, made like the reference."""
        from elastic_ir.plans.like import resize_like

        return resize_like(graph, reference, "squeeze", drop=self.drop, keep_beside=self.keep_beside)
