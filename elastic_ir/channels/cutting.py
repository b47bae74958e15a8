"""Compaction: channels that are not live go, and what constant ones contributed, a bias takes over.

Live is what the network needs, found from the output back through every weight that is not masked: a channel that a
layer with a live output reads with a weight that is not masked, unless it is a constant that the layer's bias can take
over. What is not live can go, with all that only it feeds. Cycles through residual streams go as well, since nothing
is live that does not lead to the output.
"""

from __future__ import annotations

import numpy as np

from elastic_ir.channels import Bools, Channels, Integers, LayerChannels
from elastic_ir.channels.edits import ChannelEdits, Places
from elastic_ir.channels.flow import Flow
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import Slot, norm_slots, tensor_in
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import (
    Columns,
    Selected,
    Shifted,
    Taken,
    Turned,
    Zeros,
    select,
    select_mask,
    with_values,
)


class Liveness:
    """The live channels of a flow: no fewer than the function needs, and as many as every layer can be built of."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._live: Bools = np.zeros(len(flow.roots), np.bool_)
        self._settle()

    def is_live(self, channels: Channels) -> Bools:
        """Which of a value's channels stay."""
        return self._live[self.flow.roots[channels.atoms]]

    def _enliven(self, atoms: Integers) -> None:
        self._live[self.flow.roots[atoms]] = True

    def _settle(self) -> None:
        self._enliven(np.array(self.flow.pinned, np.int64))
        while True:
            before = -1
            while before != (now := int(self._live.sum())):
                before = now
                for layer in reversed(self.flow.layers):
                    rows = self.is_live(layer.outside)
                    if rows.any():
                        self._enliven(layer.inside.atoms[layer.needed(rows)])
            for layer in self.flow.layers:
                self._balance(layer)
            if now == int(self._live.sum()):
                return

    def _balance(self, layer: LayerChannels) -> None:
        """Keep what a layer cannot do without: one channel, and in every group as many as in the others."""
        sides = [layer.inside, layer.outside]
        flags = [layer.grid(self.is_live(side)) for side in sides]
        kept: Bools = np.any(flags[0], axis=1) | np.any(flags[1], axis=1)
        if not kept.any():
            kept[0] = True
        for side, alive in zip(sides, flags, strict=True):
            counts = alive.sum(1)
            wanted = max(int(counts[kept].max()), 1)
            atoms = side.atoms.reshape(layer.groups, -1)
            for group in np.flatnonzero(kept & (counts < wanted)):
                dead = atoms[group][~alive[group]]
                self._enliven(dead[: wanted - counts[group]])


class Cutter(ChannelEdits):
    """Cuts the channels of a flow that are not live."""

    def __init__(self, graph: Graph, rewriter: Rewriter, flow: Flow) -> None:
        super().__init__(graph, rewriter, flow)
        self.alive = Liveness(flow)

    def cut(self) -> dict[str, list[int]]:
        """Fold constants while everything has the source's numbering, then cut; returns what :meth:`carry_out` does."""
        for layer in self.flow.layers:
            self._fold(layer)
        return self.carry_out()

    def left_constant(self) -> dict[str, int]:
        """For each layer how many output channels stay though they are constant."""
        found = {
            layer.name: int((self.alive.is_live(layer.outside) & np.isfinite(layer.outside.constants)).sum())
            for layer in self.flow.layers
        }
        return {name: count for name, count in found.items() if count}

    def places(self, channels: Channels) -> Places:
        """The places of the live channels."""
        return tuple(np.flatnonzero(self.alive.is_live(channels)).tolist())

    def set_weight(self, layer: LayerChannels, rows: Places, columns: Columns) -> None:
        """Cut a weight and its mask."""
        storage = self.graph.weights[layer.weight].storage
        mask = select_mask(storage.mask, rows, columns) if storage.mask is not None else None
        self.rewriter.replace_tensor(layer.weight, select(storage.data, rows, columns), mask)

    def taken(self, data: TensorData, axis: int, places: Places) -> TensorData:
        """A cut tensor, which an optimizer's moments can follow along axis 0."""
        return Selected(data, places) if axis == 0 else Taken(data, axis, places)

    def _fold(self, layer: LayerChannels) -> None:
        """Let a bias, or the mean that the next norm subtracts, take over what cut constants contributed."""
        cut = ~self.alive.is_live(layer.inside) & layer.absorbed & (layer.inside.constants != 0)
        rows = self.alive.is_live(layer.outside)
        if layer.used is not None:
            cut &= layer.used[rows].any(0) if layer.groups == 1 else True
        if layer.taker is None or not cut.any() or not rows.any():
            return
        name, sign = self._taker(layer, *layer.taker)
        constants = tuple(np.where(cut, layer.inside.constants, 0.0).tolist())
        weight = self.graph.weights[layer.weight].storage
        data: TensorData = Turned(weight.emitted()) if layer.inputs_first else weight.emitted()
        target = self.graph.weights[name].storage
        shifted = Shifted(target.emitted(), data, constants, layer.groups, sign)
        self.rewriter.replace_tensor(name, with_values(shifted, target.data, weight.data))

    def _taker(self, layer: LayerChannels, node: Node, slot: Slot) -> tuple[str, int]:
        """The tensor that takes constants over, and the sign: the bias, the only reading norm's mean, a new bias."""
        readers = self.flow.users.get(layer.node.output, [])
        if isinstance(slot, int) and slot < len(node.args) and isinstance(node.args[slot], Value):
            self.rewriter.drop_operand(node, slot)  # zeros, spread
        if tensor_in(node, slot) is None and len(readers) == 1 and readers[0] in self.flow.norms:
            node, slot = readers[0], norm_slots(readers[0])[2]
        elif tensor_in(node, slot) is None:
            weight = self.graph.weights[layer.weight]
            empty = Zeros((len(layer.outside.atoms),), weight.storage.data.dtype)
            name = self.rewriter.give_tensor(node, slot, empty, beside=layer.weight, origin=weight.origin)
            self.reads[name] += 1
            self.meetings.append((node, slot, 0, layer.outside))
        sign = -1 if node in self.flow.norms else 1
        return self.rewriter.own_tensor(node, slot, self.reads), sign
