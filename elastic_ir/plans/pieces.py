"""What a node takes of a tensor by integers: a run of places of one axis (``gains[i]``, an item of a chunked tensor).

:func:`pieces_of` reads them of any node, :meth:`Piece.at` makes the node's arguments for other places. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from elastic_ir.discovery.signatures import TAKING
from elastic_ir.ir.functions import CHECKS
from elastic_ir.ir.graph import Argument, Graph, Node, Symbol, Value, WeightRef
from elastic_ir.ir.operations import known_kind
from elastic_ir.tensors.lazy import InlineData, ShapeOnly

#: What pieces are taken of: a value, or a tensor of the network by its name.
Table: TypeAlias = "Value | str"
_ALL_OTHERS = Symbol("...")
_SMALL = 4096  #: numbers in a constant that is read


@dataclass(frozen=True)
class Piece:
    """A run of places of an axis of a table that a node takes."""

    node: Node
    table: Table
    axis: int  #: of what is no tensor but a tuple, 0
    start: int
    length: int
    extent: int  #: how many places the axis has
    within: int = 0  #: which part of an index says so, where that is a tuple
    sliced: bool = False  #: whether an index says so by a slice

    @property
    def end(self) -> int:
        return self.start + self.length

    def at(self, args: tuple[Argument, ...], start: int) -> tuple[Argument, ...]:
        """The arguments of a node like this one that takes as much from another place on."""
        made = list(args)
        if known_kind(self.node) != "getitem":
            made[2] = start
            if known_kind(self.node) == "slice":
                made[3] = start + self.length
            return tuple(made)
        there = slice(start, start + self.length) if self.sliced else start
        given = made[1]
        if isinstance(given, tuple):
            made[1] = (*given[: self.within], there, *given[self.within + 1 :])
        else:
            made[1] = there
        return tuple(made)


def checks_no_size(node: Node) -> bool:
    """Whether a node is an export's check of a type, which holds of any number of places."""
    return (
        node.op in CHECKS and node.kwargs.get("size") is None and all(part is None for part in node.args[1:3])
    )


def table_of(argument: Argument) -> Table | None:
    """What an argument is a table by: a value itself, a weight by its name; None for anything else."""
    if isinstance(argument, WeightRef):
        return argument.name
    return argument if isinstance(argument, Value) else None


def shape_of(table: Table, graph: Graph) -> tuple[int, ...] | None:
    """The extents of a table; of a tuple the number of its items, where that shows; None where they are not known."""
    if isinstance(table, str):
        return graph.weights[table].shape
    if table.type is not None:
        return table.type.shape if table.type.is_closed else None
    count = _items(table.node, graph)
    return None if count is None else (count,)


def _items(node: Node, graph: Graph) -> int | None:
    """How many items a node gives that takes a tensor apart into equal ones; None for any other node."""
    split = parting(node, graph)
    return None if split is None else split[2]


