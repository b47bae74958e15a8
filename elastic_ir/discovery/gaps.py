"""Gaps: what a caller does between blocks (a residual sum, an activation), and which block each part of it belongs to.

All gaps are cut at one offset, where the fewest values are alive: behind a residual sum one is, before it two are. What
the caller does before the first block and behind the last belongs to them as far as it is what it does in the gaps.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence

from elastic_ir.discovery.bundles import Span
from elastic_ir.discovery.parts import Group, Part
from elastic_ir.ir.graph import Node, Value


class Gaps:
    """What a caller does around the slots of blocks that run one after the other.

    ``owner`` has the nodes of the slots, each with the number of its block; ``belongs`` says of any other node whether
    it may be part of a block, and ``around`` are those between the first and the last slot that may.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        around: Sequence[Node],
        owner: dict[Node, int],
        belongs: Callable[[Node], bool],
        nodes: Sequence[Node],
        order: Mapping[Node, int],
        users: Mapping[Value, Sequence[Node]],
    ) -> None:
        self.spans, self.around, self.owner, self.belongs = spans, around, owner, belongs
        self.nodes, self.order, self.users = nodes, order, users

    def deal_out(self, groups: Sequence[Group], *, first_apart: bool = False) -> None:
        """Enter in ``owner`` what the caller does around all blocks alike, and mark ends that lack some of it.

        With ``first_apart`` the others show what that is, and the first block keeps what is done behind it besides.
        """
        owner, last = self.owner, len(groups) - 1
        gaps = self._between()
        dependent = self._dependent()
        ahead = self._ahead(gaps, dependent)
        first_nodes = [node for node, row in owner.items() if row == 0]
        last_nodes = [node for node, row in owner.items() if row == last]

        def lead(behind: Sequence[Node], before: Sequence[Node]) -> tuple[list[Node], bool]:
            wanted = sorted([*before, *ahead], key=self.order.__getitem__)
            found = self._lead([*first_nodes, *behind], [node.op for node in wanted])
            return found, len(found) == len(wanted)

        def trail(operations: Sequence[str]) -> list[Node]:
            return self._trail(last_nodes, operations)

        splits = list((_split_behind_first if first_apart else _split)(gaps, self._alive, lead, trail))
        for index, (behind, before) in enumerate(splits):
            owner.update(dict.fromkeys(behind, index))
            owner.update(dict.fromkeys(before, index + 1))
        (leading, led), behind = lead(*splits[0]), splits[-1][0]
        trailing = trail([node.op for node in behind])
        owner.update(dict.fromkeys(leading, 0))
        owner.update(dict.fromkeys(trailing, last))
        groups[0].torn |= not led or first_apart
        groups[-1].torn |= len(trailing) < len(behind)
        for node in reversed(
            self.around
        ):  # what the last block's trail alone reads, and the others' read inside
            readers = {owner.get(user) for user in self.users.get(node.output, ())}
            at = self.spans[-1][0] if node in dependent else self.spans[-2][1]
            if self.order[node] > at and node not in owner and readers == {last}:
                owner[node] = last

    def end_like(self, whole: Sequence[Part], rest: Sequence[Part]) -> None:
        """Enter what the caller does behind a last block of fewer slots: what it does so deep inside the others."""
        last = len(self.spans) - 1
        end = max(self.order[node] for part in whole[: len(rest)] for node in part.nodes)
        lacking = [self.order[node] for part in whole[len(rest) :] for node in part.nodes]
        if not lacking:  # slots that run nothing, such as numbers that no module has
            return
        start = min(lacking)
        inside = [node.op for node in self.nodes[end + 1 : start] if node in self.owner]
        own = [node for node, row in self.owner.items() if row == last]
        self.owner.update(dict.fromkeys(self._trail(own, inside), last))

    def _between(self) -> list[list[Node]]:
        """The nodes of each gap that depend on a block or that one depends on; those inside a block are its own."""
        joined = set(self.owner)
        for node in self.around:  # what depends on a block
            if any(value.node in joined for value in node.operands()):
                joined.add(node)
        for node in reversed(self.around):  # and what a block depends on
            if any(user in joined for user in self.users.get(node.output, ())):
                joined.add(node)
        gaps: list[list[Node]] = [[] for _ in self.spans[1:]]
        starts = [first for first, _ in self.spans]
        for node in self.around:
            place = self.order[node]
            row = bisect_right(starts, place) - 1
            if node in joined:
                if place <= self.spans[row][1]:
                    self.owner[node] = row
                else:
                    gaps[row].append(node)
        return gaps

    def _dependent(self) -> set[Node]:
        """The nodes of blocks, and what depends on them, over layers between blocks as well."""
        found = set(self.owner)
        for node in self.nodes[self.spans[0][0] : self.spans[-1][1] + 1]:
            if any(value.node in found for value in node.operands()):
                found.add(node)
        return found

    def _ahead(self, gaps: list[list[Node]], dependent: Collection[Node]) -> list[Node]:
        """Give blocks what the caller makes of no block before them for them alone, as their part of a shared value.

        No cut runs through it: it is taken out of the gaps. Returns what the second block has of it.
        """
        starts = [first for first, _ in self.spans]
        found: list[Node] = []
        for row, gap in enumerate(gaps, 1):
            for node in reversed(gap):
                readers = self.users.get(node.output, ())
                rows = {self.owner.get(user, bisect_right(starts, self.order[user]) - 1) for user in readers}
                if node not in dependent and rows == {row}:
                    self.owner[node] = row
                    found += [node] if row == 1 else []
            gap[:] = [node for node in gap if node not in self.owner]
        return found

    def _alive(self, row: int, gap: Sequence[Node]) -> list[tuple[int, int]]:
        """How many values and elements are alive behind a block, and behind each node of the gap that follows it."""
        first, last = self.spans[row]
        places = [last, *(self.order[node] for node in gap)]
        block = [node for node in self.nodes[first : last + 1] if node in self.owner]
        values = dict.fromkeys(
            [
                *(node.output for node in (*block, *gap)),
                *(value for node in gap for value in node.operands()),
            ]
        )
        alive = [[0, 0] for _ in places]
        for value in values:
            made = self.order[value.node]
            read = max((self.order[user] for user in self.users.get(value, ())), default=-1)
            for index, place in enumerate(places):
                if made <= place < read:
                    # a tuple is taken apart by what made it
                    alive[index][0] += 1 if value.is_tensor else 1000
                    alive[index][1] += _elements(value)
        return [(count, size) for count, size in alive]

    def _lead(self, block: Sequence[Node], operations: Sequence[str]) -> list[Node]:
        """Nodes of these operations, in order, that lead into a block: the last ones, as far as they agree."""
        wanted = {value.node for node in block for value in node.operands()}
        place = min((self.order[node] for node in block), default=0)
        found: list[Node] = []
        for operation in reversed(operations):
            place -= 1
            while place >= 0 and self.nodes[place] not in wanted:
                place -= 1
            node = self.nodes[place] if place >= 0 else None
            if node is None or node.op != operation or not self._open(node):
                break
            found.append(node)
            wanted |= {value.node for value in node.operands()}
        return found[::-1]

    def _trail(self, block: Sequence[Node], operations: Sequence[str]) -> list[Node]:
        """Nodes of these operations, in order, that follow a block: the first ones, as far as they agree.

        Those that make something out of nothing but constants, or of what was there before the block, come with what
        reads it.
        """
        made = {node.output for node in block}
        aside: set[Value] = set()
        start = min((self.order[node] for node in block), default=0)
        place = max((self.order[node] for node in block), default=-1)
        found: list[Node] = []
        for operation in operations:
            place += 1
            while place < len(self.nodes) and not self._follows(
                self.nodes[place], operation, made, aside, start
            ):
                place += 1
            node = self.nodes[place] if place < len(self.nodes) else None
            if node is None or node.op != operation or not self._open(node):
                break
            found.append(node)
            (aside if made.isdisjoint(node.operands()) else made).add(node.output)
        while found and found[-1].output in aside:
            found.pop()
        return found

    def _follows(self, node: Node, operation: str, made: set[Value], aside: set[Value], start: int) -> bool:
        if not made.isdisjoint(node.operands()):
            return True
        fixed = all(
            value in aside or value.node.kind == "constant" or self.order[value.node] < start
            for value in node.operands()
        )
        return fixed and node.op == operation and self._open(node)

    def _open(self, node: Node) -> bool:
        return node not in self.owner and self.belongs(node)


