"""A graph read for source: its nodes as lines, and functional calls that are layers as layers again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elastic_ir.emit.source.expr import Expr, call
from elastic_ir.emit.source.reading.calls import Later, call_of_aten, call_of_fx, convert, convert_options
from elastic_ir.emit.source.reading.layers import layer_of
from elastic_ir.emit.source.reading.tree import Line, Path, Tree, borrow_layers, find_modules, order_children
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import CHECKS
from elastic_ir.ir.graph import Graph, Node

#: Arguments of exported nodes whose numbers follow the input.
Sizes = Mapping[Node, tuple[Any, ...]]


def read_tree(graph: Graph, sizes: Sizes) -> Tree:
    """Lines, parts and bodies of a graph; EmitError for what cannot be written."""
    tree = Tree(graph)
    for path, weight in tree.weights.items():
        tree.part(path[:-1]).weights[path[-1]] = weight
    _read_lines(tree, sizes)
    _hints(tree)
    borrow_layers(tree)
    find_modules(tree)
    order_children(tree)
    return tree


def _read_lines(tree: Tree, sizes: Sizes) -> None:
    nodes = _needed(tree.graph)
    last = {value: place for place, node in enumerate(nodes) for value in node.operands()}
    for place, node in enumerate(nodes):
        if node.kind == "input":
            if node.op.startswith("*"):
                raise EmitError(
                    f"{tree.graph.name}.forward takes {node.op}, which a graph does not spell out"
                )
            tree.inputs.append(node)
        elif node.kind == "output":
            tree.returns = convert(node.args[0])
        elif node.kind != "constant":
            scope = tuple(node.scope.split(".")) if node.scope else ()
            expr = _expression(tree, node, scope, sizes, lambda value, at=place: last.get(value, -1) > at)  # type: ignore[misc]
            tree.lines.append(Line((node.output,), expr, scope))
            tree.part(scope)
    if not any(node.kind == "output" for node in nodes):
        raise EmitError(f"{tree.graph.name} has no output, so there is no forward to write")


def _needed(graph: Graph) -> list[Node]:
    """The nodes that lead to the output; what only fed a check, or looked at a shape for nothing, is left out."""
    kept: set[Node] = set()
    for node in reversed(graph.nodes):
        name = node.op.split(".")[1 if node.op.startswith("aten.") else -1]
        changes = name.endswith("_") and not name.endswith("__") and not node.weight_names()
        check = node.op == "torch._assert" or node.op in CHECKS
        if node in kept or ((node.kind in ("input", "output") or changes) and not check):
            kept |= {node, *(value.node for value in node.operands())}
    return [node for node in graph if node in kept]


def _expression(tree: Tree, node: Node, scope: Path, sizes: Sizes, later: Later) -> Expr:
    """What a node computes; ``later`` says whether a value is read again afterwards."""
    if node.kind == "module":
        part = tree.part(scope)
        part.kind, part.make = "leaf", layer_of(node)
        made = call("", *map(convert, node.args), **convert_options(node.kwargs))
        return replace(made, kind="self", value=scope)
    if tree.graph.info.frontend != "export":
        return call_of_fx(node, later)
    expr = call_of_aten(node, sizes.get(node, node.args), later)
    if "device" in node.kwargs and expr.kind == "call" and tree.inputs:
        device = Expr("getattr", "device", (Expr("local", tree.inputs[0].output),))
        expr = replace(expr, parts=(*expr.parts, device), names=(*expr.names, "device"))
    return expr


def _hints(tree: Tree) -> None:
    """Class names of the source's modules, where the source is at hand."""
    from torch import nn

    from elastic_ir.emit.module.attributes import submodule
    from elastic_ir.emit.module.from_torch import _origin_path

    for path, part in tree.parts.items():
        origin = _origin_path(".".join(path), tree.graph)
        module = submodule(tree.live, origin) if tree.live is not None else None
        part.sequence = isinstance(module, nn.Sequential)
        nameless = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity))
        if module is not None and not nameless and type(module) not in (nn.Sequential, nn.Module):
            part.hint = type(module).__name__.lstrip("_")
