"""Regions: a network without module names, whose blocks show in the values that all its flow passes through.

From the segments between them (:mod:`elastic_ir.discovery.segments`) blocks are put together, and every node gets the
scope that a container of these blocks would give it; the rest of the discovery then works as on any other network.
What stands between blocks and is like none of them is a transition, beside the container. Networks of several trunks
(an encoder and its decoder, two towers) get a container for each.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

from elastic_ir.discovery.segments import Kind, Segment, find_trunks
from elastic_ir.ir.graph import Graph, Node

CONTAINER, TRANSITION = "blocks", "transition"
_LONGEST = 8  #: steps that a block may have
_TRUNKS = 4  #: that are looked for


def scope_regions(graph: Graph) -> bool:
    """Give the nodes of a graph without module scopes those of its regions; False where it has no chain of cuts."""
    done: set[Node] = set()
    paths: dict[Node, str] = {}
    containers = transitions = 0
    for trunk in range(_TRUNKS):
        found = [(_steps(found.segments), found.nodes) for found in find_trunks(graph, done)]
        if not found:
            break
        steps, nodes = max(found, key=lambda item: _covered(item[0]))  # the first of equals
        if sum(bool(step.layers) for step in steps) < 2 or (trunk and not _covered(steps)):
            break
        done |= nodes
        box = CONTAINER if not containers else f"{CONTAINER}_{_letters(containers)}"
        containers += 1
        count = 0
        for part in _parts(steps):
            path = f"{box}.{count}" if part.block else f"{TRANSITION}_{_letters(transitions)}"
            count, transitions = (count + 1, transitions) if part.block else (count, transitions + 1)
            paths.update((node, path) for segment in part.segments for node in segment.nodes)
    _take_helpers(graph, paths, done)
    _set_scopes(graph, paths)
    return containers > 0


def _take_helpers(graph: Graph, paths: dict[Node, str], flow: set[Node]) -> None:
    """What is not flow and is read by several segments of one block alone (a size) is that block's as well."""
    users = graph.users()
    for node in reversed(graph.nodes):
        if node not in paths and node not in flow and node.kind not in ("input", "output"):
            readers = {paths.get(reader, "") for reader in users.get(node.output, ())}
            if len(readers) == 1 and "" not in readers:
                paths[node] = readers.pop()


def _set_scopes(graph: Graph, paths: dict[Node, str]) -> None:
    """A node that uses weights gets a scope of its own in its block, after its operator."""
    counts: dict[str, Counter[str]] = {}
    for node in graph:
        path = paths.get(node)
        if path is None:
            continue
        node.scope = path
        if node.weight_names():
            kind = node.op.rpartition(".")[2].lower()
            known = counts.setdefault(path, Counter())
            node.scope = f"{path}.{kind}_{_letters(known[kind])}"
            known[kind] += 1
    for node in graph:  # also of results that nothing reads
        if node.op == "operator.getitem":
            node.scope = node.operands()[0].node.scope


def _letters(number: int) -> str:
    """a, b, ... z, aa: names that do not look like the numbered children of a container."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(97 + rest) + text
    return text


# -- steps -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Step:
    """A segment with layers and what follows it without any; or a segment that has none and resizes (a pool)."""

    segments: list[Segment]

    @property
    def layers(self) -> list[Kind]:
        return [layer for segment in self.segments for layer in segment.layers]

    @property
    def operations(self) -> tuple[str, ...]:
        return tuple(operation for segment in self.segments for operation in segment.operations)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(shape for segment in self.segments for shape in segment.shapes)


def _steps(segments: list[Segment]) -> list[_Step]:
    steps: list[_Step] = []
    for segment in segments:
        if segment.layers or segment.resizes:
            steps.append(_Step([segment]))
        elif steps and steps[-1].layers:
            steps[-1].segments.append(segment)
    return steps


def _covered(steps: list[_Step]) -> int:
    """How many layers lie in what repeats."""
    return _best_period(steps)[1]


def _best_period(steps: list[_Step]) -> tuple[int, int]:
    """How many steps repeat, by the shapes of the layers' weights: what covers most layers, then the fewest.

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
    return best, covered


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


