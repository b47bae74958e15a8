"""Channels as they flow through a network: which of them are constant, and which go or stay together.

Every channel that a layer makes is an *atom*. Operations that work channel by channel hand atoms on, an addition ties
the atoms of its operands, a concatenation sets them side by side, and whatever is not known pins what it reads.
Beside each atom flows the number that the channel is everywhere, where it is one: a filter that a mask has emptied
leaves its bias, and batch norm and activation make another number of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from elastic_ir.channels import torch_rules as ops
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import Trait, layer_of, norm_of, operation_of
from elastic_ir.tensors.lazy import ShapeOnly, TensorData

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bools: TypeAlias = "NDArray[np.bool_]"
Floats: TypeAlias = "NDArray[np.float64]"
Integers: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True)
class Channels:
    """A value's channels: along which axis, of which atoms, and the number each is everywhere (NaN: it varies)."""

    axis: int
    atoms: Integers
    constants: Floats


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: what enters, what leaves, and which weights are not masked."""

    node: Node
    inside: Channels
    outside: Channels
    groups: int
    used: Bools | None  #: rows of the weight by input channels of their group; None: no mask, all are used
    absorbed: (
        Bools  #: input channels that add nothing but a number to each row, and that number can be folded
    )
    weight: str
    inputs_first: bool = False  #: whether the weight has its inputs along axis 0

    def grid(self, flags: Bools) -> Bools:
        """Flags of input channels, or of output channels, by group."""
        return flags.reshape(self.groups, -1)

    def needed(self, rows: Bools) -> Bools:
        """Which input channels the given output channels need."""
        if self.used is None:
            hit = np.any(self.grid(rows), axis=1)[:, None].repeat(len(self.absorbed) // self.groups, 1)
        else:
            hit = np.any((self.used & rows[:, None]).reshape(self.groups, -1, self.used.shape[1]), axis=1)
        needed: Bools = hit.reshape(-1) & ~self.absorbed
        return needed


class Flow:
    """The channels of one graph. Reads masks, and of tensors only norms, biases and what has to be folded."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.users = graph.users()
        self.layers: list[Layer] = []
        self.norms: list[tuple[Node, Channels]] = []
        self._known: dict[Value, Channels] = {}
        self._parent: list[int] = []
        self.pinned: list[int] = []  #: atoms that the output or an unknown operation reads
        #: Nodes that read constant channels in a way that is not known, and how many.
        self.refused: dict[Node, int] = {}
        self._shared = _shared_weights(graph)
        for node in graph:
            self._visit(node)
        #: For each atom the one that stands for all that go or stay together with it.
        self.roots: Integers = np.array([self._find(atom) for atom in range(len(self._parent))], np.int64)

    # -- atoms -----------------------------------------------------------------------------------------------------

    def _find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _tie(self, left: Integers, right: Integers) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            first, second = sorted((self._find(a), self._find(b)))
            self._parent[second] = first

    def _fresh(self, count: int) -> Integers:
        begin = len(self._parent)
        self._parent.extend(range(begin, begin + count))
        return np.arange(begin, begin + count, dtype=np.int64)

    def _pin(self, channels: Channels) -> None:
        self.pinned += channels.atoms.tolist()

    def channels(self, value: Value, axis: int | None = None) -> Channels | None:
        """A value's channels along an axis; pinned ones where they are not known, None where it is no tensor."""
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

    def _made(self, node: Node) -> Channels | None:
        """The channels of a node's result; None where nothing is known of them."""
        plain = node.kind in ("module", "function", "method")
        return self._rule(node) if plain and not self._shared & set(node.weight_names()) else None

    def _rule(self, node: Node) -> Channels | None:
        """The channels of a node's result; None for an operation that is not known."""
        operation = operation_of(node)
        kind, traits = operation.name, operation.traits
        if not operation.known:
            return None
        if Trait.ARITHMETIC in traits:
            return self._arithmetic(node, kind)
        if kind == "cat":
            return self._concatenation(node)
        value = ops.sole_operand(node)
        if value is None or node.output.type is None or value.type is None:
            return None
        if node.kind == "module" and operation.family in ("conv", "linear"):
            return self._layer(node, value)
        if node.kind == "module" and operation.family == "batchnorm":
            return self._norm(node, value)
        known = self._known.get(value)
        if known is None:
            return None
        rank, after = len(value.type.shape), len(node.output.type.shape)
        if Trait.POINTWISE in traits:
            return Channels(known.axis, known.atoms, ops.evaluate(node, known.constants))
        if Trait.SAME in traits:
            return known
        if known.axis != 1 or value.type.shape[0] != node.output.type.shape[0]:
            return None
        if Trait.RESIZE in traits and rank == after:
            return known
        if Trait.POOL in traits and rank == after > 2:
            return Channels(1, known.atoms, ops.pooled(node, kind, known.constants))
        if kind == "mean" and ops.spatial(node, rank):
            return known
        if kind in ("flatten", "view", "reshape") and after == 2 and ops.flattens(node, kind):
            times = math.prod(value.type.shape[2:])
            return Channels(1, known.atoms.repeat(times), known.constants.repeat(times))
        return None

    def _only_looks(self, node: Node) -> bool:
        """Whether a node asks for a size other than that of the channels."""
        if node.op == "method.size" and len(node.args) == 2 and isinstance(node.args[0], Value):
            known = self._known.get(node.args[0])
            wanted = node.args[1]
            return known is not None and isinstance(wanted, int) and wanted >= 0 and wanted != known.axis
        whole = node.op == "method.size" or (node.op.endswith("getattr") and node.args[1:] == ("shape",))
        if not (whole and node.args and isinstance(node.args[0], Value)):
            return False
        known = self._known.get(node.args[0])
        readers = self.users.get(node.output, [])
        return known is not None and all(ops.looks_past(reader, known.axis) for reader in readers)

    def _arithmetic(self, node: Node, kind: str) -> Channels | None:
        if len(node.args) != 2 or node.kwargs or node.output.type is None or node.weight_names():
            return None
        left, right = node.args
        numbers = [float(item) for item in node.args if isinstance(item, (int, float))]
        if isinstance(left, Value) and isinstance(right, Value):
            one, other = self._known.get(left), self._known.get(right)
            if one is None or other is None or left.type is None or right.type is None:
                return None
            same = len(left.type.shape) == len(right.type.shape) and one.axis == other.axis
            if not same or len(one.atoms) != len(other.atoms) or kind == "div":
                return None
            self._tie(one.atoms, other.atoms)
            return Channels(one.axis, one.atoms, ops.combined(kind, one.constants, other.constants))
        value = left if isinstance(left, Value) else right
        known = self._known.get(value) if isinstance(value, Value) else None
        if known is None or not numbers:
            return None
        pair = (known.constants, numbers[0]) if value is left else (numbers[0], known.constants)
        return Channels(known.axis, known.atoms, ops.combined(kind, *pair))

    def _concatenation(self, node: Node) -> Channels | None:
        values = node.args[0] if node.args else None
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if not isinstance(values, (list, tuple)) or not isinstance(axis, int) or node.output.type is None:
            return None
        rank = len(node.output.type.shape)
        parts = []
        for value in values:
            if not isinstance(value, Value) or value.type is None or len(value.type.shape) != rank:
                return None
            known = self.channels(value, axis % rank)
            if known is None:
                return None
            parts.append(known)
        return Channels(
            axis % rank,
            np.concatenate([part.atoms for part in parts]),
            np.concatenate([part.constants for part in parts]),
        )

    def _norm(self, node: Node, value: Value) -> Channels | None:
        """The channels of a batch norm with statistics; without its own it makes each batch's, and is not known."""
        norm = norm_of(node)
        known = self.channels(value, 1) if norm is not None else None
        if norm is None or known is None:
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
        self.norms.append((node, made))
        return made

    def _layer(self, node: Node, value: Value) -> Channels | None:
        assert value.type is not None
        layer, rank = layer_of(node), len(value.type.shape)
        if layer is None or layer.weight is None or layer.transposed:
            return None
        weight, groups = self.graph.weights[layer.weight], layer.groups
        if not layer.matrix and rank != len(weight.shape):
            return None
        inside = self.channels(value, rank - 1 if layer.matrix else 1)
        assert inside is not None
        rows, width = weight.shape[:2]
        used: Bools | None = None
        if weight.mask is not None:
            used = np.any(weight.mask.array().reshape(rows, width, -1), axis=2)
        foldable = layer.matrix or ops.reads_no_zeros(node)
        absorbed, still = absorption(inside, groups, rows, width, used, foldable=foldable)
        weight_data = weight.storage.emitted()
        constants = np.where(
            still, self._row_constants(layer.bias, weight_data, inside, used, still), math.nan
        )
        outside = Channels(inside.axis, self._fresh(rows), constants)
        self.layers.append(Layer(node, inside, outside, groups, used, absorbed, weight.name))
        return outside

    def _row_constants(
        self, bias_name: str | None, data: TensorData, inside: Channels, used: Bools | None, still: Bools
    ) -> Floats:
        """The numbers that rows give which read constants only; the weight is read only where one is not zero."""
        rows = len(still)
        result = np.zeros(rows)
        if not still.any():
            return result
        if bias_name is not None:
            bias = self.read(bias_name)
            result = np.full(rows, math.nan) if bias is None else bias.reshape(-1)
        known = np.nan_to_num(inside.constants)
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
        """A small tensor's values in double precision; None where it has none, or is no float."""
        from elastic_ir.tensors.torch_bridge import to_torch

        storage = self.graph.weights[name].storage
        if isinstance(storage.data, ShapeOnly) or "float" not in storage.data.dtype:
            return None
        values: Floats = to_torch(storage.emitted()).double().cpu().numpy()
        return values


def absorption(
    inside: Channels, groups: int, rows: int, width: int, used: Bools | None, *, foldable: bool
) -> tuple[Bools, Bools]:
    """Which input channels add only a number that can be folded, and which rows read nothing else."""
    absorbed = (inside.constants == 0) | (np.isfinite(inside.constants) if foldable else False)
    varying = ~absorbed.reshape(groups, 1, width)
    blocked = varying if used is None else used.reshape(groups, -1, width) & varying
    still: Bools = np.array(np.broadcast_to(~blocked.any(-1), (groups, rows // groups))).reshape(-1)
    return absorbed, still


def _shared_weights(graph: Graph) -> set[str]:
    """Names of weights that more than one node uses, by tensor: a layer that runs twice is left as it is."""
    uses: dict[int, int] = {}
    for node in graph:
        for name in dict.fromkeys(node.weight_names()):
            key = id(graph.weights[name].storage)
            uses[key] = uses.get(key, 0) + 1
    return {name for name, weight in graph.weights.items() if uses.get(id(weight.storage), 0) > 1}
