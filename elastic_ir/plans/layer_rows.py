"""Tensors of which each block of a stage reads a part of its own (``x * self.gains[i]``), as a trace shows them.

The parts follow a plan: a copy gets one of its own, equal to its source's, and every block reads the one of its place,
as the network does that is built so deep. Blocks may take theirs of what is computed of the tensor for all of them at
once: ``adaln(c).chunk(depth)``, ``emb(arange(depth))``. Parts behind those of the blocks that nothing reads are there
for deeper networks and stay where they are. No torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd

from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph, Node, Value, WeightRef
from elastic_ir.ir.operations import known_kind
from elastic_ir.ir.structure import Block, Stage
from elastic_ir.plans.keep_beside import tensor_is_kept
from elastic_ir.plans.pieces import Piece, Table, checks_no_size, constant, looked_up, numbers, pieces_of
from elastic_ir.plans.plan import Plan
from elastic_ir.plans.row_sources import Edit, Sources, sources_of
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.gathered import Gathered, Gathering, gathering_of


@dataclass
class _Run:
    """The parts that the blocks of one stage take of a table, one behind the other."""

    stage: Stage
    wanted: Sequence[int]  #: the plan, without the ends that take nothing, in the order of the parts
    lead: int  #: how many blocks at the start take nothing
    tail: int  #: how many at the end
    first: int  #: where the first part begins
    step: int  #: how many places one has
    taken: list[list[Piece]]  #: for each block what it takes
    falling: bool  #: whether the first part is that of the block that runs last
    #: for each block, by its origin, what it takes: which of its nodes does, and how far into its part
    readers: dict[str, list[tuple[int, int, Piece]]] = field(default_factory=dict)

    @property
    def blocks(self) -> list[Block]:
        """The blocks that there are now, in the order of their parts."""
        every = self.stage.all_blocks
        found = every[self.lead : len(every) - self.tail]
        return found[::-1] if self.falling else found

    @property
    def end(self) -> int:
        return self.first + self.step * len(self.taken)

    @property
    def places(self) -> Iterator[int]:
        """The places that the plan's blocks take, as they were before."""
        for block in self.wanted:
            yield from range(self.first + block * self.step, self.first + (block + 1) * self.step)

    def note_readers(self) -> None:
        """Remember who takes what, while the blocks are those before the plan."""
        for rank, (block, pieces) in enumerate(zip(self.blocks, self.taken, strict=True)):
            start = self.first + rank * self.step
            self.readers[block.origin] = [
                (block.nodes.index(piece.node), piece.start - start, piece) for piece in pieces
            ]


@dataclass
class Rows:
    """What a plan makes of the places of a table, and of who reads them."""

    runs: list[_Run]
    others: list[Piece]  #: what else takes places
    edits: list[Edit]  #: what brings the nodes between in step
    count: int  #: how many places there are after the plan
    gathered: dict[str, Gathering | None]  #: what each tensor has then; None for all that its source's has

    def follow(self, rewriter: Rewriter) -> None:
        """Give the tensors their places, and let every block take the part of its own place."""
        for name, gathering in self.gathered.items():
            rewriter.gather(name, gathering)
        for edit in self.edits:
            edit(rewriter, self.count)
        moved = 0
        for run in self.runs:
            for rank, block in enumerate(run.blocks):
                for place, offset, piece in run.readers[block.origin]:
                    _take(rewriter, piece, block.nodes[place], run.first + moved + rank * run.step + offset)
            moved += (len(run.wanted) - len(run.taken)) * run.step
            for piece in self.others:
                if piece.start >= run.end:
                    _take(rewriter, piece, piece.node, piece.start + moved)


def _take(rewriter: Rewriter, piece: Piece, node: Node, start: int) -> None:
    """Let a node that takes a piece take the one from ``start`` on."""
    if known_kind(node) != "embedding":
        rewriter.set_arguments(node, piece.at(node.args, start))
        return
    _, index = looked_up(node)
    assert isinstance(index, WeightRef)
    weights = rewriter.graph.weights
    if constant(index, rewriter.graph) != [start]:
        fresh = WeightRef(f"{index.name}_{start}")
        if fresh.name not in weights:
            rewriter.add_buffer(fresh.name, numbers([start], weights[index.name].shape), beside=index.name)
        rewriter.set_arguments(node, tuple(fresh if part == index else part for part in node.args))


