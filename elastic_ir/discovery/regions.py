"""Regions: a network without module names, cut where all its flow passes through one value.

Such a value dominates the output (Cooper, Harvey and Kennedy 2001 compute dominators as networkx does). What lies
between two of them is a segment: a residual block, or a single layer of a chain. Flow is what depends on a layer's
weights: attention masks, rotary tables and shapes, read along the way, are none, and so do not hide the cuts. From the
segments blocks are put together, and every node gets the scope that a container of these blocks would give it; the
rest of the discovery then works as on any other network.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

import networkx as nx

from elastic_ir.discovery.depth import path_lengths
from elastic_ir.graph import Graph, Node, Value

CONTAINER = "blocks"
_LONGEST = 8  #: steps that a block may have
_LARGEST = 12  #: layers on a path through a block; in more, other blocks hide
_NO_FLOW = {"onnx.Shape", "onnx.Size"}

#: A layer's kind: its operator, the extents of its kernel, whether each channel has a filter of its own.
Kind: TypeAlias = tuple[str, tuple[int, ...], bool]


@dataclass(eq=False)
class _Segment:
    """What lies between two cuts; the later one's node belongs to it."""

    nodes: list[Node] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    layers: list[Kind] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    reshapes: bool = False  #: without weights, and of another shape behind than before


def scope_regions(graph: Graph) -> bool:
    """Give the nodes of a graph without module scopes those of its regions; False where it has no chain of cuts."""
    segments = _segments(graph)
    steps = _steps(segments)
    if len(steps) < 2:
        return False
    for index, block in enumerate(_blocks(steps)):
        counts: Counter[str] = Counter()
        path = f"{CONTAINER}.{index}"
        for segment in block:
            for node in segment.nodes:
                node.scope = path
                if node.weight_names():
                    kind = node.op.rpartition(".")[2].lower()
                    node.scope = f"{path}.{kind}_{_letters(counts[kind])}"
                    counts[kind] += 1
    for node in graph:  # also of results that nothing reads
        if node.op == "operator.getitem":
            node.scope = node.operands()[0].node.scope
    return True


def _letters(number: int) -> str:
    """a, b, ... z, aa: names that do not look like the numbered children of a container."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(97 + rest) + text
    return text


# -- segments ----------------------------------------------------------------------------------------------------------


def _flow(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """The nodes whose results depend on a layer's weights, each with those of its operands that do, in order."""
    prunable = {name for name, weight in graph.weights.items() if weight.prunable}
    carries: set[Value] = set()  # layers' weights, transposed or dequantised
    fed: set[Value] = set()  # what comes from an input of the network
    flow: dict[Node, tuple[Node, ...]] = {}
    for node in graph:
        if node.kind == "output":
            continue
        operands = node.operands()
        inputs = tuple(dict.fromkeys(value.node for value in operands if value.node in flow))
        live = node.kind == "input" or any(value in fed for value in operands)
        if live:
            fed.add(node.output)
        weighted = bool(prunable.intersection(node.weight_names())) or any(v in carries for v in operands)
        if not live:
            if weighted:
                carries.add(node.output)
            continue
        looked_up = node.op == "onnx.Gather"
        if node.op not in _NO_FLOW and (inputs or (weighted and not looked_up)):
            flow[node] = inputs
    return flow


def _segments(graph: Graph) -> list[_Segment]:
    flow = _flow(graph)
    if not flow:
        return []
    root = Node("", "root")
    edges: nx.DiGraph[Node] = nx.DiGraph()
    for node, inputs in flow.items():
        edges.add_edges_from((operand, node) for operand in inputs or (root,))
    above = nx.immediate_dominators(edges, root)
    last = _end_of_trunk(graph, flow, above)
    reach, stack = {last}, [last]
    while stack:
        for node in flow[stack.pop()]:
            if node not in reach:
                reach.add(node)
                stack.append(node)
    cuts = [last]
    while above[cuts[-1]] is not root:
        cuts.append(above[cuts[-1]])
    cuts.reverse()
    place = {node: index for index, node in enumerate(cuts)}
    number = dict(place)
    for node in flow:  # in order, so that what dominates a node has its place before it
        if node in reach and node not in number:
            over = above[node]
            place[node] = 0 if over is root else number[over] + 1 if over in number else place[over]
    _take_helpers(graph, flow, place)
    segments = [_Segment() for _ in cuts]
    for node in graph:
        if node in place:
            segments[place[node]].nodes.append(node)
    before: Value | None = None
    for segment, cut in zip(segments, cuts, strict=True):
        _describe(segment, graph, flow, before, cut.output)
        before = cut.output
    return segments


def _end_of_trunk(graph: Graph, flow: dict[Node, tuple[Node, ...]], above: dict[Node, Node]) -> Node:
    """The node up to which the cuts explain most layers; of equals the last.

    It is the output in a classifier. Where stages are tapped (a pyramid of features), the output has hardly a cut above
    it, while the backbone's end has them all.
    """
    lengths = path_lengths(graph)
    explained: dict[Node, tuple[int, int]] = {}  # layers, and the cuts between them
    best: Node | None = None
    for node in flow:
        over = above.get(node)
        before = lengths[over.output] if over in explained else 0
        gain = min(lengths[node.output] - before, _LARGEST)
        layers, cuts = explained.get(over, (0, 0)) if over is not None else (0, 0)
        explained[node] = (layers + max(gain, 0), cuts + 1) if over is not None else (0, 0)
        if best is None or explained[node] >= explained[best]:
            best = node
    assert best is not None
    return best


