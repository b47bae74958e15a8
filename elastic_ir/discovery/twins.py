"""Twins: a network of the same kind beside the one that runs (a target network, an average), of which nothing runs.

Its weights have the names and shapes of the other's, one by one, so that the same numbers built both. Its blocks are
further slots of the other's: both grow and shrink together.
"""

from __future__ import annotations

from collections.abc import Sequence

from elastic_ir.discovery.registered_twice import join
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import outward
from elastic_ir.ir.structure import Child, Container, Stage


def idle_weights(graph: Graph) -> list[str]:
    """The weights of a state dict that no node reads, under any name."""
    read = {name for node in graph for name in node.weight_names()}
    known = {id(weight.storage) for name, weight in graph.weights.items() if name in read}
    return [
        name
        for name, weight in graph.weights.items()
        if weight.persistent and id(weight.storage) not in known
    ]


def add_twins(graph: Graph, stages: Sequence[Stage]) -> None:
    """Let the blocks of stages have the slots of a twin, in containers of their own."""
    idle = idle_weights(graph)
    unread = set(idle)
    running = {path for name in graph.weights if name not in unread for path in outward(name)}
    modules = dict.fromkeys(path for name in idle for path in outward(name)[1:] if path not in running)
    outermost = [path for path in modules if path.rpartition(".")[0] not in modules]
    if not outermost:
        return
    tables: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, weight in graph.weights.items():
        for path in outward(name)[1:] if weight.persistent else ():
            tables.setdefault(path, {})[name[len(path) :]] = weight.shape
    boxes = dict.fromkeys(box for stage in stages for box in stage.containers)
    for twin in outermost:
        parent = twin.rpartition(".")[0]
        like = [path for path in tables if path in running and path.rpartition(".")[0] == parent]
        like = [path for path in like if tables[path] == tables[twin]]
        for box in boxes if len(like) == 1 else ():
            if f"{box.path}.".startswith(f"{like[0]}."):
                _add(box, twin + box.path[len(like[0]) :], stages)


def _add(box: Container, path: str, stages: Sequence[Stage]) -> None:
    made = box.emptied(path)
    made.children = [Child(made.child_path(at), made.child_path(at)) for at in range(len(box.children))]
    join(made, dict(zip(made.children, box.children, strict=True)), box, stages)