# -- units -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Units:
    """What repeats: how many steps make a unit, and the kinds of layers, step by step, of every unit that was seen."""

    period: int
    kinds: list[list[list[Kind]]]

    @classmethod
    def of(cls, steps: list[_Step]) -> _Units:
        period, _ = _best_period(steps)
        found = [
            [step.layers for step in steps[start : start + period]]
            for size in range(period, _LONGEST + 1, period)  # of one period, or alternating in several
            for start, _ in _runs(steps, size)
        ]
        unique: list[list[list[Kind]]] = []
        for unit in found:
            if unit not in unique:
                unique.append(unit)
        return cls(period, unique)

    def size_at(self, steps: list[_Step], at: int) -> int | None:
        """How many steps a unit that begins here takes; None where none does.

        A block that changes the activation's shape has no shortcut, or one with a layer of its own: it shows as a chain
        of the unit's layers, one to a step, or as a step with a layer more.
        """
        for unit in self.kinds:
            if [step.layers for step in steps[at : at + self.period]] == unit:
                return self.period
        for unit in self.kinds:
            kinds = list(itertools.chain(*unit))
            chain = steps[at : at + len(kinds)]
            if len(kinds) > len(unit) and [step.layers for step in chain] == [[kind] for kind in kinds]:
                return len(kinds)
        return None

    def like(self, steps: list[_Step]) -> bool:
        """Whether these steps have all the layers of some unit, and perhaps more (a projection)."""
        have = Counter(layer for step in steps for layer in step.layers)
        return any(have >= Counter(itertools.chain(*unit)) for unit in self.kinds)

    def size_before(self, steps: list[_Step], end: int) -> int | None:
        """How many steps before a place make a unit without its first layer, as blocks that expand nothing do.

        Only where a filter for each channel is among them: two plain layers before the blocks are a stem.
        """
        for unit in self.kinds:
            rest = list(itertools.chain(*unit))[1:]
            if len(rest) < 2 or not any(alone for _, _, alone in rest):
                continue
            for size in range(1, min(len(rest), end) + 1):
                if list(itertools.chain(*(step.layers for step in steps[end - size : end]))) == rest:
                    return size
        return None


# -- parts -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Part:
    """A child of the container, or a transition beside it."""

    segments: list[Segment]
    block: bool = True
    like: bool = False  #: it has all the layers of a unit

    def tail(self) -> list[Segment]:
        """The segments behind its last layer."""
        reversed_tail = itertools.takewhile(lambda segment: not segment.layers, reversed(self.segments))
        return list(reversed_tail)[::-1]


def _parts(steps: list[_Step]) -> list[_Part]:
    """The steps put together: blocks of one unit, chains of layers that match a unit's, transitions between them.

    What comes before the first block that is like a unit, or after the last, is the stem or the head and no block.
    """
    units = _Units.of(steps)
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(steps):
        size = units.size_at(steps, at) or 1
        spans.append((at, at + size))
        at += size
    like = [units.like(steps[start:stop]) for start, stop in spans]
    if any(like):
        first, last = _begin(steps, spans, like, units), len(like) - 1 - like[::-1].index(True)
        spans, like = spans[first : last + 1], like[first : last + 1]
        while (fewer := units.size_before(steps, spans[0][0])) is not None:
            spans.insert(0, (spans[0][0] - fewer, spans[0][0]))
            like.insert(0, True)
    parts: list[_Part] = []
    for (start, stop), known in zip(spans, like, strict=True):
        segments = [segment for step in steps[start:stop] for segment in step.segments]
        between = any(like) and not known and any(step.layers for step in steps[start:stop])
        if between and not parts[-1].block:
            parts[-1].segments += segments
        else:
            parts.append(_Part(segments, block=not between, like=known))
    _trim(parts)
    return parts


def _begin(steps: list[_Step], spans: list[tuple[int, int]], like: list[bool], units: _Units) -> int:
    """The first span that is a block: not the chains of a stem, behind which layers come that are like no unit."""
    first = like.index(True)
    for place, (start, stop) in enumerate(spans):
        layered = any(step.layers for step in steps[start:stop])
        if like[place] and stop - start == units.period:
            break
        if layered and not like[place] and any(like[place + 1 :]):
            first = place + 1 + like[place + 1 :].index(True)
    return first


def _trim(parts: list[_Part]) -> None:
    """Take from the last block of a stage what follows none of the others (a norm before the head, a rearrangement)."""

    def operations(part: _Part) -> list[tuple[str, ...]]:
        return [tuple(segment.operations) for segment in part.tail()]

    last = [
        part.like and (following is None or not following.like)
        for part, following in zip(parts, [*parts[1:], None], strict=True)
    ]
    inner = Counter(
        tuple(operations(part)) for part, end in zip(parts, last, strict=True) if part.like and not end
    )
    if not inner:
        return
    usual = list(inner.most_common(1)[0][0])
    for place, (part, end) in enumerate(zip(parts, last, strict=True)):
        found = operations(part)
        if not end or len(found) <= len(usual) or found[: len(usual)] != usual:
            continue
        excess = len(found) - len(usual)
        loose = part.segments[-excess:]
        del part.segments[-excess:]
        if place + 1 < len(parts) and not parts[place + 1].block:
            parts[place + 1].segments[:0] = loose
