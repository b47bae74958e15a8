"""A network as a person reads it: one row for what comes before the stages, for each stage, between them, and after.

Every parameter is in exactly one row, so the rows add up to the network. Nothing here is guessed from a model's
name: which rows weights belong to shows in the order they are used, what is a channel in the layers that read the
activation, and a block's type in the live module, where there is one.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from elastic_ir.discovery.depth import looks_up, path_lengths
from elastic_ir.discovery.from_names import NameReader
from elastic_ir.ir.graph import Graph, Value
from elastic_ir.ir.naming import head_in, rename_path
from elastic_ir.ir.structure import Block, Stage, Structure

#: Layers that mix or scale channels: along axis 1, and along the last axis.
_SECOND = re.compile(r"conv|batch_?norm|group_?norm|instance_?norm", re.IGNORECASE)
_LAST = re.compile(r"linear|addmm|layer_?norm|rms_?norm|\bmm\b|matmul", re.IGNORECASE)


@dataclass(frozen=True)
class Activation:
    """What leaves a stage, taken apart: channels, and either a resolution or a number of tokens."""

    channels: int
    extents: tuple[int, ...] = ()
    tokens: bool = False

    def __str__(self) -> str:
        if not self.extents:
            return str(self.channels)
        return f"{self.channels} @ {'x'.join(map(str, self.extents))}{' tokens' if self.tokens else ''}"


@dataclass(eq=False)
class Row:
    """One line of the table; ``kind`` is stem, stage, transition, head, or idle (weights that no operation reads)."""

    kind: str
    name: str
    stage: Stage | None = None
    weights: list[str] = field(default_factory=list)
    modules: tuple[str, ...] = ()  #: the outermost modules that hold its weights and no other's
    type: str | None = None  #: class names, the commonest first
    activation: Activation | None = None
    layers: int | None = None  #: weight layers on the longest path through it
    parameters: int = 0
    prunable: int = 0  #: how many of them sparsity is counted over
    zeros: int = 0  #: how many of those a mask makes zero

    @property
    def sparsity(self) -> float:
        """The share of zeros that masks make in its prunable weights."""
        return self.zeros / self.prunable if self.prunable else 0.0


def summarise(graph: Graph) -> list[Row]:
    """The rows of a graph in the order they run; StructureError where nothing in it repeats."""
    structure = graph.structure
    rows: list[Row] = []
    opening: dict[Stage, Row] = {}
    for stage in structure.stages:
        opening[stage] = Row("transition" if rows else "stem", "stem")
        rows += [opening[stage], Row("stage", stage.name, stage)]
    rows.append(Row("head", "head"))
    idle = Row("idle", "never read")
    _share_out(graph, structure, rows, idle)
    _count(graph, [*rows, idle])
    bare = {row: stage.transition for stage, row in opening.items() if stage.transition and not row.weights}
    kept = [row for row in [*rows, idle] if row.weights or row.kind == "stage" or row in bare]
    live = _Live(graph)
    lengths = path_lengths(graph) if len(graph) else {}
    for row in kept:
        row.modules = _outermost(row, graph) or tuple(filter(None, (bare.get(row),)))
        if row.kind == "transition":
            row.name = row.modules[0] if len(row.modules) == 1 else _first_and_last(row.modules)
        row.type = live.type_of(row)
        if row.stage is not None:
            row.activation = activation_of(row.stage)
    _count_layers(graph, structure, rows, opening, lengths)
    return kept


# -- which weights belong to which row ----------------------------------------------------------------------------


def _share_out(graph: Graph, structure: Structure, rows: list[Row], idle: Row) -> None:
    """Give every weight to one row: a block's to its stage, any other by when it is used first."""
    owner = {
        child.path: row
        for row in rows
        if row.stage is not None
        for block in row.stage.all_blocks
        for child in block.children
    }
    left: list[str] = []
    for name in graph.weights:
        head = head_in(name, owner)
        (left if head is None else owner[head].weights).append(name)
    if len(graph):
        _by_execution(graph, rows, idle, left)
    else:
        _by_names(graph, structure, rows, left)


