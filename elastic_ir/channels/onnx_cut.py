"""Carrying out a compaction on an ONNX graph: operands, literals, the number of groups, and shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from elastic_ir.channels.flow import Channels
from elastic_ir.channels.liveness import Liveness
from elastic_ir.channels.onnx_rules import OnnxFlow, OnnxLayer
from elastic_ir.ir.graph import Graph, Literal, Node, Value
from elastic_ir.onnx_model.layers import count_reads, label, weight_name
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import Mask, TensorData
from elastic_ir.tensors.recipes import Shifted, Taken, Turned, Zeros, select, select_mask, with_values


class OnnxCutter:
    """Cuts what is not live; what it does is noted in the report."""

    def __init__(
        self, graph: Graph, rewriter: Rewriter, flow: OnnxFlow, alive: Liveness, report: dict[str, Any]
    ) -> None:
        self.graph = graph
        self.rewriter = rewriter
        self.flow = flow
        self.alive = alive
        self.report = report
        self.reads = count_reads(graph)
        self.norms = {node for node, _ in flow.norms}
        self.added: list[tuple[Node, int, int, Channels]] = []

    def cut(self) -> None:
        """Fold constants while everything has the source's numbering, then slice."""
        layers = [layer for layer in self.flow.layers if isinstance(layer, OnnxLayer)]
        for layer in layers:
            self._fold(layer)
        for layer in layers:
            self._slice(layer)
        for node, place, axis, channels in (*self.flow.meetings, *self.added):
            self._take(node, place, axis, channels)
        for node, place, index, channels in self.flow.counts:
            self._count(node, place, index, channels)
        for node in self.graph:
            known = self.flow.channels(node.output)
            if known is not None and node.output.type is not None:
                self._resize(node.output, known.axis, int(self.alive.is_live(known).sum()))

    def _resize(self, value: Value, axis: int, extent: int) -> None:
        assert value.type is not None
        shape = list(value.type.shape)
        if shape[axis] != extent:
            shape[axis] = extent
            self.rewriter.set_shape(value, tuple(shape))

    def _fold(self, layer: OnnxLayer) -> None:
        """Let a bias, or the mean that the next norm subtracts, take over what cut constants contributed."""
        cut = ~self.alive.is_live(layer.inside) & layer.absorbed & (layer.inside.constants != 0)
        rows = self.alive.is_live(layer.outside)
        if layer.used is not None:
            cut &= layer.used[rows].any(0) if layer.groups == 1 else True
        if not cut.any() or not rows.any() or layer.bias is None:
            return
        constants = tuple(np.where(cut, layer.inside.constants, 0.0).tolist())
        weight = self.graph.weights[layer.weight].storage
        data: TensorData = Turned(weight.emitted()) if layer.inputs_first else weight.emitted()
        node, place = layer.bias
        readers = self.flow.users.get(layer.node.output, [])
        given = node.args[place] if place < len(node.args) else None
        if isinstance(given, Value):  # zeros, spread
            self.rewriter.drop_operand(node, place)
            given = None
        if given is None and len(readers) == 1 and readers[0] in self.norms:
            node, place = readers[0], 3
        elif given is None:
            origin = self.graph.weights[layer.weight].origin
            empty = Zeros((len(rows),), weight.data.dtype)
            name = self.rewriter.add_operand(node, place, empty, beside=layer.weight, origin=origin)
            self.reads[name] += 1
            self.added.append((node, place, 0, layer.outside))
        sign = -1 if node.op == "onnx.BatchNormalization" else 1
        name = self.rewriter.own_operand(node, place, self.reads)
        target = self.graph.weights[name].storage
        shifted = Shifted(target.emitted(), data, constants, layer.groups, sign)
        self.rewriter.replace_tensor(name, with_values(shifted, target.data, weight.data))

    def _slice(self, layer: OnnxLayer) -> None:
        inside, outside = (self.alive.is_live(side) for side in (layer.inside, layer.outside))
        name = label(layer.node) if layer.weight in layer.node.weight_names() else layer.weight
        still = int((outside & np.isfinite(layer.outside.constants)).sum())
        if still:
            self.report["constant"][name] = still
        if inside.all() and outside.all():
            return
        self.report["layers"][name] = [len(inside), int(inside.sum()), len(outside), int(outside.sum())]
        if len(layer.node.args) > 2 and isinstance(layer.node.args[2], Value) and not outside.all():
            self.rewriter.drop_operand(layer.node, 2)
        first, second = (inside, outside) if layer.inputs_first else (outside, inside)
        grid = layer.grid(second)
        groups = [group for group in range(layer.groups) if grid[group].any()]
        rows = tuple(np.flatnonzero(first).tolist())
        columns = tuple(tuple(np.flatnonzero(grid[group]).tolist()) for group in groups)
        storage = self.graph.weights[layer.weight].storage
        mask = select_mask(storage.mask, rows, columns) if storage.mask is not None else None
        self.rewriter.replace_tensor(layer.weight, select(storage.data, rows, columns), mask)
        if layer.groups > 1:
            self.rewriter.set_attributes(layer.node, group=len(groups))
        given = layer.node.args[1]
        if isinstance(given, Value):  # the Transpose between
            assert given.type is not None
            for axis, extent in enumerate((int(inside.sum()), int(outside.sum()))):
                self._resize(given, axis, extent)

    def _take(self, node: Node, place: int, axis: int, channels: Channels) -> None:
        """Slice a constant operand along with the channels that it meets."""
        alive = self.alive.is_live(channels)
        if alive.all() or weight_name(node.args[place]) is None:
            return
        places = tuple(np.flatnonzero(alive).tolist())
        name = self.rewriter.own_operand(node, place, self.reads)
        storage = self.graph.weights[name].storage
        mask = None
        if storage.mask is not None:
            kept = np.take(storage.mask.array(), places, axis)
            mask = Mask.from_array(kept, dtype=storage.mask.dtype)
        self.rewriter.replace_tensor(name, with_values(Taken(storage.data, axis, places), storage.data), mask)

    def _count(self, node: Node, place: int, index: int, channels: Channels) -> None:
        alive = self.alive.is_live(channels)
        given = node.args[place]
        if alive.all() or not isinstance(given, Literal):
            return
        values = list(given.values)
        values[index] = int(alive.sum())
        self.rewriter.set_operand(node, place, dataclasses.replace(given, values=tuple(values)))
