"""Carrying out a compaction on an ONNX graph: operands, literals, the number of groups, and shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from elastic_ir.channels.cutting import Cutter
from elastic_ir.channels.flow import Bools, Channels
from elastic_ir.channels.liveness import Liveness
from elastic_ir.channels.onnx_rules import OnnxFlow, OnnxLayer
from elastic_ir.ir.graph import Graph, Literal, Node, Value
from elastic_ir.onnx_model.layers import count_reads, weight_name
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import Mask
from elastic_ir.tensors.recipes import Taken, Zeros, with_values


class OnnxCutter(Cutter[OnnxLayer]):
    """Cuts a graph that came from ONNX."""

    def __init__(
        self, graph: Graph, rewriter: Rewriter, flow: OnnxFlow, alive: Liveness, report: dict[str, Any]
    ) -> None:
        super().__init__(graph, rewriter, flow, alive, report)
        self.meetings = list(flow.meetings)
        self.counts = flow.counts
        self.reads = count_reads(graph)

    def layers(self) -> list[OnnxLayer]:
        """The layers of the flow."""
        return [layer for layer in self.flow.layers if isinstance(layer, OnnxLayer)]

    def taker(self, layer: OnnxLayer) -> tuple[str, int] | None:
        """The bias, the mean of the only norm that reads the layer, or a new bias where the operator takes one."""
        if layer.bias is None:
            return None
        node, place = layer.bias
        readers = self.flow.users.get(layer.node.output, [])
        given = node.args[place] if place < len(node.args) else None
        if isinstance(given, Value):  # zeros, spread
            self.rewriter.drop_operand(node, place)
            given = None
        if given is None and len(readers) == 1 and readers[0] in self.norms:
            node, place = readers[0], 3
        elif given is None:
            weight = self.graph.weights[layer.weight]
            empty = Zeros((len(layer.outside.atoms),), weight.storage.data.dtype)
            name = self.rewriter.add_operand(node, place, empty, beside=layer.weight, origin=weight.origin)
            self.reads[name] += 1
            self.meetings.append((node, place, 0, layer.outside))
        sign = -1 if node.op == "onnx.BatchNormalization" else 1
        return self.rewriter.own_operand(node, place, self.reads), sign

    def configure(self, layer: OnnxLayer, inside: Bools, outside: Bools, groups: int) -> None:
        """Drop a bias of spread zeros, set the number of groups, and the shape behind a Transpose."""
        node = layer.node
        if len(node.args) > 2 and isinstance(node.args[2], Value) and not outside.all():
            self.rewriter.drop_operand(node, 2)
        if layer.groups > 1:
            self.rewriter.set_attributes(node, group=groups)
        given = node.args[1]
        if isinstance(given, Value):  # the Transpose between
            for axis, extent in enumerate((int(inside.sum()), int(outside.sum()))):
                self.resize(given, axis, extent)

    def cut_beside(self) -> None:
        """Cut constant operands that meet channels, norms' among them, and literals that count channels."""
        for node, place, axis, channels in self.meetings:
            self._take(node, place, axis, channels)
        for node, place, index, channels in self.counts:
            self._count(node, place, index, channels)

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
