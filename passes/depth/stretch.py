"""Stretching: the network gets deeper by clones of its repeatable units (Chen et al. 2021, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Resequenced
from elastic_ir.passes.depth import ResizePass
from elastic_ir.plans.plan import Order
from elastic_ir.plans.resequence import resequence
from elastic_ir.plans.target import stretch_plan
from elastic_ir.rewrite.rewriter import Rewriter

if TYPE_CHECKING:
    from elastic_ir.plans.copy_edits import CopyEdits


@dataclasses.dataclass(frozen=True)
class Stretch(ResizePass):
    """Clone repeatable units with their weights and masks, to reach a depth, counts or a plan."""

    name: ClassVar[str] = "stretch"
    gains: ClassVar[str] = "neither: file and latency grow by what is added"

    #: "append": the copies follow as a group; "interpolate": each right after its source
    order: Order = "append"
    replicate: Sequence[int] | None = None  #: block indices that alone are copied
    others: Mapping[str, Graph] | None = None  #: networks that the plan takes layers from, by name
    scale: Any = None  #: factors of the copies' tensors by name: a mapping, or "o_proj=0.5,down_proj=0.5"
    zero: Any = None  #: names of the copies' tensors that start at zero, or "auto" for identity blocks

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        edits = self._copy_edits()
        if self.others:
            from elastic_ir.plans.layer_sources import plan_layers, take_layers

            self.target.check()
            layers = plan_layers(graph, self.plan, self.others)
            made = resequence(rewriter, graph, layers.plan, self.keep_beside, written=layers.sequence)
            take_layers(rewriter, graph, layers, self.others)
            if edits is not None:
                edits.apply(rewriter, graph, layers.sequence)
            return made
        plan = stretch_plan(graph, self.target, self.order, self.replicate)
        made = resequence(rewriter, graph, plan, self.keep_beside)
        if edits is not None:
            edits.apply(rewriter, graph, made.plan)
        return made

    def _copy_edits(self) -> CopyEdits | None:
        if self.scale is None and self.zero is None:
            return None
        from elastic_ir.plans.copy_edits import CopyEdits

        return CopyEdits.of(self.scale, self.zero)

    def after_reference(self, graph: Graph, reference: Graph) -> Graph:
        """A deeper copy, made like the reference."""
        if self.others or self.scale or self.zero:
            raise PlanError(
                "after a reference nothing is scaled, zero or of other networks; state the target by a plan"
            )
        from elastic_ir.plans.like import resize_like

        return resize_like(
            graph, reference, "stretch", self.order, replicate=self.replicate, keep_beside=self.keep_beside
        )
