"""Net2WiderNet: channels get copies, and what reads them is divided by their number; the function stays the same.

Chen, Goodfellow & Shlens 2016, *Net2Net: Accelerating Learning via Knowledge Transfer*, section 2.2. Which layers make,
carry and read a channel, is what `compact` finds out to cut it (elastic_ir/channels/flow.py), taken the other way
round.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.passes.infra.base import Pass, reasons
from elastic_ir.passes.infra.chosen import Chosen, need_modules
from elastic_ir.passes.sparsity.compact import refuse_unseen
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import Columns, select_mask, with_values

if TYPE_CHECKING:
    from elastic_ir.channels.flow import Channels, Layer
    from elastic_ir.channels.widening import Widening


@dataclasses.dataclass(frozen=True)
class Net2Wider(Pass):
    """Copy channels inside the blocks and divide what reads them (Net2Net): the function stays the same."""

    name: ClassVar[str] = "net2wider"
    needs_structure: ClassVar[bool] = False

    factor: float = 2.0  #: times as many channels as before, rounded for each layer
    seed: int = 0  #: which channels are copied
    noise: float = (
        0.0  #: added to copies so that they learn to differ, in standard deviations of their weight
    )
    stages: Sequence[str] | str = ()  #: names of stages; all layers of the network by default
    layers: Sequence[str] | str = ()  #: paths of the layers that get more outputs; * stands for anything
    stream: bool = False  #: also channels that additions tie together, the residual stream

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        need_modules(graph, self.name)
        if self.factor < 1 or self.noise < 0 or self.seed < 0:
            raise PlanError("factor is 1 or more; noise and seed are not negative")
        refuse_unseen(graph, self.name)
        from elastic_ir.channels.flow import Flow
        from elastic_ir.channels.widening import Widening

        flow = Flow(graph)
        plan = Widening(flow)
        skipped: dict[str, str] = {}
        self._draw(graph, plan, skipped)
        #: Plain data for reports: for each layer its inputs and outputs, before and after; why others stay as they are.
        report: dict[str, list[int]] = {}
        rewriter.report({"layers": report, "skipped": skipped})
        for layer in flow.layers:
            self._widen_layer(layer, plan, graph, rewriter, report)
        for node, channels in flow.norms:
            self._widen_norm(node, channels, plan, graph, rewriter)
        for node in graph:
            known = flow.channels(node.output)
            if known is None or node.output.type is None:
                continue
            shape = list(node.output.type.shape)
            shape[known.axis] = len(plan.spread(known)[0])
            if tuple(shape) != node.output.type.shape:
                rewriter.set_shape(node.output, tuple(shape))

    def summary(self, graph: Graph) -> str | None:
        """How many channels came, and why none came elsewhere."""
        report = self.report(graph)
        more = sum(after - before for *_, before, after in report["layers"].values())
        wider = sum(after > before for *_, before, after in report["layers"].values())
        left = f", {len(report['skipped'])} left{reasons(report['skipped'])}" if report["skipped"] else ""
        alike = "" if self.noise else "; copies are alike until dropout or noise tells them apart"
        return f"{more} output channels more in {wider} layers{left}{alike}"

    def _draw(self, graph: Graph, plan: Widening, skipped: dict[str, str]) -> None:
        """Choose how often each channel comes."""
        chosen = Chosen(graph, self.stages, self.layers)
        pinned, summed = plan.pinned(), plan.summed()
        done = False
        for group, makers in plan.groups().items():
            if not any(chosen(layer.node) for layer in makers):
                continue
            name = makers[0].node.scope
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

    def _widen_layer(
        self, layer: Layer, plan: Widening, graph: Graph, rewriter: Rewriter, report: dict[str, list[int]]
    ) -> None:
        from elastic_ir.channels.widening import is_depthwise

        node = layer.node
        inputs, outputs = (plan.spread(side)[0] for side in (layer.inside, layer.outside))
        before = (len(layer.inside.atoms), len(layer.outside.atoms))
        if (len(inputs), len(outputs)) == before:
            return
        report[node.scope] = [before[0], len(inputs), before[1], len(outputs)]
        columns, counts = (None, None) if is_depthwise(layer) else plan.by_group(layer)
        name = node.weights["weight"]
        rows = outputs if len(outputs) > before[1] else None
        self._widen(name, graph, rewriter, rows, columns, counts, self.noise)
        if rows is not None and "bias" in node.weights:
            self._widen(node.weights["bias"], graph, rewriter, rows)
        if node.op == "nn.Linear":
            rewriter.set_attributes(node, in_features=len(inputs), out_features=len(outputs))
        else:
            groups = len(inputs) if is_depthwise(layer) else layer.groups
            rewriter.set_attributes(node, in_channels=len(inputs), out_channels=len(outputs), groups=groups)

    def _widen_norm(
        self, node: Node, channels: Channels, plan: Widening, graph: Graph, rewriter: Rewriter
    ) -> None:
        rows, _ = plan.spread(channels)
        if len(rows) == len(channels.atoms):
            return
        for role, name in node.weights.items():
            if role != "num_batches_tracked":
                self._widen(name, graph, rewriter, rows)
        rewriter.set_attributes(node, num_features=len(rows))

    def _widen(
        self, name: str, graph: Graph, rewriter: Rewriter, rows: tuple[int, ...] | None, columns: Columns | None = None,
        counts: Columns | None = None, noise: float = 0.0,
    ) -> None:  # fmt: skip
        from elastic_ir.channels.widening import Widened

        storage = graph.weights[name].storage
        mask = select_mask(storage.mask, rows, columns) if storage.mask is not None else None
        seed = zlib.crc32(f"{self.seed} {name}".encode())
        made = Widened(storage.data, rows, columns, counts, noise, seed)
        rewriter.replace_tensor(name, with_values(made, storage.data), mask)
