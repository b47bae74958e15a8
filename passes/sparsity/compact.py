"""Compaction: channels and units that a mask has made dead are cut out of the network, and nothing else changes.

The network computes the same function in evaluation: what is cut contributed nothing, or a constant that the next
layer's bias takes over where that is exact. docs/compact.md says what is cut and what is not.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.onnx_model.layers import is_onnx
from elastic_ir.passes.infra.base import Pass
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import Columns, Shifted, Zeros, select, select_mask, with_values

if TYPE_CHECKING:
    from elastic_ir.channels.flow import Channels, Flow, Layer
    from elastic_ir.channels.liveness import Liveness


@dataclasses.dataclass(frozen=True)
class Compact(Pass):
    """Cut out channels and units that masks have made dead; the function in evaluation stays the same."""

    name: ClassVar[str] = "compact"
    needs_structure: ClassVar[bool] = False
    preserves_function: ClassVar[bool] = True

    units: bool = True  #: also delete residual blocks whose branch is zero everywhere
    channels: bool = True  #: cut channels; False deletes dead units only

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        self._need_layers(graph)
        from elastic_ir.channels.dead_units import dead_blocks
        from elastic_ir.channels.flow import Flow
        from elastic_ir.channels.liveness import Liveness
        from elastic_ir.channels.onnx_cut import OnnxCutter
        from elastic_ir.channels.onnx_rules import OnnxFlow

        #: Plain data for reports: blocks that went; for each layer its inputs and outputs, before and after; channels
        #: that stay though they are constant; what reads constant channels and makes something unknown of them.
        report: dict[str, Any] = {"units": [], "layers": {}, "constant": {}, "refused": {}}
        graph.metadata["compact"] = report
        kind = OnnxFlow if is_onnx(graph) else Flow
        flow = kind(graph)
        if self.units:
            for block in dead_blocks(graph, flow):
                report["units"].append(block.origin)
                rewriter.delete_block(block)
            if report["units"]:
                flow = kind(graph)
        if self.channels:
            refuse_unseen(graph, self.name)
            for node, count in flow.refused.items():
                report["refused"][node.name] = f"{node.op} reads {count} constant channels, which it may mix"
            alive = Liveness(flow)
            if isinstance(flow, OnnxFlow):
                OnnxCutter(graph, rewriter, flow, alive, report).cut()
            else:
                _Cutter(graph, rewriter, flow, alive, report).cut()

    def summary(self, graph: Graph) -> str | None:
        """What went, and what stays though it is constant."""
        report = graph.metadata[self.name]
        layers, units = report["layers"], report["units"]
        gone = sum(before - after for _, _, before, after in layers.values())
        told = []
        if units:
            told.append(f"deleted {len(units)} blocks")
        if layers:
            told.append(f"cut {gone} output channels, {len(layers)} layers are smaller")
        left = sum(report["constant"].values())
        if left:
            told.append(f"{left} constant channels stay, since something needs their number")
        if report["refused"]:
            name, why = next(iter(report["refused"].items()))
            told.append(f"%{name}: {why}{'; ...' if len(report['refused']) > 1 else ''}")
        if not units and not layers:
            told.insert(0, "nothing is dead")
        return "; ".join(told)


def refuse_unseen(graph: Graph, name: str) -> None:
    """PlanError where layers were not run: a forward may run them in training, on channels that would be gone."""
    used = {id(graph.weights[name].storage) for node in graph for name in node.weight_names()}
    unseen = [each for each, w in graph.weights.items() if w.prunable and id(w.storage) not in used]
    if unseen:
        raise PlanError(
            f"{graph.name} holds {len(unseen)} layers that its forward did not run, {unseen[0]!r} for example; "
            f"what they read cannot be seen, so {name} would break them: take them out of the module first"
        )


class _Cutter:
    """Carries out what the analysis found: tensors, masks, configurations and shapes."""

    def __init__(
        self, graph: Graph, rewriter: Rewriter, flow: Flow, alive: Liveness, report: dict[str, Any]
    ) -> None:
        self.graph = graph
        self.rewriter = rewriter
        self.flow = flow
        self.alive = alive
        self.report = report
        self.norms = dict(flow.norms)

    def cut(self) -> None:
        for layer in self.flow.layers:
            self._fold(layer)  # before anything is sliced, in the numbering of the source
        for layer in self.flow.layers:
            self._slice_layer(layer)
        for node, channels in self.norms.items():
            self._slice_norm(node, channels)
        for node in self.graph:
            known = self.flow.channels(node.output)
            if known is None or node.output.type is None:
                continue
            shape = list(node.output.type.shape)
            shape[known.axis] = int(self.alive.is_live(known).sum())
            if tuple(shape) != node.output.type.shape:
                self.rewriter.set_shape(node.output, tuple(shape))

    def _fold(self, layer: Layer) -> None:
        """Let a bias, or the mean that the next norm subtracts, take over what cut constants contributed."""
        import numpy as np

        cut = ~self.alive.is_live(layer.inside) & layer.absorbed & (layer.inside.constants != 0)
        rows = self.alive.is_live(layer.outside)
        if layer.used is not None:
            cut &= layer.used[rows].any(0) if layer.groups == 1 else True
        if not cut.any() or not rows.any():
            return
        constants = tuple(np.where(cut, layer.inside.constants, 0.0).tolist())
        node = layer.node
        storage = self.graph.weights[node.weights["weight"]].storage
        readers = self.flow.users.get(node.output, [])
        if "bias" in node.weights:
            name, sign = node.weights["bias"], 1
        elif len(readers) == 1 and readers[0] in self.norms:
            name, sign = readers[0].weights["running_mean"], -1
        else:
            empty = Zeros((storage.data.shape[0],), storage.data.dtype)
            name = self.rewriter.add_weight(
                node, "bias", empty, origin=self.graph.weights[node.weights["weight"]].origin
            )
            self.rewriter.set_attributes(node, bias=True)
            sign = 1
        target = self.graph.weights[name].storage
        shifted = Shifted(target.emitted(), storage.emitted(), constants, layer.groups, sign)
        self.rewriter.replace_tensor(name, with_values(shifted, target.data, storage.data))

    def _slice_layer(self, layer: Layer) -> None:
        import numpy as np

        inside, outside = (self.alive.is_live(side) for side in (layer.inside, layer.outside))
        still = outside & np.isfinite(layer.outside.constants)
        node = layer.node
        if still.any():
            self.report["constant"][node.scope] = int(still.sum())
        if inside.all() and outside.all():
            return
        self.report["layers"][node.scope] = [len(inside), int(inside.sum()), len(outside), int(outside.sum())]
        grid = layer.grid(inside)
        groups = [group for group in range(layer.groups) if grid[group].any()]
        rows = tuple(np.flatnonzero(outside).tolist())
        columns = tuple(tuple(np.flatnonzero(grid[group]).tolist()) for group in groups)
        self._select(node.weights["weight"], rows, columns)
        if "bias" in node.weights:
            self._select(node.weights["bias"], rows)
        if node.op == "nn.Linear":
            self.rewriter.set_attributes(node, in_features=int(inside.sum()), out_features=len(rows))
        else:
            self.rewriter.set_attributes(
                node, in_channels=int(inside.sum()), out_channels=len(rows), groups=len(groups)
            )

    def _slice_norm(self, node: Node, channels: Channels) -> None:
        import numpy as np

        alive = self.alive.is_live(channels)
        if alive.all():
            return
        rows = tuple(np.flatnonzero(alive).tolist())
        for role, name in node.weights.items():
            if role != "num_batches_tracked":
                self._select(name, rows)
        self.rewriter.set_attributes(node, num_features=len(rows))

    def _select(self, name: str, rows: tuple[int, ...], columns: Columns | None = None) -> None:
        storage = self.graph.weights[name].storage
        mask = select_mask(storage.mask, rows, columns) if storage.mask is not None else None
        self.rewriter.replace_tensor(name, select(storage.data, rows, columns), mask)
