"""Squeezing: the network gets shallower by deleting repeatable units (Chen et al. 2021, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Resequenced
from elastic_ir.passes.infra.base import Pass
from elastic_ir.plans.resequence import resequence
from elastic_ir.plans.target import Target, squeeze_plan
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class Squeeze(Pass):
    """Delete repeatable units with their weights and masks, to reach a depth, counts or a plan."""

    name: ClassVar[str] = "squeeze"
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"drop": ("tail", "even")}

    to_depth: int | None = None  #: the network's depth, as its name counts it (ResNet-56)
    to_stages: Sequence[int] | Mapping[str, int] | str | None = (
        None  #: blocks of every stage, or of those named
    )
    to_units: int | None = None  #: units of a network of one stage
    like: Graph | None = None
    plan: Any = None  #: each stage's blocks by their source, 0,1,1|0,1, or sources and targets, 0:0;1:1,2
    drop: str | Sequence[int] = "tail"  #: "tail", "even", or the block indices to drop in every stage
    keep_beside: Sequence[str] | None = (
        None  #: lists, tensors or entries of a configuration beside a stage that stay as they are
    )

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        target = Target(self.to_depth, self.to_stages, self.to_units, self.like, self.plan)
        plan = squeeze_plan(graph, target, self.drop)
        return resequence(rewriter, graph, plan, self.keep_beside)

    def run(self, graph: Graph) -> Graph:
        """The rewritten and verified copy of a graph; the graph given stays as it was."""
        return super().run(graph) if self.like is None else self._after_reference(graph)

    def run_on(self, target: Graph) -> Graph:
        """As :meth:`run`, on a graph that nobody else holds."""
        return super().run_on(target) if self.like is None else self._after_reference(target)

    def _after_reference(self, graph: Graph) -> Graph:
        Target(self.to_depth, self.to_stages, self.to_units, self.like, self.plan).check()
        assert self.like is not None
        from elastic_ir.plans.like import resize_like

        return resize_like(graph, self.like, "squeeze", drop=self.drop, keep_beside=self.keep_beside)