def _by_execution(graph: Graph, rows: list[Row], idle: Row, left: Iterable[str]) -> None:
    order = {node: index for index, node in enumerate(graph)}
    # by name; by tensor, because an exported program has one name for tied ones
    first: dict[str | int, int] = {}
    for node, index in order.items():
        for name in node.weight_names():
            first.setdefault(name, index)
            first.setdefault(id(graph.weights[name].storage), index)
    times = {  # when the nodes of each stage run
        place: [order[node] for block in row.stage.all_blocks for node in block.nodes] or [-1]
        for place, row in enumerate(rows)
        if row.stage is not None
    }
    for name in left:
        at = first.get(name, first.get(id(graph.weights[name].storage)))
        if at is None:
            # a norm that an exported program folded, a buffer that only training reads: it goes with its siblings
            at = _sibling(name, first, graph)
        if at is not None:
            _row_at(at, times, rows).weights.append(name)
        else:
            (idle if graph.weights[name].is_parameter else rows[-1]).weights.append(name)


def _row_at(at: int, times: Mapping[int, Sequence[int]], rows: list[Row]) -> Row:
    """The row of what is used at some time: a stage's that ends later, what opens that stage, or the head's."""
    place = next((place for place, own in times.items() if at <= max(own)), len(rows) - 1)
    return rows[place - 1 if place in times and at < min(times[place]) else place]


def _sibling(name: str, first: dict[str | int, int], graph: Graph) -> int | None:
    """When the module that holds a weight first reads another of its weights."""
    head = name.rpartition(".")[0] + "."
    found = [
        first[other] for other in graph.weights if head != "." and other.startswith(head) and other in first
    ]
    return min(found, default=None)


def _by_names(graph: Graph, structure: Structure, rows: list[Row], left: list[str]) -> None:
    reader = NameReader(graph)
    if reader.sorted:
        _by_kinship(graph, structure, rows, left)
        return
    times = {
        place: [reader.order[name] for name in row.weights]
        for place, row in enumerate(rows)
        if row.stage is not None and row.weights
    }
    for name in left:
        _row_at(reader.order[name], times, rows).weights.append(name)


def _by_kinship(graph: Graph, structure: Structure, rows: list[Row], left: list[str]) -> None:
    """A file sorted by name, whose order means nothing: what was found of transitions, stem and head decides."""
    opening = {
        row.stage.transition: rows[place - 1]
        for place, row in enumerate(rows)
        if row.stage is not None and row.stage.transition is not None
    }
    block = structure.stages[0].all_blocks[0]
    inside = [name for name in graph.weights if name.startswith(f"{block.path}.")]
    entering = {graph.weights[name].shape[1] for name in inside if len(graph.weights[name].shape) > 1}
    for name in left:
        path = next((path for path in opening if name.startswith(f"{path}.")), None)
        shape = graph.weights[name].shape
        if path is not None:
            opening[path].weights.append(name)
            continue
        first, last = _closeness(name, structure.stem), _closeness(name, structure.head)
        if first == last:  # kin of neither: tables come first, and so does what is as wide as the first block
            opens = looks_up(name) or (len(structure.stages) > 1 and shape and shape[0] in entering)
            first = last + 1 if opens else last - 1
        rows[0 if first > last else -1].weights.append(name)


