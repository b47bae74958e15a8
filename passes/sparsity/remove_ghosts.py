"""Removal of ghosts: what ghost-skips and ghost-softness put in is taken out, and nothing else is touched.

The graph is then what it was before them: calls, names, in-place activations. A network whose schedule has ended
computes the same, bit for bit, with its ghosts and without.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.ghosts import lay
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class RemoveGhosts(Pass):
    """Take out all ghost skips and soft activations; run it when their schedule has ended."""

    name: ClassVar[str] = "remove-ghosts"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = "takes the ghosts' operations away again"

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        rewriter.report(lay(graph, rewriter))

    def summary(self, graph: Graph) -> str | None:
        gone = self.report(graph)
        counts = ", ".join(f"{count} of kind {kind}" for kind, count in gone.items())
        return f"took out {counts}" if counts else "there are no ghosts"
