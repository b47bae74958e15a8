"""Tensors of which each block of a stage reads a row of its own (``x * self.gains[i]``), as a trace shows them.

The rows follow a plan: a copy gets a row of its own, equal to its source's, and every block reads the row of its place,
as the network does that is built so deep. Rows behind those of the blocks stay where they are. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elastic_ir.discovery.signatures import row_taken
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.structure import Stage
from elastic_ir.plans.plan import Plan
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.gathered import Gathered, Gathering


@dataclass(frozen=True)
class Rows:
    """The rows of one tensor that the blocks of a stage read."""

    name: str
    first: int  #: the row of the first block
    readers: Mapping[
        str, tuple[int, ...]
    ]  #: for each block, by its origin, the places of the nodes that read its row
    stage: Stage
    gathering: Gathering | None  #: what the tensor has after the plan; None for all of its source's rows

    def follow(self, rewriter: Rewriter) -> None:
        """Give the tensor its rows, and let every block read the one of its place."""
        rewriter.gather(self.name, self.gathering)
        for rank, block in enumerate(self.stage.all_blocks):
            for place in self.readers[block.origin]:
                rewriter.take_row(block.nodes[place], self.first + rank)


def rows_of_blocks(graph: Graph, plan: Plan) -> list[Rows]:
    """The rows that the blocks of stages read which a plan changes.

    Each block has to read one of its own, in their order, and nothing else may read the tensor.
    """
    changed = [
        (stage, list(wanted))
        for stage, wanted in zip(graph.stages, plan, strict=True)
        if list(wanted) != list(range(len(stage)))
    ]
    reading: dict[str, set[Node]] = {}
    for node in graph if changed else ():
        for name in node.weight_names():
            reading.setdefault(name, set()).add(node)
    names_of: dict[int, int] = {}
    for weight in graph.weights.values():
        names_of[id(weight.storage)] = names_of.get(id(weight.storage), 0) + 1
    found = []
    for stage, wanted in changed:
        for name, rows in _by_tensor(stage).items():
            ranks = [{row for row, _ in taken} for taken in rows]
            readers = {node for taken in rows for _, node in taken}
            weight = graph.weights[name]
            firsts = {row - rank for rank, taken in enumerate(ranks) for row in taken}
            if (
                not all(ranks)
                or len(firsts) != 1
                or min(firsts) < 0
                or readers != reading[name]
                or names_of[id(weight.storage)] > 1
            ):
                continue
            first = firsts.pop()
            found.append(
                Rows(
                    name,
                    first,
                    {
                        block.origin: tuple(block.nodes.index(node) for _, node in taken)
                        for block, taken in zip(stage.all_blocks, rows, strict=True)
                    },
                    stage,
                    _gathering(graph, name, first, wanted, stage),
                )
            )
    return found


def _by_tensor(stage: Stage) -> dict[str, list[list[tuple[int, Node]]]]:
    """For each tensor of which a block takes a row: for each block the rows that it takes, and the nodes that do."""
    found: dict[str, list[list[tuple[int, Node]]]] = {}
    blocks = stage.all_blocks
    for rank, block in enumerate(blocks):
        for node in block.nodes:
            taken = row_taken(node)
            if taken is not None:
                found.setdefault(taken[0], [[] for _ in blocks])[rank].append((taken[1], node))
    return found


def _gathering(graph: Graph, name: str, first: int, wanted: Sequence[int], stage: Stage) -> Gathering | None:
    data = graph.weights[name].storage.data
    whole = data.data if isinstance(data, Gathered) else data
    held = data.gathering.entries if isinstance(data, Gathered) else range(whole.shape[0])
    rows = [*held[:first], *(held[first + block] for block in wanted)]
    every = list(range(whole.shape[0]))
    if (
        len(every) > first + stage.container.source_count
    ):  # the others are there for a network that is deeper yet
        rows += every[len(rows) :]
    return None if rows == every else Gathering(0, tuple(rows))
