"""Net2WiderNet: channels get copies, and what reads them is divided by their number; the function stays the same.

Chen, Goodfellow & Shlens 2016, *Net2Net: Accelerating Learning via Knowledge Transfer*, section 2.2. Which layers make,
carry and read a channel, is what `compact` finds out to cut it (elastic_ir/channels/flow.py), taken the other way
round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass, left, reasons
from elastic_ir.passes.infra.chosen import Chosen
from elastic_ir.passes.sparsity.compact import refuse_unseen
from elastic_ir.rewrite.rewriter import Rewriter

if TYPE_CHECKING:
    from elastic_ir.channels.widening import Widening


@dataclasses.dataclass(frozen=True)
class Net2Wider(Pass):
    """Copy channels inside the blocks and divide what reads them (Net2Net): the function stays the same."""

    name: ClassVar[str] = "net2wider"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = "neither: file and latency grow by what is added"

    factor: float = 2.0  #: times as many channels as before, rounded for each layer
    seed: int = 0  #: which channels are copied
    #: added to copies so that they learn to differ, in standard deviations of their weight
    noise: float = 0.0
    stages: Sequence[str] | str = ()  #: names of stages; all layers of the network by default
    layers: Sequence[str] | str = ()  #: paths of the layers that get more outputs; * stands for anything
    stream: bool = False  #: also channels that additions tie together, the residual stream

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        if self.factor < 1 or self.noise < 0 or self.seed < 0:
            raise PlanError("factor is 1 or more; noise and seed are not negative")
        refuse_unseen(graph, self.name)
        from elastic_ir.channels.flow import Flow
        from elastic_ir.channels.widening import Widener, Widening

        widening = Widening(Flow(graph))
        skipped = self._draw(graph, widening)
        report = Widener(graph, rewriter, widening, self.noise, self.seed).carry_out()
        #: Plain data for reports: for each layer its inputs and outputs, before and after; why others stay as they are.
        rewriter.report({"layers": report, "skipped": skipped})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        more = sum(after - before for *_, before, after in report["layers"].values())
        wider = sum(after > before for *_, before, after in report["layers"].values())
        alike = "" if self.noise else "; copies are alike until dropout or noise makes them differ"
        return f"{more} output channels more in {wider} layers{left(report['skipped'])}{alike}"

    def _draw(self, graph: Graph, plan: Widening) -> dict[str, str]:
        """Choose how often each channel comes; returns the layers whose channels stay as they are, with the reason."""
        skipped: dict[str, str] = {}
        chosen = Chosen(graph, self.stages, self.layers)
        pinned, summed = plan.pinned(), plan.summed()
        done = False
        for group, makers in plan.groups().items():
            if not any(chosen(layer.node) for layer in makers):
                continue
            name = makers[0].name
            if group in pinned:
                reason = pinned[group] and f"its output channels have to stay: {pinned[group]}"
            elif group in summed and not self.stream:
                reason = (
                    "an addition ties its output channels to the residual stream; stream=true widens that"
                )
            else:
                reason = plan.widen(group, self.factor, self.seed, name)
                done = done or not reason
            if reason:
                skipped[name] = reason
        if not done:
            why = reasons(skipped) or ": the channels that were chosen are the network's output"
            raise PlanError(f"there is no layer that can be widened{why}")
        return skipped
