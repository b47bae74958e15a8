"""Stacking: the whole run of units several times over, or twice with the ends left out where the copies meet.

Gong et al. 2019, *Efficient Training of BERT by Progressively Stacking*, section 3; depth up-scaling, Kim et al. 2023,
*SOLAR 10.7B*, section 2.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Resequenced, Stage
from elastic_ir.passes.depth import DepthPass
from elastic_ir.plans.resequence import resequence
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.safety.limits import check_blocks


@dataclasses.dataclass(frozen=True)
class Stack(DepthPass):
    """Repeat the free units of every stage as a whole (StackBERT)."""

    name: ClassVar[str] = "stack"
    gains: ClassVar[str] = "neither: file and latency grow by what is added"

    times: int = 2  #: how often the units stand there then

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        if self.times < 2:
            raise PlanError(f"times={self.times} stacks nothing; give 2 or more")
        check_blocks(self.times * sum(len(stage.blocks) for stage in graph.stages))
        plan = tuple(_repeated(stage, self.times, 0) for stage in graph.stages)
        return resequence(rewriter, graph, plan, self.keep_beside)


@dataclasses.dataclass(frozen=True)
class DepthUpscale(DepthPass):
    """Two copies of every stage, without the last units of the first and the first of the second (SOLAR)."""

    name: ClassVar[str] = "depth-upscale"
    gains: ClassVar[str] = "neither: file and latency grow by what is added"

    #: units left out on either side; a quarter of a stage's units by default (8 of 32)
    drop: int | None = None

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        plan: list[tuple[int, ...]] = []
        for stage in graph.stages:
            units = len(stage.units)
            drop = self.drop if self.drop is not None else units // 4
            if not 0 <= drop < max(units, 1):
                raise PlanError(
                    f"drop={drop} leaves nothing of stage {stage.name!r}, which has {units} free units"
                )
            plan.append(_repeated(stage, 2, drop) if units else tuple(range(len(stage))))
        return resequence(rewriter, graph, tuple(plan), self.keep_beside)


def _repeated(stage: Stage, times: int, drop: int) -> tuple[int, ...]:
    """The stage's plan: the free blocks so often between those that are kept, with units left out at the seams."""
    step = stage.period or 1
    first, count = stage.pinned, len(stage.blocks)
    plan = list(range(first))
    for turn in range(times):
        start = drop * step if turn else 0
        stop = count - drop * step if turn < times - 1 else count
        plan += range(first + start, first + stop)
    return (*plan, *range(first + count, len(stage)))
