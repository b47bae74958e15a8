"""Giving a graph other channels: weights, masks, what stands beside them, numbers that count them, and shapes.

Which channels those are, a subclass says: those that stay (cutting.py), or each as often as it comes (widening.py).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

import numpy as np

from elastic_ir.channels import Channels, LayerChannels
from elastic_ir.channels.flow import Flow
from elastic_ir.ir.graph import Graph, Literal, Node, Value
from elastic_ir.ir.operations import Slot
from elastic_ir.ir.operations.onnx_dialect import is_matrix_transpose
from elastic_ir.onnx_model.layers import count_reads, zero_bias
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import Mask, TensorData
from elastic_ir.tensors.recipes import Columns, with_values

Places = tuple[int, ...]


class ChannelEdits(ABC):
    """Brings everything in a graph into step with its flow's new channels."""

    def __init__(self, graph: Graph, rewriter: Rewriter, flow: Flow) -> None:
        self.graph = graph
        self.rewriter = rewriter
        self.flow = flow
        self.meetings = list(flow.meetings)
        self.reads = count_reads(graph)

    @abstractmethod
    def places(self, channels: Channels) -> Places:
        """For each new channel of a value the place of the old one that it is."""

    @abstractmethod
    def set_weight(self, layer: LayerChannels, rows: Places, columns: Columns) -> None:
        """Give a layer's weight the rows (axis 0) and, for each group, the columns (axis 1) of these places."""

    @abstractmethod
    def taken(self, data: TensorData, axis: int, places: Places) -> TensorData:
        """A tensor beside the channels, of these places along an axis."""

    def columns(self, layer: LayerChannels, channels: Channels) -> Columns:
        """For each group that is left the places of its channels within it."""
        grid = channels.atoms.reshape(layer.groups, -1)
        found = (self.places(Channels(channels.axis, atoms, np.zeros(len(atoms)))) for atoms in grid)
        return tuple(places for places in found if places)

    def carry_out(self) -> dict[str, list[int]]:
        """Edit the graph; returns for each layer that changed its inputs and outputs, each before and after."""
        report = {}
        for layer in self.flow.layers:
            sides = (layer.inside, layer.outside)
            sizes = [size for side in sides for size in (len(side.atoms), len(self.places(side)))]
            if sizes[0] != sizes[1] or sizes[2] != sizes[3]:
                report[layer.name] = sizes
                self._edit_layer(layer)
        for node, slot, axis, channels in self.meetings:
            self._edit_beside(node, slot, axis, channels)
        for node, slot, index, channels in self.flow.counts:
            self._count(node, slot, index, len(self.places(channels)))
        for node in self.graph:
            known = self.flow.channels(node.output)
            if known is not None:
                self._resize(node.output, known.axis, len(self.places(known)))
        return report

    def _edit_layer(self, layer: LayerChannels) -> None:
        """The weight, the number of groups, a bias of spread zeros, and the shape behind a Transpose of the weight."""
        node = layer.node
        inside, outside = self.places(layer.inside), self.places(layer.outside)
        first, second = (outside, layer.inside) if not layer.inputs_first else (inside, layer.outside)
        columns = self.columns(layer, second)
        self.set_weight(layer, first, columns)
        if layer.groups > 1:
            self.rewriter.set_attributes(node, **{"group" if node.kind == "onnx" else "groups": len(columns)})
        if len(outside) != len(layer.outside.atoms) and zero_bias(node, self.flow.users):
            self.rewriter.drop_operand(node, 2)
        for given in node.operands()[1:]:
            if is_matrix_transpose(given.node):
                self._resize(given, 0, len(inside))
                self._resize(given, 1, len(outside))

    def _edit_beside(self, node: Node, slot: Slot, axis: int, channels: Channels) -> None:
        places = self.places(channels)
        if len(places) == len(channels.atoms):
            return
        name = self.rewriter.own_tensor(node, slot, self.reads)
        storage = self.graph.weights[name].storage
        mask = None
        if storage.mask is not None:
            mask = Mask.from_array(np.take(storage.mask.array(), places, axis), dtype=storage.mask.dtype)
        taken = with_values(self.taken(storage.data, axis, places), storage.data)
        self.rewriter.replace_tensor(name, taken, mask)

    def _count(self, node: Node, slot: Slot, index: int, count: int) -> None:
        """Set an attribute, or a number of a literal, that counts channels."""
        if isinstance(slot, str):
            if node.attributes[slot] != count:
                self.rewriter.set_attributes(node, **{slot: count})
            return
        given = node.args[slot]
        if isinstance(given, Value):  # the extents that a Reshape asks for, put together by a Concat
            node = given.node
            slot, index = _part(node, index)
            given = node.args[slot]
        if isinstance(given, Literal) and given.values[index] != count:
            values = (*given.values[:index], count, *given.values[index + 1 :])
            self.rewriter.set_operand(node, slot, dataclasses.replace(given, values=values))

    def _resize(self, value: Value, axis: int, extent: int) -> None:
        """Set an extent of a value's type."""
        if value.type is not None and value.type.shape[axis] != extent:
            shape = value.type.shape
            self.rewriter.set_shape(value, (*shape[:axis], extent, *shape[axis + 1 :]))


def _part(concat: Node, index: int) -> tuple[int, int]:
    """The operand of a Concat of extents that an extent lies in, and its place there; computed ones have one each."""
    for slot, item in enumerate(concat.args):
        held = len(item.values) if isinstance(item, Literal) else 1
        if index < held:
            return slot, index
        index -= held
    raise IndexError(f"%{concat.name} has too few extents")