def _split(
    gaps: Sequence[list[Node]],
    alive: Callable[[int, Sequence[Node]], list[tuple[int, int]]],
    lead: Callable[[Sequence[Node], Sequence[Node]], tuple[Sequence[Node], bool]],
    trail: Callable[[Sequence[str]], Sequence[Node]],
) -> list[tuple[list[Node], list[Node]]]:
    """For each gap what belongs to the block before it, and what to the block behind it.

    Of the offsets that leave the first and the last block whole the one is taken at which the fewest values are alive,
    then the fewest elements, then the last; ``alive`` says of a gap how many of both are so before its first node, and
    behind each. ``lead`` finds before the first block the operations of the second part of a gap, whose first part is
    given too, and says whether all are there; ``trail`` finds those of the first part behind the last. Where gaps
    differ, what all begin and end with is dealt out, and the rest belongs to no block.
    """
    words = [[node.op for node in gap] for gap in gaps]
    if any(word != words[0] for word in words):
        head = _common(words)
        tail = min(_common([word[::-1] for word in words]), min(map(len, words)) - head)
        return [(gap[:head], gap[len(gap) - tail :]) for gap in gaps]
    if not words[0]:
        return [([], []) for _ in gaps]
    costs = [alive(row, gap) for row, gap in enumerate(gaps)]

    def cost(offset: int) -> tuple[bool, tuple[int, int], int]:
        behind = words[0][:offset]
        torn = len(trail(behind)) < len(behind) or not lead(gaps[0][:offset], gaps[0][offset:])[1]
        return torn, max(one[offset] for one in costs), -offset

    at = min(range(len(words[0]) + 1), key=cost)
    return [(gap[:at], gap[at:]) for gap in gaps]


def _split_behind_first(
    gaps: Sequence[list[Node]],
    alive: Callable[[int, Sequence[Node]], list[tuple[int, int]]],
    lead: Callable[[Sequence[Node], Sequence[Node]], tuple[Sequence[Node], bool]],
    trail: Callable[[Sequence[str]], Sequence[Node]],
) -> list[tuple[list[Node], list[Node]]]:
    """As :func:`_split`, with the first gap dealt out as the others show: what ends as they do is of the next block.

    The first block may do otherwise (boxes of two coordinates become some of four), so it need not lead in as they do.
    """
    rest = _split(gaps[1:], lambda row, gap: alive(row + 1, gap), lambda *_: ([], True), trail)
    before = [node.op for node in rest[0][1]]
    at = len(gaps[0]) - _common([before[::-1], [node.op for node in gaps[0]][::-1]])
    return [(gaps[0][:at], gaps[0][at:]), *rest]


def _common(words: Sequence[Sequence[str]]) -> int:
    """How many items all sequences begin with."""
    return sum(
        1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    )


def _elements(value: Value) -> int:
    size = 1
    for extent in value.type.shape if value.type is not None else ():
        size *= abs(extent)
    return size
