"""Bundles: series of numbered slots that advance together, so that a block has slots in each of them.

``for attn, ff in zip(self.attns, self.ffs)`` runs the slots of two lists in turn. Which series belong together shows in
the order in which they run, where one takes a step each time the other does, and in the flow of data inside a block.
That their numbers agree shows nothing: two towers of equal depth are numbered alike.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from elastic_ir.discovery.parts import Group
from elastic_ir.ir.graph import Node
from elastic_ir.ir.structure import Container

#: The places of the first and the last node of something, in the order in which the nodes run.
Span = tuple[int, int]
#: Blocks that are asked whether flow joins the series in them: streams may meet in every second block only.
_WINDOW = 4


@dataclass(eq=False)
class Series:
    """A container's groups, which run one after the other."""

    container: Container
    groups: list[Group]
    spans: list[Span]
    within: str  #: path of the numbered module that holds the container, "" where none does
    layered: bool  #: whether a group holds a convolution or linear layer; a list of norms holds none
    beside: list[Node]  #: nodes of the container's children that are in no group, such as pools
    others: tuple[
        Container, ...
    ] = ()  #: where its groups have slots in several: the parameters of recurrent layers

    @property
    def first(self) -> int:
        return self.spans[0][0]

    @property
    def last(self) -> int:
        return self.spans[-1][1]


@dataclass(eq=False)
class Bundle:
    """Series that advance together, in the order in which a block runs them."""

    series: list[Series]
    groups: list[Group] | None = field(default=None)  #: its blocks, once they are asked for

    @property
    def lead(self) -> Series:
        """The series whose numbers are those of the blocks: the shortest that holds layers, of those the first."""
        layered = [series for series in self.series if series.layered]
        return min(layered, key=lambda series: len(series.groups))

    @property
    def containers(self) -> tuple[Container, ...]:
        """The containers of its series, the lead's first."""
        lead = self.lead
        ordered = (lead, *(one for one in self.series if one is not lead))
        return tuple(box for one in ordered for box in (one.container, *one.others))

    def blocks(self, ranks: int = 1) -> Iterator[tuple[Group, Span]]:
        """For each block a group of its parts, the lead's first, and the span of their nodes.

        Of several ``ranks`` a block has so many slots of the lead in a row, and those that go with them.
        """
        found = self._ranks()
        while rows := list(itertools.islice(found, ranks)):
            made = Group([part for group, _ in rows for part in group.parts])
            made.boundary = any(group.boundary for group, _ in rows)
            made.torn = any(group.torn for group, _ in rows)
            yield made, (rows[0][1][0], rows[-1][1][1])

    def _ranks(self) -> Iterator[tuple[Group, Span]]:
        lead = self.lead
        counts = [len(series.groups) for series in self.series]
        rows = max(counts) if max(counts) - min(counts) <= 1 else min(counts)
        for row in range(rows):
            members: list[tuple[bool, Span, Group]] = []
            for series, count in zip(self.series, counts, strict=True):
                step = max(1, count // rows)
                for place in range(row * step, min((row + 1) * step, count)):
                    members.append((series is not lead, series.spans[place], series.groups[place]))
            members.sort(key=lambda member: member[:2])
            made = Group([part for _, _, group in members for part in group.parts])
            made.boundary = any(group.boundary for _, _, group in members)
            made.torn = any(row * max(1, count // rows) >= count for count in counts)
            made.torn |= any(group.torn for _, _, group in members)
            spans = [span for _, span, _ in members]
            yield made, (min(spans)[0], max(last for _, last in spans))


def bundles_of(
    series: Sequence[Series], nodes: Sequence[Node], belongs: Callable[[Node, str], bool]
) -> list[Bundle]:
    """Put together the series that take turns and are joined by flow inside a block; most are alone in a bundle.

    ``nodes`` are the graph's, in order; ``belongs`` says of a node whether it may be part of a block beside the slots:
    whether who runs series in the numbered module of a path runs it, too.
    """
    owners: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        owners[one.within].append(one)
    found = []
    for siblings in owners.values():
        siblings.sort(key=lambda one: one.first)
        turns: list[tuple[Series, Series]] = []
        running: list[Series] = []
        for one in siblings:
            running = [other for other in running if other.last > one.first]
            turns += [(other, one) for other in running if _take_turns(other, one)]
            running.append(one)
        if not turns:
            found += [Bundle([one]) for one in siblings]
            continue
        import networkx as nx  # takes longer than all of this, and most networks do without

        beside: nx.Graph[Series] = nx.Graph()
        beside.add_nodes_from(siblings)
        beside.add_edges_from(turns)
        for together in nx.connected_components(beside):
            ordered = sorted(together, key=lambda one: one.first)
            found += [Bundle(joined) for joined in _joined(ordered, nodes, belongs)]
    return [bundle for bundle in found if any(one.layered for one in bundle.series)]


def _take_turns(left: Series, right: Series) -> bool:
    """Whether two series advance in turn, one group each, or several of the one for each of the other."""
    many, few = (left, right) if len(left.groups) >= len(right.groups) else (right, left)
    if len(few.groups) < 2:
        return False
    if (
        left.spans == right.spans
    ):  # one operation reads an entry of each (``F.linear(x, weights[i], biases[i])``)
        return True
    spans = sorted([*((span, "m") for span in many.spans), *((span, "f") for span in few.spans)])
    if any(before[0][1] >= after[0][0] for before, after in itertools.pairwise(spans)):
        return False
    word = "".join(letter for _, letter in spans)
    if len(many.groups) - len(few.groups) <= 1:
        return "mm" not in word and "ff" not in word
    step, rest = divmod(len(many.groups), len(few.groups))
    turns = ("m" * at + "f" + "m" * (step - at) for at in range(step + 1))
    return not rest and any(word == turn * len(few.groups) for turn in turns)


def _joined(
    together: list[Series], nodes: Sequence[Node], belongs: Callable[[Node, str], bool]
) -> list[list[Series]]:
    """Series that take turns, parted where no flow inside a block joins them: towers that one loop steps."""
    if len(together) == 1:
        return [together]
    import networkx as nx

    lead = min(together, key=lambda one: len(one.groups))
    start, behind = lead.spans[len(lead.spans) > 2][0], 1 + _WINDOW
    end = lead.spans[behind][0] if len(lead.spans) > behind else max(one.last for one in together) + 1
    owner: dict[Node, list[Series]] = defaultdict(list)
    for one in together:
        for first, last in one.spans:
            for node in nodes[max(first, start) : min(last + 1, end)]:
                owner[node].append(one)
    window = [node for node in nodes[start:end] if node in owner or belongs(node, lead.within)]
    inside = set(window)
    flow: nx.Graph[Node | Series] = nx.Graph()
    flow.add_nodes_from(together)
    for node in window:
        flow.add_edges_from((one, node) for one in owner.get(node, ()))
        flow.add_edges_from((value.node, node) for value in node.operands() if value.node in inside)
    parted = [[one for one in together if one in component] for component in nx.connected_components(flow)]
    return [members for members in parted if members]
