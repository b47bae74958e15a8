"""The tensors that the places of an axis come from: back over what is computed place by place, to parameters.

What ``adaln(c).chunk(depth)`` gives has a part for each block; its places are rows of the layer's weight and bias.
:func:`sources_of` follows an axis back over chunks, views, activations, sums and the like to the tensors of the network
that have it, and collects what on the way says how long it is. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

from elastic_ir.ir.graph import Argument, Graph, Node, Value, WeightRef
from elastic_ir.ir.operations import Trait, has, known_kind, layer_of, norm_of
from elastic_ir.plans.pieces import Table, constant, looked_up, numbers, parting, shape_of, table_of
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.weights import BatchNorm

#: Brings what a node says of an axis in step with another number of places.
Edit: TypeAlias = Callable[[Rewriter, int], None]


#: What is computed element by element besides arithmetic and activations.
_ELEMENTWISE = frozenset({"pow", "rsqrt", "square", "sin", "cos"})
#: What makes one number of the elements along some axes.
_OVER_AXES = frozenset({"mean", "sum", "amax", "amin"})


@dataclass
class Sources:
    """The tensors that have the places of an axis, and what between says how many there are."""

    graph: Graph
    #: by the tensors' names their axis, and how many of its places are one
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict)
    inputs: bool = False  #: whether an input of the network has them: then there are no others
    #: constants that count the places
    counters: set[str] = field(default_factory=set)
    edits: list[Edit] = field(default_factory=list)
    on_the_way: set[Node] = field(default_factory=set)


def sources_of(
    graph: Graph, table: Table, axis: int, users: Mapping[Value, Sequence[Node]]
) -> Sources | None:
    """Where the places of a table's axis come from; None where that does not show, or others read what is between."""
    walk = _Walk(graph, Sources(graph))
    whole = walk.back(table, axis, 1)
    alone = all(set(users.get(value, ())) == readers for value, readers in walk.read.items())
    return walk.found if whole and alone else None


