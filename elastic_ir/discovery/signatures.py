"""Signatures: hashes of what blocks compute, by which they are known to be alike, and the period that hashes show.

What makes no difference: Gemma 3n looks up an embedding for all layers at once, and layer i selects row i. A copy gets
a row of its own, equal to its source's, where the rows are a tensor's (:mod:`elastic_ir.plans.layer_rows`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from elastic_ir.discovery.parts import Group
from elastic_ir.ir.graph import Graph, Literal, Node, Symbol, Value, WeightRef

#: What most arguments besides values are.
_PLAIN = frozenset({int, bool, str, type(None)})
_TAKES = ("operator.getitem", "aten.select.int")
#: Operations that may take a part of a tensor that stands at a place given by a number.
TAKING = frozenset({"getitem", "select", "narrow", "slice", "embedding"})


def signatures_of(
    group: Group, graph: Graph, names: Mapping[Node, Sequence[str]], rows: Collection[Node] = ()
) -> tuple[str, str]:
    """Hashes of what a group computes: with integers and weight shapes, and of its operations alone.

    ``names`` are those of the weights that each node reads; of what takes a block's own row (``rows``) no more is told
    than its operation. Float literals are left out: rates (stochastic depth) differ in every block.
    """
    place: dict[Value, int | str] = {node.output: index for index, node in enumerate(group.nodes)}
    if len(group.inputs) > 1:
        place.update((value, f"in{index}") for index, value in enumerate(group.inputs))
    exact, kinds = [], []
    for node in group.nodes:
        if node.op == "torch._assert":  # computes nothing, and its message names the traced values
            continue
        kinds.append(f"{node.op};")
        if node in rows:
            exact.append(f"{node.op}row;")
            continue
        shapes = [graph.weights[name].shape for name in names[node]]
        exact.append(f"{node.op}{_plain((node.args, node.kwargs, node.attributes), place)}{shapes};")
    exact.append(repr(sorted(group.weights.items())))
    return _hash_of(exact), _hash_of(kinds)


def _hash_of(texts: Sequence[str]) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def _plain(item: Any, place: Mapping[Value, int | str]) -> str:
    """An argument as text: values by their place, integers and words as they are, and no floats."""
    if type(item) in _PLAIN:
        return repr(item)
    if isinstance(item, Value):
        return f"%{place.get(item, 'x')}"
    if isinstance(item, (tuple, list)):
        return f"({','.join([_plain(part, place) for part in item])})"
    if isinstance(item, dict):
        return f"{{{','.join([f'{key}:{_plain(part, place)}' for key, part in item.items()])}}}"
    if isinstance(item, (float, complex)):
        return "~"
    if isinstance(item, WeightRef):
        return "@"
    if isinstance(item, Symbol):
        return item.name
    if isinstance(item, Literal):
        return f"{item.shape}{_plain(item.values, place)}"
    if isinstance(item, slice):
        return _plain((item.start, item.stop, item.step), place)
    return repr(item)


def shown_period(groups: Sequence[Group]) -> int:
    """The period of a list of blocks: of what they compute and of which of the values beside it they read, or 1.

    Masks of full and of sliding attention are made outside the blocks, so that nothing inside tells which is which.
    """
    period = shortest_period([(group.signature, group.shared) for group in groups])
    return period if period > 1 else shortest_period([group.signature for group in groups])


def shortest_period(signatures: Sequence[Hashable]) -> int:
    """The shortest period of a list of hashes that is seen twice, or 1."""
    if len(set(signatures)) <= 1:
        return 1
    for period in range(2, len(signatures) // 2 + 1):
        if len(signatures) % period == 0 and all(
            signatures[i] == signatures[i + period] for i in range(len(signatures) - period)
        ):
            return period
    return 1


def period_together(lists: list[list[Group]]) -> int:
    """The period that lists of blocks show only one behind the other, or 1: a plain and a shifted window, every time.

    Their blocks have equal weights, and which of them compute the same is what repeats.
    """
    mixed: list[int] = []
    turns = 0
    for groups in lists:
        hashes = [group.signature for group in groups]
        if len(set(hashes)) > 1 and all(group.weights == groups[0].weights for group in groups):
            mixed += [hashes.index(one) for one in hashes]
            turns += 1
    period = shortest_period(mixed) if turns > 1 else 1
    return period if all(len(groups) % period == 0 for groups in lists) else 1


def own_rows(groups: Sequence[Group]) -> set[Node]:
    """The nodes that read a shared value alone, in every block at a place that is as far on as in the one before."""
    if len(groups) < 3:
        return set()
    found = [[node for node in group.nodes if _reads_shared(node, group)] for group in groups]
    if not found[0] or any(len(nodes) != len(found[0]) for nodes in found):
        return set()
    return {node for column in zip(*found, strict=True) if _evenly_apart(column) for node in column}


def _reads_shared(node: Node, group: Group) -> bool:
    operands = node.operands()
    if not operands:
        return row_taken(node) is not None
    return len(operands) == 1 and operands[0] in group.shared and not node.weight_names()


def row_taken(node: Node) -> tuple[str, int] | None:
    """The tensor of which a node takes one row, and which; None for any other node."""
    if node.op not in _TAKES or not node.args or not isinstance(node.args[0], WeightRef):
        return None
    if node.op == "aten.select.int" and node.args[1] != 0:
        return None
    row = node.args[-1]
    return (node.args[0].name, row) if type(row) is int else None


def _evenly_apart(nodes: Sequence[Node]) -> bool:
    """Whether nodes do the same to one value, but for integers that grow by one step from each to the next."""
    same = [(node.op, node.operands(), node.weight_names()) for node in nodes]
    if any(one != same[0] for one in same):
        return False
    places = [_integers((node.args, node.kwargs)) for node in nodes]
    if any(len(found) != len(places[0]) for found in places):
        return False
    steps = {
        tuple(there - here for here, there in zip(before, after, strict=True))
        for before, after in itertools.pairwise(places)
    }
    return len(steps) == 1 and any(steps.pop())


def _integers(item: Any) -> list[int]:
    if type(item) is int:
        return [item]
    if isinstance(item, slice):
        return _integers((item.start, item.stop, item.step))
    if isinstance(item, (tuple, list)):
        return [number for part in item for number in _integers(part)]
    if isinstance(item, dict):
        return _integers(tuple(item.values()))
    return []