def parting(node: Node, graph: Graph) -> tuple[Table, int, int, int] | None:
    """How a node takes a tensor apart into equal items: of what, along which axis, into how many, of how many places.

    None where it does not, or where items are of several sizes.
    """
    kind = known_kind(node)
    if kind not in (
        "chunk",
        "split",
        "splitwithsizes",
        "tensorsplit",
        "unbind",
        "unsafechunk",
        "unsafesplit",
    ):
        return None
    table = table_of(node.args[0]) if node.args else None
    shape = shape_of(table, graph) if table is not None else None
    if table is None or not shape or (isinstance(table, Value) and table.type is None):
        return None
    by_axis = kind == "unbind"
    axis = node.kwargs.get("dim", node.args[2 - by_axis] if len(node.args) > 2 - by_axis else 0)
    if type(axis) is not int or not node.kwargs.keys() <= {"dim"}:
        return None
    axis %= len(shape)
    extent = shape[axis]
    if by_axis:
        return table, axis, extent, 1
    given = node.args[1] if len(node.args) > 1 else None
    if isinstance(given, (list, tuple)):
        sizes = set(given)
        size = next(iter(sizes), 0)
        return (table, axis, len(given), size) if len(sizes) == 1 and type(size) is int else None
    if type(given) is not int or given < 1:
        return None
    size = given if "split" in kind and kind != "tensorsplit" else extent // given
    return (table, axis, extent // size, size) if size and extent % size == 0 else None


def pieces_of(node: Node, graph: Graph) -> list[Piece]:
    """What a node takes of a tensor by integers, for each axis of which it does; [] for any other node."""
    kind = known_kind(node)
    if kind == "embedding":
        return _looked_up(node, graph)
    if kind not in TAKING or len(node.args) < 2 or node.kwargs:
        return []
    table = table_of(node.args[0])
    shape = shape_of(table, graph) if table is not None else None
    if table is None or not shape:
        return []
    if kind == "getitem":
        return _by_index(node, table, shape)
    numbers = [number for number in node.args[1:] if type(number) is int]
    if len(numbers) < len(node.args) - 1 or len(numbers) != (2 if kind == "select" else 3):
        return []
    axis, start, *rest = numbers
    axis %= len(shape)
    extent = shape[axis]
    if kind == "select":
        return [Piece(node, table, axis, start % extent, 1, extent)] if -extent <= start < extent else []
    length = rest[0] if kind == "narrow" else min(rest[0], extent) - start
    fits = start >= 0 and 0 < length < extent and start + length <= extent
    return [Piece(node, table, axis, start, length, extent)] if fits else []


def _by_index(node: Node, table: Table, shape: tuple[int, ...]) -> list[Piece]:
    """What an index takes of each axis that it does not leave whole; [] where it has more than integers and slices."""
    given = node.args[1]
    parts = list(given) if isinstance(given, tuple) else [given]
    taking = sum(part is not None and part != _ALL_OTHERS for part in parts)
    axis, found = 0, []
    for within, part in enumerate(parts):
        if part is None:
            continue
        if part == _ALL_OTHERS:
            axis += len(shape) - taking
            continue
        run = _run(part, shape[axis]) if axis < len(shape) else None
        if run is None:
            return []
        if part != slice(None):
            found.append(Piece(node, table, axis, *run, shape[axis], within, isinstance(part, slice)))
        axis += 1
    return found


def _run(part: Argument, extent: int) -> tuple[int, int] | None:
    """Where what an integer or a slice takes of an axis starts, and how long it is."""
    if type(part) is int:
        return (part % extent, 1) if -extent <= part < extent else None
    if not isinstance(part, slice) or part.step not in (None, 1):
        return None
    ends = [0 if part.start is None else part.start, extent if part.stop is None else part.stop]
    if any(type(end) is not int for end in ends):
        return None
    start, stop = (min(end if end >= 0 else end + extent, extent) for end in ends if isinstance(end, int))
    return (start, stop - start) if 0 <= start < stop else None


# -- tables of embeddings ----------------------------------------------------------------------------------------------


def looked_up(node: Node) -> tuple[str | None, Argument]:
    """The table that an embedding looks rows up in, by name, and which rows."""
    if node.kind == "module":
        return node.weights.get("weight"), node.args[0] if node.args else None
    if len(node.args) < 2:
        return None, None
    weight, index = node.args[:2] if node.op.startswith("aten.") else (node.args[1], node.args[0])
    return (weight.name if isinstance(weight, WeightRef) else None), index


def constant(index: Argument, graph: Graph) -> list[int] | None:
    """The whole numbers that an argument always is, where it is a small constant of the program."""
    weight = graph.weights.get(index.name) if isinstance(index, WeightRef) else None
    if weight is None or weight.is_parameter or weight.persistent or weight.dtype not in ("int64", "int32"):
        return None
    if prod(weight.shape) > _SMALL or isinstance(weight.storage.data, ShapeOnly):
        return None
    from elastic_ir.tensors.arrays import as_array

    return [int(number) for number in as_array(weight.storage.data).reshape(-1)]


def numbers(values: Iterable[int], shape: tuple[int, ...]) -> InlineData:
    """A constant of whole numbers."""
    return InlineData(shape, "int64", b"".join(value.to_bytes(8, "little") for value in values))


def _looked_up(node: Node, graph: Graph) -> list[Piece]:
    weight, index = looked_up(node)
    rows = constant(index, graph)
    if weight is None or rows is None or len(rows) != 1:
        return []
    extent = graph.weights[weight].shape[0]
    return [Piece(node, weight, 0, rows[0], 1, extent)] if 0 <= rows[0] < extent else []
