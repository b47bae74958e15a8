"""Identity blocks: copies whose step is zero, so that the deeper network computes what the source did.

The last layer of each residual branch of a copy starts at zero (Wu et al. 2024, *LLaMA Pro: Progressive LLaMA with
Block Expansion*, section 3.2; for batch norms Goyal et al. 2017, section 5.1); training moves it away. A network whose
stream goes through a norm behind the addition (BERT) has no such copy and is refused. Constants that follow a block's
place (NFNet's variance factors) stay as they are, because an empty block adds no variance.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.analysis.branches import branches_of
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Block, Resequenced
from elastic_ir.passes.depth import TargetPass
from elastic_ir.plans.plan import Order
from elastic_ir.plans.resequence import resequence
from elastic_ir.plans.target import stretch_plan
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import Zeros


@dataclasses.dataclass(frozen=True)
class IdentityBlocks(TargetPass):
    """Insert copies of blocks that compute nothing yet: the function stays the same, and training fills them."""

    name: ClassVar[str] = "identity-blocks"
    preserves_function: ClassVar[bool] = True
    gains: ClassVar[str] = "neither: file and latency grow by what is added"

    order: Order = "interpolate"  #: where the copies stand: each behind its source, or as a group ("append")

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> Resequenced:
        plan = stretch_plan(graph, self.target, self.order, None)
        sources = set(graph.blocks)
        reordered = resequence(rewriter, graph, plan, self.keep_beside)
        made = [block for block in graph.blocks if block not in sources]
        for block in made:
            _empty(block, graph, rewriter)
        rewriter.report({"blocks": len(made)})
        rewriter.note(dataclasses.replace(graph.edits, keep_constants=True))
        return reordered


def _empty(block: Block, graph: Graph, rewriter: Rewriter) -> None:
    found, reason = branches_of(block, graph)
    if not found:
        raise PlanError(f"a copy of {block.origin} cannot start as the identity: {reason}")
    for branch in found:
        for name in branch.weights:
            data = graph.weights[name].storage.data
            rewriter.set_data(name, Zeros(data.shape, data.dtype))
