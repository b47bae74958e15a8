"""A graph read for source: its nodes as statements, and functional calls that are layers as layers again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from elastic_ir.emit.source.expressions.expr import Expr, call, change, locals_of, walk
from elastic_ir.emit.source.reading.aten import call_of_aten
from elastic_ir.emit.source.reading.calls import call_of, convert, identifier
from elastic_ir.emit.source.reading.layers import Layered, as_layer, layer_of
from elastic_ir.emit.source.reading.tree import (
    Path,
    Sizes,
    Statement,
    Tree,
    count_runs,
    order_children,
    settle,
)
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import CHECKS
from elastic_ir.ir.graph import Graph, Node, Value


def read_tree(graph: Graph, sizes: Sizes) -> Tree:
    """Statements, parts and bodies of a graph; EmitError for what cannot be written."""
    tree = Tree(graph, sizes)
    _read_statements(tree)
    for path, weight in tree.weights.items():
        tree.part(path[:-1]).weights[path[-1]] = weight
    for statement in tree.statements:
        tree.part(statement.scope)
    _hints(tree)
    _borrowed(tree)
    count_runs(tree)
    _layers(tree)
    for part in tree.parts[()].below():
        if part.kind == "class":
            settle(tree, part)
    order_children(tree)
    return tree


def _read_statements(tree: Tree) -> None:
    graph = tree.graph
    exported = graph.info.frontend == "export"
    nodes = [node for node in graph if not (node.op == "torch._assert" or node.op in CHECKS)]
    needed = _needed(nodes)
    nodes = [node for node in nodes if node in needed]
    last = {value: place for place, node in enumerate(nodes) for value in node.operands()}
    for place, node in enumerate(nodes):
        if node.kind == "input":
            if node.op.startswith("*"):
                raise EmitError(f"{graph.name}.forward takes {node.op}, which a graph does not spell out")
            tree.inputs.append(node)
        elif node.kind == "output":
            tree.output = node
        elif node.kind != "constant":
            scope = tuple(node.scope.split(".")) if node.scope else ()
            expr = _expression(tree, node, scope, exported, lambda value, at=place: last.get(value, -1) > at)  # type: ignore[misc]
            tree.statements.append(Statement(node.output, expr, scope))
    if tree.output is None:
        raise EmitError(f"{graph.name} has no output, so there is no forward to write")
    ends = [(place, statement.expr) for place, statement in enumerate(tree.statements)]
    for place, expr in [*ends, (-1, convert(tree.output.args))]:
        for key in locals_of(expr):
            tree.readers.setdefault(key, []).append(place)


def _expression(tree: Tree, node: Node, scope: Path, exported: bool, later: Callable[[Value], bool]) -> Expr:
    """What a node computes; ``later`` says whether a value is read again afterwards."""
    if node.kind == "module":
        part = tree.part(scope)
        part.kind, part.make = "leaf", layer_of(node)
        options = {identifier(name, "the argument"): convert(item) for name, item in node.kwargs.items()}
        made = call("", *map(convert, node.args), **options)
        return replace(made, kind="self", value=scope)
    if not exported:
        return call_of(node, later)
    expr = call_of_aten(node, tree.sizes.get(node, node.args), later)
    if "device" in node.kwargs and expr.kind == "call" and tree.inputs:
        device = Expr("getattr", "device", (Expr("local", tree.inputs[0].output),))
        expr = replace(expr, parts=(*expr.parts, device), names=(*expr.names, "device"))
    return expr


def _needed(nodes: list[Node]) -> set[Node]:
    """The nodes that lead to the output; what only fed a check, or looked at a shape for nothing, is left out."""
    kept: set[Node] = set()
    for node in reversed(nodes):
        name = node.op.split(".")[1 if node.op.startswith("aten.") else -1]
        changes = name.endswith("_") and not name.endswith("__") and not node.weight_names()
        if node.kind in ("input", "output") or changes:
            kept.add(node)
        if node in kept:
            kept.update(value.node for value in node.operands())
    return kept


def _hints(tree: Tree) -> None:
    """Class names of the source's modules, where the source is at hand."""
    from torch import nn

    from elastic_ir.emit.module.from_torch import _origin_path
    from elastic_ir.emit.module.layers import submodule

    for path, part in tree.parts.items():
        origin = _origin_path(".".join(path), tree.graph)
        module = submodule(tree.live, origin) if tree.live is not None else None
        part.sequence = isinstance(module, nn.Sequential)
        nameless = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity))
        if module is not None and not nameless and type(module) not in (nn.Sequential, nn.Module):
            part.hint = type(module).__name__.lstrip("_")


def _borrowed(tree: Tree) -> None:
    """Layers whose weights the forward around them uses in a functional call: the layer is called instead."""
    running = {statement.scope for statement in tree.statements}
    owners = [
        {leaf.value[:-1] for leaf in walk(statement.expr) if leaf.kind == "attr"}
        for statement in tree.statements
    ]
    readers = Counter(path for paths in owners for path in paths)
    for statement, paths in zip(tree.statements, owners, strict=True):
        owner = min(paths, default=())
        part = tree.parts.get(owner)
        if (
            len(paths) != 1
            or not owner
            or part is None
            or part.children
            or owner in running
            or readers[owner] != 1
        ):
            continue
        found = _as_layer(tree, statement.expr)
        if found is not None and set(found.roles) == set(part.weights) and owner[:-1] == statement.scope:
            part.kind, part.make = "leaf", found.make
            statement.scope, statement.expr = owner, Expr("self", owner, (found.input,), ("",))


def _layers(tree: Tree) -> None:
    """Functional calls that are layers: a leaf where a path does nothing else, a base class where it does more."""
    own: dict[Path, list[Statement]] = {}
    for statement in tree.statements:
        own.setdefault(statement.scope, []).append(statement)
    for path, statements in own.items():
        part, runs = tree.parts[path], tree.runs[path]
        if part.kind == "leaf" or not path:
            continue
        roles = set(part.weights) - {"num_batches_tracked"}
        found = [(each, _as_layer(tree, _untied(each.expr, path, tree))) for each in statements]
        layers = [(each, layer) for each, layer in found if layer is not None and set(layer.roles) == roles]
        if not part.children and len(statements) == sum(high - low for low, high in runs) == len(runs):
            if len(layers) == len(statements) and len({layer.make for _, layer in layers}) == 1:
                part.kind, part.make = "leaf", layers[0][1].make
                for statement, layer in layers:
                    statement.expr = Expr("self", path, (layer.input,), ("",))
        elif layers and roles and len(runs) == 1:
            statement, layer = layers[0]
            if len(roles) == sum(leaf.kind == "attr" for each in statements for leaf in walk(each.expr)):
                part.base = layer.make
                statement.expr = call("super().forward", layer.input)


def _as_layer(tree: Tree, expr: Expr) -> Layered | None:
    first = next((leaf.value for leaf in walk(expr) if leaf.kind == "local"), None)
    rank = len(first.type.shape) if first is not None and first.type is not None else None
    return as_layer(expr, tree.weights, rank)


def _untied(expr: Expr, path: Path, tree: Tree) -> Expr:
    """Tied weights under the names of the module that runs: a graph knows a tensor by the first of its names."""

    def own(leaf: Expr) -> Expr | None:
        if leaf.kind == "attr" and leaf.value[:-1] != path and leaf.value in tree.weights:
            mine = tree.weights.get((*path, leaf.value[-1]))
            if mine is not None and mine.storage is tree.weights[leaf.value].storage:
                return Expr("attr", (*path, leaf.value[-1]))
        return None

    return change(expr, own)
