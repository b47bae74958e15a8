"""Layers that a configuration does not count: DeepSeek-V3 keeps its multi-token prediction as one more at the end.

They stand behind the layers that are counted, under the next numbers, and hold tensors that none of those has. They are
no blocks: whatever becomes of the stack, they stay the last ones and occur once. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elastic_ir.checkpoints.config.depth import counted
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Child, Structure
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.weights import Weights


def set_tail_apart(graph: Graph, config: dict[str, Any]) -> None:
    """Take the last layers out of their stage where the configuration counts fewer, and they hold tensors of their own.

    Where either is not so, nothing happens, and a count that does not agree is refused later.
    """
    counts = counted(config, Stack.all_of(graph), graph.weights)
    tails: dict[tuple[str, str], list[str]] = {}
    structure = graph.structure_or_none
    for container in structure.containers if structure is not None else ():
        stack = Stack.of(container)
        numbers = counts[stack.label]
        if not numbers or stack.before in numbers or not 0 < max(numbers) < stack.before:
            continue
        count = max(numbers)
        held = [set(layer) for layer in stack.contents(graph.weights)]
        usual = set().union(*held[:count])
        if all(layer - usual for layer in held[count:]):
            tails[container.path, container.prefix] = [child.path for child in container.children[count:]]
    if tails:
        set_apart(graph, tails, "is not counted by config.json")


def set_apart(
    graph: Graph,
    tails: dict[tuple[str, str], list[str]],
    why: str,
    find: Callable[[Graph], Structure | None] = lambda plain: plain.structure_or_none,
) -> None:
    """Give the graph the structure that it has without the tails, so that these do not count as layers of a kind.

    ``tails`` are the last children of containers by path and prefix; ``why`` is what a reader is told of them, ``find``
    how the structure of the rest is found.
    """
    paths = tuple(f"{path}." for tail in tails.values() for path in tail)
    plain = Graph(graph.name, graph.info)
    plain.weights = Weights(
        {name: weight for name, weight in graph.weights.items() if not name.startswith(paths)}
    )
    structure = find(plain)
    if structure is None:
        return
    for container in structure.containers:
        for path in tails.get((container.path, container.prefix), ()):
            container.children.append(Child(path, path))
            container.tail += 1
    apart = ", ".join(path for tail in tails.values() for path in tail)
    note = f"{apart} {why}: it stays the last layer, and is never cloned"
    structure.note = "; ".join(filter(None, (structure.note, note)))
    Rewriter(graph, structure)
