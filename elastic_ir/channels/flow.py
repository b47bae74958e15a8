"""Channels as they flow through a network: which of them are constant, and which go or stay together.

Operations that work channel by channel hand atoms on, an addition ties the atoms of its operands, a concatenation sets
them side by side, and whatever is not known pins what it reads. Beside each atom flows the number that the channel is
everywhere, where it is one: a filter that a mask has emptied leaves its bias, and batch norm and activation make
another number of that. What an operation is called and where it keeps what, the rules of its dialect know
(``torch_rules.py``, ``onnx_rules.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import networkx as nx
import numpy as np

from elastic_ir.channels import Bools, Channels, Count, Floats, Integers, LayerChannels, Meeting, Place
from elastic_ir.ir.graph import Argument, Graph, Literal, Node, Value, WeightRef
from elastic_ir.ir.operations import (
    BatchNorm,
    Layer,
    Slot,
    bias_slot,
    kind_of,
    layer_of,
    norm_of,
    norm_slots,
    operation_of,
    tensor_in,
)
from elastic_ir.onnx_model.layers import is_onnx, weight_readers
from elastic_ir.tensors.lazy import ShapeOnly, TensorData

#: A module's attributes that count what it reads, and what it makes.
_COUNTS = ("in_features", "in_channels"), ("out_features", "out_channels", "num_features")


class Rules(Protocol):
    """What a dialect knows of its operations; the two are modules."""

    def admits(self, node: Node, flow: Flow) -> bool:
        """Whether anything may be known of a node's result."""

    def terms(self, node: Node) -> Sequence[Argument] | None:
        """The operands of arithmetic, element by element; None for anything else."""

    def joined(self, node: Node) -> tuple[Sequence[Argument], int] | None:
        """The operands of a concatenation and its axis; None for anything else."""

    def source(self, node: Node) -> Value | None:
        """The one tensor whose channels an operation hands on or reads."""

    def is_plain(self, node: Node, layer: Layer, flow: Flow) -> bool:
        """Whether a layer applies its weight and its bias, and nothing else."""

    def taker(self, node: Node, rows: int, flow: Flow) -> tuple[Node, Slot] | None:
        """What can take over what constants add to a layer's output of so many channels."""

    def pads(self, node: Node) -> bool:
        """Whether a convolution may read zeros beyond the border, so that a constant differs there."""

    def moved(self, node: Node, known: Channels, flow: Flow) -> Place | None:
        """Where the channels are in the result of a node that reads them; None where that is not known."""

    def only_looks(self, node: Node, axis: int, rank: int, readers: Sequence[Node]) -> bool:
        """Whether a node asks for extents other than that of the channels."""


def _rules_of(graph: Graph) -> Rules:
    if is_onnx(graph):
        from elastic_ir.channels import onnx_rules

        return onnx_rules
    from elastic_ir.channels import torch_rules

    return torch_rules