def _closeness(name: str, paths: Iterable[str]) -> int:
    """How many leading components a name has in common with the closest of the paths."""
    closest = 0
    for path in paths:
        pairs = zip(name.split("."), path.split("."), strict=False)
        closest = max(closest, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return closest


def _count(graph: Graph, rows: list[Row]) -> None:
    """Parameters and zeros; what is tied counts once, in the row that comes first."""
    parameters: set[int] = set()
    prunable: set[int] = set()
    for row in rows:
        for name in row.weights:
            weight = graph.weights[name]
            size = prod(weight.shape)
            key = id(weight.storage)
            if weight.is_parameter and key not in parameters:
                parameters.add(key)
                row.parameters += size
            if weight.counted and key not in prunable:
                prunable.add(key)
                row.prunable += size
                row.zeros += weight.mask.zeros if weight.mask else 0


def _outermost(row: Row, graph: Graph) -> tuple[str, ...]:
    """The outermost modules that hold weights of this row only; a weight of the root stands for itself."""
    if row.stage is not None:
        return tuple(child.path for block in row.stage.all_blocks for child in block.children[:1])
    own = set(row.weights)
    foreign = {
        name[: match.start()]
        for name in graph.weights
        if name not in own
        for match in re.finditer(r"\.", name)
    }
    found: dict[str, None] = {}
    for name in row.weights:
        path = name.rpartition(".")[0] or name
        ends = [match.start() for match in re.finditer(r"\.", path)] + [len(path)]
        found[next((path[:end] for end in ends if path[:end] not in foreign), name)] = None
    return tuple(found)


def _first_and_last(paths: Sequence[str]) -> str:
    return ", ".join(paths) if len(paths) < 3 else f"{paths[0]} .. {paths[-1]}"


# -- depth --------------------------------------------------------------------------------------------------------


def _count_layers(
    graph: Graph, structure: Structure, rows: list[Row], opening: dict[Stage, Row], lengths: dict[Value, int]
) -> None:
    """Weight layers of each row; of branches side by side each has its own, though only the longest counts."""
    for row in rows:
        if row.stage is not None:
            counts = [block.layers for block in row.stage.all_blocks]
            row.layers = None if None in counts else sum(count or 0 for count in counts)
    if not lengths:
        for row in rows:
            if row.stage is None and structure.depth is not None:
                row.layers = sum(graph.weights[name].layer and not looks_up(name) for name in row.weights)
        return
    reached = 0
    for stage in structure.stages:
        first, last = stage.all_blocks[0].input, stage.all_blocks[-1].output
        if first is not None:
            opening[stage].layers = max(lengths.get(first, 0) - reached, 0)
        if last is not None:
            reached = lengths.get(last, reached)
    if structure.depth is not None:
        rows[-1].layers = max(structure.depth - reached, 0)


# -- what is a channel, and what a block is called ----------------------------------------------------------------


def activation_of(stage: Stage) -> Activation | None:
    """Channels and resolution of what a stage's blocks hand on; None where no layer shows which axis is which."""
    shape = stage.shape
    if shape is None or len(shape) < 2:
        return None
    if len(shape) == 2:
        return Activation(shape[1])
    axis = channel_axis(stage, shape)
    if axis is None:
        return None
    if axis == 1:
        return Activation(shape[1], shape[2:])
    return Activation(shape[-1], shape[1:-1], tokens=len(shape) == 3)


def channel_axis(stage: Stage, shape: tuple[int, ...]) -> int | None:
    """1 or -1, by the first layer of a block that reads an activation of the stage's shape.

    Where every layer reads it reshaped (windows, tokens), by the first whose channels are the extent of one axis only.
    """
    likely: int | None = None
    for block in reversed(stage.all_blocks):
        for node in block.nodes:
            axis = 1 if _SECOND.search(node.op) else -1 if _LAST.search(node.op) else None
            if axis is None or not node.weight_names():
                continue
            read = next((value.type.shape for value in node.operands() if value.type is not None), ())
            if read == shape:
                return axis
            if likely is None and len(read) > 1 and shape[1] != shape[-1]:
                likely = {shape[1]: 1, shape[-1]: -1}.get(read[axis])
    return likely


class _Live:
    """The live module, or the outline of one, asked for classes by the names that paths have now; there may be none."""

    def __init__(self, graph: Graph) -> None:
        stated = graph.origin.stated
        self.stated = stated is not None and stated.at_hand
        self.module: Any = stated.outline if stated is not None and stated.at_hand else graph.origin.module
        self.graph = graph
        self.origins = {
            child.path: child.origin
            for container in graph.structure.containers
            for child in container.children
            if child.path != child.origin
        }

    def name(self, path: str) -> str | None:
        """The class name of the module at a path; None where there is none."""
        found = self.module
        for part in rename_path(path, self.origins).split("."):
            found = getattr(found, "_modules", {}).get(part)
        if found is None:
            return None
        if not self.stated:
            return type(found).__name__
        from elastic_ir.formats.pickles.description import class_of

        return class_of(found).rpartition(":")[2].rpartition(".")[2]

    def type_of(self, row: Row) -> str | None:
        if self.module is None:
            return None
        if row.stage is not None:
            names = [self._block(block) for block in row.stage.all_blocks]
            if row.stage.container.parameters:
                names = [self.name(row.stage.container.path)]
        else:
            names = [self.name(path) for path in row.modules]
        counted = Counter(name for name in names if name is not None)
        return _first_and_last([name for name, _ in counted.most_common()]) or None

    def _block(self, block: Block) -> str | None:
        """A block of several children is called by those of them that hold weights."""
        paths = [child.path for child in block.children]
        if len(paths) > 1:
            paths = [
                p for p in paths if any(name.startswith(f"{p}.") for name in self.graph.weights)
            ] or paths
        names = [self.name(path) for path in paths]
        return " + ".join(name for name in names if name is not None) or None
