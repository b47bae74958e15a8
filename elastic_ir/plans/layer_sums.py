"""Weighted sums over what all blocks of a stage give, as a trace shows them: softmaxed weights follow a plan.

The states of all layers are stacked and multiplied with a softmaxed vector that has an entry for each of them. A copy's
state goes into the stack as its source's does; its weight is a share of its source's, so that together they have what
that has alone. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from elastic_ir.ir.graph import Graph, Node, Value, WeightRef
from elastic_ir.plans.plan import Plan
from elastic_ir.tensors.gathered import Gathering, gathering_of

#: Operations that give a vector other axes, or another dtype.
_AS_IT_IS = re.compile(r"view|reshape|unsqueeze|to|_to_copy|float")
_SOFTMAX = re.compile(r"_?softmax")


def weights_of_sums(graph: Graph, plan: Plan) -> dict[str, Gathering]:
    """The softmaxed weights of sums over the blocks of stages that a plan changes, with the entries that they need.

    An entry is that of what its block gives, whether the stack holds what enters each block or what leaves it.
    """
    changed = [
        (stage.all_blocks, list(wanted))
        for stage, wanted in zip(graph.stages, plan, strict=True)
        if list(wanted) != list(range(len(stage))) and any(block.taps for block in stage.all_blocks)
    ]
    users = graph.users() if changed and len(graph) else {}
    found: dict[str, Gathering] = {}
    for blocks, wanted in changed:
        for row in zip(*(block.taps for block in blocks), strict=False):
            entering = all(value in block.inputs for value, block in zip(row, blocks, strict=True))
            for name, first, count in _sums(graph, row, users):
                if entering and first + len(row) < count:  # what a block gives is what enters the next one
                    first += 1
                places = [
                    *range(first),
                    *(first + block for block in wanted),
                    *range(first + len(row), count),
                ]
                before = gathering_of(graph.weights[name].storage.data)
                held = before.entries if before is not None else range(count)
                found[name] = Gathering(0, tuple(held[place] for place in places), shared=True)
    return found


def _sums(
    graph: Graph, row: Sequence[Value], users: Mapping[Value, Sequence[Node]]
) -> Iterator[tuple[str, int, int]]:
    """Weights of sums over a stack of values: the name, the place of the first of them, and how many are stacked."""
    for stack in users.get(row[0], ()):
        items = next((part for part in stack.args if isinstance(part, list | tuple)), ())
        if "stack" not in stack.op.split(".") or any(list(items).count(value) != 1 for value in row):
            continue
        places = [list(items).index(value) for value in row]
        dim = stack.args[1] if len(stack.args) > 1 else stack.kwargs.get("dim", 0)
        rank = len(stack.output.type.shape) if stack.output.type is not None else 0
        if places != list(range(places[0], places[0] + len(row))) or not isinstance(dim, int) or not rank:
            continue
        axis = dim if dim < 0 else dim - rank
        for product in users.get(stack.output, ()):
            for factor in product.operands() if "mul" in product.op.split(".") else ():
                shape = factor.type.shape if factor.type is not None else ()
                if [at - len(shape) for at, extent in enumerate(shape) if extent > 1] != [axis]:
                    continue
                name = _softmaxed(graph, factor, users)
                if name is not None and graph.weights[name].shape == (len(items),):
                    yield name, places[0], len(items)


def _softmaxed(graph: Graph, value: Value, users: Mapping[Value, Sequence[Node]]) -> str | None:
    """The weight whose softmax a value is, if nothing else reads it."""
    node = value.node
    while len(node.operands()) == 1 and any(_AS_IT_IS.fullmatch(part) for part in node.op.split(".")):
        node = node.operands()[0].node
    references = [part for part in node.args if isinstance(part, WeightRef)]
    if len(references) != 1 or node.operands() or not any(map(_SOFTMAX.fullmatch, node.op.split("."))):
        return None
    name = references[0].name
    readers = [other for other in graph if name in other.weight_names()]
    return name if readers == [node] else None