@dataclass
class _Walk:
    """One axis followed back; ``scale`` is how many places there are one of the table's."""

    graph: Graph
    found: Sources
    #: the values that were met, each with its axis and scale; a norm reads what it divides by twice
    met: dict[Value, tuple[int, int]] = field(default_factory=dict)
    read: dict[Value, set[Node]] = field(default_factory=dict)  #: who reads them on the way

    def back(self, table: Table, axis: int, scale: int, reader: Node | None = None) -> bool:
        """Whether the places of an axis come from tensors; they are noted, and what says how many they are."""
        if isinstance(table, str):
            return self.found.tensors.setdefault(table, (axis, scale)) == (axis, scale)
        if reader is not None:
            self.read.setdefault(table, set()).add(reader)
        if table in self.met:
            return self.met[table] == (axis, scale)
        self.met[table] = (axis, scale)
        node = table.node
        if node.kind == "input":
            self.found.inputs = True
            return True
        self.found.on_the_way.add(node)
        if table.type is not None:
            self.found.edits.append(lambda rewriter, count: _resize(rewriter, table, axis, count * scale))
        return self._over(node, table, axis, scale)

    def _over(self, node: Node, table: Value, axis: int, scale: int) -> bool:
        kind = known_kind(node)
        parted = parting(node, self.graph)
        if parted is not None:
            whole, along, _, size = parted
            if len(node.args) > 1 and (
                kind.endswith(("chunk", "tensorsplit")) or type(node.args[1]) is not int
            ):
                self._edit(node, lambda args, count: _parts(args, count * scale))
            return self.back(whole, along, scale * size, node)
        shape = shape_of(table, self.graph)
        if shape is None or table.type is None or shape[axis] % scale:
            return False
        if layer_of(node) is not None:
            return self._layer(node, shape, axis, scale)
        norm = norm_of(node)
        if norm is not None:
            return self._norm(node, norm, axis, scale)
        if kind == "embedding":
            return self._embedding(node, shape, axis, scale)
        first = table_of(node.args[0]) if node.args else None
        if first is None:
            return False
        if has(node, Trait.ARITHMETIC) or kind in _ELEMENTWISE:
            return self._broadcast(node, shape, axis, scale)
        if has(node, Trait.POINTWISE | Trait.SAME | Trait.CAST) or (
            kind in ("softmax", "logsoftmax") and not self._over_axis(node, shape, axis)
        ):
            return self.back(first, axis, scale, node)
        if kind in ("layernorm", "rmsnorm"):
            return axis < len(shape) - self._normed(node) and self.back(first, axis, scale, node)
        if kind in _OVER_AXES:
            return self._reduced(node, first, axis, scale)
        if kind in ("permute", "transpose", "t"):
            return self._permuted(node, first, shape, axis, scale)
        if has(node, Trait.RESHAPE) or kind in ("getitem", "expand"):
            return self._reshaped(node, first, shape, axis, scale)
        return False

    def _edit(self, node: Node, change: Callable[[tuple[Argument, ...], int], tuple[Argument, ...]]) -> None:
        self.found.edits.append(
            lambda rewriter, count: rewriter.set_arguments(node, change(node.args, count))
        )

    # -- over single operations ----------------------------------------------------------------------------------------

    def _layer(self, node: Node, shape: tuple[int, ...], axis: int, scale: int) -> bool:
        """A linear layer or a convolution whose outputs are the places."""
        layer = layer_of(node)
        first = table_of(node.args[0]) if node.args else None
        assert layer is not None
        if layer.matrix and axis < len(shape) - 1:
            return first is not None and self.back(first, axis, scale, node)
        names = self._by_rows(node) if layer.weight is None else [layer.weight]
        shapes = [self.graph.weights[name].shape for name in names]
        outputs = len(shape) - max((len(held) - 1 for held in shapes), default=0)
        wrong = any(held[layer.outputs] != shape[axis] for held in shapes)
        if not names or layer.groups != 1 or axis != outputs or wrong:
            return False
        self._sized(node, "out_features" if layer.matrix else "out_channels", scale)
        held = [*((name, layer.outputs) for name in names), *([(layer.bias, 0)] if layer.bias else [])]
        return all(self.back(name, along, scale) for name, along in held)

    def _by_rows(self, node: Node) -> list[str]:
        """The tensors that a layer's weight is computed from, row by row: norms of rows, and directions."""
        computed = node.attributes.get("parametrizations")
        of_weight = computed.get("weight") if isinstance(computed, dict) and len(computed) == 1 else None
        if not isinstance(of_weight, (tuple, list)) or len(of_weight) != 2:
            return []
        kind, options = of_weight
        by_rows = str(kind).endswith(".weight_norm") and options == {"dim": 0}
        return [name for role, name in node.weights.items() if role != "bias"] if by_rows else []

    def _sized(self, node: Node, role: str, scale: int) -> None:
        if role in node.attributes:
            self.found.edits.append(lambda rewriter, count: rewriter.set_size(node, role, count * scale))

    def _norm(self, node: Node, norm: BatchNorm, axis: int, scale: int) -> bool:
        """A batch norm whose channels are the places, or are others."""
        first = table_of(node.args[0])
        if axis == 1:
            self._sized(node, "num_features", scale)
            held = (norm.scale, norm.shift, norm.mean, norm.variance)
            if not all(self.back(name, 0, scale) for name in held if name is not None):
                return False
        return first is not None and self.back(first, axis, scale, node)

    def _embedding(self, node: Node, shape: tuple[int, ...], axis: int, scale: int) -> bool:
        """A table of embeddings: its columns, whatever is looked up, or its rows, looked up one after the other."""
        weight, index = looked_up(node)
        if weight is None:
            return False
        if axis == len(shape) - 1:
            self._sized(node, "embedding_dim", scale)
            return self.back(weight, 1, scale)
        places = constant(index, self.graph)
        if places != list(range(shape[axis])) or scale > 1:
            return False
        self._sized(node, "num_embeddings", 1)
        return self._counting(index, axis) and self.back(weight, 0, 1)

    def _counting(self, index: Argument, axis: int) -> bool:
        """Whether a constant that counts places from 0 on can count more of them."""
        if isinstance(index, WeightRef):
            name = index.name
            self.found.edits.append(
                lambda rewriter, count: rewriter.replace_tensor(name, numbers(range(count), (count,)))
            )
            self.found.counters.add(name)
            return len(self.graph.weights[name].shape) == 1
        return False

    def _broadcast(self, node: Node, shape: tuple[int, ...], axis: int, scale: int) -> bool:
        """Arithmetic: of each operand that has the axis, and not one place of it for all."""
        having = []
        for operand in [*node.args, *node.kwargs.values()]:
            table = table_of(operand)
            if table is None:
                continue
            own = shape_of(table, self.graph)
            if own is None or (isinstance(table, Value) and table.type is None and table.is_tensor):
                return False
            at = axis - (len(shape) - len(own))
            if at >= 0 and own[at] != 1:
                having.append((table, at))
        return bool(having) and all(self.back(table, at, scale, node) for table, at in having)

    def _over_axis(self, node: Node, shape: tuple[int, ...], axis: int) -> bool:
        dim = node.attributes.get("dim", node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None))
        return type(dim) is not int or dim % len(shape) == axis

    def _normed(self, node: Node) -> int:
        """How many axes a norm goes over, the last ones."""
        given = node.attributes.get("normalized_shape", node.args[1] if len(node.args) > 1 else None)
        return len(given) if isinstance(given, (tuple, list)) else 1

    def _reduced(self, node: Node, first: Table, axis: int, scale: int) -> bool:
        """One number for the elements along other axes, as in a norm that is written out."""
        before = shape_of(first, self.graph)
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        dims = [dim] if type(dim) is int else dim
        if before is None or not isinstance(dims, (tuple, list)) or not dims or type(keeps) is not bool:
            return False
        gone = {number % len(before) for number in dims if type(number) is int}
        at = axis if keeps else [place for place in range(len(before)) if place not in gone][axis]
        return len(gone) == len(dims) and at not in gone and self.back(first, at, scale, node)

    def _permuted(self, node: Node, first: Table, shape: tuple[int, ...], axis: int, scale: int) -> bool:
        order = list(range(len(shape)))
        given = node.args[1:]
        numbers = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        places = [number % len(shape) for number in numbers if type(number) is int]
        if known_kind(node) == "permute":
            order = places
        elif known_kind(node) == "t" and len(shape) == 2:
            order = [1, 0]
        elif len(places) == 2:
            left, right = places
            order[left], order[right] = right, left
        else:
            return False
        return sorted(order) == list(range(len(shape))) and self.back(first, order[axis], scale, node)

    def _reshaped(self, node: Node, first: Table, shape: tuple[int, ...], axis: int, scale: int) -> bool:
        """Views and the like, which keep the order of elements: the axis is one of the operand's, or outermost in it.

        Elements of a place have to be whole places there.
        """
        before = shape_of(first, self.graph)
        if before is None or (isinstance(first, Value) and first.type is None):
            return False
        kind = known_kind(node)
        if kind == "getitem" and any(
            part is not None and part != slice(None)
            for part in (node.args[1] if isinstance(node.args[1], tuple) else node.args[1:])
        ):
            return False
        if kind == "expand":
            at = axis - (len(shape) - len(before))
            if at < 0 or before[at] != shape[axis]:
                return False
            inner = stride = 1
        else:
            outer, inner = prod(shape[:axis]), prod(shape[axis + 1 :])
            at = next(
                (b for b, extent in enumerate(before) if extent > 1 and prod(before[:b]) == outer),
                len(before),
            )
            if at == len(before):
                return False
            stride = prod(before[at + 1 :])
        if scale * inner % stride or not self._sizes(node, shape, axis, scale):
            return False
        return self.back(first, at, scale * inner // stride, node)

    def _sizes(self, node: Node, shape: tuple[int, ...], axis: int, scale: int) -> bool:
        """Whether a node's arguments say the extent of an axis as a plain number, or leave it open."""
        kind = known_kind(node)
        if kind not in ("view", "reshape", "unsafeview", "expand", "unflatten"):
            return True
        lead = 1 if kind != "unflatten" else 2
        if node.kwargs or len(node.args) <= lead:
            return False
        sizes = node.args[lead:]
        nested = sizes[0] if isinstance(sizes[0], (tuple, list)) else None
        whole: Sequence[Argument] = sizes if nested is None else nested
        at = axis
        if kind == "unflatten":
            dim = node.args[1]
            if type(dim) is not int:
                return False
            at -= dim % (len(shape) - len(whole) + 1)
            if not 0 <= at < len(whole):
                return True
        size = whole[at] if at < len(whole) else None
        if type(size) is not int or size not in (-1, shape[axis]):
            return False

        def change(args: tuple[Argument, ...], count: int) -> tuple[Argument, ...]:
            made = [*whole[:at], count * scale, *whole[at + 1 :]]
            if nested is None:
                return (*args[:lead], *made)
            return (*args[:lead], tuple(made) if isinstance(nested, tuple) else made)

        if size != -1:
            self._edit(node, change)
        return True


def _parts(args: tuple[Argument, ...], count: int) -> tuple[Argument, ...]:
    """The arguments of what takes a tensor apart, for another number of equal parts."""
    given = args[1]
    if isinstance(given, (tuple, list)):
        return (args[0], [given[0]] * count, *args[2:])
    return (args[0], count, *args[2:])


def _resize(rewriter: Rewriter, value: Value, axis: int, extent: int) -> None:
    assert value.type is not None
    shape = value.type.shape
    rewriter.set_shape(value, (*shape[:axis], extent, *shape[axis + 1 :]))
