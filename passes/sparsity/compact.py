"""Compaction: channels and units that a mask has made dead are cut out of the network, and nothing else changes.

The network computes the same function in evaluation: what is cut contributed nothing, or a constant that the next
layer's bias takes over where that is exact. docs/compact.md says what is cut and what is not.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass
from elastic_ir.rewrite.rewriter import Rewriter


@dataclasses.dataclass(frozen=True)
class Compact(Pass):
    """Cut out channels and units that masks have made dead; the function in evaluation stays the same."""

    name: ClassVar[str] = "compact"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True
    gains: ClassVar[str] = (
        "a smaller file and lower latency, by what it cuts: single zeros, spread over all "
        "channels, leave it nothing to cut"
    )

    units: bool = True  #: also delete residual blocks whose branch is zero everywhere
    channels: bool = True  #: cut channels; False deletes dead units only

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        from elastic_ir.channels.cutting import Cutter
        from elastic_ir.channels.dead_units import dead_blocks
        from elastic_ir.channels.flow import Flow

        #: Plain data for reports: blocks that went; for each layer its inputs and outputs, before and after; channels
        #: that stay though they are constant; what reads constant channels and makes something unknown of them.
        report: dict[str, Any] = {"units": [], "layers": {}, "constant": {}, "refused": {}}
        rewriter.report(report)
        flow = Flow(graph)
        if self.units:
            for block in dead_blocks(graph, flow):
                report["units"].append(block.origin)
                rewriter.delete_block(block)
            if report["units"]:
                flow = Flow(graph)
        if self.channels:
            refuse_unseen(graph, self.name)
            for node, count in flow.refused.items():
                report["refused"][node.name] = f"{node.op} reads {count} constant channels, which it may mix"
            cutter = Cutter(graph, rewriter, flow)
            report["layers"], report["constant"] = cutter.cut(), cutter.left_constant()

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        layers, units = report["layers"], report["units"]
        gone = sum(before - after for _, _, before, after in layers.values())
        parts = []
        if units:
            parts.append(f"deleted {len(units)} blocks")
        if layers:
            parts.append(f"cut {gone} output channels, {len(layers)} layers are smaller")
        left = sum(report["constant"].values())
        if left:
            parts.append(f"{left} constant channels stay, since something needs their number")
        if report["refused"]:
            name, why = next(iter(report["refused"].items()))
            parts.append(f"%{name}: {why}{'; ...' if len(report['refused']) > 1 else ''}")
        if not units and not layers:
            parts.insert(0, "nothing is dead")
        return "; ".join(parts)


def refuse_unseen(graph: Graph, name: str) -> None:
    """PlanError where layers were not run: a forward may run them in training, on channels that would be gone."""
    used = {id(graph.weights[name].storage) for node in graph for name in node.weight_names()}
    unseen = [each for each, w in graph.weights.items() if w.prunable and id(w.storage) not in used]
    if unseen:
        raise PlanError(
            f"{graph.name} holds {len(unseen)} layers that its forward did not run, {unseen[0]!r} for example; "
            f"what they read cannot be seen, so {name} would break them: take them out of the module first"
        )
