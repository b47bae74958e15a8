"""Nothing that repeats: which of the reasons it has, in one clause that says what there is instead."""

from __future__ import annotations

import itertools

from elastic_ir.discovery.from_graph import GraphReader
from elastic_ir.discovery.from_names import NameReader, in_channels
from elastic_ir.discovery.parts import Part, containers
from elastic_ir.graph import Graph, Symbol


def why_nothing(tree: Part, reader: GraphReader | NameReader, listed: dict[str, list[str]]) -> str:
    """What stands in the way: layers of one kind that widen one after the other (DenseNet), or no likeness at all."""
    again = _applied_again(reader.graph)
    if again is not None:
        return again
    for part in tree.walk():
        for container, parts in containers(part, listed):
            groups = reader.groups(container, parts)
            widths = [
                next((in_channels(s) for n, s in group.weights.items() if len(s) > 1 and "." in n), 0)
                for group in groups
            ]
            rising = all(left < right for left, right in itertools.pairwise(widths))
            if len(groups) > 2 and rising and len({group.kind for group in groups}) == 1:
                return (
                    f"the {len(groups)} layers of {container.label!r} are of one kind, but each is wider than the one "
                    f"before it ({widths[0]}, {widths[1]}, {widths[2]} channels and so on), so none fits in a second "
                    "time and there is nothing to clone or delete"
                )
    plain = "no two blocks in a row have equal operations and weight shapes, so there is nothing to clone or delete"
    return plain + _about_bodies(reader.graph)


def _about_bodies(graph: Graph) -> str:
    """What is not looked into: the bodies of control flow (ONNX's If, Loop and Scan)."""
    kinds = {node.op.removeprefix("onnx.") for node in graph if Symbol("body") in node.attributes.values()}
    if not kinds:
        return ""
    return f"; what is in the bodies of its {' and '.join(sorted(kinds))} nodes is kept whole and never cut"


def _applied_again(graph: Graph) -> str | None:
    """A layer that runs several times over the same weights (ALBERT, Lan et al. 2020, section 3.1)."""
    prunable = {name for name, weight in graph.weights.items() if weight.prunable}
    times: dict[str, int] = {}
    for node in graph:
        for name in prunable.intersection(node.weight_names()):
            times[name] = times.get(name, 0) + 1
    count = max(times.values(), default=0)
    owners = [name.split(".")[:-1] for name, number in times.items() if number == count]
    if count < 2 or len(owners) < 2:
        return None
    common = list(itertools.takewhile(lambda names: len(set(names)) == 1, zip(*owners, strict=False)))
    path = ".".join(names[0] for names in common)
    return (
        f"{path or 'one layer'} runs {count} times over the same weights, so its depth is a count and there is nothing "
        "to clone; set that count (num_hidden_layers in a configuration) and load the same weights"
    )