def _take_helpers(graph: Graph, flow: dict[Node, tuple[Node, ...]], place: dict[Node, int]) -> None:
    """What is no flow (shapes, weights being transposed) goes to the one segment that reads it, if it is one."""
    users = graph.users()
    for node in reversed(graph.nodes):
        if node not in flow and node.kind not in ("input", "output"):
            readers = {place.get(reader, -1) for reader in users.get(node.output, ())}
            if len(readers) == 1 and -1 not in readers:
                place[node] = readers.pop()


def _describe(
    segment: _Segment, graph: Graph, flow: dict[Node, tuple[Node, ...]], before: Value | None, cut: Value
) -> None:
    carried: dict[Value, list[str]] = {}
    for node in segment.nodes:
        found = [name for name in node.weight_names() if graph.weights[name].prunable]
        found += [name for value in node.operands() for name in carried.get(value, ())]
        if node not in flow:
            carried[node.output] = found
            continue
        segment.operations.append(node.op)
        for name in dict.fromkeys(found):
            shape = graph.weights[name].shape
            segment.layers.append((node.op, shape[2:], len(shape) > 2 and shape[1] == 1))
            segment.shapes.append(shape)
    kinds = [value.type for value in (before, cut) if value is not None]
    if not segment.layers and len(kinds) == 2 and kinds[0] is not None and kinds[1] is not None:
        segment.reshapes = not kinds[0].fits(kinds[1])


# -- blocks ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Step:
    """A segment with layers and what follows it without any; or a segment that reshapes and has none (a pool)."""

    segments: list[_Segment]

    @property
    def layers(self) -> list[Kind]:
        return [layer for segment in self.segments for layer in segment.layers]

    @property
    def operations(self) -> tuple[str, ...]:
        return tuple(operation for segment in self.segments for operation in segment.operations)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(shape for segment in self.segments for shape in segment.shapes)


def _steps(segments: list[_Segment]) -> list[_Step]:
    steps: list[_Step] = []
    for segment in segments:
        if segment.layers or segment.reshapes:
            steps.append(_Step([segment]))
        elif steps and steps[-1].layers:
            steps[-1].segments.append(segment)
    return steps


def _blocks(steps: list[_Step]) -> list[list[_Segment]]:
    """The steps put together into blocks: those of one unit, and chains of layers that match a unit's.

    What comes before the first block that is like a unit, or after the last, is the stem or the head and no block.
    """
    period = _period(steps)
    units = _units(steps, period)
    blocks: list[list[_Step]] = []
    at = 0
    while at < len(steps):
        size = _unit_at(steps, at, period, units) or 1
        blocks.append(steps[at : at + size])
        at += size
    like = [index for index, block in enumerate(blocks) if _is_like(block, units)]
    if like:
        blocks = blocks[like[0] : like[-1] + 1]
    return [[segment for step in block for segment in step.segments] for block in blocks]


def _is_like(block: list[_Step], units: list[list[list[Kind]]]) -> bool:
    """Whether a block has all the layers of some unit, and perhaps more (a projection)."""
    have = Counter(layer for step in block for layer in step.layers)
    return any(have >= Counter(itertools.chain(*unit)) for unit in units)


def _period(steps: list[_Step]) -> int:
    """How many steps repeat, told by the shapes of the layers' weights: what covers most layers, then the fewest.

    Steps of the same operations and kinds of layers are blocks of one kind, and no parts of one, whatever their widths.
    """
    best, covered = 1, 0
    for period in range(1, min(_LONGEST, len(steps) // 2) + 1):
        runs = _runs(steps, period)
        layers = sum(len(step.layers) for start, stop in runs for step in steps[start:stop])
        if layers > covered:
            best, covered = period, layers
            unit = [(step.operations, step.layers) for step in steps[runs[0][0] : runs[0][0] + period]]
            shorter = (q for q in range(1, period) if period % q == 0 and unit == unit[:q] * (period // q))
            best = next(shorter, period)
    return best


def _runs(steps: list[_Step], period: int) -> list[tuple[int, int]]:
    """Where steps repeat with a period, as (first, behind the last), in whole periods."""
    runs = []
    start = 0
    while start + period < len(steps):
        stop = start
        while (
            stop + period < len(steps)
            and steps[stop].shapes == steps[stop + period].shapes
            and steps[stop].layers
        ):
            stop += 1
        count = (stop - start) // period + 1 if stop - start >= period else 0
        if count:
            runs.append((start, start + count * period))
            start += count * period
        else:
            start += 1
    return runs


def _units(steps: list[_Step], period: int) -> list[list[list[Kind]]]:
    """The kinds of layers, step by step, of the units that repeat; of all single steps with layers where none does."""
    found = [
        [step.layers for step in steps[start : start + period]]
        for size in range(period, _LONGEST + 1, period)  # of one period, or alternating in several
        for start, _ in _runs(steps, size)
    ]
    unique: list[list[list[Kind]]] = []
    for unit in found:
        if unit not in unique:
            unique.append(unit)
    return unique


def _unit_at(steps: list[_Step], at: int, period: int, units: list[list[list[Kind]]]) -> int | None:
    """How many steps a unit that begins here takes; None where none does.

    A block that changes the activation's shape has no shortcut, or one with a layer of its own: it shows as a chain of
    the unit's layers, one to a step, or as a step with a layer more.
    """
    for unit in units:
        if [step.layers for step in steps[at : at + period]] == unit:
            return period
    for unit in units:
        kinds = list(itertools.chain(*unit))
        chain = steps[at : at + len(kinds)]
        if len(kinds) > len(unit) and [step.layers for step in chain] == [[kind] for kind in kinds]:
            return len(kinds)
    return None
