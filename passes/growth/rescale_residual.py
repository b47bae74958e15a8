"""Rescaling: each of k copies of a residual block takes 1/k of its step.

A residual network is a forward Euler scheme; k copies of a block with 1/k of the step follow the same path in finer
steps, so a stretched network stays close to its source's function (Chen et al. 2021, *The Elastic Lottery Ticket
Hypothesis*, section 3.3; Chang et al. 2018, *Multi-level Residual Networks from Dynamical Systems View*).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import ClassVar, Literal

from elastic_ir.analysis.branches import branches_of
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Block
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import Scaled, with_values


@dataclasses.dataclass(frozen=True)
class RescaleResidual(Pass):
    """Let each of k copies of a residual block take 1/k of its step; run it after stretch."""

    name: ClassVar[str] = "rescale-residual"
    gains: ClassVar[str] = "neither: it changes numbers, not how many there are"

    #: "euler" is 1/k for a block that occurs k times; or a number for every copied block
    factor: float | Literal["euler"] = "euler"

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        given: object = self.factor
        if given != "euler" and not isinstance(given, (int, float)):
            raise PlanError(f"factor is euler or a number, not {given!r}")
        done: dict[str, float] = {}
        for stage in graph.stages:
            counts = Counter(block.origin for block in stage.all_blocks)
            for block in stage.blocks:
                copies = counts[block.origin]
                if copies > 1:
                    done[block.path] = 1 / copies if self.factor == "euler" else self.factor
                    _rescale(block, graph, rewriter, done[block.path])
        if not done:
            raise PlanError(
                "no block occurs twice, so there is no step to share; run stretch before rescale-residual"
            )
        rewriter.report(done)


def _rescale(block: Block, graph: Graph, rewriter: Rewriter, factor: float) -> None:
    found, reason = branches_of(block, graph)
    if not found:
        raise PlanError(f"{block.path} is not a residual block, so its step cannot be rescaled: {reason}")
    for branch in found:
        for name in branch.weights:
            data = graph.weights[name].storage.data
            rewriter.set_data(name, with_values(Scaled(data, factor), data))
