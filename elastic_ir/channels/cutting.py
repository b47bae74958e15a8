"""Carrying out a compaction: weights, masks, what stands beside them, and shapes; a dialect fills in three steps."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np

from elastic_ir.channels.flow import Bools, Channels, Flow, Layer
from elastic_ir.channels.liveness import Liveness
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.onnx_model.layers import label
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Columns, Shifted, Turned, Zeros, select, select_mask, with_values

L = TypeVar("L", bound=Layer)


class Cutter(Generic[L]):
    """Cuts what is not live; what it does is noted in the report."""

    def __init__(
        self, graph: Graph, rewriter: Rewriter, flow: Flow, alive: Liveness, report: dict[str, Any]
    ) -> None:
        self.graph = graph
        self.rewriter = rewriter
        self.flow = flow
        self.alive = alive
        self.report = report
        self.norms = dict(flow.norms)

    def layers(self) -> list[L]:
        """The layers of the flow."""
        raise NotImplementedError

    def taker(self, layer: L) -> tuple[str, int] | None:
        """The tensor that takes constants over, by name, made where there is none, and the sign; None for no tensor."""
        raise NotImplementedError

    def configure(self, layer: L, inside: Bools, outside: Bools, groups: int) -> None:
        """Bring what a layer has beside its weight into step, given its live channels and its number of groups."""
        raise NotImplementedError

    def cut_beside(self) -> None:
        """Cut what is no layer's: norms, and constants that meet channels."""
        raise NotImplementedError

    def cut(self) -> None:
        """Fold constants while everything has the source's numbering, then slice."""
        for layer in self.layers():
            self._fold(layer)
        for layer in self.layers():
            self._slice(layer)
        self.cut_beside()
        for node in self.graph:
            known = self.flow.channels(node.output)
            if known is not None and node.output.type is not None:
                self.resize(node.output, known.axis, int(self.alive.is_live(known).sum()))

    def resize(self, value: Value, axis: int, extent: int) -> None:
        """Set an extent of a value's type."""
        assert value.type is not None
        shape = list(value.type.shape)
        if shape[axis] != extent:
            shape[axis] = extent
            self.rewriter.set_shape(value, tuple(shape))

    def select(self, name: str, rows: tuple[int, ...], columns: Columns | None = None) -> None:
        """Cut a weight and its mask to some rows and columns."""
        storage = self.graph.weights[name].storage
        mask = select_mask(storage.mask, rows, columns) if storage.mask is not None else None
        self.rewriter.replace_tensor(name, select(storage.data, rows, columns), mask)

    def _fold(self, layer: L) -> None:
        """Let a bias, or the mean that the next norm subtracts, take over what cut constants contributed."""
        cut = ~self.alive.is_live(layer.inside) & layer.absorbed & (layer.inside.constants != 0)
        rows = self.alive.is_live(layer.outside)
        if layer.used is not None:
            cut &= layer.used[rows].any(0) if layer.groups == 1 else True
        taken = self.taker(layer) if cut.any() and rows.any() else None
        if taken is None:
            return
        name, sign = taken
        constants = tuple(np.where(cut, layer.inside.constants, 0.0).tolist())
        weight = self.graph.weights[layer.weight].storage
        data: TensorData = Turned(weight.emitted()) if layer.inputs_first else weight.emitted()
        target = self.graph.weights[name].storage
        shifted = Shifted(target.emitted(), data, constants, layer.groups, sign)
        self.rewriter.replace_tensor(name, with_values(shifted, target.data, weight.data))

    def _slice(self, layer: L) -> None:
        inside, outside = (self.alive.is_live(side) for side in (layer.inside, layer.outside))
        name = label(layer.node) if layer.weight in layer.node.weight_names() else layer.weight
        still = int((outside & np.isfinite(layer.outside.constants)).sum())
        if still:
            self.report["constant"][name] = still
        if inside.all() and outside.all():
            return
        self.report["layers"][name] = [len(inside), int(inside.sum()), len(outside), int(outside.sum())]
        first, second = (inside, outside) if layer.inputs_first else (outside, inside)
        grid = layer.grid(second)
        groups = [group for group in range(layer.groups) if grid[group].any()]
        columns = tuple(tuple(np.flatnonzero(grid[group]).tolist()) for group in groups)
        self.select(layer.weight, tuple(np.flatnonzero(first).tolist()), columns)
        self.configure(layer, inside, outside, len(groups))


class ModuleCutter(Cutter[Layer]):
    """Cuts a graph of PyTorch's, whose layers and norms are modules."""

    def layers(self) -> list[Layer]:
        """The layers of the flow."""
        return self.flow.layers

    def taker(self, layer: Layer) -> tuple[str, int]:
        """The bias, the mean of the only norm that reads the layer, or else a new bias."""
        node = layer.node
        if "bias" in node.weights:
            return node.weights["bias"], 1
        readers = self.flow.users.get(node.output, [])
        if len(readers) == 1 and readers[0] in self.norms:
            return readers[0].weights["running_mean"], -1
        weight = self.graph.weights[layer.weight]
        empty = Zeros((weight.shape[0],), weight.storage.data.dtype)
        name = self.rewriter.add_weight(node, "bias", empty, origin=weight.origin)
        self.rewriter.set_attributes(node, bias=True)
        return name, 1

    def configure(self, layer: Layer, inside: Bools, outside: Bools, groups: int) -> None:
        """Cut the bias, and set the numbers of channels and groups."""
        node, rewriter = layer.node, self.rewriter
        before, after = int(inside.sum()), int(outside.sum())
        if "bias" in node.weights:
            self.select(node.weights["bias"], tuple(np.flatnonzero(outside).tolist()))
        if node.op == "nn.Linear":
            rewriter.set_attributes(node, in_features=before, out_features=after)
        else:
            rewriter.set_attributes(node, in_channels=before, out_channels=after, groups=groups)

    def cut_beside(self) -> None:
        """Cut the norms."""
        for node, channels in self.norms.items():
            self._cut_norm(node, channels)

    def _cut_norm(self, node: Node, channels: Channels) -> None:
        alive = self.alive.is_live(channels)
        if alive.all():
            return
        rows = tuple(np.flatnonzero(alive).tolist())
        for role, name in node.weights.items():
            if role != "num_batches_tracked":
                self.select(name, rows)
        self.rewriter.set_attributes(node, num_features=len(rows))