class Flow:
    """The channels of one graph. Reads masks, and of tensors only norms, biases and what has to be folded."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.users = graph.users()
        self.readers = weight_readers(graph)
        self.rules = _rules_of(graph)
        self.layers: list[LayerChannels] = []
        self.norms: dict[Node, Channels] = {}
        self.meetings: list[Meeting] = []
        self.counts: list[Count] = []
        self._known: dict[Value, Channels] = {}
        self._atoms = 0
        self._ties: list[tuple[Integers, Integers]] = []
        self.pinned: list[int] = []  #: atoms that the output or an unknown operation reads
        #: Nodes that read constant channels in a way that is not known, and how many.
        self.refused: dict[Node, int] = {}
        for node in graph:
            self._visit(node)
        #: For each atom the one that stands for all that go or stay together with it.
        self.roots = representatives(self._atoms, self._ties)

    def is_shared(self, name: str) -> bool:
        """Whether a weight's tensor is read more than once: a layer that runs twice is left as it is."""
        return len(self.readers[id(self.graph.weights[name].storage)]) > 1

    # -- atoms -----------------------------------------------------------------------------------------------------

    def _fresh(self, count: int) -> Integers:
        self._atoms += count
        return np.arange(self._atoms - count, self._atoms, dtype=np.int64)

    def _pin(self, channels: Channels) -> None:
        self.pinned += channels.atoms.tolist()

    def channels(self, value: Value, axis: int | None = None) -> Channels | None:
        """A value's channels along an axis; pinned ones where they are not known, None where it is not a tensor."""
        known = self._known.get(value)
        if known is not None and axis in (None, known.axis):
            return known
        if value.type is None or axis is None or not 0 <= axis < len(value.type.shape):
            return None
        if known is not None:
            self._pin(known)
        count = value.type.shape[axis]
        if count < 0:
            return None
        made = Channels(axis, self._fresh(count), np.full(count, math.nan))
        self._pin(made)
        if known is None:
            self._known[value] = made
        return made

    def constants(self, value: Value) -> Floats | None:
        """The number that each of a value's channels is everywhere, NaN where it varies; None where not known."""
        known = self._known.get(value)
        return known.constants if known is not None else None

    # -- forward ---------------------------------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        made = self._made(node)
        if made is not None:
            self._known[node.output] = made
        elif not self._only_looks(node):
            for value in node.operands():
                known = self._known.get(value)
                if known is not None:
                    self._pin(known)
                    still = int(np.isfinite(known.constants).sum())
                    if still and node.kind != "output":
                        self.refused[node] = still

    def _only_looks(self, node: Node) -> bool:
        value = node.args[0] if node.args else None
        known = self._known.get(value) if isinstance(value, Value) else None
        if known is None or not isinstance(value, Value) or value.type is None:
            return False
        readers = self.users.get(node.output, [])
        return self.rules.only_looks(node, known.axis, len(value.type.shape), readers)

    def _made(self, node: Node) -> Channels | None:
        """The channels of a node's result; None where nothing is known of them."""
        rules = self.rules
        if node.output.type is None or not operation_of(node).known or not rules.admits(node, self):
            return None
        terms, joined = rules.terms(node), rules.joined(node)
        if terms is not None:
            return self._arithmetic(node, terms)
        if joined is not None:
            return self._concatenation(node, *joined)
        value, layer, norm = rules.source(node), layer_of(node), norm_of(node)
        if value is None or value.type is None:
            return None
        if layer is not None:
            return self._layer(node, value, layer)
        if norm is not None:
            return self._norm(node, value, norm)
        known = self._known.get(value)
        place = rules.moved(node, known, self) if known is not None else None
        if known is None or place is None:
            return None
        constants = place.constants(known.constants)
        made = Channels(place.axis, known.atoms.repeat(place.times), constants.repeat(place.times))
        self.counts += [(node, operand, index, made) for operand, index in place.counts]
        return made

    # -- several operands ------------------------------------------------------------------------------------------

    def _arithmetic(self, node: Node, terms: Sequence[Argument]) -> Channels | None:
        """Element by element: the channels of all computed operands are tied, constant ones are cut along with them."""
        assert node.output.type is not None
        shape, kind = node.output.type.shape, kind_of(node)
        values = [item for item in terms if isinstance(item, Value)]
        found = [self._known.get(value) for value in values]
        first = found[0] if found else None
        if first is None or (len(values) > 1 and kind in ("div", "pow", "prelu")):
            return None
        axis, count = first.axis, len(first.atoms)
        for value, known in zip(values, found, strict=True):
            if known is None or value.type is None or len(value.type.shape) != len(shape):
                return None
            if known.axis != axis or len(known.atoms) != count or shape[axis] != count:
                return None
        parts: list[Floats] = []
        meetings: list[Meeting] = []
        for place, item in enumerate(terms):
            if isinstance(item, Value):
                parts.append(self._known[item].constants)
            elif isinstance(item, (int, float)):
                parts.append(np.full(count, float(item)))
            elif isinstance(item, Literal) and len(item.values) == 1 and len(item.shape) <= len(shape):
                parts.append(np.full(count, float(item.values[0])))
            elif isinstance(item, WeightRef):
                constants, meeting = self._beside(item, axis, count, len(shape))
                if constants is None:
                    return None
                parts.append(constants)
                meetings += [(node, place, meeting, first)] if meeting is not None else []
            else:
                return None
        self._ties += [(first.atoms, known.atoms) for known in found[1:] if known is not None]
        self.meetings += meetings
        return Channels(axis, first.atoms, combined(kind, parts))

    def _beside(self, item: WeightRef, axis: int, count: int, rank: int) -> tuple[Floats | None, int | None]:
        """The numbers of a constant operand, one for each channel, and the axis along which it has one for each."""
        extents = self.graph.weights[item.name].shape
        place = axis - (rank - len(extents))
        if len(extents) > rank or (place >= 0 and extents[place] not in (1, count)):
            return None, None
        meets = place >= 0 and extents[place] == count and count > 1
        if math.prod(extents) == (count if meets else 1):
            read = self.read(item.name)
            if read is not None:
                return np.broadcast_to(read.reshape(-1), (count,)).copy(), place if meets else None
        return np.full(count, math.nan), place if meets else None

    def _concatenation(self, node: Node, parts: Sequence[Argument], axis: int) -> Channels | None:
        """Side by side along the channels, or tied along any other axis."""
        assert node.output.type is not None
        rank = len(node.output.type.shape)
        axis %= rank
        values = [item for item in parts if isinstance(item, Value)]
        fitting = [value for value in values if value.type is not None and len(value.type.shape) == rank]
        if len(fitting) != len(parts):
            return None
        sides = [self._known.get(value) for value in values]
        others = [side for side in sides if side is not None and side.axis != axis]
        if len(others) == len(sides) and len({(side.axis, len(side.atoms)) for side in others}) == 1:
            first = others[0]
            self._ties += [(first.atoms, side.atoms) for side in others[1:]]
            same = np.all([side.constants == first.constants for side in others], axis=0)
            return Channels(first.axis, first.atoms, np.where(same, first.constants, math.nan))
        known = any(side is not None for side in sides)
        made = [side for value in values if (side := self.channels(value, axis)) is not None]
        if others or not known or len(made) != len(values):
            return None
        atoms, constants = ([getattr(side, part) for side in made] for part in ("atoms", "constants"))
        return Channels(axis, np.concatenate(atoms), np.concatenate(constants))

    # -- layers ----------------------------------------------------------------------------------------------------

    def _norm(self, node: Node, value: Value, norm: BatchNorm) -> Channels | None:
        """The channels of a batch norm with statistics; without its own it makes each batch's, and is not known."""
        known = self.channels(value, 1)
        if known is None:
            return None
        count = len(known.atoms)
        mean, variance = self.read(norm.mean), self.read(norm.variance)
        scale = self.read(norm.scale) if norm.scale is not None else np.ones(count)
        shift = self.read(norm.shift) if norm.shift is not None else np.zeros(count)
        constants = np.full(count, math.nan)
        if any(part is not None and part.shape != (count,) for part in (mean, variance, scale, shift)):
            return None
        if mean is not None and variance is not None and scale is not None and shift is not None:
            factor = scale / np.sqrt(variance + norm.epsilon)
            result = np.where(factor == 0, 0.0, known.constants - mean) * factor + shift
            constants = np.where(np.isfinite(result), result, math.nan)
        made = Channels(1, known.atoms, constants)
        self.norms[node] = made
        self.meetings += [(node, slot, 0, made) for slot in norm_slots(node) if tensor_in(node, slot)]
        self._count(node, made, made)
        return made

    def _count(self, node: Node, inside: Channels, outside: Channels) -> None:
        for names, channels in zip(_COUNTS, (inside, outside), strict=True):
            self.counts += [(node, name, 0, channels) for name in names if name in node.attributes]

    def _layer(self, node: Node, value: Value, layer: Layer) -> Channels | None:
        assert value.type is not None
        rank, name, groups = len(value.type.shape), layer.weight, layer.groups
        if name is None or layer.weight_first or not self.rules.is_plain(node, layer, self):
            return None
        weight = self.graph.weights[name]
        shape, inputs_first = weight.shape, layer.inputs == 0
        fits = len(shape) == 2 if layer.matrix else len(shape) == rank
        if not fits or "float" not in weight.dtype or self.is_shared(name):
            return None
        rows, width = (shape[1] * groups, shape[0] // groups) if inputs_first else shape[:2]
        bias = self.graph.weights[layer.bias].shape if layer.bias is not None else None
        inside = self.channels(value, rank - 1 if layer.matrix else 1)
        if bias not in (None, (rows,), (1, rows)) or inside is None or len(inside.atoms) != width * groups:
            return None
        used: Bools | None = None
        if weight.mask is not None:
            used = np.any(weight.mask.array().reshape(*shape[:2], -1), axis=2)
            if inputs_first:
                used = used.reshape(groups, width, -1).transpose(0, 2, 1).reshape(rows, width)
        taker = self.rules.taker(node, rows, self)
        padded = not layer.matrix and (layer.transposed or self.rules.pads(node))
        absorbed = inside.constants == 0  # more only where the same number reaches every place
        if taker is not None and not padded:
            absorbed = np.isfinite(inside.constants)
        still = _still_rows(absorbed, groups, rows, width, used)
        data: TensorData = weight.storage.emitted()
        heard = np.where(absorbed, inside.constants, 0.0)
        if inputs_first and layer.matrix:
            from elastic_ir.tensors.recipes import Turned

            data = Turned(data)
        constants = self._row_constants(layer.bias, data, heard, used, still)
        outside = Channels(inside.axis, self._fresh(rows), np.where(still, constants, math.nan))
        self.layers.append(LayerChannels(node, layer, name, inside, outside, used, absorbed, taker))
        if bias is not None:
            self.meetings.append((node, bias_slot(node), len(bias) - 1, outside))
        self._count(node, inside, outside)
        return outside

    def _row_constants(
        self, bias_name: str | None, data: TensorData, known: Floats, used: Bools | None, still: Bools
    ) -> Floats:
        """The numbers that rows give which read constants only; the weight is read only where one is not zero."""
        rows = len(still)
        result = np.zeros(rows)
        if not still.any():
            return result
        if bias_name is not None:
            bias = self.read(bias_name)
            result = np.full(rows, math.nan) if bias is None else bias.reshape(-1)
        if known.any() and (used is None or used[still].any()):
            from elastic_ir.tensors.recipes import contribution
            from elastic_ir.tensors.torch_bridge import to_torch

            if isinstance(getattr(data, "data", data), ShapeOnly):  # also under a mask
                return np.full(rows, math.nan)
            weight = to_torch(data).double().cpu()
            groups = len(known) // weight.shape[1]
            result = result + contribution(weight, tuple(known.tolist()), groups).numpy()
        return np.where(np.isfinite(result), result, math.nan)

    def read(self, name: str) -> Floats | None:
        """A small tensor's values in double precision; None where it has none, or is not a float."""
        from elastic_ir.tensors.torch_bridge import to_torch

        storage = self.graph.weights[name].storage
        if isinstance(storage.data, ShapeOnly) or "float" not in storage.data.dtype:
            return None
        values: Floats = to_torch(storage.emitted()).double().cpu().numpy()
        return values


def _still_rows(absorbed: Bools, groups: int, rows: int, width: int, used: Bools | None) -> Bools:
    """Which rows read nothing but input channels that are absorbed."""
    varying = ~absorbed.reshape(groups, 1, width)
    blocked = varying if used is None else used.reshape(groups, -1, width) & varying
    still: Bools = np.array(np.broadcast_to(~blocked.any(-1), (groups, rows // groups))).reshape(-1)
    return still


def representatives(count: int, ties: Iterable[tuple[Integers, Integers]]) -> Integers:
    """For each of so many atoms the least of those that it is tied with, pair by pair, directly or through others."""
    pairs: nx.Graph[int] = nx.Graph()
    for left, right in ties:
        pairs.add_edges_from(zip(left.tolist(), right.tolist(), strict=True))
    found = np.arange(count, dtype=np.int64)
    for tied in nx.connected_components(pairs):
        found[list(tied)] = min(tied)
    return found


#: Arithmetic by the one name that it has in every dialect.
_ARITHMETIC: dict[str, Callable[[Floats, Floats], Floats]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "max": np.maximum,
    "min": np.minimum, "prelu": lambda x, slope: np.where(x < 0, slope * x, x),
}  # fmt: skip


def combined(kind: str, parts: Sequence[Floats]) -> Floats:
    """The result of arithmetic on constant channels; a product with zero is zero whatever the other is."""
    total = parts[0]
    with np.errstate(all="ignore"):
        for part in parts[1:]:
            result = _ARITHMETIC[kind](total, part)
            if kind == "mul":
                result = np.where((total == 0) | (part == 0), 0.0, result)
            total = np.where(np.isfinite(result), result, math.nan)
    return total