def rows_of_blocks(rewriter: Rewriter, plan: Plan, stays: Collection[str] = ()) -> list[Rows]:
    """The parts of tensors that the blocks of stages take which a plan changes.

    Each block has to take as much as any other, in their order, and all who read the tensor have to take parts. Nodes
    that take them before the first block runs, for one block each, become nodes of that block. ``stays`` are names of
    tensors that stay as they are.

    Raises PlanError where a tensor is taken apart among the blocks whole, and does not show where it comes from.
    """
    graph = rewriter.graph
    stages = list(zip(graph.stages, plan, strict=True))
    if all(list(wanted) == list(range(len(stage))) for stage, wanted in stages):
        return []
    pieces: dict[tuple[Table, int], list[Piece]] = {}
    for node in graph:
        for piece in pieces_of(node, graph):
            pieces.setdefault((piece.table, piece.axis), []).append(piece)
    if not pieces:
        return []
    checks = {node for node in graph if checks_no_size(node)}
    users = {value: [node for node in nodes if node not in checks] for value, nodes in graph.users().items()}
    reading: dict[Table, set[Node]] = {value: set(nodes) for value, nodes in users.items()}
    for node in graph:
        for name in node.weight_names() if node not in checks else ():
            reading.setdefault(name, set()).add(node)
    owner = _owners(graph, users, {piece.node for taken in pieces.values() for piece in taken})
    found = []
    for (table, axis), taken in pieces.items():
        if {piece.node for piece in taken} != reading[table]:
            continue
        sorted_out = _runs(stages, taken, owner)
        if sorted_out is None:
            continue
        sources = sources_of(graph, table, axis, users)
        rows = None
        if sources is not None and _alone(rewriter, sources, reading, taken):
            if any(tensor_is_kept(stays, name) for name in sources.tensors):
                continue
            rows = _rows(graph, *sorted_out, sources, taken[0].extent)
        if rows is None:
            _refuse_of_length(rewriter, table, taken, sorted_out[0], stays)
            continue
        found.append(rows)
        for run in rows.runs:
            for block, own in zip(run.blocks, run.taken, strict=True):
                for node in _outside(own, block, users):
                    rewriter.join(node, block)
    for rows in found:
        for run in rows.runs:
            run.note_readers()
    return found


def _refuse_of_length(
    rewriter: Rewriter, table: Table, taken: Sequence[Piece], runs: Sequence[_Run], stays: Collection[str]
) -> None:
    """PlanError where all places of a table are taken, so that a plan gives it others, and a weight is behind it."""
    places = {place for piece in taken for place in range(piece.start, piece.end)}
    if len(places) < taken[0].extent:
        return
    waiting: list[Table] = [table]
    seen: set[Table] = set()
    while waiting:
        one = waiting.pop(0)
        if one in seen:
            continue
        seen.add(one)
        if isinstance(one, Value):
            waiting += [*one.node.weight_names(), *one.node.operands()]
        elif not rewriter.is_in_a_block(one) and rewriter.graph.weights[one].persistent:
            if tensor_is_kept(stays, one):
                return
            run = next(run for run in runs if list(run.wanted) != list(range(len(run.taken))))
            raise PlanError(
                f"each block of {run.stage.name!r} takes a part of its own of what {one!r} gives, which has parts for "
                f"{len(run.taken)} blocks, and it does not show which entries of that are whose; "
                f"--keep-beside {one} (keep_beside=) leaves it as it is, and copies take their source's part"
            )


def _owners(
    graph: Graph, users: Mapping[Value, Sequence[Node]], taking: Collection[Node]
) -> dict[Node, tuple[Stage, int]]:
    """For each node the stage and the block that it lies in; also for pieces, and what is made of them alone for it."""
    owner = {
        node: (stage, rank)
        for stage in graph.stages
        for rank, block in enumerate(stage.all_blocks)
        for node in block.nodes
    }
    beside: dict[Node, None] = {}
    for node in graph:
        operands = node.operands()
        if node not in owner and (
            node in taking or (operands and all(value.node in beside for value in operands))
        ):
            beside[node] = None
    for node in reversed(beside):
        found = {owner.get(user) for user in users.get(node.output, ())}
        one = found.pop() if len(found) == 1 else None
        if one is not None:
            owner[node] = one
    return owner


def _outside(pieces: Sequence[Piece], block: Block, users: Mapping[Value, Sequence[Node]]) -> list[Node]:
    """The nodes that take a block's pieces outside of it, and what is made of these there; the last ones first."""
    found: dict[Node, None] = {}
    inside = set(block.nodes)

    def visit(node: Node) -> None:
        if node not in inside and node not in found:
            for user in users.get(node.output, ()):
                visit(user)
            found[node] = None

    for piece in pieces:
        visit(piece.node)
    return list(found)


def _runs(
    stages: Sequence[tuple[Stage, Sequence[int]]],
    taken: Sequence[Piece],
    owner: Mapping[Node, tuple[Stage, int]],
) -> tuple[list[_Run], list[Piece]] | None:
    """The runs of parts that the blocks of stages take, and the pieces of others; None where parts are uneven."""
    runs, others = [], list(taken)
    for stage, wanted in stages:
        by_rank: list[list[Piece]] = [[] for _ in stage.all_blocks]
        for piece in taken:
            where = owner.get(piece.node)
            if where is not None and where[0] is stage:
                by_rank[where[1]].append(piece)
        run = _run(stage, wanted, by_rank)
        if run is not None:
            runs.append(run)
            own = {piece.node for pieces in by_rank for piece in pieces}
            others = [piece for piece in others if piece.node not in own]
        elif any(by_rank) and list(wanted) != list(range(len(stage))):
            return None
    runs.sort(key=lambda run: run.first)
    apart = all(before.end <= after.first for before, after in pairwise(runs))
    clear = all(piece.end <= run.first or piece.start >= run.end for run in runs for piece in others)
    changed = any(list(run.wanted) != list(range(len(run.taken))) for run in runs)
    return (runs, others) if apart and clear and changed else None


