"""Sizes of an exported graph that follow the input: found by exporting a second time with another batch and length.

An export writes every size as the number that it saw. What differs between two exports of one network, and nothing
else, depends on the input; it is written as the size of a value at hand (``x.shape[0]``), or a multiple of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from elastic_ir.emit.source.expr import Expr, binary, index, lit
from elastic_ir.ir.example_inputs import map_tensors, tensors_in
from elastic_ir.ir.graph import Graph, Node, Value

_FIXED = (
    "torch.export has fixed the sizes of its input: it runs on inputs of the shape {shape} only, and other shapes need "
    "another export."
)


def following_sizes(graph: Graph) -> tuple[dict[Node, tuple[Any, ...]], str]:
    """The arguments of each node of an exported graph whose numbers follow the input, with expressions in them.

    The second result is a sentence for the source's docstring where that could not be found out.
    """
    if graph.info.frontend != "export":
        return {}, ""
    for axes in ((0, 1), (0,)):
        other = _again(graph, axes) if graph.origin.module is not None else None
        sizes = _compared(graph, other) if other is not None else None
        if sizes is not None:
            return sizes, ""
    types = [node.output.type for node in graph if node.kind == "input"]
    return {}, _FIXED.format(shape=" and ".join(str(list(kind.shape)) for kind in types if kind is not None))


def _again(graph: Graph, axes: tuple[int, ...]) -> Graph | None:
    """The same network exported with more samples and, where it takes token ids, other lengths; None if it fails."""
    from elastic_ir.emit.module import build_module

    inputs = graph.origin.inputs

    def is_tokens(item: torch.Tensor) -> bool:
        return item.dim() == 2 and not item.is_floating_point()

    def grown(item: torch.Tensor) -> torch.Tensor:
        item = item.repeat(3, *[1] * (item.dim() - 1)) if item.dim() else item
        return item[:, :-2] if 1 in axes and is_tokens(item) and item.shape[1] > 2 else item

    if inputs is None or (1 in axes and not any(map(is_tokens, tensors_in((inputs.args, inputs.kwargs))))):
        return None
    args, kwargs = map_tensors((inputs.args, inputs.kwargs), grown)
    source = dataclasses.replace(graph.origin, inputs=dataclasses.replace(inputs, args=args, kwargs=kwargs))
    try:
        return source.retrace(build_module(graph), "export")
    except Exception:  # an export may raise anything; then the sizes stay as they are
        return None


def _compared(graph: Graph, other: Graph) -> dict[Node, tuple[Any, ...]] | None:
    """The arguments that differ between two exports, as expressions; None where the two are not the same network."""
    first, second = graph.nodes, other.nodes
    if [node.op for node in first] != [node.op for node in second]:
        return None
    given = [node.output for node in first if node.kind == "input"]
    #: each axis whose extents differ: its expression, and both extents
    extents: dict[Value, list[tuple[Expr, int, int]]] = {}
    for a, b in zip(first, second, strict=True):
        shape = Expr("getattr", "shape", (Expr("local", a.output),))
        here, there = (node.output.type.shape if node.output.type is not None else () for node in (a, b))
        extents[a.output] = [
            (index(shape, lit(axis)), one, two)
            for axis, (one, two) in enumerate(zip(here, there, strict=False)) if one != two
        ]  # fmt: skip
    sizes: dict[Node, tuple[Any, ...]] = {}
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.args == b.args or a.kind == "output":
            continue
        at_hand = [
            each for value in (*_entry(first, place), *a.operands(), *given) for each in extents[value]
        ]
        try:
            found = tuple(_matched(x, y, at_hand) for x, y in zip(a.args, b.args, strict=True))
        except LookupError:
            return None
        if found != a.args:
            sizes[a] = found
    return sizes


def _entry(nodes: Sequence[Node], place: int) -> list[Value]:
    """What the run of a module that a node is part of is given first."""
    scope, start = nodes[place].scope, place
    while scope and start and f"{nodes[start - 1].scope}.".startswith(f"{scope}."):
        start -= 1
    run = nodes[start : place + 1]
    inside = {node.output for node in run}
    read = [value for node in run for value in node.operands() if scope]
    return [value for value in read if value.type is not None and value not in inside][:1]


def _matched(one: Any, two: Any, at_hand: Sequence[tuple[Expr, int, int]]) -> Any:
    """An argument of both exports, with what differs as one of the sizes at hand, or else a multiple of one."""
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        return type(one)(_matched(a, b, at_hand) for a, b in zip(one, two, strict=True))
    if type(one) is not int or type(two) is not int or one == two:
        return one
    fits = [(one // a, size) for size, a, b in at_hand if a > 0 and one % a == 0 and one // a * b == two]
    if not fits:
        raise LookupError(one)
    factor, size = min(fits, key=lambda fit: fit[0] != 1)
    return size if factor == 1 else binary("*", size, lit(factor))
