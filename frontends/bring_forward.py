"""Bringing forward what a forward computes of every block only behind the last one: a head for each layer's state.

DETR's relatives collect the decoder's states, in a list or a stack, and run a head for each of them when the loop is
over. What such a head reads is known as soon as its block has run, so that the nodes are put there: layer and head of
one number then run in turn, as where the caller runs both in one loop, and discovery sees them as one block. A row of a
stack is what was stacked in it. What a network computes stays the same; nodes that may write into what others read, or
do more than compute, stay where they are.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from elastic_ir.analysis.effects import Memory, effect_of
from elastic_ir.discovery.bundles import Span
from elastic_ir.discovery.parts import Part, containers, module_tree
from elastic_ir.ir.graph import Argument, Graph, Node, Value, map_argument
from elastic_ir.ir.naming import name_nodes
from elastic_ir.ir.operations import known_kind

#: The level of what waits for no block; that of any other node is the number of the last block that it waits for.
_NOTHING = -1
_OF_ROWS = {"stack", "unbind"}  #: what is made for the sake of its rows
_COLLECTING = {"stack", "cat"}


def bring_forward(graph: Graph) -> None:
    """Put what is computed of one block alone behind that block, where every block has its like."""
    done: set[str] = set()
    while (path := _Forward(graph).bring(done)) is not None:
        done.add(path)
        name_nodes(graph)


class _Forward:
    """One graph as it stands."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = list(graph)
        self.order = {node: place for place, node in enumerate(self.nodes)}
        self.users = graph.users()
        self.last_read = {
            node: max((self.order[user] for user in self.users.get(node.output, ())), default=-1)
            for node in self.nodes
        }

    def bring(self, done: Collection[str]) -> str | None:
        """Bring nodes forward for one list of blocks that is not among those done; its template, None for no list."""
        tree = module_tree(self.graph)
        for template, spans in self._lists(tree):
            fresh = template not in done and self._read_behind(spans)
            if fresh and self._bring(tree, spans, self._end(spans)):
                return template
        return None

    def _end(self, spans: Sequence[Span]) -> int:
        """The place where the last block ends: its caller does behind it what he does behind the one before."""
        (_, before), (start, end) = spans[-2:]
        between = self.nodes[before + 1 : start]
        like = zip(between, self.nodes[end + 1 :], strict=False)
        return end + sum(1 for _ in itertools.takewhile(lambda pair: pair[0].op == pair[1].op, like))

    def _lists(self, tree: Part) -> Iterator[tuple[str, list[Span]]]:
        """The lists whose children run one after the other, by their templates, and where these run."""
        for part in tree.walk():
            if len(part.nodes) > 1 and len(part.children) > 1:
                for container, parts in containers(part, self.graph.modules):
                    spans = [self._span(one.nodes) for one in parts if one.nodes]
                    if len(spans) > 1 and all(a[1] < b[0] for a, b in itertools.pairwise(spans)):
                        yield container.template, spans

    def _span(self, nodes: Sequence[Node]) -> Span:
        places = [self.order[node] for node in nodes]
        return min(places), max(places)

    def _read_behind(self, spans: Sequence[Span]) -> bool:
        """Whether something of each block but the last is read behind the last one."""
        end = spans[-1][1]
        return all(
            any(self.last_read[node] > end for node in self.nodes[first:following])
            for (first, _), (following, _) in itertools.pairwise(spans)
        )

    def _bring(self, tree: Part, spans: Sequence[Span], end: int) -> bool:
        """Bring forward what lies behind the blocks of these spans; whether that was possible."""
        starts = [first for first, _ in spans]
        behind = [node for node in self.nodes[end + 1 :] if node.kind not in ("input", "output")]
        rows = self._rows(behind)
        level: dict[Node, int] = {}

        def waits_for(value: Value) -> int:
            place = self.order[value.node]
            return level.get(value.node, _NOTHING) if place > end else bisect_right(starts, place) - 1

        for node in behind:
            read = [rows[node]] if node in rows else node.operands()
            level[node] = max(map(waits_for, read), default=_NOTHING)
        fed = self._put_off_preparations(behind, level, len(spans) - 1)
        heads: list[list[Node]] = [[] for _ in spans]
        for node in behind:
            if level[node] != _NOTHING and node not in rows:
                heads[level[node]].append(node)
        if not all(heads[:-1]) or not self._have_their_like(tree, heads, end):
            return False
        everything = set(range(len(spans)))
        collectors = [
            node
            for node in behind
            if known_kind(node) in _COLLECTING
            and {waits_for(value) for value in node.operands()} == everything
        ]
        early = [node for node in heads[-1] if node not in fed and node not in collectors]
        moving = [sorted(row, key=fed.__contains__) for row in heads[:-1]] + [early]
        memory = Memory(self.graph)
        written = {node for node in behind if memory.changes((node.output, *node.operands()))}
        for at, row in enumerate(heads):
            if not written.isdisjoint(row):  # the order in which it is written into stays
                moving[at] = row if row is not heads[-1] else []
        if not self._may_move([*moving, collectors], memory, spans, end):
            return False
        self._fold(rows)
        self._move(moving, spans, end)
        self._put_off(collectors)
        return True

    def _put_off_preparations(self, behind: Sequence[Node], level: dict[Node, int], last: int) -> set[Node]:
        """Let what comes before all layers of a head wait for what the first head that needs it waits for.

        Such are the boxes of the block before, or the first ones, in another form. Returns all other nodes.
        """
        fed: set[Node] = set()  # what depends on a layer behind the blocks
        for node in behind:
            if node.weight_names() or any(value.node in fed for value in node.operands()):
                fed.add(node)
        for node in reversed(behind):
            if node not in fed:
                needed = min(
                    (level.get(user, last) for user in self.users.get(node.output, ())), default=_NOTHING
                )
                level[node] = max(level[node], needed)
        return fed

    def _rows(self, behind: Sequence[Node]) -> dict[Node, Value]:
        """The nodes that take one row of a stack, of which each row is taken, or each but the last; what each gives."""
        found: dict[Node, Value] = {}
        for node in behind:
            items = node.args[0] if known_kind(node) == "stack" and node.args else None
            if not isinstance(items, (list, tuple)) or len(items) < 2:
                continue
            taken = dict(self._taken(node, _axis(node)))
            if set(taken.values()) in (set(range(len(items))), set(range(len(items) - 1))):
                given = {row: items[at] for row, at in taken.items()}
                found.update((row, item) for row, item in given.items() if isinstance(item, Value))
        return found

    def _taken(self, stack: Node, axis: Any) -> Iterator[tuple[Node, int]]:
        """The nodes that take one row of a stack along the axis that it is stacked along, and which."""
        for user in self.users.get(stack.output, ()):
            kind = known_kind(user)
            if kind == "unbind" and _axis(user) == axis:
                parts = self.users.get(user.output, ())
                if all(known_kind(part) == "getitem" for part in parts):
                    yield from ((part, at) for part in parts if (at := _number(part.args[1])) is not None)
                continue
            at = None
            if kind == "select" and len(user.args) == 3 and user.args[1] == axis:
                at = _number(user.args[2])
            elif kind == "getitem":
                index = user.args[1] if isinstance(user.args[1], tuple) else (user.args[1],)
                if len(index) - 1 == axis and all(one == slice(None) for one in index[:-1]):
                    at = _number(index[-1])
            if at is not None:
                yield user, at

    def _have_their_like(self, tree: Part, heads: Sequence[Sequence[Node]], end: int) -> bool:
        """Whether what is computed of each block is what is computed of the others, over weights of that number.

        Those are in lists with a slot for each block; or all blocks share them. Of the first one other operations may
        be computed, and what is computed of the last one may be mixed with what is computed of all.
        """
        free = heads[1:-1] or heads[:1]
        words = [[node.op for node in row] for row in free]
        if any(word != words[0] for word in words):
            return False
        listed = self._listed(tree, heads, end)
        shared: dict[str, set[int]] = defaultdict(set)
        for at, row in enumerate(heads):
            for node in row:
                for name in node.weight_names() if node not in listed else ():
                    shared[name].add(at)
        everywhere = set(range(len(heads)))
        if any(found != everywhere for name, found in shared.items() if found != {len(heads) - 1}):
            return False
        alike = len(heads) > 2 and all([node.op for node in row] == words[0] for row in heads[:-1])
        return bool(listed) or (alike and any(self.graph.weights[name].layer for name in shared))

    def _listed(self, tree: Part, heads: Sequence[Sequence[Node]], end: int) -> set[Node]:
        """The nodes that run behind the blocks in the slots of lists, each slot's of the block of its number."""
        level = {node: at for at, row in enumerate(heads) for node in row}
        found: set[Node] = set()
        for part in tree.walk():
            if len(part.children) < len(heads) or not any(node in level for node in part.nodes):
                continue
            for _, slots in containers(part, self.graph.modules):
                ran = [[node for node in slot.nodes if self.order[node] > end] for slot in slots]
                while ran and not ran[-1]:
                    ran.pop()
                if len(ran) == len(heads) and all(
                    nodes and all(level.get(node) == at for node in nodes) for at, nodes in enumerate(ran)
                ):
                    shapes = [self._shapes(nodes) for nodes in ran]
                    if all(one == shapes[-1] for one in (shapes[1:] if len(shapes) > 2 else shapes)):
                        found.update(node for nodes in ran for node in nodes)
        return found

    def _shapes(self, nodes: Sequence[Node]) -> list[tuple[int, ...]]:
        return [self.graph.weights[name].shape for node in nodes for name in node.weight_names()]

    def _may_move(
        self, groups: Sequence[Sequence[Node]], memory: Memory, spans: Sequence[Span], end: int
    ) -> bool:
        """Whether no reader can notice: nothing that moves does more than compute, or passes by who writes into it."""
        of = {node: at for at, group in enumerate(groups) for node in group}
        if not of or any(effect_of(node) in ("effect", "unknown", "state") for node in of):
            return False
        ends = [last for _, last in spans]
        behind: dict[Value, set[int]] = defaultdict(
            set
        )  # the groups that read or write something, and the rest
        passed: dict[Value, int] = defaultdict(int)  # behind how many blocks a node among them does
        for node in self.nodes[spans[0][0] : max(self.order[node] for node in of) + 1]:
            for value in (node.output, *node.operands()):
                if memory.writers(value):
                    root = memory.root(value)
                    if node in of or self.order[node] > end:
                        behind[root].add(of.get(node, len(groups)))
                    else:
                        passed[root] = max(passed[root], bisect_right(ends, self.order[node]))
        return all(len(found) == 1 and passed[root] <= min(found) for root, found in behind.items())

    def _fold(self, rows: Mapping[Node, Value]) -> None:
        """Let who reads a row of a stack read what was stacked there."""
        instead = {row.output: item for row, item in rows.items()}

        def change(leaf: Argument) -> Argument:
            return instead.get(leaf, leaf) if isinstance(leaf, Value) else leaf

        for reader in {user for row in rows for user in self.users.get(row.output, ())}:
            reader.args = map_argument(reader.args, change)
            reader.kwargs = map_argument(reader.kwargs, change)
        gone: set[Node] = set()
        unread = [*rows]
        while unread:
            node = unread.pop()
            readers = {user for user in self.users.get(node.output, ()) if node.output in user.operands()}
            if node not in gone and readers <= gone:
                self.graph._unlink(node)
                gone.add(node)
                unread += [value.node for value in node.operands() if known_kind(value.node) in _OF_ROWS]

    def _move(self, groups: Sequence[Sequence[Node]], spans: Sequence[Span], end: int) -> None:
        """Put the nodes of each group behind its block, and behind what they read.

        Behind a block is where the nodes behind the last one stand: before what its caller does for the next one.
        """
        moving = {node for group in groups for node in group}
        ahead = spans[-1][0] - 1 - spans[-2][1] - (end - spans[-1][1])
        places = [*(following - 1 - ahead for following, _ in spans[1:]), end]
        for group, (_, last), usual in zip(groups, spans, places, strict=True):
            read = [value.node for node in group for value in node.operands() if value.node not in moving]
            place = self.nodes[max(last, usual, *(self.order[node] for node in read))]
            for node in group:
                self.graph._unlink(node)
            for node in group:
                self.graph._link(node, place)
                place = node

    def _put_off(self, collectors: Sequence[Node]) -> None:
        """Put what collects values of all blocks before its first reader, behind the head of the last block."""
        for node in reversed(collectors):
            readers = [user for user in self.graph if node.output in user.operands()]
            if readers and readers[0]._prev is not None:
                self.graph._unlink(node)
                self.graph._link(node, readers[0]._prev)


def _axis(node: Node) -> Any:
    """The axis that a stack is made along, or taken apart."""
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)


def _number(index: Any) -> int | None:
    """An index that counts from the first row; None for any other."""
    return index if type(index) is int and index >= 0 else None