def _run(stage: Stage, wanted: Sequence[int], by_rank: Sequence[list[Piece]]) -> _Run | None:
    """The run of parts that the blocks of a stage take; None where one that may be copied takes none, or another."""
    lead = next((rank for rank, pieces in enumerate(by_rank) if pieces), len(by_rank))
    tail = next((rank for rank, pieces in enumerate(reversed(by_rank)) if pieces), 0)
    ranks = [sorted(pieces, key=lambda one: one.start) for pieces in by_rank[lead : len(by_rank) - tail]]
    if len(ranks) < 2 or not all(ranks) or lead > stage.pinned or tail > (stage.exit is not None):
        return None
    kept = [block - lead for block in wanted[lead : len(wanted) - tail]]
    falling = ranks[0][0].start > ranks[-1][0].start
    if falling:
        ranks.reverse()
        kept = [len(ranks) - 1 - block for block in reversed(kept)]
    starts = [pieces[0].start for pieces in ranks]
    step, extent = starts[1] - starts[0], ranks[0][0].extent
    inside = [
        [(one.start - start, one.length) for one in pieces]
        for start, pieces in zip(starts, ranks, strict=True)
    ]
    if step < 1 or any(after - before != step for before, after in pairwise(starts)):
        return None
    reach = max(start + length for start, length in inside[0])
    lean = (
        starts[0] % step if starts[0] % step + reach <= step else 0
    )  # what of a part precedes what is taken
    first = starts[0] - lean
    if any(one != inside[0] for one in inside) or reach > step or first + step * len(ranks) > extent:
        return None
    return _Run(stage, kept, lead, tail, first, step, ranks, falling)


def _alone(
    rewriter: Rewriter, sources: Sources, reading: Mapping[Table, set[Node]], taken: Sequence[Piece]
) -> bool:
    """Whether nothing else reads the tensors that the places come from, and they are no block's own."""
    graph = rewriter.graph
    named: dict[int, int] = {}
    for weight in graph.weights.values():
        named[id(weight.storage)] = named.get(id(weight.storage), 0) + 1
    own = {piece.node for piece in taken} | sources.on_the_way
    names = [*sources.tensors, *sources.counters]
    return all(
        named[id(graph.weights[name].storage)] == 1
        and reading[name] <= own
        and not rewriter.is_in_a_block(name)
        for name in names
    ) and (bool(sources.tensors) or sources.inputs)


def _rows(graph: Graph, runs: list[_Run], others: list[Piece], sources: Sources, extent: int) -> Rows | None:
    """What the plan makes of the places; None where tensors cannot have them so."""
    places: list[int] = []
    at = 0
    for run in runs:
        places += [*range(at, run.first), *run.places]
        at = run.end
    behind = any(piece.start >= at for piece in others)
    source_end = at + sum((run.stage.container.source_count - len(run.stage)) * run.step for run in runs)
    unit = gcd(*(number for run in runs for number in (run.first, run.step)))
    gathered: dict[str, Gathering | None] = {}
    count = extent
    for name, (axis, scale) in sources.tensors.items():
        data = graph.weights[name].storage.data
        before = gathering_of(data)
        whole = data.data.shape[axis] if isinstance(data, Gathered) else data.shape[axis]
        held = list(range(whole // scale))
        if before is not None:
            if before.axis != axis or before.shared or before.size % scale:
                return None
            held = [place // scale for place in before.places() if place % scale == 0]
        if whole % scale or len(held) != extent:
            return None
        made = [held[place] for place in places]
        if behind:
            made += [held[place] for place in range(at, extent)]
        elif whole // scale > source_end:  # the others are there for a network that is deeper yet
            made += range(len(made), whole // scale)
        count = len(made)
        gathered[name] = None if made == list(range(whole // scale)) else _gathering(axis, made, scale, unit)
    if sources.inputs and (len(places) > extent or behind or count != extent):
        return None  # what the network is given has as many as before
    return Rows(runs, others, sources.edits if count != extent else [], count, gathered)


def _gathering(axis: int, places: Sequence[int], scale: int, unit: int) -> Gathering:
    """The places as entries, of which each is a whole part where parts are taken as a whole."""
    for size in (unit, 1):
        entries = places[::size]
        if (
            len(places) % size == 0
            and list(places) == [entry + more for entry in entries for more in range(size)]
            and all(entry % size == 0 for entry in entries)
        ):
            break
    return Gathering(axis, tuple(entry // size for entry in entries), size * scale)
